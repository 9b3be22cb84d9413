"""Finds steps that do to a copy of the params what another step does to the params.

Momentum, second moments and EMA copies repeat the mapping of the params leaf by leaf. A report
says so in one line for each copy instead of repeating the table.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from bridge._plan import Step
from legacy.leaves import LeafPath

__all__ = ["Mirror", "mirrors"]

MIN_MIRROR = 3

Place: TypeAlias = tuple[LeafPath, str, LeafPath, LeafPath]
"""Where a copy lies, its item, where it goes there, and where its original lies."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """A copy of part of the params, all of whose leaves are mapped as the params are.

    Attributes:
        source: where the copy lies in the source.
        item: the item that it goes to.
        slot: where it goes in that item.
        original: where the leaves it copies lie in the source.
        why: the reasons of its steps, each once.
        steps: the steps, in order.
    """

    source: LeafPath
    item: str
    slot: LeafPath
    original: LeafPath
    why: tuple[str, ...]
    steps: tuple[Step, ...]


def mirrors(steps: Sequence[Step]) -> list[Mirror]:
    """All copies of at least three steps' leaves among the steps.

    A step belongs to a copy when its sources and its slots all end like those of one step of the
    params, and its transforms are equal. A moment that is scaled, not cast or dropped where its
    parameter is not, is no copy.

    Args:
        steps: of a plan, in order.
    """
    first = {s.slots[0].item for s in steps[:1]}
    originals: dict[LeafPath, tuple[int, Step]] = {}
    for step in steps:
        if _items(step) == first:
            for n in range(len(step.sources[0])):
                originals.setdefault(step.sources[0][n:], (n, step))
    found: dict[Place, list[Step]] = defaultdict(list)
    for step in steps:
        if len(_items(step)) == 1 and _items(step) != first:
            place = _copied(step, originals)
            if place is not None:
                found[place].append(step)
    return [
        Mirror(*place, tuple(dict.fromkeys(s.why for s in copies)), tuple(copies))
        for place, copies in found.items()
        if len(copies) >= MIN_MIRROR
    ]


def _items(step: Step) -> set[str]:
    return {ref.item for ref in step.slots}


def _copied(step: Step, originals: dict[LeafPath, tuple[int, Step]]) -> Place | None:
    source = step.sources[0]
    for n in range(len(source) - 1):  # the last name alone ("bias") says nothing
        cut, original = originals.get(source[n:], (0, step))
        if original is step or original.transforms != step.transforms:
            continue
        before = _head(step.sources, tuple(p[cut:] for p in original.sources))
        head = _head([r.path for r in step.slots], tuple(r.path for r in original.slots))
        if before == source[:n] and head is not None:
            prefix = original.sources[0][:cut]
            if all(p[:cut] == prefix for p in original.sources):
                return before, step.slots[0].item, head, prefix
    return None


def _head(paths: Sequence[LeafPath], ends: Sequence[LeafPath]) -> LeafPath | None:
    """What all paths have before these ends; None unless they have the ends, and it is one."""
    if len(paths) != len(ends):
        return None
    heads = set()
    for path, end in zip(paths, ends, strict=True):
        cut = len(path) - len(end)
        if cut < 0 or path[cut:] != end:
            return None
        heads.add(path[:cut])
    return heads.pop() if len(heads) == 1 else None
