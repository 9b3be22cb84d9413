"""Where elements of leaves lie in slots.

A piece of a leaf that is a piece of a slot is a :class:`Walk`: loops with a stride in each. Pieces
that lie alike in both are put together again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bridge.dataflow_flow import Digit

__all__ = ["Shape", "Walk", "fused", "strides", "walk_of"]

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, order=True)
class Walk:
    """Elements of a leaf that are elements of a slot.

    Attributes:
        at: flat index of the first one in the leaf and in the slot.
        loops: for each loop its size, stride in the leaf, stride in the slot; none of size 1.
    """

    at: tuple[int, int]
    loops: tuple[tuple[int, int, int], ...]

    @property
    def size(self) -> int:
        """How many elements."""
        return math.prod(n for n, _, _ in self.loops)

    def back(self) -> Walk:
        """The same with leaf and slot exchanged."""
        loops = tuple(sorted(((n, b, a) for n, a, b in self.loops), key=lambda x: -x[1]))
        return Walk((self.at[1], self.at[0]), loops)


def strides(shape: Shape) -> list[int]:
    """How far apart elements along each axis lie."""
    return [math.prod(shape[k + 1 :]) for k in range(len(shape))]


def walk_of(
    pairs: Sequence[tuple[Digit, Digit]], fixed: tuple[Sequence[Digit], Sequence[Digit]],
    shapes: tuple[Shape, Shape],
) -> Walk:  # fmt: skip
    """The walk of one piece.

    Args:
        pairs: for each loop the digit of the leaf and of the slot.
        fixed: digits of which the piece has one value.
        shapes: of leaf and slot.
    """
    steps = [strides(s) for s in shapes]
    at = [0, 0]
    for side in (0, 1):
        starts = {
            (d.axis, d.stride, d.n, d.start) for d in (*(p[side] for p in pairs), *fixed[side])
        }
        at[side] = sum(start * stride * steps[side][axis] for axis, stride, _, start in starts)
    loops = [
        (a.count, a.stride * a.sub * steps[0][a.axis], b.stride * b.sub * steps[1][b.axis])
        for a, b in pairs if a.count != 1
    ]  # fmt: skip
    return Walk((at[0], at[1]), _merged(loops))


def _merged(loops: Sequence[tuple[int, int, int]]) -> tuple[tuple[int, int, int], ...]:
    """Loops, slowest in the leaf first, with those that are one loop in both as one."""
    out: list[tuple[int, int, int]] = []
    for n, a, b in sorted(loops, key=lambda x: -x[1]):
        if out and out[-1][1] == n * a and out[-1][2] == n * b:
            out[-1] = (out[-1][0] * n, a, b)
        else:
            out.append((n, a, b))
    return tuple(out)


def fused(walks: Sequence[Walk]) -> list[Walk]:
    """Walks of one leaf and slot, put together where they go on alike in both."""
    now = sorted(set(walks))
    while True:
        new = _stepped(_continued(now))
        if new == now:
            return now
        now = new


def _continued(walks: list[Walk]) -> list[Walk]:
    """Walks that go on where another ends, along one loop."""
    out: list[Walk] = []
    for walk in walks:
        for k, before in enumerate(out):
            one = _extended(before, walk)
            if one is not None:
                out[k] = one
                break
        else:
            out.append(walk)
    return sorted(out)


def _extended(first: Walk, second: Walk) -> Walk | None:
    if len(first.loops) != len(second.loops):
        return None
    differ = [k for k, (x, y) in enumerate(zip(first.loops, second.loops, strict=True)) if x != y]
    step = (second.at[0] - first.at[0], second.at[1] - first.at[1])
    for k in differ or range(len(first.loops)):
        (n, a, b), (m, c, d) = first.loops[k], second.loops[k]
        if len(differ) <= 1 and (a, b) == (c, d) and step == (n * a, n * b):
            loops = (*first.loops[:k], (n + m, a, b), *first.loops[k + 1 :])
            return Walk(first.at, _merged(loops))
    return None


def _stepped(walks: list[Walk]) -> list[Walk]:
    """Equal walks at equal distances, as one with a loop more."""
    by_loops: dict[tuple[tuple[int, int, int], ...], list[Walk]] = {}
    for walk in walks:
        by_loops.setdefault(walk.loops, []).append(walk)
    out: list[Walk] = []
    for loops, row in by_loops.items():
        k = 0
        while k < len(row):
            end = k + 1
            while end < len(row) and _step(row[k], row[end], end - k) == _step(row[k], row[k + 1]):
                end += 1
            a, b = _step(row[k], row[k + 1]) if end - k > 1 else (0, 0)
            if end - k > 1 and a > 0 and b > 0:
                out.append(Walk(row[k].at, _merged([*loops, (end - k, int(a), int(b))])))
                k = end
            else:
                out.append(row[k])
                k += 1
    return sorted(out)


def _step(first: Walk, other: Walk, steps: int = 1) -> tuple[float, float]:
    return (other.at[0] - first.at[0]) / steps, (other.at[1] - first.at[1]) / steps
