"""What a stored plan and today's have in common, slot by slot, in words for a failure.

A model that was refactored has other slots; what is gone and what is new is paired where shape and
type allow one reading, as a hint and no more: nothing is ever mapped by it.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from bridge._plan import Plan
from bridge._renames import pairs
from bridge.target import Slot, SlotRef, Target
from legacy import Leaf, format_path

__all__ = [
    "HOMELESS",
    "PlanChanges",
    "compare_plans",
    "compare_slots",
    "own_slots",
    "rename_hints",
]

HOMELESS = ("extras", "metadata")
"""Items of what has no home in a model, as :mod:`bridge.carry` names them."""

_LIKE = 0.34
"""How alike two names of one shape must be for a guess, as difflib measures it."""
_MOST = 40_000
"""Pairs of names of one shape that are measured; beyond that a guess would say nothing."""


@dataclass(frozen=True, slots=True)
class PlanChanges:
    """How today's plan differs from the stored one.

    Attributes:
        slots: the model's slots that are gone, new, or of another shape, dtype or type.
        mapping: slots that are fed otherwise, and leaves that are left behind otherwise.
        problems: what today's plan cannot settle.
        notes: what differs in the reasons alone.
    """

    slots: tuple[str, ...] = ()
    mapping: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def compare_plans(stored: Plan, today: Plan) -> PlanChanges:
    """Say how today's plan differs from the stored one."""
    slots, paired = compare_slots(own_slots(stored.target), own_slots(today.target))
    mapping, notes = _feeds_apart(stored, today, paired)
    more, ignored_notes = _ignored_apart(stored, today)
    problems = tuple(str(p) for p in today.problems)
    return PlanChanges(tuple(slots), (*mapping, *more), problems, (*notes, *ignored_notes))


def _feeds_apart(
    stored: Plan, today: Plan, paired: Mapping[SlotRef, SlotRef]
) -> tuple[list[str], list[str]]:
    """Slots that are fed otherwise; what follows from a slot that is gone needs no line."""
    was, now = dict(_feeds(stored)), dict(_feeds(today))
    slots = ({s.ref for s in own_slots(p.target).values()} for p in (stored, today))
    told = set.symmetric_difference(*slots) | set(paired) | set(paired.values())
    carried = _carried_elsewhere(was, now)
    told |= set(carried) | set(carried.values())
    mapping = [f"slot {text}" for text in _grouped(carried, "is carried to {new} today{group}")]
    notes: list[str] = []
    for ref in dict.fromkeys([*was, *now]):
        before, after = was.get(ref), now.get(ref)
        # a slot that today's plan leaves empty is one of its problems
        if before == after or ref in told or (after is None and not today.ok):
            continue
        if before and after and before.same(after):
            notes.append(f"slot {ref} is fed as before, now because of {after.why}, then of "
                         f"{before.why}")  # fmt: skip
        else:
            mapping.append(f"slot {ref}: {_fed(before)} in the stored plan, {_fed(after)} today")
    return mapping, notes


def _carried_elsewhere(
    was: Mapping[SlotRef, _Feed], now: Mapping[SlotRef, _Feed]
) -> dict[SlotRef, SlotRef]:
    """What has no home in the model, and got another name with what it follows."""
    new = {(feed.sources, feed.how, feed.nth): ref for ref, feed in now.items()
           if ref.item in HOMELESS and ref not in was}  # fmt: skip
    return {
        ref: new[feed.sources, feed.how, feed.nth]
        for ref, feed in was.items()
        if ref.item in HOMELESS and ref not in now and (feed.sources, feed.how, feed.nth) in new
    }


def _ignored_apart(stored: Plan, today: Plan) -> tuple[list[str], list[str]]:
    """Leaves that only one of the plans leaves behind, and that no slot has said."""
    was = {i.path: i.rule for i in stored.ignored}
    now = {i.path: i.rule for i in today.ignored}
    fed = {p for plan in (stored, today) for s in plan.steps for p in s.sources}
    mapping: list[str] = []
    notes: list[str] = []
    for path in dict.fromkeys([*was, *now]):
        a, b = was.get(path), now.get(path)
        if a and b and a != b:
            notes.append(f"leaf {format_path(path)} is left behind by {b}, then by {a}")
        elif a != b and path not in fed and today.ok:
            mapping.append(f"leaf {format_path(path)}: {_left(a)} in the stored plan, {_left(b)} "
                           "today")  # fmt: skip
    return mapping, notes


def _left(rule: str | None) -> str:
    return "in use" if rule is None else f"left behind by {rule}"


@dataclass(frozen=True, slots=True)
class _Feed:
    sources: tuple[Any, ...]
    how: str
    nth: int
    why: str

    def same(self, other: _Feed) -> bool:
        return (self.sources, self.how, self.nth) == (other.sources, other.how, other.nth)

    def __str__(self) -> str:
        if not self.sources:
            return f"{self.how} ({self.why})"
        told = " + ".join(format_path(p) for p in self.sources)
        return f"from {told}{f' by {self.how}' if self.how else ''} ({self.why})"


def _fed(feed: _Feed | None) -> str:
    return "nothing" if feed is None else str(feed)


def _feeds(plan: Plan) -> Iterator[tuple[SlotRef, _Feed]]:
    for step in plan.steps:
        how = ", ".join(str(t.to_json()) for t in step.transforms)
        for n, ref in enumerate(step.slots):
            yield ref, _Feed(step.sources, how, n if len(step.slots) > 1 else 0, step.why)
    for init in plan.initialised:
        yield init.slot, _Feed((), f"initialised by {init.how}", 0, init.rule)


def own_slots(target: Target) -> dict[SlotRef, Slot]:
    """The slots that the model asks for; what is carried follows from the source."""
    if target.structural:
        return {}
    return {s.ref: s for s in target.slots if s.item not in HOMELESS}


def compare_slots(
    was: Mapping[SlotRef, Slot], now: Mapping[SlotRef, Slot]
) -> tuple[list[str], dict[SlotRef, SlotRef]]:
    """Compare the slots of two targets.

    Returns:
        Sentences, and which gone slot may be which new one.
    """
    gone = {ref: slot for ref, slot in was.items() if ref not in now}
    new = {ref: slot for ref, slot in now.items() if ref not in was}
    paired = rename_hints(gone, new)
    lines = [*_changed(was, now), *_renamed(paired)]
    lines += [f"slot {ref} is gone ({_words(s)})" for ref, s in gone.items() if ref not in paired]
    known = set(paired.values())
    lines += [f"slot {ref} is new ({_words(s)})" for ref, s in new.items() if ref not in known]
    return lines, paired


def _changed(was: Mapping[SlotRef, Slot], now: Mapping[SlotRef, Slot]) -> Iterator[str]:
    for ref, slot in was.items():
        other = now.get(ref)
        if other is not None and _kind(slot) != _kind(other):
            yield f"slot {ref} is {_words(other)}, and was {_words(slot)}"


def _renamed(paired: Mapping[SlotRef, SlotRef]) -> Iterator[str]:
    said = "is gone, {new} is new, same shape: rename?{group}"
    return (f"slot {text}" for text in _grouped(paired, said))


def _grouped(paired: Mapping[SlotRef, SlotRef], said: str) -> Iterator[str]:
    """One line for each renaming, however many slots have it."""
    groups: dict[tuple[str, str], list[tuple[SlotRef, SlotRef]]] = defaultdict(list)
    for old, new in paired.items():
        groups[_renaming(old, new)].append((old, new))
    for (before, after), members in groups.items():
        old, new = members[0]
        group = f" ({len(members):,} slots, all {before} → {after})" if len(members) > 1 else ""
        yield f"{old} {said.format(new=new, group=group)}"


def _renaming(old: SlotRef, new: SlotRef) -> tuple[str, str]:
    """The parts of the paths that differ, without numbers of blocks before and leaves after."""
    a, b = list(old.path), list(new.path)
    while a and b and a[0] == b[0]:
        a, b = a[1:], b[1:]
    while len(a) > 1 and len(b) > 1 and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    return format_path(tuple(a)), format_path(tuple(b))


def rename_hints(
    gone: Mapping[SlotRef, Slot], new: Mapping[SlotRef, Slot]
) -> dict[SlotRef, SlotRef]:
    """Guess which gone slot is which new one, by type, shape, dtype and the nearest name."""
    left = {(r.item, r.path): _leaf(s) for r, s in gone.items()}
    right = {(r.item, r.path): _leaf(s) for r, s in new.items()}
    certain = pairs(left, right)
    found = {SlotRef(*a): SlotRef(*b) for a, b in certain}
    taken = set(found.values())
    groups: dict[Hashable, tuple[list[SlotRef], list[SlotRef]]] = defaultdict(lambda: ([], []))
    for ref, slot in gone.items():
        if ref not in found:
            groups[ref.item, _kind(slot)][0].append(ref)
    for ref, slot in new.items():
        if ref not in taken:
            groups[ref.item, _kind(slot)][1].append(ref)
    for olds, news in groups.values():
        found |= _nearest(olds, news)
    return found


def _nearest(olds: list[SlotRef], news: list[SlotRef]) -> dict[SlotRef, SlotRef]:
    if len(olds) * len(news) > _MOST:
        return {}
    scored = sorted(
        ((-_alike(a, b), n, m, a, b) for n, a in enumerate(olds) for m, b in enumerate(news)),
        key=lambda row: row[:3],
    )
    found: dict[SlotRef, SlotRef] = {}
    taken: set[SlotRef] = set()
    for score, _, _, a, b in scored:
        if -score >= _LIKE and a not in found and b not in taken:
            found[a] = b
            taken.add(b)
    return found


def _alike(a: SlotRef, b: SlotRef) -> float:
    return difflib.SequenceMatcher(None, "/".join(a.path), "/".join(b.path)).ratio()


def _kind(slot: Slot) -> Hashable:
    return slot.variable_type, slot.shape, slot.dtype, slot.key_impl


def _leaf(slot: Slot) -> Leaf:
    dtype = np.dtype(getattr(ml_dtypes, slot.dtype, slot.dtype))
    return Leaf(slot.path, "array", slot.shape, dtype, container=slot.variable_type,
                key_impl=slot.key_impl)  # fmt: skip


def _words(slot: Slot) -> str:
    return f"{slot.variable_type} {slot.dtype} {slot.shape}"
