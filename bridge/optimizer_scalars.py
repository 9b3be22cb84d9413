"""Pairs what belongs to no parameter: counts, flags, hyperparameters, short vectors.

A count means something by its place only. It goes with the arrays beside it; where it stands
alone, its path must be the same on both sides, or it must be the only one of its name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from bridge.draft import Draft
from bridge.names import is_index
from bridge.optimizer_heads import Path, field_of, only
from bridge.target import Slot, SlotPath
from bridge.transforms import Transform
from legacy import LeafPath, format_path

__all__ = ["LOOKAHEAD", "SINCE_SYNC", "pair_scalars"]

_COUNT = "count"
_STATES = "hyperparams_states"
SINCE_SYNC = "steps_since_sync"
LOOKAHEAD = (
    "the checkpoint was trained with optax.lookahead, which nnx.Optimizer cannot run: the model "
    "gets the fast params, the optimizer the state of the fast optimizer, and the slow params stay "
    "in extras"
)
_ONE_LATER = (
    ". inject_hyperparams of optax up to 0.1.4 was one step ahead: its next learning rate was that "
    "of count + 1"
)


def pair_scalars(
    draft: Draft,
    ours: Mapping[LeafPath, LeafPath],
    theirs: Mapping[SlotPath, Slot],
    homes: Mapping[Path, Path],
    transforms: Mapping[LeafPath, tuple[Transform, ...]],
    arrays: tuple[frozenset[Path], frozenset[Path]],
) -> None:
    """Counts and other values that belong to no parameter.

    First those in a state whose arrays are paired, then those at the same path in a state
    that no other one was paired with, then the only ones of a name.

    Args:
        draft: gets the steps.
        ours: full path by path below the optimizer state.
        theirs: slot by path below ``opt_state``.
        homes: which state became which one.
        transforms: what is done to a leaf, by full path.
        arrays: the states that hold arrays of parameters, on both sides.
    """
    pairing = _Pairing(draft, ours, theirs, transforms)
    for path in pairing.left()[0]:
        to = (*homes.get(path[:-1], ("",)), path[-1])
        if to in theirs and draft.open_slot(theirs[to].ref):
            pairing.add(path, to)
    pairing.by_path({*homes, *homes.values()})
    pairing.by_name()
    sources, slots = pairing.left()
    lone = [p for p in sources if _alone(p, {*ours, *arrays[0]})]
    wanted = [p for p in slots if _alone(p, {*theirs, *arrays[1]})]
    if lone and not any(p[-1] == _COUNT for p in slots):
        _no_schedule(draft, [ours[p] for p in lone])
    elif wanted and not any(p[-1] == _COUNT for p in sources):
        _new_schedules(draft, theirs, pairing.fed, wanted)
    fast = any("fast_state" in p for p in (*ours, *arrays[0]))  # optax.sam counts syncs, too
    for path in sources:
        if fast and path[-1] == SINCE_SYNC:
            draft.ignore(ours[path], "lookahead")
            draft.notes.append(LOOKAHEAD)


class _Pairing:
    """What is open on both sides, and what was paired."""

    def __init__(
        self,
        draft: Draft,
        ours: Mapping[LeafPath, LeafPath],
        theirs: Mapping[SlotPath, Slot],
        transforms: Mapping[LeafPath, tuple[Transform, ...]],
    ) -> None:
        self.draft = draft
        self.ours = ours
        self.theirs = theirs
        self.transforms = transforms
        self.fed: dict[SlotPath, LeafPath] = {}

    def left(self) -> tuple[list[LeafPath], list[SlotPath]]:
        return (
            [p for p, full in self.ours.items() if self.draft.open_source(full)],
            [p for p, slot in self.theirs.items() if self.draft.open_slot(slot.ref)],
        )

    def add(self, path: LeafPath, to: SlotPath) -> None:
        full, slot = self.ours[path], self.theirs[to]
        why = "path" if slot.path[1:] == path else "unique"
        self.draft.add([full], [slot.ref], self.transforms.get(full, ()), why)
        self.fed[to] = full

    def by_path(self, known: set[Path]) -> None:
        """What is at the same place, outside of states that are known to be others."""
        sources, slots = self.left()
        alike = _moved(sources, slots)
        for path in sources:
            if path in slots and path[:-1] not in known and field_of(path) not in alike:
                self.add(path, path)

    def by_name(self) -> None:
        """The only ones of a name; but the only `0` of two lists proves nothing."""
        sources, slots = self.left()
        a = only(dict.fromkeys(sources, frozenset()), lambda p, _: p[-1:])
        b = only(dict.fromkeys(slots, frozenset()), lambda p, _: p[-1:])
        for name in a:
            if name in b and not is_index(a[name][-1]):
                self.add(a[name], b[name])


def _moved(sources: Iterable[LeafPath], slots: Iterable[SlotPath]) -> set[Path]:
    """Fields that occur at other places on both sides: there a path proves nothing."""
    a: dict[Path, set[Path]] = defaultdict(set)
    b: dict[Path, set[Path]] = defaultdict(set)
    for path in sources:
        a[field_of(path)].add(path)
    for path in slots:
        b[field_of(path)].add(path)
    return {f for f in a.keys() & b.keys() if not (a[f] <= b[f] or b[f] <= a[f])}


def _no_schedule(draft: Draft, counts: list[LeafPath]) -> None:
    """A learning rate on a schedule has a count of its own; a constant one has no state."""
    for path in counts:
        draft.ignore(path, "schedule-count")
        draft.notes.append(
            f"{format_path(path)} counts the steps of a schedule, and the new optimizer has none "
            "there: is its learning rate right?"
        )


def _new_schedules(
    draft: Draft,
    theirs: Mapping[SlotPath, Slot],
    fed: Mapping[SlotPath, LeafPath],
    wanted: list[SlotPath],
) -> None:
    """A schedule counts the updates of its chain, as every other count in that chain does."""
    for to in wanted:
        # the other counts of its chain; that of the inject_hyperparams that it is in
        chain = to[:-3] if to[-3:-2] == (_STATES,) else to[:-2]
        depth = len(chain) + (1 if to[-3:-2] == (_STATES,) else 2)
        beside = {
            full
            for o, full in fed.items()
            if o[-1] == _COUNT and o[: len(chain)] == chain and len(o) == depth
        }
        if len(beside) == 1:
            (full,) = beside
            ref = theirs[to].ref
            draft.add([full], [ref], (), "rule:schedule-count")
            draft.notes.append(
                f"{ref} counts the steps of a schedule that the checkpoint does not have; it goes "
                f"on at {format_path(full)}. To start the schedule anew, initialise it"
                + (_ONE_LATER if _STATES in to else "")
            )


def _alone(path: Path, others: Iterable[Path]) -> bool:
    """Whether a count is all that its state holds, as that of ``scale_by_schedule`` is."""
    home = path[:-1]
    beside = any(p != path and p[: len(home)] == home for p in others)
    place = bool(home) and (is_index(home[-1]) or home[-2:-1] == (_STATES,))
    return path[-1] == _COUNT and place and not beside
