"""The finished graph: plain numbers, every axis cut into atoms, nothing twice.

What the graph of the reader says by references that may still be cut is said here once and for
all: each operation has loops with sizes, and each operand says which loop each of its axes is.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Any

from bridge.dataflow_axes import Entry, Uneven, atoms
from bridge.dataflow_graph import Arg, Graph, Node

__all__ = ["Digit", "Flow", "Op", "flow_of"]


@dataclass(frozen=True, slots=True)
class Digit:
    """One digit of an axis of a parameter: of ``n`` values at ``stride``, those from ``start``.

    Of these ``size`` values a loop may walk one digit only: ``count`` values at ``sub``.
    """

    axis: int
    stride: int
    n: int
    start: int
    size: int
    sub: int
    count: int


@dataclass(slots=True)
class Op:
    """One operation.

    Attributes:
        op: its name.
        key: its parameters, and the numbers among its operands.
        symmetric: whether the order of its operands means nothing.
        sizes: of its loops.
        tags: what tells a loop from others.
        out: the loops that the output has, in order.
        args: operands, and the loop that each of their axes is.
        leaf: number of the parameter, if it is one or a piece of one.
        digits: where in the parameter; one for each loop, then those that the piece is at.
        label: for people.
    """

    op: str
    key: Any
    symmetric: bool
    sizes: tuple[int, ...]
    tags: tuple[Any, ...]
    out: tuple[int, ...]
    args: tuple[tuple[int, tuple[int, ...]], ...]
    leaf: int = -1
    digits: tuple[Digit, ...] = ()
    label: str = ""


@dataclass(slots=True)
class Flow:
    """Operations, operands first; the last ones are the outputs."""

    ops: list[Op] = field(default_factory=list)
    users: list[list[tuple[int, int]]] = field(default_factory=list)

    def link(self) -> None:
        """Find the users of each operation, with the place of the operand."""
        self.users = [[] for _ in self.ops]
        for n, op in enumerate(self.ops):
            for place, (arg, _) in enumerate(op.args):
                self.users[arg].append((n, place))


def _followed(graph: Graph, arg: Arg) -> Arg:
    """The operand behind nodes that only pass on."""
    while graph.nodes[arg.node].op == "same":
        node = graph.nodes[arg.node]
        inner = node.args[0]
        at = {}
        for k, e in arg.at.items():
            found = inner.at.get(node.out[e.slot])
            if found is not None:
                at[k] = Entry(found.slot, found.dim, found.stride * e.stride, e.n)
        arg = Arg(inner.node, at)
    return arg


def flow_of(graph: Graph) -> Flow:
    """Finish a graph."""
    for node in graph.nodes:
        node.args = [_followed(graph, a) for a in node.args]
    flow = Flow()
    number: dict[int, int] = {}
    axes: dict[int, list[dict[int, int]]] = {}  # by node and axis: place of the atom at a stride
    seen: dict[Hashable, int] = {}
    for n in _order(graph):
        node = graph.nodes[n]
        if node.op == "lit":
            continue
        sizes, tags, steps = _loops(node)
        loops = [x for k in node.out for x in sorted(steps[k].values())]
        axes[n] = [{s: loops.index(x) for s, x in steps[k].items()} for k in node.out]
        args, numbers = [], []
        for place, arg in enumerate(node.args):
            if graph.nodes[arg.node].op == "lit":
                numbers.append((0 if node.symmetric else place, graph.nodes[arg.node].key))
                continue
            args.append((number[arg.node], _walk(arg, steps, axes[arg.node], place)))
        key = (node.key, tuple(sorted(numbers, key=str)))
        new = Op(node.op, key, node.symmetric, sizes, tags, tuple(loops), tuple(args))
        new = _piece(flow, replace(new, label=node.label))
        twin = _identity(new, n if node.also or node.op == "carry" else -1)
        if twin not in seen:
            seen[twin] = len(flow.ops)
            flow.ops.append(new)
        number[n] = seen[twin]
    flow = _reached(flow)
    flow.link()
    return flow


def _loops(node: Node) -> tuple[tuple[int, ...], tuple[Any, ...], list[dict[int, int]]]:
    """Loops of a node, one for each atom.

    Returns:
        Their sizes, their tags, and for each loop of the node its atoms by stride.
    """
    sizes: list[int] = []
    tags: list[Any] = []
    steps: list[dict[int, int]] = []
    for dim, (role, base) in zip(node.index, node.role, strict=True):
        cut = [a.size for a in atoms(dim)]
        strides = [math.prod(cut[k + 1 :]) for k in range(len(cut))]
        steps.append({s: len(sizes) + k for k, s in enumerate(strides)})
        sizes += cut
        tags += [role if role in ("o", "r") else (role, base * s) for s in strides]
    return tuple(sizes), tuple(tags), steps


def _reached(flow: Flow) -> Flow:
    """Without parameters of which only pieces are used."""
    used = {a for op in flow.ops for a, _ in op.args}
    kept = [n for n, op in enumerate(flow.ops) if op.leaf < 0 or n in used]
    new = {n: k for k, n in enumerate(kept)}
    return Flow([replace(flow.ops[n], args=tuple((new[a], w) for a, w in flow.ops[n].args))
                 for n in kept])  # fmt: skip


def _walk(
    arg: Arg, steps: list[dict[int, int]], axes: list[dict[int, int]], place: int
) -> tuple[int, ...]:
    walked = [-1] * sum(map(len, axes))
    for k, (slot, _, stride, _) in arg.at.items():
        for own, loop in steps[k].items():
            walked[axes[slot][own * stride]] = loop
    if -1 in walked:
        raise Uneven(f"operand {place}: an axis is walked by no loop")
    return tuple(walked)


def _piece(flow: Flow, op: Op) -> Op:
    """Say where a part of a parameter lies in it."""
    if op.op == "param":
        whole = tuple(Digit(t[0][1], t[1], n, 0, n, 1, n) for t, n in
                       zip(op.tags, op.sizes, strict=True))  # fmt: skip
        leaf = op.key[0][0]
        return replace(op, key=(), leaf=leaf, digits=whole, tags=("o",) * len(op.tags))
    if op.op != "slice":
        return op
    (_, start, size), _ = op.key
    op = replace(op, key=((), ()))  # its loops say what is cut
    base = flow.ops[op.args[0][0]]
    if base.leaf < 0:
        return op
    walked = op.args[0][1]
    cut = [k for k, t in enumerate(op.tags) if isinstance(t, tuple) and t[0][0] == "cut"]
    part = [k for k, t in enumerate(op.tags) if isinstance(t, tuple) and t[0][0] == "part"]
    if len(cut) != 1:
        return op
    old = base.digits[walked.index(cut[0])]
    if old.size != old.count:
        return op
    digits: list[Digit] = []
    tail = list(base.digits[len(base.out) :])
    for k in op.out:
        if k in part:
            stride, count = op.tags[k][1], op.sizes[k]
            digits.append(replace(old, start=old.start + start, size=size, sub=stride, count=count))
        else:
            digits.append(base.digits[walked.index(k)])
    if not part:
        tail.append(replace(old, start=old.start + start, size=1, count=1))
    sizes = tuple(op.sizes[k] for k in op.out)
    return Op("param", (), symmetric=False, sizes=sizes, tags=("o",) * len(sizes),
              out=tuple(range(len(sizes))), args=(), leaf=base.leaf,
              digits=(*digits, *tail), label=op.label)  # fmt: skip


def _identity(op: Op, own: int) -> Hashable:
    """Equal for two operations that compute the same."""
    args = tuple(sorted(op.args)) if op.symmetric else op.args
    return op.op, op.key, op.sizes, op.tags, op.out, args, op.leaf, op.digits, own


def _order(graph: Graph) -> list[int]:
    """Live nodes, operands first."""
    seen: set[int] = set()
    out: list[int] = []
    waiting: list[tuple[int, bool]] = [(r, False) for r in reversed(graph.roots)]
    while waiting:
        n, done = waiting.pop()
        if done:
            out.append(n)
            later = [a for a in graph.nodes[n].also if a not in seen]
            waiting[:0] = [(a, False) for a in later]
        elif n not in seen:
            seen.add(n)
            waiting.append((n, True))
            waiting.extend((a.node, False) for a in graph.nodes[n].args)
    return out
