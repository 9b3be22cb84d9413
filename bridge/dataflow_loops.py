"""Loops and branches in the graph.

A loop over stacked parameters is unrolled: its steps are then what a Python loop over a list of
layers is. Another loop is read once: its body's carries come in by a node of their own (``phi``)
and go out by another (``carry``) that names both, so that the graph has no cycles.
"""

from __future__ import annotations

from typing import Any

from bridge.dataflow_axes import spread
from bridge.dataflow_graph import View
from bridge.dataflow_ops import HANDLERS, pointwise
from bridge.dataflow_read import Handler, Reader
from bridge.dataflow_views import index_at

__all__ = ["ALL_HANDLERS", "LONGEST"]

LONGEST = 512
"""Steps of a loop that is unrolled."""
_MUCH = 20_000
"""Equations that unrolling a loop over something else may make."""


def _is_param(reader: Reader, view: View) -> bool:
    """Whether an array is a parameter, or made of one parameter alone."""
    node = reader.graph.nodes[view.node]
    while node.op != "param":
        others = [a for a in node.args if reader.graph.nodes[a.node].op != "lit"]
        if len(others) != 1 or node.op in ("phi", "carry", "xs", "ys"):
            return False
        node = reader.graph.nodes[others[0].node]
    return True


def _scan(reader: Reader, eqn: Any, views: list[View]) -> list[View]:
    p = eqn.params
    fixed, carry, xs = _groups(p, views)
    carries, length = len(carry), int(p["length"])
    steps = range(length - 1, -1, -1) if p["reverse"] else range(length)
    over_params = any(_is_param(reader, x) for x in xs)
    much = length * len(getattr(p["jaxpr"], "jaxpr", p["jaxpr"]).eqns) > _MUCH
    if 0 < length <= LONGEST and (over_params or (reader.unroll and not much)):
        rows: dict[int, list[View]] = {}
        body = [True] * len(p["jaxpr"].out_avals)
        for step in steps:
            now = [index_at(reader, x, step) for x in xs]
            out = reader.call(p["jaxpr"], [*fixed, *carry, *now], body)
            carry, rows[step] = out[:carries], out[carries:]
        ys = [_stacked(reader, [rows[k][n] for k in range(length)])
              for n in range(len(eqn.outvars) - carries)]  # fmt: skip
        return [*carry, *ys]
    key = (length, bool(p["reverse"]))
    phis = [_phi(reader, c, a.aval.shape) for c, a in
            zip(carry, eqn.outvars[:carries], strict=True)]  # fmt: skip
    now = [_along(reader, "xs", key, x) for x in xs]
    out = reader.call(p["jaxpr"], [*fixed, *phis, *now], [True] * len(p["jaxpr"].out_avals))
    ends = _carried(reader, phis, out[:carries], key)
    return [*ends, *(_over(reader, key, y, length) for y in out[carries:])]


def _groups(params: Any, views: list[View]) -> tuple[list[View], list[View], list[View]]:
    """What stays, what is carried on, and what is walked through."""
    if "num_consts" in params:
        a, b = params["num_consts"], params["num_consts"] + params["num_carry"]
        return views[:a], views[a:b], views[b:]
    fixed, carry, xs = params["ft_in"].update(views).unpack()  # jax 0.12
    return list(fixed), list(carry), list(xs)


def _phi(reader: Reader, start: View, shape: tuple[int, ...]) -> View:
    wide = View(start.node, tuple(a or spread(n) for a, n in zip(start.axes, shape, strict=True)))
    return pointwise(reader, "phi", (), [wide], keep=True)


def _carried(reader: Reader, phis: list[View], out: list[View], key: Any) -> list[View]:
    ends = []
    for phi, new in zip(phis, out, strict=True):
        end = pointwise(reader, "carry", key, [phi, new], keep=True)
        reader.graph.nodes[phi.node].also.append(end.node)
        ends.append(end)
    return ends


def _along(reader: Reader, op: str, key: Any, view: View) -> View:
    rank = len(view.axes)
    return reader.graph.make(op, key, [view], [[("loop",), *range(1, rank)]], range(1, rank),
                             roles={("loop",): ("loop",)})  # fmt: skip


def _over(reader: Reader, key: Any, view: View, length: int) -> View:
    rank = len(view.axes)
    fresh = {("loop",): length} if length != 1 else {}
    return reader.graph.make("ys", key, [view], [list(range(rank))], [("loop",), *range(rank)],
                             roles={("loop",): ("loop",)}, fresh=fresh)  # fmt: skip


def _stacked(reader: Reader, views: list[View]) -> View:
    if len(views) == 1:
        return View(views[0].node, ((), *views[0].axes))
    rank = len(views[0].axes)
    return reader.graph.make(
        "concat", (1,) * len(views), views, [list(range(rank))] * len(views),
        [("cat",), *range(rank)], roles={("cat",): ("cat",)}, fresh={("cat",): len(views)},
    )  # fmt: skip


def _while(reader: Reader, eqn: Any, views: list[View]) -> list[View]:
    p = eqn.params
    of_cond, of_body = p["cond_nconsts"], p["body_nconsts"]
    start = views[of_cond + of_body :]
    phis = [_phi(reader, c, v.aval.shape) for c, v in zip(start, eqn.outvars, strict=True)]
    whole = [True] * len(phis)
    (test,) = reader.call(p["cond_jaxpr"], [*views[:of_cond], *phis], [True])
    out = reader.call(p["body_jaxpr"], [*views[of_cond : of_cond + of_body], *phis], whole)
    ends = []
    for phi, new in zip(phis, out, strict=True):
        end = pointwise(reader, "carry", "while", [phi, new, View(test.node, ())], keep=True)
        reader.graph.nodes[phi.node].also.append(end.node)
        ends.append(end)
    return ends


def _cond(reader: Reader, eqn: Any, views: list[View]) -> list[View]:
    branches = eqn.params["branches"]
    which = reader.known(views[0])
    wanted = [True] * len(eqn.outvars)
    if which is not None:
        at = min(max(int(which), 0), len(branches) - 1)
        return reader.call(branches[at], views[1:], wanted)
    outs = [reader.call(b, views[1:], wanted) for b in branches]
    return [pointwise(reader, "cond", (), [View(views[0].node, ()), *row])
            for row in zip(*outs, strict=True)]  # fmt: skip


ALL_HANDLERS: dict[str, Handler] = {**HANDLERS, "scan": _scan, "while": _while, "cond": _cond}
"""Every primitive that is not opaque."""
