"""How the elements of a leaf of one model may lie in leaves of the other.

One reading takes a leaf apart into pieces, each of which is a whole leaf (or a piece of one) on
the other side: a stack of layers, fused gates, a fused query-key-value kernel, or simply the leaf
itself with its axes in another order. In C order all of these are one thing: the leaf as
``(outer, pieces, inner)``, cut along the middle.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

__all__ = ["WHOLE", "Leaves", "Reading", "options"]

Shape: TypeAlias = tuple[int, ...]
Path: TypeAlias = tuple[str, ...]
Key: TypeAlias = tuple[str, int]
Leaves: TypeAlias = Mapping[Path, Shape]
Array: TypeAlias = np.ndarray[Any, Any]

_MOST_AXES = 5
"""All orders of more axes are not tried."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to take a leaf apart.

    Attributes:
        axes: the order of axes in which the other model has it; empty for its own.
        count: how many pieces it has.
        inner: how many neighbouring elements stay together; unused for one piece.
    """

    axes: Shape = ()
    count: int = 1
    inner: int = 0

    def ordered(self, array: Array) -> Array:
        """The leaf with its axes in the other model's order."""
        return array.transpose(self.axes) if self.axes else array

    def grid(self, size: int) -> Shape:
        """The leaf as (outer, pieces, inner)."""
        inner = self.inner if self.count > 1 else size
        return size // (self.count * inner) if inner else 0, self.count, inner

    def pieces(self, array: Array) -> list[Array]:
        """Its pieces, flat.

        >>> [p.tolist() for p in Reading((), 2, 1).pieces(np.arange(4))]
        [[0, 2], [1, 3]]
        """
        flat = self.ordered(array).reshape(-1)
        if self.count == 1:
            return [flat]
        grid = flat.reshape(self.grid(flat.size))
        return [grid[:, j, :].reshape(-1) for j in range(self.count)]

    def built(self, pieces: Sequence[Array], shape: Shape) -> Array:
        """The leaf from its pieces.

        >>> Reading((1, 0)).built([np.arange(6)], (3, 2)).tolist()
        [[0, 3], [1, 4], [2, 5]]
        """
        if self.count == 1:
            flat = pieces[0]
        else:
            outer, count, inner = self.grid(math.prod(shape))
            grid = np.empty((outer, count, inner), pieces[0].dtype)
            for j, piece in enumerate(pieces):
                grid[:, j, :] = piece.reshape(outer, inner)
            flat = grid.reshape(-1)
        if not self.axes:
            return flat.reshape(shape)
        back = tuple(self.axes.index(i) for i in range(len(self.axes)))
        return flat.reshape(tuple(shape[a] for a in self.axes)).transpose(back)


WHOLE = Reading()


def options(
    linen: Leaves,
    nnx: Leaves,
    role: Callable[[Path], str] = lambda _: "",
    *,
    orders: bool = False,
    everything: bool = False,
) -> tuple[dict[Path, tuple[Reading, ...]], dict[Path, tuple[Reading, ...]]]:
    """The readings of each leaf that are worth a look.

    Args:
        linen: shapes of the leaves that are open, by path.
        nnx: those of the slots.
        role: what a leaf is by its name; leaves of other roles are not counted as partners.
        orders: also orders of axes that are not forced by the shapes.
        everything: also the less likely cuts.

    Returns:
        Readings by path for both sides, at least one for each leaf.

    >>> ours, theirs = options({("q",): (4, 2), ("k",): (4, 2)}, {("qk",): (4, 4)})
    >>> theirs[("qk",)], ours[("q",)] == (WHOLE,)
    ((Reading(axes=(), count=2, inner=2),), True)
    """
    ours = _cuts(linen, nnx, role, everything=everything, orders=False)
    theirs = _cuts(nnx, linen, role, everything=everything, orders=orders)
    targets: dict[Key, set[Shape]] = {}
    for path, shape in linen.items():
        targets.setdefault((role(path), math.prod(shape)), set()).add(shape)
        for reading in ours.get(path, ()):
            for rest in _rests(shape, reading):
                targets.setdefault((role(path), math.prod(rest)), set()).add(rest)
    made_linen, made_nnx = _made(linen, ours, role), _made(nnx, theirs, role)
    result_linen, result_nnx = {}, {}
    shapes_nnx, shapes_linen = ({(role(p), s) for p, s in x.items()} for x in (nnx, linen))
    for path, shape in linen.items():
        known = path not in ours or (role(path), shape) in shapes_nnx
        if everything:
            known = known or (role(path), math.prod(shape)) in made_nnx
        whole = (WHOLE,) if known else ()
        result_linen[path] = _distinct(shape, (*whole, *ours.get(path, ())))
    for path, shape in nnx.items():
        key = role(path), math.prod(shape)
        found = targets.get(key) or {s for k, v in targets.items() if k[1] == key[1] for s in v}
        known = path not in theirs or (role(path), shape) in shapes_linen
        known = known or (everything and key in made_linen)
        orders_of = tuple(_orders(shape, found, every=orders)) if known else ()
        result_nnx[path] = _distinct(shape, (*orders_of, *theirs.get(path, ())))
    return result_linen, result_nnx


def _made(
    leaves: Leaves, cuts: Mapping[Path, Sequence[Reading]], role: Callable[[Path], str]
) -> set[Key]:
    """Roles and sizes of leaves and of pieces of leaves."""
    whole = {(role(p), math.prod(s)) for p, s in leaves.items()}
    return whole | {
        (role(p), math.prod(leaves[p]) // r.count) for p, rs in cuts.items() for r in rs
    }


def _orders(shape: Shape, targets: set[Shape], *, every: bool) -> Iterator[Reading]:
    if len(shape) > _MOST_AXES or (shape in targets and not every):
        yield WHOLE
        return
    found = False
    for axes in itertools.permutations(range(len(shape))):
        if tuple(shape[a] for a in axes) in targets:
            found = True
            yield Reading(axes if axes != tuple(range(len(shape))) else ())
    if not found:
        yield WHOLE


def _distinct(shape: Shape, readings: Iterable[Reading]) -> tuple[Reading, ...]:
    """Without those that say the same of this shape."""
    seen: dict[Any, Reading] = {}
    for reading in readings:
        real = [a for a in reading.axes if shape[a] != 1]
        key = (tuple(real) if real != sorted(real) else (), reading.count, reading.inner)
        seen.setdefault(key, reading)
    return tuple(seen.values())


def _surplus(ones: Leaves, others: Leaves, role: Callable[[Path], str]) -> dict[Key, int]:
    count = Counter((role(p), math.prod(s)) for p, s in ones.items())
    count.subtract(Counter((role(p), math.prod(s)) for p, s in others.items()))
    return {key: c for key, c in count.items() if c > 0 and key[1] > 0}


def _cuts(
    ones: Leaves,
    others: Leaves,
    role: Callable[[Path], str],
    *,
    everything: bool,
    orders: bool,
) -> dict[Path, tuple[Reading, ...]]:
    """Readings in several pieces, for leaves of sizes that the other side has fewer of."""
    ours, theirs = _surplus(ones, others, role), _surplus(others, ones, role)
    alike = [Counter((role(p), s) for p, s in side.items()) for side in (ones, others)]
    shapes: dict[Key, set[Shape]] = {}
    for path, shape in others.items():
        shapes.setdefault((role(path), math.prod(shape)), set()).add(shape)
    known: dict[tuple[str, Shape], tuple[Reading, ...]] = {}
    found = {}
    for path, shape in ones.items():
        what, size = role(path), math.prod(shape)
        if (what, size) not in ours:
            continue
        if not everything and alike[0][what, shape] <= alike[1][what, shape]:
            continue  # as many leaves of this very shape: those are the partners
        if (what, shape) not in known:
            scored = [
                pair
                for (other, n), most in theirs.items()
                if other == what and size % n == 0 and 1 < size // n <= most
                for target in sorted(shapes[other, n])
                for pair in _ways(shape, size // n, target, orders=orders)
            ]
            best = min((score for score, _ in scored), default=0.0)
            kept = sorted((s, n) for n, (s, _) in enumerate(scored) if everything or s <= best)
            known[what, shape] = tuple(dict.fromkeys(scored[n][1] for _, n in kept))
        if known[what, shape]:
            found[path] = known[what, shape]
    return found


def _ways(
    shape: Shape, count: int, target: Shape, *, orders: bool
) -> Iterator[tuple[float, Reading]]:
    for score, inner in _inners(shape, count, target):
        yield score, Reading((), count, inner)
    if orders and len(shape) <= _MOST_AXES:
        for axes in itertools.permutations(range(len(shape))):
            for score, inner in _inners(tuple(shape[a] for a in axes), count, target):
                if score == 0 and axes != tuple(range(len(shape))):
                    yield score + 3, Reading(axes, count, inner)


def _inners(shape: Shape, count: int, target: Shape) -> Iterator[tuple[float, int]]:
    """Where the pieces may lie; smaller scores are likelier."""
    for a in range(len(shape)):
        for b in range(a + 1, len(shape) + 1):
            if math.prod(shape[a:b]) == count:
                score = _score(shape[:a] + shape[b:], target)
                if score is not None:
                    yield score, math.prod(shape[b:])
    for a, d in enumerate(shape):
        after = math.prod(shape[a + 1 :])
        if d % count == 0 and d > count:
            score = _score((*shape[:a], d // count, *shape[a + 1 :]), target)
            if score is not None:
                yield score, d // count * after
        for inner in {n for n in target if n > 1 and d % (count * n) == 0 and d > count * n}:
            rest = (*shape[:a], d // (count * inner), inner, *shape[a + 1 :])
            score = _score(rest, target)
            if score is not None:
                yield score + 1.5, inner * after


def _score(rest: Shape, target: Shape) -> float | None:
    a, b = [n for n in rest if n != 1], [n for n in target if n != 1]
    if a == b:
        return 0.0
    if sorted(a) == sorted(b):
        return 0.5
    ends = [set(itertools.accumulate(reversed(x), lambda p, q: p * q)) for x in (a, b)]
    return 1.0 if ends[0] <= ends[1] or ends[1] <= ends[0] else None


def _rests(shape: Shape, reading: Reading) -> Iterator[Shape]:
    """Shapes that a piece may have."""
    for a in range(len(shape)):
        for b in range(a + 1, len(shape) + 1):
            fits = math.prod(shape[b:]) == reading.inner
            if fits and math.prod(shape[a:b]) == reading.count:
                yield shape[:a] + shape[b:]
        after = math.prod(shape[a + 1 :])
        if shape[a] % reading.count == 0 and shape[a] // reading.count * after == reading.inner:
            yield (*shape[:a], shape[a] // reading.count, *shape[a + 1 :])
