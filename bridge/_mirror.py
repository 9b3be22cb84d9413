"""Finds steps that do to a copy of the params what another step does to the params.

Momentum, second moments and EMA copies repeat the mapping of the params leaf by leaf. A report
says so in one line for each copy instead of repeating the table.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from bridge._plan import Step
from legacy.leaves import LeafPath

__all__ = ["Mirror", "mirrors"]

MIN_MIRROR = 3


@dataclass(frozen=True, slots=True)
class Mirror:
    """A copy of part of the params, all of whose leaves are mapped as the params are.

    Attributes:
        source: where the copy lies in the source.
        item: the item that it goes to.
        slot: where it goes in that item.
        original: where the leaves it copies lie in the source.
        why: the reason of all its steps.
        steps: the steps, in order.
    """

    source: LeafPath
    item: str
    slot: LeafPath
    original: LeafPath
    why: str
    steps: tuple[Step, ...]


def mirrors(steps: Sequence[Step]) -> list[Mirror]:
    """All copies of at least three leaves among the steps.

    A step belongs to a copy when its source and its slot both end like those of one earlier step,
    and its transforms are equal.

    Args:
        steps: of a plan, in order.
    """
    first = {s.slots[0].item for s in steps[:1]}
    originals: dict[LeafPath, tuple[LeafPath, Step]] = {}
    for step in steps:
        if _single(step) and step.slots[0].item in first:
            for n in range(len(step.sources[0])):
                originals.setdefault(step.sources[0][n:], (step.sources[0][:n], step))
    found: dict[tuple[LeafPath, str, LeafPath, LeafPath, str], list[Step]] = defaultdict(list)
    for step in steps:
        if _single(step) and step.slots[0].item not in first:
            key = _copied(step, originals)
            if key is not None:
                found[key].append(step)
    return [Mirror(*key, tuple(v)) for key, v in found.items() if len(v) >= MIN_MIRROR]


def _single(step: Step) -> bool:
    return len(step.sources) == len(step.slots) == 1


def _copied(
    step: Step, originals: dict[LeafPath, tuple[LeafPath, Step]]
) -> tuple[LeafPath, str, LeafPath, LeafPath, str] | None:
    source, slot = step.sources[0], step.slots[0]
    for n in range(len(source) - 1):  # the last name alone ("bias") says nothing
        prefix, original = originals.get(source[n:], ((), None))
        if original is None:
            continue
        end = original.slots[0].path
        if slot.path[-len(end) :] == end and step.transforms == original.transforms:
            return source[:n], slot.item, slot.path[: -len(end)], prefix, step.why
    return None
