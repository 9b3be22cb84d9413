"""Parts of arrays, moved to where they come from.

A product that is split afterwards is, split before, several products with parts of the parameter.
So what one model holds fused and the other in pieces comes to look alike.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from itertools import accumulate

from bridge.dataflow_axes import BROADCAST, Dim, Entry, loop, span, unify
from bridge.dataflow_graph import Arg, Graph, Node, View

__all__ = ["cut_out", "push_slices"]

_Parts = tuple[int, dict[tuple[int, int], Entry], Entry | None]
"""A slice: its node, its axes by those of the old node, and what is left of the cut one."""

_FREE = ("slice", "input", "param", "lit", "const", "key")


def _slice_node(graph: Graph, node: int, cut: Entry, start: int, size: int) -> _Parts:
    """A node for part of the digits of another.

    Returns:
        Its number; its axes by (axis, stride) of the old node; the axis of the digits that were
        cut, None when one is left.
    """
    base = graph.nodes[node]
    made = Node("slice", (), [], [], [], [Arg(node, {})], label=base.label)
    where: dict[tuple[int, int], Entry] = {}
    rest: Entry | None = None

    def keep(slot: int, dim: Dim, stride: int, n: int) -> None:
        if n == 1:
            return
        own = loop(dim, stride, n)
        made.args[0].at[len(made.index)] = Entry(slot, dim, stride, n)
        made.index.append(own)
        made.role.append(("o", 1))
        made.out.append(len(made.index) - 1)
        where[slot, stride] = Entry(len(made.out) - 1, own, 1, n)

    for slot, at in enumerate(base.out):
        dim = base.index[at]
        if slot != cut.slot:
            keep(slot, dim, 1, dim.size)
            continue
        span(dim, cut.stride, cut.n)
        keep(slot, dim, cut.stride * cut.n, dim.size // (cut.stride * cut.n))
        made.args[0].at[len(made.index)] = cut
        made.key = (len(made.index), start, size)
        made.index.append(loop(dim, cut.stride, cut.n))
        made.role.append((("cut", start, size), 1))
        if size != 1:
            made.index.append(Dim(size))
            made.role.append((("part",), 1))
            made.out.append(len(made.index) - 1)
            rest = Entry(len(made.out) - 1, made.index[-1], 1, size)
        keep(slot, dim, 1, cut.stride)
    graph.nodes.append(made)
    return len(graph.nodes) - 1, where, rest


def _moved(entry: Entry, cut: Entry, where: dict[tuple[int, int], Entry]) -> Entry:
    """An entry of the old node as one of the slice."""
    if entry.slot == BROADCAST:
        return entry
    high = cut.stride * cut.n
    base = high if entry.slot == cut.slot and entry.stride >= high else 1
    to = where[entry.slot, base]
    return Entry(to.slot, to.dim, entry.stride // base, entry.n)


def cut_out(graph: Graph, view: View, axis: int, start: int, size: int) -> View:
    """Part of the slowest digit of an axis of a view."""
    cut = view.axes[axis][0]
    node, where, rest = _slice_node(graph, view.node, cut, start, size)
    axes = []
    for k, entries in enumerate(view.axes):
        others = entries[1:] if k == axis else entries
        moved = tuple(_moved(e, cut, where) for e in others)
        axes.append(((rest,) if rest else ()) + moved if k == axis else moved)
    return View(node, tuple(axes))


def push_slices(graph: Graph) -> None:
    """Move every slice to what is computed from parts alone.

    Where the slices of a node are all that uses it and make it up, the node is computed in parts;
    a part of a concatenation is a part of what was concatenated.
    """
    users: dict[int, list[int]] = defaultdict(list)
    order = _order(graph)
    for n in order:
        for arg in graph.nodes[n].args:
            users[arg.node].append(n)
    roots = set(graph.roots)
    made: dict[tuple[object, ...], _Parts] = {}
    waiting = list(order)
    while waiting:
        n = waiting.pop()
        node = graph.nodes[n]
        if node.op in _FREE or n in roots:
            continue
        slices = [s for s in users[n] if graph.nodes[s].op == "slice"]
        if node.op == "concat":
            left = [s for s in slices if not _unconcatenate(graph, s, node, users, made)]
            users[n] = [s for s in users[n] if s not in slices or s in left]
            slices = left
        if slices and len(slices) == len(users[n]) and _make_up(graph, slices, node):
            for s in slices:
                _push(graph, s, node, users, made)
            users[n] = []
            _forget(graph, n, users)
            waiting.extend(slices)  # parts of these can move on now


def _order(graph: Graph) -> list[int]:
    """Live nodes, operands first."""
    seen: set[int] = set()
    out: list[int] = []
    waiting = [(r, False) for r in graph.roots]
    while waiting:
        n, done = waiting.pop()
        if done:
            out.append(n)
        elif n not in seen:
            seen.add(n)
            waiting.append((n, True))
            waiting.extend((a.node, False) for a in graph.nodes[n].args)
        if not waiting:
            waiting = [(a, False) for m in out for a in graph.nodes[m].also if a not in seen]
    return out


def _cut_of(graph: Graph, s: int) -> tuple[Entry, int, int]:
    at, start, size = graph.nodes[s].key
    return graph.nodes[s].args[0].at[at], start, size


def _make_up(graph: Graph, slices: list[int], node: Node) -> bool:
    """Whether slices are of one axis that is free, and together all of it."""
    cuts = [_cut_of(graph, s) for s in slices]
    first = cuts[0][0]
    if node.also or node.op == "carry" or node.role[node.out[first.slot]][0] != "o":
        return False
    if any((c.slot, c.stride, c.n) != (first.slot, first.stride, first.n) for c, _, _ in cuts):
        return False
    at = 0
    for start, size in sorted({(a, b) for _, a, b in cuts}):
        if start != at:
            return False
        at += size
    return at == first.n


def _forget(graph: Graph, n: int, users: dict[int, list[int]]) -> None:
    for arg in graph.nodes[n].args:
        users[arg.node] = [u for u in users[arg.node] if u != n]


def _part(
    graph: Graph, node: int, cut: Entry, start: int, size: int,
    users: dict[int, list[int]],
    made: dict[tuple[object, ...], _Parts],
) -> _Parts:  # fmt: skip
    key = (node, cut.slot, cut.stride, cut.n, start, size)
    if key not in made:
        made[key] = _slice_node(graph, node, cut, start, size)
        users[node].append(made[key][0])
    return made[key]


def _push(
    graph: Graph,
    s: int,
    node: Node,
    users: dict[int, list[int]],
    made: dict[tuple[object, ...], _Parts],
) -> None:
    """Make of a slice of a node the node of slices."""
    part = graph.nodes[s]
    cut_at, start, size = part.key
    outer = part.args[0].at
    new_index = [d for k, d in enumerate(part.index) if k != cut_at]
    place = {k: k - (k > cut_at) for k in range(len(part.index)) if k != cut_at}
    rest_at = place[cut_at + 1] if size != 1 else None
    reduced = [k for k in range(len(node.index)) if k not in node.out]
    args = []
    for arg in node.args:
        through = _through(part.args[0], node, arg)
        cut = through.pop(cut_at, None)
        at = {place[k]: e for k, e in through.items()}
        at |= {len(new_index) + k: arg.at[r] for k, r in enumerate(reduced) if r in arg.at}
        target = arg.node
        if cut is not None:
            target, where, rest = _part(graph, arg.node, cut, start, size, users, made)
            at = {k: _moved(e, cut, where) for k, e in at.items()}
            if rest is not None and rest_at is not None:
                unify([rest], [_whole(part.index[cut_at + 1])])
                at[rest_at] = rest
        args.append(Arg(target, at))
        users[target].append(s)
    part.op, part.key, part.symmetric, part.label = node.op, node.key, node.symmetric, node.label
    part.role = [("o", 1)] * len(new_index) + [node.role[r] for r in reduced]
    for k, e in outer.items():
        if k != cut_at:
            part.role[place[k]] = _role(node.role[node.out[e.slot]], e.stride)
    part.index = new_index + [node.index[r] for r in reduced]
    part.out = [place[k] for k in part.out]
    part.args = args


def _through(outer: Arg, node: Node, inner: Arg) -> dict[int, Entry]:
    """What an operand of a node is to the loops of a user of that node."""
    return {
        k: Entry(i.slot, i.dim, i.stride * e.stride, e.n)
        for k, e in outer.at.items()
        for i in [inner.at.get(node.out[e.slot])]
        if i is not None
    }


def _whole(dim: Dim) -> Entry:
    return Entry(0, dim, 1, dim.size)


def _role(role: tuple[object, int], stride: int) -> tuple[object, int]:
    return role if role[0] in ("o", "r") else (role[0], role[1] * stride)


def _unconcatenate(
    graph: Graph,
    s: int,
    node: Node,
    users: dict[int, list[int]],
    made: dict[tuple[object, ...], _Parts],
) -> bool:
    """Take a slice from the one operand that it lies in; False if there is none."""
    cut, start, size = _cut_of(graph, s)
    along = node.out[cut.slot]
    if node.role[along][0] != ("cat",) or cut.stride != 1 or cut.n != node.index[along].size:
        return False
    ends = list(accumulate(node.key))
    k = bisect_right(ends, start)
    width = node.key[k]
    at = ends[k] - width
    if start + size > ends[k]:
        return False
    arg = node.args[k]
    part = graph.nodes[s]
    cut_at = part.key[0]
    place = {n: n - (n > cut_at) for n in range(len(part.index)) if n != cut_at}
    through = _through(part.args[0], node, arg)
    entries = {place[n]: e for n, e in through.items() if n != cut_at}
    digits = [e for n, e in arg.at.items() if node.role[n][0] == ("cat", k)]
    if len(digits) > 1:
        return False
    inside = digits[0] if digits else None
    target = arg.node
    if inside is not None and width > 1:
        rest: Entry | None = Entry(inside.slot, inside.dim, inside.stride, inside.n)
        if size != width:
            target, where, rest = _part(graph, arg.node, inside, start - at, size, users, made)
            entries = {n: _moved(e, inside, where) for n, e in entries.items()}
        if rest is not None:
            unify([rest], [_whole(part.index[cut_at + 1])])
            entries[place[cut_at + 1]] = rest
    part.op, part.key = "same", ()
    part.index = [d for n, d in enumerate(part.index) if n != cut_at]
    part.role = [("o", 1)] * len(part.index)
    part.out = [place[n] for n in part.out]
    part.args = [Arg(target, entries)]
    users[target].append(s)
    return True
