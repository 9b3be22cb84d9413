"""What moves elements or picks some: only another view of a node, or a slice of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bridge.dataflow_axes import BROADCAST, Entry, Uneven, size_of, span, spread
from bridge.dataflow_graph import View
from bridge.dataflow_read import LIMIT, Handler, Reader, opaque
from bridge.dataflow_slices import cut_out

__all__ = ["VIEWS", "index_at", "reshaped", "sliced"]


def _broadcast(_: Reader, eqn: Any, views: list[View]) -> list[View]:
    at = {int(d): k for k, d in enumerate(eqn.params["broadcast_dimensions"])}
    shape = eqn.outvars[0].aval.shape
    axes = tuple(
        views[0].axes[at[d]] if d in at and (views[0].axes[at[d]] or n == 1) else spread(n)
        for d, n in enumerate(shape)
    )
    return [View(views[0].node, axes)]


def reshaped(view: View, shape: Sequence[int]) -> View:
    """The view in another shape.

    Raises:
        Uneven: an axis would be cut where it cannot be.
    """
    stock = [e for axis in view.axes for e in axis]
    axes: list[tuple[Entry, ...]] = []
    for n in reversed(shape):
        axis: list[Entry] = []
        need = n
        while need > 1:
            e = stock.pop()
            if e.n > need:
                if e.n % need:
                    raise Uneven
                span(e.dim, e.stride, need)
                stock.append(Entry(e.slot, e.dim, e.stride * need, e.n // need))
                e = Entry(e.slot, e.dim, e.stride, need)
            if need % e.n:
                raise Uneven
            need //= e.n
            axis.append(e)
        axes.append(tuple(axis[::-1]))
    return View(view.node, tuple(axes[::-1]))


def _reshape(reader: Reader, eqn: Any, views: list[View]) -> list[View]:
    shape = eqn.outvars[0].aval.shape
    if 0 in shape:
        return opaque(reader, eqn, views)
    try:
        return [reshaped(views[0], shape)]
    except Uneven:
        return opaque(reader, eqn, views)


def _transpose(_: Reader, eqn: Any, views: list[View]) -> list[View]:
    return [View(views[0].node, tuple(views[0].axes[int(k)] for k in eqn.params["permutation"]))]


def _squeeze(_: Reader, eqn: Any, views: list[View]) -> list[View]:
    gone = {int(d) for d in eqn.params["dimensions"]}
    return [View(views[0].node, tuple(a for k, a in enumerate(views[0].axes) if k not in gone))]


def sliced(reader: Reader, view: View, axis: int, start: int, size: int) -> View:
    """Part of an axis.

    Raises:
        Uneven: the part is not a range of one digit.
    """
    entries = view.axes[axis]
    if size == size_of(entries):
        return view
    inner = size_of(entries[1:])
    if start % inner or size % inner:
        raise Uneven
    first = entries[0]
    n = size // inner
    if first.slot == BROADCAST:
        new = (*spread(n), *entries[1:])
        return View(view.node, (*view.axes[:axis], new, *view.axes[axis + 1 :]))
    return cut_out(reader.graph, view, axis, start // inner, n)


def index_at(reader: Reader, view: View, at: int) -> View:
    """One step along the first axis, without that axis."""
    view = sliced(reader, view, 0, at, 1)
    return View(view.node, view.axes[1:])


def _slice(reader: Reader, eqn: Any, views: list[View]) -> list[View]:
    p = eqn.params
    if any(s != 1 for s in p["strides"] or ()):
        return opaque(reader, eqn, views)
    view = views[0]
    try:
        for axis, (a, b) in enumerate(zip(p["start_indices"], p["limit_indices"], strict=True)):
            view = sliced(reader, view, axis, int(a), int(b) - int(a))
    except Uneven:
        return opaque(reader, eqn, views)
    return [view]


def _split(reader: Reader, eqn: Any, views: list[View]) -> list[View]:
    out, at = [], 0
    try:
        for n in map(int, eqn.params["sizes"]):
            out.append(sliced(reader, views[0], int(eqn.params["axis"]), at, n))
            at += n
    except Uneven:
        return opaque(reader, eqn, views)
    return out


def _dynamic_slice(reader: Reader, eqn: Any, views: list[View]) -> list[View]:
    starts = [reader.known(v) for v in views[1:]]
    sizes = [int(n) for n in eqn.params["slice_sizes"]]
    view = views[0]
    try:
        for axis, (start, n) in enumerate(zip(starts, sizes, strict=True)):
            whole = size_of(view.axes[axis])
            if start is None and n != whole:
                return opaque(reader, eqn, views)
            begin = 0 if n == whole else min(max(int(start), 0), whole - n)
            view = sliced(reader, view, axis, begin, n)
    except Uneven:
        return opaque(reader, eqn, views)
    return [view]


def _iota(reader: Reader, eqn: Any, _: list[View]) -> list[View]:
    shape, dtype = eqn.outvars[0].aval.shape, eqn.outvars[0].aval.dtype
    axis = int(eqn.params["dimension"])
    count = np.arange(shape[axis]).astype(dtype) if shape[axis] <= LIMIT else None
    base = (
        reader.graph.leaf("iota", (), (shape[axis],)) if count is None else reader.constant(count)
    )
    axes = tuple(base.axes[0] if k == axis else spread(n) for k, n in enumerate(shape))
    return [View(base.node, axes)]


VIEWS: dict[str, Handler] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "slice": _slice,
    "split": _split,
    "dynamic_slice": _dynamic_slice,
    "iota": _iota,
}
"""By the name of the primitive."""
