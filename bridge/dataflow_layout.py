"""Which transforms bring the elements of leaves to where they belong in slots.

From where the elements lie (:mod:`bridge.dataflow_walks`) follows whether arrays are to be
reshaped and transposed, joined or split. What is found is tried on numbers before it is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bridge.dataflow_walks import Shape, Walk, strides
from bridge.errors import TransformError
from bridge.transforms import (
    Each,
    Join,
    Reshape,
    Spec,
    Stack,
    Transform,
    Transpose,
    apply_all,
    infer_all,
    inverse_all,
)

__all__ = ["transforms_of"]

_CHECKED = 1 << 20
"""Elements up to which the transforms are tried on numbers."""


def transforms_of(
    walks: Sequence[Sequence[Walk]], leaves: Sequence[Shape], slots: Sequence[Shape]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[Transform, ...]] | None:
    """The transforms for leaves that feed slots together.

    Args:
        walks: fused walks of each (leaf, slot) in the order of ``leaves`` times ``slots``.
        leaves: shapes.
        slots: shapes.

    Returns:
        Order of leaves, order of slots, transforms; None when no transforms are known.
    """
    if len(leaves) == len(slots) == 1:
        done = _one(walks[0], leaves[0], slots[0])
    elif len(slots) == 1:
        done = _many([w for (w,) in zip(*[walks], strict=True)], leaves, slots[0])
    elif len(leaves) == 1:
        done = _parts(walks, leaves[0], slots)
    else:
        return None
    if done is None or not _right(done, walks, leaves, slots):
        return None
    return done


_Done = tuple[tuple[int, ...], tuple[int, ...], tuple[Transform, ...]]


def _one(walks: Sequence[Walk], leaf: Shape, slot: Shape) -> _Done | None:
    if len(walks) != 1 or walks[0].size != math.prod(leaf) or walks[0].size != math.prod(slot):
        return None
    return (0,), (0,), _moved(walks[0].loops, leaf, slot)


def _moved(
    loops: Sequence[tuple[int, int, int]], leaf: Shape, target: Shape
) -> tuple[Transform, ...]:
    """Reshape, transpose, reshape; only those that do something."""
    order = sorted(range(len(loops)), key=lambda k: -loops[k][2])
    if order == sorted(order):
        return () if leaf == target else (Reshape(target),)
    flat = tuple(n for n, _, _ in loops)
    full = [k for k, n in enumerate(leaf) if n != 1]
    if flat == tuple(leaf[k] for k in full) and len(full) == len(leaf):
        first: tuple[Transform, ...] = ()
    else:
        first = (Reshape(flat),)
    last = () if tuple(flat[k] for k in order) == target else (Reshape(target),)
    return (*first, Transpose(tuple(order)), *last)


def _many(rows: Sequence[Sequence[Walk]], leaves: Sequence[Shape], slot: Shape) -> _Done | None:
    """Several leaves become one slot."""
    if any(len(r) != 1 or r[0].size != math.prod(s) for r, s in zip(rows, leaves, strict=True)):
        return None
    order = sorted(range(len(rows)), key=lambda k: rows[k][0].at[1])
    walks = [rows[k][0] for k in order]
    where = _axis(walks, slot)
    if where is None:
        return _grid(walks, order, [leaves[k] for k in order], slot)
    axis, sizes = where
    stacked = set(sizes) == {1}
    thin = (*slot[:axis], *slot[axis + 1 :])
    shapes = [thin if stacked else (*slot[:axis], n, *slot[axis + 1 :]) for n in sizes]
    each = [_moved(w.loops, leaves[k], s) for w, k, s in zip(walks, order, shapes, strict=True)]
    same = _together(each)
    last = Stack(axis) if stacked else Join(axis)
    return None if same is None else (tuple(order), (0,), (*same, last))


def _together(rows: Sequence[tuple[Transform, ...]]) -> tuple[Transform, ...] | None:
    """One list of transforms for arrays that each need their own."""
    if len({len(r) for r in rows}) != 1 or len({tuple(type(t) for t in r) for r in rows}) != 1:
        return None
    return tuple(c[0] if len(set(c)) == 1 else Each(c) for c in zip(*rows, strict=True))


def _axis(walks: Sequence[Walk], slot: Shape) -> tuple[int, list[int]] | None:
    """The axis of a slot along which walks lie one after the other, and how much each has."""
    ends = [w.at[1] for w in walks[1:]]
    for axis, (n, inner) in enumerate(zip(slot, strides(slot), strict=True)):
        starts = [w.at[1] for w in walks]
        if n == 1 or any(s % inner for s in starts) or starts[-1] >= n * inner or starts[0]:
            continue
        sizes = [(b - a) // inner for a, b in zip(starts, [*ends, n * inner], strict=True)]
        rest = math.prod(slot) // n
        if all(w.size == m * rest for w, m in zip(walks, sizes, strict=True)):
            return axis, sizes
    return None


def _grid(
    walks: Sequence[Walk], order: Sequence[int], leaves: Sequence[Shape], slot: Shape
) -> _Done | None:
    """Leaves of one shape that lie in a slot on a grid of several axes."""
    if len({w.loops for w in walks}) != 1 or len(set(leaves)) != 1:
        return None
    offsets = [w.at[1] for w in walks]
    grid: list[tuple[int, int]] = []
    now = offsets
    while len(now) > 1:
        step = now[1] - now[0]
        count = next((k for k, x in enumerate(now) if x != now[0] + k * step), len(now))
        if len(now) % count or count == 1:
            return None
        grid.insert(0, (count, step))
        now = now[::count]
    loops = [*((n, 0, s) for n, s in grid), *walks[0].loops]
    flat = tuple(n for n, _, _ in loops)
    axes = sorted(range(len(loops)), key=lambda k: -loops[k][2])
    return tuple(order), (0,), (Stack(0), Reshape(flat), Transpose(tuple(axes)), Reshape(slot))


def _parts(walks: Sequence[Sequence[Walk]], leaf: Shape, slots: Sequence[Shape]) -> _Done | None:
    """One leaf becomes several slots: what makes the leaf of the slots, undone."""
    back = _many([tuple(x.back() for x in w) for w in walks], slots, leaf)
    if back is None:
        return None
    order, _, transforms = back
    try:
        undone = inverse_all(transforms, [Spec(slots[k], "float32") for k in order])
    except TransformError:
        return None
    return (0,), order, undone


def _right(
    done: _Done, walks: Sequence[Sequence[Walk]], leaves: Sequence[Shape], slots: Sequence[Shape]
) -> bool:
    """Whether transforms give the right shapes, and for small arrays the right elements."""
    sources, targets, transforms = done
    try:
        got = infer_all(transforms, [Spec(leaves[k], "int64") for k in sources])
    except TransformError:
        return False
    if [s.shape for s in got] != [slots[k] for k in targets]:
        return False
    size = sum(math.prod(s) for s in slots)
    if size != sum(math.prod(s) for s in leaves):
        return False
    if size > _CHECKED:
        return True
    bases = np.cumsum([0, *(math.prod(s) for s in leaves)])
    arrays = [bases[k] + np.arange(math.prod(leaves[k])).reshape(leaves[k]) for k in sources]
    made = apply_all(transforms, arrays)
    wanted = [np.full(math.prod(s), -1) for s in slots]
    for k, row in enumerate(walks):
        leaf, slot = divmod(k, len(slots))
        for walk in row:
            a, b = np.asarray(walk.at[0]), np.asarray(walk.at[1])
            for n, s, t in walk.loops:
                a = a[..., None] + np.arange(n) * s
                b = b[..., None] + np.arange(n) * t
            wanted[slot][b.reshape(-1)] = bases[leaf] + a.reshape(-1)
    return all(np.array_equal(m.reshape(-1), wanted[k]) for m, k in zip(made, targets, strict=True))
