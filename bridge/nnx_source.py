"""Brings forward what is an NNX state already, or has nothing of Linen in it.

Attribute paths of a saved ``nnx.state`` are those of the model, but for the component that every
Variable adds (``value``; ``raw_value`` in flax 0.8.2 - 0.8.5), and its Variable types are not on
disk. So a leaf goes to the slot of its path, whatever the type; the target says which that is. A
tree without any collections (a pure dict of an NNX state, a bare params tree) is read alike.
Random streams of flax 0.8 - 0.10 lay elsewhere (``drop/rngs/dropout/key``); what becomes of them is
for the policy to say (:mod:`bridge.rngs`), and ``reseed`` continues those that did not move.
"""

from __future__ import annotations

from collections import defaultdict

from bridge.target import Slot
from bridge.work import Work
from legacy import LeafPath

__all__ = ["bring_forward", "is_stream", "plain_path"]

_TAILS = ("value", "raw_value")
_VALUES = ("array", "scalar", "key")


def plain_path(path: LeafPath) -> LeafPath:
    """A path without what a Variable adds.

    >>> plain_path(("block", "linear", "kernel", "raw_value"))
    ('block', 'linear', 'kernel')
    """
    return path[:-1] if len(path) > 1 and path[-1] in _TAILS else path


def is_stream(path: LeafPath) -> bool:
    """Whether a leaf of an NNX state is the key or the count of a random stream.

    >>> is_stream(("drop", "rngs", "dropout", "count", "value")), is_stream(("lin", "count"))
    (True, False)
    """
    plain = plain_path(path)
    return "rngs" in plain[-3:-1] and plain[-1] in ("key", "count")


def bring_forward(work: Work) -> None:
    """Map leaves to slots of their own path.

    Args:
        work: gets the steps, when its source is an NNX state or a tree without collections.
    """
    draft = work.draft
    bare = all(not s.params or not s.optimised for s in work.roles.states)
    if work.target is None or not (work.nnx or bare):
        return
    found: dict[LeafPath, list[LeafPath]] = defaultdict(list)
    for full, leaf in work.table.items():
        if leaf.kind in _VALUES and draft.open_source(full):
            plain = plain_path(full) if work.nnx else full
            for home in ((), plain[:1]):  # whole, or below an item or a filter of nnx.split
                found[plain[len(home) :]].append(full)
    pairs: dict[LeafPath, Slot] = {}
    models = {f.item for f in work.feeds}
    for slot in draft.slots.values():
        if not draft.open_slot(slot.ref) or (slot.collection == "rngs" and not _goes_on(work)):
            continue
        paths = found.get(slot.path, [])
        named = [p for p in paths if p[0] == slot.item and plain_path(p)[1:] == slot.path]
        chosen = named or (paths if len(models) <= 1 else [])
        if len(chosen) == 1 and chosen[0] not in pairs and _fits(work, chosen[0], slot):
            pairs[chosen[0]] = slot
    # a list of Linen may count otherwise than one of NNX: only what agrees as a whole is one tree
    every = {p for g in work.roles.of("params") for p in g.full()}
    if work.nnx or every <= pairs.keys():
        for path, slot in pairs.items():
            draft.add([path], [slot.ref], (), "path")


def _goes_on(work: Work) -> bool:
    return work.nnx and work.rngs == "reseed"


def _fits(work: Work, path: LeafPath, slot: Slot) -> bool:
    leaf = work.table[path]
    dtype = "" if leaf.dtype is None else leaf.dtype.name
    return (leaf.shape, dtype) == (slot.shape, slot.dtype)
