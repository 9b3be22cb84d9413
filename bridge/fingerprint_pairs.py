"""Turns matched pieces into pairings with transforms, each checked on numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from bridge.errors import TransformError
from bridge.fingerprint_readings import Path, Reading
from bridge.proof import Pairing
from bridge.transforms import (
    Each,
    Join,
    Permute,
    Reshape,
    Split,
    Stack,
    Transform,
    Transpose,
    Unstack,
    apply_all,
)

__all__ = ["Piece", "pairings"]

Array: TypeAlias = np.ndarray[Any, Any]
Shape: TypeAlias = tuple[int, ...]
Piece: TypeAlias = tuple[Path, int]
Steps: TypeAlias = tuple[Transform, ...]


def pairings(
    partners: Mapping[Piece, Piece],
    ours: Mapping[Path, tuple[Shape, Reading]],
    theirs: Mapping[Path, tuple[Shape, Reading]],
) -> tuple[list[Pairing], list[Path]]:
    """Pairings of all leaves whose pieces are all matched.

    Args:
        partners: the piece of a slot by the piece of a Linen leaf.
        ours: shape and reading of the Linen leaves that have a reading.
        theirs: those of the slots.

    Returns:
        The pairings, and the Linen leaves of groups that no transforms are known for.
    """
    back = {b: a for a, b in partners.items()}
    done: set[Path] = set()
    made: list[Pairing] = []
    lost: list[Path] = []
    for path in ours:
        if path in done:
            continue
        sources, slots = _group(path, partners, back, ours, theirs)
        done |= set(sources)
        full = all((p, n) in partners for p in sources for n in range(ours[p][1].count))
        full = full and all((p, n) in back for p in slots for n in range(theirs[p][1].count))
        if not full or not slots:
            continue
        pairing = _pairing(sources, slots, partners, back, ours, theirs)
        if pairing is None:
            lost += sources
        else:
            made.append(pairing)
    return made, lost


def _group(
    path: Path,
    partners: Mapping[Piece, Piece],
    back: Mapping[Piece, Piece],
    ours: Mapping[Path, tuple[Shape, Reading]],
    theirs: Mapping[Path, tuple[Shape, Reading]],
) -> tuple[list[Path], list[Path]]:
    """The leaves and slots that hang together, in the order of their pieces."""
    sources, slots = {path: None}, dict[Path, None]()
    while True:
        more = [partners[p, n][0] for p in sources for n in range(ours[p][1].count)
                if (p, n) in partners]  # fmt: skip
        slots = dict.fromkeys([*slots, *more])
        less = [back[p, n][0] for p in slots for n in range(theirs[p][1].count) if (p, n) in back]
        if set(less) <= set(sources):
            break
        sources = dict.fromkeys([*sources, *less])
    if slots:
        slot = next(iter(slots))
        ordered = [back[slot, n][0] for n in range(theirs[slot][1].count) if (slot, n) in back]
        sources = dict.fromkeys([*ordered, *sources])
    return list(sources), list(slots)


def _pairing(
    sources: Sequence[Path],
    slots: Sequence[Path],
    partners: Mapping[Piece, Piece],
    back: Mapping[Piece, Piece],
    ours: Mapping[Path, tuple[Shape, Reading]],
    theirs: Mapping[Path, tuple[Shape, Reading]],
) -> Pairing | None:
    numbers: dict[Piece, Array] = {}
    start = 0
    for p in sources:
        shape, reading = ours[p]
        size = math.prod(shape) // reading.count
        for n in range(reading.count):
            numbers[p, n] = np.arange(start, start + size)
            start += size

    def built(
        path: Path, pieces: list[Piece], table: Mapping[Path, tuple[Shape, Reading]]
    ) -> Array:
        shape, reading = table[path]
        return reading.built([numbers[x] for x in pieces], shape)

    given = [built(p, [(p, n) for n in range(ours[p][1].count)], ours) for p in sources]
    wanted = [built(p, [back[p, n] for n in range(theirs[p][1].count)], theirs) for p in slots]
    if len(sources) == 1 and len(slots) == 1:
        order = [partners[sources[0], n][1] for n in range(ours[sources[0]][1].count)]
        ways = _one(ours[sources[0]], theirs[slots[0]], order)
    elif len(slots) == 1:
        ways = _joined([ours[p] for p in sources], theirs[slots[0]])
    elif len(sources) == 1:
        ways = _parted(ours[sources[0]], [theirs[p] for p in slots])
    else:
        ways = _many([ours[p] for p in sources], [theirs[p] for p in slots])
    for steps in ways:
        try:
            result = apply_all(steps, given)
        except TransformError:
            continue
        if len(result) == len(wanted) and all(map(np.array_equal, result, wanted)):
            return Pairing(tuple(sources), tuple(slots), steps)
    return None


def _shaped(shape: Shape, axes: Shape) -> Steps:
    """From any array to a shape whose axes, reordered, are the array."""
    if not axes:
        return (Reshape(shape),)
    back = tuple(axes.index(i) for i in range(len(axes)))
    return (Reshape(tuple(shape[a] for a in axes)), Transpose(back))


def _one(
    ours: tuple[Shape, Reading], theirs: tuple[Shape, Reading], order: list[int]
) -> Iterator[Steps]:
    yield ()
    shape, reading = ours
    slot, other = theirs
    yield (Reshape(slot),)
    first: Steps = (Transpose(reading.axes),) if reading.axes else ()
    last = _shaped(slot, other.axes)
    if other.axes:
        yield (*first, *last[1:])
    yield (*first, *last)
    if reading.count > 1:
        into = order.index
        moved = tuple(into(n) for n in range(len(order)))
        size = math.prod(shape)
        turn: Steps = () if list(moved) == sorted(moved) else (Permute(1, moved),)
        outer, _, inner = other.grid(size)
        whole = (*first, Reshape(reading.grid(size)), *turn, Unstack(1))
        yield (*whole, Reshape((outer, inner)), Stack(1), *last)


def _joined(ours: list[tuple[Shape, Reading]], slot: tuple[Shape, Reading]) -> Iterator[Steps]:
    shape, reading = slot
    dims = len(ours[0][0])
    last = _shaped(shape, reading.axes)
    for axis in range(dims):
        yield (Join(axis),)
    for axis in range(dims + 1):
        yield (Stack(axis),)
    for axis in range(dims):
        yield (Join(axis), Reshape(shape))
    for axis in range(dims + 1):
        yield (Stack(axis), Reshape(shape))
    if reading.axes:
        for axis in range(dims + 1):
            yield (Stack(axis), *last[1:])
    outer, _, inner = reading.grid(math.prod(shape))
    yield (Reshape((outer, inner)), Stack(1), *last)


def _parted(source: tuple[Shape, Reading], slots: list[tuple[Shape, Reading]]) -> Iterator[Steps]:
    shape, reading = source
    first: Steps = (Transpose(reading.axes),) if reading.axes else ()
    ends = [_shaped(s, r.axes) for s, r in slots]
    cuts: list[Transform] = [Unstack(axis) for axis in range(len(shape))]
    cuts += [
        Split(axis, (n // reading.count,) * reading.count)
        for axis, n in enumerate(shape)
        if n % reading.count == 0
    ]
    yield from ((*first, cut) for cut in cuts)
    whole: Steps = (*first, Reshape(reading.grid(math.prod(shape))), Unstack(1))
    if len(set(ends)) == 1:
        yield from ((*first, cut, *end) for cut in cuts for end in (ends[0][1:], ends[0]))
        yield (*whole, *ends[0])
        return
    steps = [Each(tuple(e[0] for e in ends))]
    if any(len(e) > 1 for e in ends):
        turned = [e[1] if len(e) > 1 else Transpose(tuple(range(len(s))))
                  for e, (s, _) in zip(ends, slots, strict=True)]  # fmt: skip
        steps.append(Each(tuple(turned)))
    yield (*whole, *steps)


def _many(ours: list[tuple[Shape, Reading]], slots: list[tuple[Shape, Reading]]) -> Iterator[Steps]:
    """Several stacks that make several fused leaves, or the other way round."""
    if len({*ours}) > 1 or len({*slots}) > 1:
        return
    (shape, reading), (slot, other) = ours[0], slots[0]
    first: Steps = (Transpose(reading.axes),) if reading.axes else ()
    grid = reading.grid(math.prod(shape))
    outer, count, inner = other.grid(math.prod(slot))
    # (sources, outer, pieces, inner) → (slots, pieces of a slot, piece)
    if reading.count == len(slots) and count == len(ours):
        yield (
            *first, Reshape(grid), Stack(0), Transpose((2, 0, 1, 3)),
            Reshape((len(slots), count, outer, inner)), Transpose((0, 2, 1, 3)), Unstack(0),
            *_shaped(slot, other.axes),
        )  # fmt: skip
