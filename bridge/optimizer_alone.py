"""Pairs parameters when the target is an optimizer without its model.

An optimizer's state names every parameter that it tracks, so the copies of the parameters under
its largest fields (``0/mu``) stand in for the parameters themselves.
"""

from __future__ import annotations

from collections.abc import Mapping

from bridge._plan import Step
from bridge.draft import Draft
from bridge.match import Candidate, match
from bridge.moments import Mapped
from bridge.optimizer_heads import Path, cut_all
from bridge.roles import PARAMS
from bridge.target import Slot, SlotPath, SlotRef
from legacy import LeafPath

__all__ = ["pair_parameters"]


def pair_parameters(
    draft: Draft,
    item: str,
    sources: Mapping[LeafPath, LeafPath],
    slots: Mapping[SlotPath, Slot],
    params: Mapped,
    wrapper: LeafPath,
) -> None:
    """Pair parameter names through the fields of the optimizer that hold most of them.

    Args:
        draft: for shapes; nothing is added to it.
        item: the item of the optimizer.
        sources: full path by path below the old optimizer state.
        slots: slot by path below ``opt_state``.
        params: the params of the checkpoint; gets a step for each pair, under the name that the
            parameter has in the optimizer.
        wrapper: see :func:`bridge.optimizer_heads.cut`.
    """
    heads, _ = cut_all(sources, params.sources, wrapper)
    for head in sorted(heads, key=lambda h: (-len(heads[h]), h)):
        theirs = _below(head, slots)
        left, right = [], []
        for rel, full in heads[head].items():
            leaf = draft.table[full]
            if leaf.dtype is not None:
                name = params.sources[rel]
                left.append(Candidate(rel, PARAMS, leaf.shape, leaf.dtype.name, name))
        for path, slot in theirs.items():
            right.append(Candidate(path, PARAMS, slot.shape, slot.dtype, SlotRef(item, path)))
        done = {p for s in params.steps for p in s.sources}
        known = params.slot_paths.keys()
        pairs = match(
            [c for c in left if c.key not in done], [c for c in right if c.key not in known]
        )
        params.steps += [Step((p.source,), (p.slot,), (), p.why) for p in pairs]
        params.slot_paths |= {p.slot: p.slot.path for p in pairs}


def _below(head: Path, slots: Mapping[SlotPath, Slot]) -> dict[SlotPath, Slot]:
    """Slots below a head; elsewhere in the chain when the field occurs once."""
    there = _fields(slots, head[-1])
    for found in (
        [h for h in there if h == head],
        [h for h in there if _names(h) == _names(head)],
        list(there),
    ):
        if len(found) == 1:
            return there[found[0]]
    return {}


def _fields(slots: Mapping[SlotPath, Slot], name: str) -> dict[Path, dict[SlotPath, Slot]]:
    found: dict[Path, dict[SlotPath, Slot]] = {}
    for path, slot in slots.items():
        if name in path[:-1]:
            n = path.index(name) + 1
            found.setdefault(path[:n], {})[path[n:]] = slot
    return found


def _names(head: Path) -> Path:
    return tuple(p for p in head if not p.isdigit())
