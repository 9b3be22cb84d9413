"""A model's data flow as a graph in which layout does not exist.

Two programs that differ in reshapes, transposes and broadcasts only are to give one graph. So
these make no node: a :class:`View` says which digits of which axes of a node an axis shows. An
axis is taken apart like a number in mixed radix: reshaping 12 to (3, 4) shows the axis' high and
low digit. :class:`Dim` remembers where an axis has been cut, and axes that run along together are
cut alike. What is left of each operation are its loops, as in an einsum.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bridge.dataflow_axes import BROADCAST, Dim, Entry, size_of, split, spread, unify

__all__ = ["Arg", "Graph", "Node", "View"]


@dataclass(frozen=True, slots=True)
class View:
    """What an array of the program shows of a node: entries for each axis, slowest first."""

    node: int
    axes: tuple[tuple[Entry, ...], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return tuple(size_of(a) for a in self.axes)


@dataclass(slots=True)
class Arg:
    """An operand: which digits of it each loop of the operation walks; the rest repeats."""

    node: int
    at: dict[int, Entry]


@dataclass(slots=True)
class Node:
    """One operation.

    Attributes:
        op: its name.
        key: its parameters.
        index: its loops.
        role: of each loop: ``o`` goes to the output, ``r`` is reduced; else what tells the loop
            from others, with the stride at which it counts there.
        out: the loops that the axes of the output are.
        args: operands.
        symmetric: whether their order means nothing.
        label: for people: the function that it belongs to.
        also: a node that lives if this one does.
    """

    op: str
    key: Any
    index: list[Dim]
    role: list[tuple[Any, int]]
    out: list[int]
    args: list[Arg]
    symmetric: bool = False
    label: str = ""
    also: list[int] = field(default_factory=list)


class Graph:
    """Nodes in the order in which they were made, and the ones that the outputs are."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.roots: list[int] = []
        self.label = ""

    def leaf(self, op: str, key: Hashable, shape: Sequence[int]) -> View:
        """A node without operands; its axes are told apart by place and stride."""
        fresh = {k: n for k, n in enumerate(shape) if n != 1}
        return self.make(op, key, (), (), tuple(range(len(shape))), fresh=fresh)

    def scalar(self, value: Hashable, shape: Sequence[int] = ()) -> View:
        """A number, repeated over a shape."""
        view = self.make("lit", value, (), (), ())
        return View(view.node, tuple(spread(n) for n in shape))

    def make(
        self,
        op: str,
        key: Hashable,
        views: Sequence[View],
        labels: Sequence[Sequence[Hashable]],
        out: Sequence[Hashable],
        *,
        roles: Mapping[Any, Any] | None = None,
        fresh: Mapping[Any, int] | None = None,
        symmetric: bool = False,
        keep: bool = False,
    ) -> View:
        """Add an operation, written as an einsum.

        Args:
            op: its name.
            key: its parameters.
            views: operands.
            labels: of each axis of each operand; what has one label runs along together.
            out: labels of the axes of the output.
            roles: what tells a loop from others; else ``o`` if it is in ``out``, ``r`` if not.
            fresh: sizes of labels that are in no operand.
            symmetric: whether the order of operands means nothing.
            keep: make a loop even where all operands repeat.

        Returns:
            The output.
        """
        roles, fresh = roles or {}, fresh or {}
        rows = self._rows(views, labels)
        node = Node(op, key, [], [], [], [Arg(v.node, {}) for v in views], symmetric, self.label)
        axes: dict[Hashable, list[Entry]] = {}
        for label in (*out, *(x for x in rows if x not in out)):
            axes[label] = []
            role = roles.get(label, ("axis", label) if label in fresh else "o")
            if label not in out and label not in roles:
                role = "r"
            found = [(n, split(e)) for n, e in rows.get(label, ())]
            if label in fresh:
                dim = Dim(fresh[label])
                columns: list[tuple[Dim, int, dict[int, Entry]]] = [(dim, 1, {})]
            else:
                columns = _columns(found)
            for dim, stride, members in columns:
                bare = all(e.slot == BROADCAST for e in members.values())
                if members and bare and role == "o" and not keep:
                    axes[label].append(next(iter(members.values())))
                    continue
                node.index.append(dim)
                node.role.append((role, stride if role not in ("o", "r") else 1))
                here = len(node.index) - 1
                for n, e in members.items():
                    if e.slot != BROADCAST:
                        node.args[n].at[here] = e
                if label in out:
                    node.out.append(here)
                    axes[label].append(Entry(len(node.out) - 1, dim, 1, dim.size))
        self.nodes.append(node)
        return View(len(self.nodes) - 1, tuple(tuple(axes[x]) for x in out))

    @staticmethod
    def _rows(
        views: Sequence[View], labels: Sequence[Sequence[Hashable]]
    ) -> dict[Hashable, list[tuple[int, tuple[Entry, ...]]]]:
        rows: dict[Hashable, list[tuple[int, tuple[Entry, ...]]]] = {}
        for n, (view, names) in enumerate(zip(views, labels, strict=True)):
            for label, entries in zip(names, view.axes, strict=True):
                if entries:
                    rows.setdefault(label, []).append((n, entries))
        for row in rows.values():
            for _, entries in row[1:]:
                unify(row[0][1], entries)
        return rows


def _columns(
    found: Sequence[tuple[int, list[tuple[Entry, Dim]]]],
) -> list[tuple[Dim, int, dict[int, Entry]]]:
    """Loops of one label: how it is cut, its stride, what each operand shows of it."""
    if not found:
        return []
    out = []
    stride = 1
    for k in reversed(range(len(found[0][1]))):
        dim = found[0][1][k][1]
        out.append((dim, stride, {n: row[k][0] for n, row in found}))
        stride *= dim.size
    return out[::-1]
