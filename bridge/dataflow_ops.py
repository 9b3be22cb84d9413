"""What each primitive is in the graph: its loops, or only another view."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from bridge.dataflow_axes import BROADCAST, Entry, Uneven, size_of, spread
from bridge.dataflow_graph import View
from bridge.dataflow_read import Handler, Reader, opaque_with, told
from bridge.dataflow_views import VIEWS

__all__ = ["HANDLERS", "POINTWISE", "REDUCE", "pointwise"]

POINTWISE = frozenset(
    """
    abs acos acosh add add_any and asin asinh atan atan2 cbrt ceil clamp complex conj
    convert_element_type copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge
    gt igamma igammac imag integer_pow is_finite le lgamma log log1p logistic lt max min mul ne
    neg nextafter not or polygamma population_count pow real reduce_precision rem round rsqrt
    select_n shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square sub
    tan tanh xor
    """.split()  # noqa: SIM905 - a list of words reads best as words
)
"""Primitives that do the same to each element."""
REDUCE = frozenset(f"reduce_{x}" for x in ("sum", "max", "min", "prod", "and", "or", "xor"))
"""Primitives that make one element of all along some axes."""
_SYMMETRIC = frozenset({"add", "add_any", "mul", "max", "min", "and", "or", "xor", "eq", "ne"})
_NOTHING = (
    "copy", "copy_p", "stop_gradient", "optimization_barrier", "name", "sharding_constraint",
    "mesh_cast", "pvary",  "layout_constraint",
)  # fmt: skip
_ALONG = (
    "cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "argmax", "argmin", "rev", "sort",
    "top_k",
)  # fmt: skip
_NEUTRAL = {"add": 0, "add_any": 0, "mul": 1, "max": float("-inf"), "min": float("inf")}
_TRUTHS = {"and": 1, "or": 0}
"""As above, for truth values."""


def pointwise(
    reader: Reader, op: str, key: Hashable, views: Sequence[View], *, keep: bool = False
) -> View:
    """An operation that does the same to each element."""
    rank = max((len(v.axes) for v in views), default=0)
    labels = [tuple(range(rank - len(v.axes), rank)) for v in views]
    try:
        return reader.graph.make(
            op, key, views, labels, range(rank), symmetric=op in _SYMMETRIC, keep=keep
        )
    except Uneven:
        views = [reader.laid_out(v) for v in views]
        return reader.graph.make(
            op, key, views, labels, range(rank), symmetric=op in _SYMMETRIC, keep=keep
        )


def _number(reader: Reader, view: View) -> Any:
    """The scalar that a view repeats; None if it is something else."""
    node = reader.graph.nodes[view.node]
    return node.key if node.op == "lit" else None


def _widened(view: View, shape: Sequence[int]) -> View:
    """The view with axes of size one repeated to a shape."""
    axes = (((),) * (len(shape) - len(view.axes))) + view.axes
    return View(
        view.node,
        tuple(a if a or n == 1 else spread(n) for a, n in zip(axes, shape, strict=True)),
    )


def _elementwise(reader: Reader, eqn: Any, views: list[View]) -> list[View]:
    op, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
    key: Hashable = told(eqn.params)
    if op == "convert_element_type":
        if eqn.invars[0].aval.dtype == eqn.outvars[0].aval.dtype:
            return views
        key = str(eqn.outvars[0].aval.dtype)
        if key == "bool":  # another way to write it
            op, key, views = "ne", (), [*views, reader.constant(0)]
    if op == "square" or (op == "integer_pow" and eqn.params["y"] == _SQUARE):
        op, key, views = "mul", (), [views[0], views[0]]
    numbers = [_number(reader, v) for v in views]
    if op == "div" and isinstance(numbers[1], float) and numbers[1]:
        with np.errstate(over="ignore"):  # a division by almost nothing stays infinite
            inverse = reader.constant(np.float64(1) / np.float64(reader.known(views[1]).flat[0]))
        op, views, numbers = "mul", [views[0], inverse], [None, _number(reader, inverse)]
    neutral = _NEUTRAL.get(op)
    if eqn.outvars[0].aval.dtype == bool:
        neutral = _TRUTHS.get(op, neutral)
    if neutral is not None:
        for k, other in ((0, 1), (1, 0)):
            if numbers[k] == neutral:
                return [_widened(views[other], shape)]
    op = "add" if op == "add_any" else op
    return [_widened(pointwise(reader, op, key, views), shape)]


def _same(_: Reader, __: Any, views: list[View]) -> list[View]:
    return views


def _reduce(reader: Reader, eqn: Any, views: list[View]) -> list[View]:
    gone = {int(a) for a in eqn.params["axes"]}
    axes = range(len(views[0].axes))
    out = [k for k in axes if k not in gone]
    return [reader.graph.make(eqn.primitive.name, (), views, [tuple(axes)], out)]


def _along(reader: Reader, eqn: Any, views: list[View]) -> list[View]:
    """Operations along some axes; the others run along."""
    p = eqn.params
    given = p.get("axes", p.get("axis", p.get("dimension", p.get("dimensions"))))
    rank = len(views[0].axes)
    if given is None:
        given = rank - 1  # top_k
    along = {int(a) % rank for a in (given if isinstance(given, (tuple, list)) else [given])}
    labels = [[("in", k) if k in along else k for k in range(rank)] for _ in views]
    whole = len(eqn.outvars[0].aval.shape) == rank
    out = [("out", k) if k in along else k for k in range(rank) if whole or k not in along]
    axis_free = {k: v for k, v in p.items() if k not in ("axes", "axis", "dimension", "dimensions")}
    made = []
    for n, var in enumerate(eqn.outvars):
        roles = {("in", k): ("in", 0) for k in along} | {("out", k): ("out", 0) for k in along}
        fresh = {x: s for x, s in zip(out, var.aval.shape, strict=True)
                 if isinstance(x, tuple) and s != 1}  # fmt: skip
        key = (n, told(axis_free))
        made.append(
            reader.graph.make(eqn.primitive.name, key, views, labels, out, roles=roles, fresh=fresh)
        )
    return made


def _scaled(reader: Reader, view: View) -> tuple[View, list[View]]:
    """The view without a number that it is multiplied with, and the number."""
    node = reader.graph.nodes[view.node]
    numbers = [a.node for a in node.args if reader.graph.nodes[a.node].op == "lit"]
    others = [a for a in node.args if a.node not in numbers]
    if node.op != "mul" or len(numbers) != 1 or len(others) != 1:
        return view, []
    arg = others[0]
    axes = []
    for entries in view.axes:
        axis = []
        for e in entries:
            inner = arg.at.get(node.out[e.slot]) if e.slot != BROADCAST else None
            if e.slot != BROADCAST and inner is None:
                return view, []
            axis.append(e if inner is None else Entry(inner.slot, inner.dim,
                                                      inner.stride * e.stride, e.n))  # fmt: skip
        axes.append(tuple(axis))
    return View(arg.node, tuple(axes)), [View(numbers[0], ())]


def _dot(reader: Reader, eqn: Any, views: list[View]) -> list[View]:
    (left_c, right_c), (left_b, right_b) = eqn.params["dimension_numbers"]
    left, scale = _scaled(reader, views[0])
    right, more = _scaled(reader, views[1])
    labels: list[list[Hashable]] = [[f"l{k}" for k in range(len(left.axes))],
                                    [f"r{k}" for k in range(len(right.axes))]]  # fmt: skip
    for a, b in zip((*left_c, *left_b), (*right_c, *right_b), strict=True):
        labels[1][int(b)] = labels[0][int(a)]
    batch = [f"l{int(k)}" for k in left_b]
    free = [f"l{k}" for k in range(len(left.axes)) if k not in {*map(int, (*left_c, *left_b))}]
    free += [f"r{k}" for k in range(len(right.axes)) if k not in {*map(int, (*right_c, *right_b))}]
    out = reader.graph.make(
        "dot", str(eqn.outvars[0].aval.dtype), [left, right], labels, [*batch, *free],
        symmetric=True,
    )  # fmt: skip
    for factor in (*scale, *more):
        out = pointwise(reader, "mul", (), [out, factor])
    return [out]


def _concatenate(reader: Reader, eqn: Any, views: list[View]) -> list[View]:
    axis, rank = int(eqn.params["dimension"]), len(views[0].axes)
    if len(views) == 1:
        return views
    labels = [[("cat", n) if k == axis else k for k in range(rank)] for n in range(len(views))]
    out = [("cat",) if k == axis else k for k in range(rank)]
    sizes = tuple(size_of(v.axes[axis]) for v in views)
    roles = {("cat", n): ("cat", n) for n in range(len(views))} | {("cat",): ("cat",)}
    return [reader.graph.make("concat", sizes, views, labels, out, roles=roles,
                              fresh={("cat",): sum(sizes)})]  # fmt: skip


def _conv(reader: Reader, eqn: Any, views: list[View]) -> list[View]:
    """A product in batch and features; in space each axis has a meaning of its own."""
    p = eqn.params
    specs = [tuple(map(int, s)) for s in p["dimension_numbers"]]
    grouped = p["feature_group_count"] != 1 or p["batch_group_count"] != 1
    names: list[list[Hashable]] = [["batch", "in"], ["out", "in"], ["batch", "out"]]
    if grouped:
        names = [[("batch",), ("in",)], [("filter",), ("part",)], [("n",), ("out",)]]
    space = ("space", "window", "place")
    labels: list[list[Hashable]] = []
    for spec, first, word in zip(specs, names, space, strict=True):
        found = dict(zip(spec, [*first, *((word, k) for k in range(len(spec)))], strict=False))
        labels.append([found[k] for k in range(len(spec))])
    untold = ("dimension_numbers", "lhs_shape", "rhs_shape")
    plain = {k: v for k, v in p.items() if k not in untold}
    return opaque_with(reader, eqn, views, labels[:2], labels[2:], params=plain)


_SQUARE = 2


HANDLERS: dict[str, Handler] = {
    **VIEWS,
    **dict.fromkeys(POINTWISE, _elementwise),
    **dict.fromkeys(_NOTHING, _same),
    **dict.fromkeys(REDUCE, _reduce),
    **dict.fromkeys(_ALONG, _along),
    "dot_general": _dot,
    "concatenate": _concatenate,
    "conv_general_dilated": _conv,
}
"""By the name of the primitive; others are opaque."""
