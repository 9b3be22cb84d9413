"""Colours of the operations of two graphs: equal for those that have the same place.

Weisfeiler-Leman refinement in sweeps: what a value is computed from, operands first; then what is
computed from it, users first. Two sweeps carry news across the whole graph, however deep it is.
The loops of an operation have colours of their own, so that a place is known down to the axis.
Colours are numbers of a table of what they stand for, so two are equal only if all behind them is.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

from bridge.dataflow_flow import Flow

__all__ = ["Colours"]

_ROUNDS = 40


class Colours:
    """Colours of the operations of several graphs, and of their loops.

    Attributes:
        flows: the graphs.
        node: colour of each operation of each graph.
        loops: colours of the loops of each.
    """

    def __init__(self, flows: Sequence[Flow]) -> None:
        self.flows = tuple(flows)
        self._table: dict[Hashable, int] = {}
        self.node = [[self.of((op.op, op.key, op.symmetric)) for op in f.ops] for f in flows]
        self.loops = [
            [[self.of((t, n)) for t, n in zip(op.tags, op.sizes, strict=True)] for op in f.ops]
            for f in flows
        ]

    def of(self, key: Hashable) -> int:
        """The colour that stands for something."""
        return self._table.setdefault(key, len(self._table))

    def copy(self) -> Colours:
        """The same colours, to be refined on their own."""
        new = copy.copy(self)  # with the same table
        new.node = [list(n) for n in self.node]
        new.loops = [[list(x) for x in n] for n in self.loops]
        return new

    def mark(self, places: Sequence[tuple[int, int]], name: Hashable) -> None:
        """Give operations (graph, number) a colour of their own."""
        for side, n in places:
            self.node[side][n] = self.of(("mark", name, self.node[side][n]))

    def refine(self) -> None:
        """Refine until nothing is told apart any more."""
        count = -1
        for _ in range(_ROUNDS):
            for side in range(len(self.flows)):
                self._forward(side)
            for side in range(len(self.flows)):
                self._backward(side)
            now = len({c for n in self.node for c in n})
            now += len({c for n in self.loops for x in n for c in x})
            if now == count:
                return
            count = now

    def forward(self) -> None:
        """Tell operations apart by what they are computed from, and by nothing else."""
        for side in range(len(self.flows)):
            self._forward(side)

    def _forward(self, side: int) -> None:
        node, loops = self.node[side], self.loops[side]
        table, size = self._table, self._table.__len__
        for n, op in enumerate(self.flows[side].ops):
            if not op.args:
                seen = table.setdefault(("L", node[n], tuple(sorted(loops[n]))), size())
                node[n] = seen
                continue
            parts: list[list[tuple[int, int, int]]] = [[] for _ in op.sizes]
            from_ = []
            for place, (arg, walk) in enumerate(op.args):
                at = 0 if op.symmetric else place
                colour, theirs = node[arg], loops[arg]
                for k, loop in zip(self.flows[side].ops[arg].out, walk, strict=True):
                    parts[loop].append((at, colour, theirs[k]))
                from_.append((at, colour))
            mine = [
                table.setdefault(("l", old, tuple(sorted(p))), size())
                for old, p in zip(loops[n], parts, strict=True)
            ]
            for k, (_, walk) in enumerate(op.args):
                from_[k] = (*from_[k], *sorted(mine[x] for x in walk))  # type: ignore[assignment]
            if op.symmetric:
                from_.sort()
            node[n] = colour = table.setdefault(
                ("f", node[n], tuple(from_), tuple(sorted(mine))), size()
            )
            loops[n] = mine

    def _backward(self, side: int) -> None:
        node, loops, flow = self.node[side], self.loops[side], self.flows[side]
        table, size = self._table, self._table.__len__
        for n in range(len(flow.ops) - 1, -1, -1):
            op = flow.ops[n]
            parts: list[list[tuple[int, int, int]]] = [[] for _ in op.sizes]
            used = []
            for user, place in flow.users[n]:
                by = flow.ops[user]
                at = 0 if by.symmetric else place
                colour, theirs = node[user], loops[user]
                walk = by.args[place][1]
                for k, loop in zip(op.out, walk, strict=True):
                    parts[k].append((at, colour, theirs[loop]))
                used.append((at, colour))
            loops[n] = mine = [
                table.setdefault(("u", old, tuple(sorted(p))), size())
                for old, p in zip(loops[n], parts, strict=True)
            ]
            used.sort()
            node[n] = table.setdefault(("b", node[n], tuple(used), tuple(sorted(mine))), size())

    def balanced(self) -> bool:
        """Whether both graphs have each colour equally often."""
        first, second = (Counter(n) for n in self.node)
        return first == second

    def classes(self, of: Sequence[Sequence[int]]) -> dict[int, tuple[list[int], list[int]]]:
        """Operations of both graphs by colour, among those given for each."""
        out: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for side in (0, 1):
            for n in of[side]:
                out[self.node[side][n]][side].append(n)
        return dict(out)
