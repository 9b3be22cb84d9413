"""A coarser view of a data flow, in which small differences of two models do not show.

What is computed element by element, numbers, constants and conversions are left out: an array is
then only what it was made of, such as "a product, its bias and the residual". So relu and gelu
look alike, and so do two epsilons; what the parameters do does not.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

from bridge.dataflow_flow import Flow, Op
from bridge.dataflow_ops import POINTWISE, REDUCE
from bridge.dataflow_trace import Traced

__all__ = ["LEVELS", "Coarse", "coarse"]

LEVELS = (0, 1, 2)
_LIGHT = frozenset({*POINTWISE, "cond"})
_NOTHING = frozenset({"const", "iota", "key", "random_bits", "random_wrap", "random_seed"})

_Source = tuple[int, tuple[int, ...]]
"""An operation of the coarse graph, and the loop that each of its axes is; -1 if summed."""


@dataclass(frozen=True, slots=True, eq=False)
class Coarse:
    """A coarser graph.

    Attributes:
        traced: it.
        origin: the operation of the finer graph that each of its operations is; -1 for none.
    """

    traced: Traced
    origin: tuple[int, ...]


class _Builder:
    def __init__(self, fine: Flow, light: frozenset[str], *, squares: bool) -> None:
        self.fine, self.light, self.squares = fine, light, squares
        self.ops: list[Op] = []
        self.origin: list[int] = []
        self.sources: list[tuple[_Source, ...]] = []
        self.seen: dict[Hashable, int] = {}

    def add(self, op: Op, origin: int) -> int:
        """Add an operation, or find the one that is the same."""
        args = tuple(sorted(op.args)) if op.symmetric else op.args
        own = origin if op.op in ("phi", "carry") else -1
        key = (op.op, op.key, op.sizes, op.tags, op.out, args, op.leaf, op.digits, own)
        if key not in self.seen:
            self.seen[key] = len(self.ops)
            self.ops.append(op)
            self.origin.append(origin)
        return self.seen[key]

    def run(self) -> None:
        for n, op in enumerate(self.fine.ops):
            if op.op in _NOTHING:
                self.sources.append(())
            elif op.op in self.light:
                square = self.squares and op.op == "mul" and len(op.args) > len(set(op.args))
                self.sources.append((self._heavy(n, op),) if square else self._mixed(op))
            else:
                self.sources.append((self._heavy(n, op),))

    def _mixed(self, op: Op) -> tuple[_Source, ...]:
        place = {loop: k for k, loop in enumerate(op.out)}
        several = len(op.args) + len(op.key[1]) > 1
        found: set[_Source] = set()
        for arg, walk in op.args:
            for source, axes in self.sources[arg]:
                moved = tuple(place.get(walk[a], -1) if a >= 0 else -1 for a in axes)
                found.add((self._used(op, source) if several else source, moved))
        return tuple(sorted(found))

    def _used(self, op: Op, source: int) -> int:
        """A parameter with what it is used for: a scale is no bias."""
        param = self.ops[source]
        if param.leaf < 0:
            return source
        use = ("div" if op.op == "div" else op.op, bool(op.key[1]))
        loops = tuple(range(len(param.out)))
        new = Op("use", (use,), symmetric=False, sizes=tuple(param.sizes[k] for k in param.out),
                 tags=("o",) * len(loops), out=loops, args=((source, loops),))  # fmt: skip
        return self.add(new, -1)

    def _one(self, sources: tuple[_Source, ...], axes: int, sizes: tuple[int, ...]) -> int:
        """One operation for all that an array was made of."""
        whole = tuple(range(axes))
        if len(sources) == 1 and sources[0][1] == whole:
            return sources[0][0]
        loops, tags = list(sizes), ["o"] * axes
        args = []
        for source, walk in sources:
            full = []
            for k, at in enumerate(walk):
                if at < 0:
                    of = self.ops[source]
                    loops.append(of.sizes[of.out[k]])
                    tags.append("r")
                full.append(len(loops) - 1 if at < 0 else at)
            args.append((source, tuple(full)))
        new = Op("mix", (), symmetric=True, sizes=tuple(loops), tags=tuple(tags), out=whole,
                 args=tuple(args))  # fmt: skip
        return self.add(new, -1)

    def _heavy(self, n: int, op: Op) -> _Source:
        args = []
        for arg, walk in op.args:
            if not self.sources[arg]:
                continue
            of = self.fine.ops[arg]
            one = self._one(self.sources[arg], len(of.out), tuple(of.sizes[k] for k in of.out))
            args.append((one, walk))
        if op.leaf >= 0 or op.op in ("input", "output", "update"):
            new = replace(op, args=tuple(args))
        else:
            new = replace(op, key=(), args=tuple(args))
        return self.add(new, n), tuple(range(len(op.out)))


def coarse(traced: Traced, level: int) -> Coarse:
    """The coarser view.

    Args:
        traced: the finer one.
        level: 0 for the finest; 1 does not tell a mean from a mean of squares; 2 leaves out sums
            and maxima, too, as in norms and softmax.
    """
    light = _LIGHT | REDUCE if level == LEVELS[-1] else _LIGHT
    build = _Builder(traced.flow, light, squares=level == LEVELS[0])
    build.run()
    live = _live(build.ops)
    new = {n: k for k, n in enumerate(live)}
    ops = [replace(build.ops[n], args=tuple((new[a], w) for a, w in build.ops[n].args))
           for n in live]  # fmt: skip
    flow = Flow(ops)
    flow.link()
    return Coarse(replace(traced, flow=flow), tuple(build.origin[n] for n in live))


def _live(ops: list[Op]) -> list[int]:
    live: set[int] = set()
    loops = {n for n, op in enumerate(ops) if op.op == "carry"}
    waiting = [n for n, op in enumerate(ops) if op.op in ("output", "update")] + sorted(loops)
    while waiting:
        n = waiting.pop()
        if n not in live:
            live.add(n)
            waiting.extend(a for a, _ in ops[n].args)
    return sorted(live)
