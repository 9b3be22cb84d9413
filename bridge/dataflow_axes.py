"""Axes as numbers in mixed radix, cut into digits only where some reshape needs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = [
    "BROADCAST",
    "Dim",
    "Entry",
    "Uneven",
    "atoms",
    "loop",
    "size_of",
    "span",
    "split",
    "spread",
    "unify",
]

BROADCAST = -1
"""The axis number of an entry that shows no axis of the node."""


class Uneven(Exception):
    """Two ways to cut an axis that do not nest, such as 6 = 2 * 3 and 6 = 3 * 2."""


class Dim:
    """The size of an axis and how it is cut; parts go from the slowest to the fastest."""

    __slots__ = ("parts", "same", "size")

    def __init__(self, size: int, parts: tuple[Dim, ...] = ()) -> None:
        self.size = size
        self.parts = parts
        self.same: Dim | None = None

    def root(self) -> Dim:
        """The one of all axes that run along with this one."""
        top = self
        while top.same is not None:
            top = top.same
        now = self
        while now.same is not None:
            now.same, now = (top, now.same)
        return top


def atoms(dim: Dim) -> list[Dim]:
    """The pieces that an axis is cut into, as roots."""
    top = dim.root()
    return [a for part in top.parts for a in atoms(part)] if top.parts else [top]


def _cut(dim: Dim, low: int) -> None:
    """Cut an axis so that its last part has ``low`` elements."""
    top = dim.root()
    if low in (1, top.size):
        return
    if not top.parts:
        if top.size % low:
            raise Uneven
        top.parts = (Dim(top.size // low), Dim(low))
        return
    stride = 1
    for part in reversed(top.parts):
        if low < stride * part.size:
            if low % stride:
                raise Uneven
            _cut(part, low // stride)
            return
        stride *= part.size


class Entry(NamedTuple):
    """Digits of an axis of a node: ``n`` values at ``stride``; of no axis if it is broadcast."""

    slot: int
    dim: Dim
    stride: int
    n: int


def span(dim: Dim, stride: int, n: int) -> list[Dim]:
    """The atoms of the digits; cuts the axis where they begin and end."""
    _cut(dim, stride)
    _cut(dim, stride * n)
    found, at = [], 1
    for atom in reversed(atoms(dim)):
        if stride <= at < stride * n:
            found.append(atom)
        at *= atom.size
    return found[::-1]


def loop(dim: Dim, stride: int, n: int) -> Dim:
    """An axis of its own that is cut like these digits."""
    found = span(dim, stride, n)
    return found[0] if len(found) == 1 else Dim(n, tuple(found))


def split(entries: Sequence[Entry]) -> list[tuple[Entry, Dim]]:
    """Entries cut into atoms."""
    out = []
    for slot, dim, stride, n in entries:
        at = stride * n
        for atom in span(dim, stride, n):
            at //= atom.size
            out.append((Entry(slot, dim, at, atom.size), atom))
    return out


def unify(first: Sequence[Entry], second: Sequence[Entry]) -> None:
    """Cut two axes alike from now on."""
    left, right = ([a for _, a in split(e)] for e in (first, second))
    while left and right:
        a, b = left.pop().root(), right.pop().root()
        if a.size < b.size:
            a, b, left, right = b, a, right, left
        if a.size > b.size:  # the larger one gives its fastest digit
            _cut(a, b.size)
            left.append(a.parts[0])
            a = a.parts[1].root()
        if a is not b:
            a.same = b


def size_of(entries: Sequence[Entry]) -> int:
    """Elements along an axis."""
    n = 1
    for e in entries:
        n *= e.n
    return n


def spread(n: int) -> tuple[Entry, ...]:
    """An axis along which a value repeats."""
    return (Entry(BROADCAST, Dim(n), 1, n),) if n != 1 else ()
