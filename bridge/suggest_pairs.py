"""Guesses which open leaf an open slot is meant for, by names; for suggestions only.

Whole modules come before single leaves, and the leaves of one module stay together: the halves of
two layers are never one layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from bridge.match import Candidate
from bridge.names import ROLES_OF, may_pair, unboxed
from bridge.rule_text import reshaping
from bridge.suggest_families import Part, families, first_open, likeness, numbers, pair, words
from legacy import LeafPath

__all__ = ["Guess", "guess_pairs"]

_VECTORS = frozenset({"bias", "scale", "mean", "var", "negative_slope"})


@dataclass(frozen=True, slots=True)
class Guess:
    """Leaves that may feed slots, with the transforms as TOML."""

    sources: tuple[Candidate, ...]
    slots: tuple[Candidate, ...]
    transforms: str = ""


def guess_pairs(
    sources: Sequence[Candidate],
    slots: Sequence[Candidate],
    mapped: Mapping[LeafPath, LeafPath] | None = None,
) -> list[Guess]:
    """Guess what belongs together.

    Args:
        sources: open leaves.
        slots: open slots.
        mapped: slot path by variable path (collection first) of what is settled: the other
            leaves of those modules go where these went, or nowhere.

    Returns:
        Guesses; each leaf and each slot in at most one.
    """
    return _Guesser(sources, slots, mapped or {}).guess()


class _Guesser:
    """Takes pairs from what is open, the surest kind first."""

    def __init__(
        self,
        sources: Sequence[Candidate],
        slots: Sequence[Candidate],
        mapped: Mapping[LeafPath, LeafPath],
    ) -> None:
        # what is open, by id: each guess takes some out
        self._left, self._right = ({id(c): c for c in side} for side in (sources, slots))
        self.guesses: list[Guess] = []
        # modules that hold others, too, are no unit: their own leaves may go to several places
        self.holders = (
            _holders([*(c.path for c in sources), *(p[1:] for p in mapped)]),
            _holders([*(c.path for c in slots), *mapped.values()]),
        )
        self.went: dict[LeafPath, set[LeafPath]] = defaultdict(set)
        self.came: dict[LeafPath, set[LeafPath]] = defaultdict(set)
        for path, slot in mapped.items():
            self._bind(_module(path[1:]), _module(slot))

    def guess(self) -> list[Guess]:
        """All guesses."""
        for key in (_exactly, _by_role):
            self._modules(key)
        self._leaves(_shape)
        self._stacked()
        self._modules(_by_size)
        self._leaves(_size)
        return self.guesses

    def _bind(self, ours: LeafPath, theirs: LeafPath) -> None:
        if ours not in self.holders[0] and theirs not in self.holders[1]:
            self.went[ours].add(theirs)
            self.came[theirs].add(ours)

    def _together(self, a: Part, b: Part) -> bool:
        """Whether nothing else of the two modules went to, or came from, elsewhere."""
        ours, theirs = _module(a.leaves[0].path), _module(b.leaves[0].path)
        if ours in self.holders[0] or theirs in self.holders[1]:
            return True
        return theirs in self.went.get(ours, {theirs}) and ours in self.came.get(theirs, {ours})

    def _modules(self, key: Callable[[Candidate], Hashable]) -> None:
        """Pair modules whose open leaves are the same, as far as ``key`` tells."""
        sides = []
        for side in (self.left, self.right):
            modules: dict[LeafPath, dict[Hashable, Candidate]] = defaultdict(dict)
            double: set[LeafPath] = set()
            for c in side:
                module = _module(c.path)
                if key(c) in modules[module]:
                    double.add(module)
                modules[module][key(c)] = c
            groups: dict[Hashable, list[Part]] = defaultdict(list)
            for module, leaves in modules.items():
                if module and module not in double:
                    order = sorted(leaves, key=repr)
                    part = Part(module, tuple(leaves[k] for k in order))
                    groups[tuple(order)].append(part)
            sides.append(groups)
        for signature, ours in sides[0].items():
            self._take(pair(ours, sides[1].get(signature, []), self._together))

    def _leaves(self, key: Callable[[Candidate], Hashable]) -> None:
        """Pair single leaves that are the same, as far as ``key`` tells."""

        def fits(a: Part, b: Part) -> bool:
            ours, theirs = unboxed(a.path), unboxed(b.path)
            names = ours[-1] if ours else "", theirs[-1] if theirs else ""
            return may_pair(*names, (), placed=True) and self._together(a, b)

        sides = []
        for side in (self.left, self.right):
            groups: dict[Hashable, list[Part]] = defaultdict(list)
            for c in side:
                groups[key(c)].append(Part(c.path, (c,)))
            sides.append(groups)
        for k, ours in sides[0].items():
            self._take(pair(ours, sides[1].get(k, []), fits))

    def _take(self, pairs: Iterable[tuple[Part, Part]]) -> None:
        """Make guesses of pairs; what an earlier one of them excludes is left out."""
        for a, b in pairs:
            if not self._together(a, b):
                continue
            self._bind(_module(a.leaves[0].path), _module(b.leaves[0].path))
            for x, y in zip(a.leaves, b.leaves, strict=True):
                how = "" if x.shape == y.shape else reshaping(x.shape, y.shape)
                self._add(Guess((x,), (y,), how))

    def _stacked(self) -> None:
        for many, one, op in ((self.left, self.right, "stack"), (self.right, self.left, "unstack")):
            for guess in _stacks(many, one, op):
                self._add(guess)

    def _add(self, guess: Guess) -> None:
        self.guesses.append(guess)
        for c in guess.sources:
            self._left.pop(id(c), None)
        for c in guess.slots:
            self._right.pop(id(c), None)

    @property
    def left(self) -> list[Candidate]:
        """Open leaves."""
        return list(self._left.values())

    @property
    def right(self) -> list[Candidate]:
        """Open slots."""
        return list(self._right.values())


def _module(path: LeafPath) -> LeafPath:
    return unboxed(path)[:-1]


def _holders(paths: Iterable[LeafPath]) -> set[LeafPath]:
    """Modules with modules inside, and the root."""
    modules = {_module(p) for p in paths}
    return {m[:n] for m in modules for n in range(len(m))} | {()}


def _name(c: Candidate) -> str:
    path = unboxed(c.path)
    return path[-1] if path else ""


def _role(c: Candidate) -> str:
    """One name for what people call a leaf; a vector cannot be a kernel, whatever its name."""
    roles = ROLES_OF.get(_name(c), frozenset())
    fitting = roles & _VECTORS if len(c.shape) < 2 else roles - _VECTORS  # noqa: PLR2004 - a matrix
    return max(fitting or roles, default=_name(c))


def _exactly(c: Candidate) -> Hashable:
    return (c.collection, _name(c), c.shape)


def _by_role(c: Candidate) -> Hashable:
    return (c.collection, _role(c), c.shape)


def _by_size(c: Candidate) -> Hashable:
    return (c.collection, _role(c), prod(c.shape))


def _shape(c: Candidate) -> Hashable:
    return (c.collection, c.shape)


def _size(c: Candidate) -> Hashable:
    return (c.collection, prod(c.shape))


def _stacks(many: list[Candidate], one: list[Candidate], op: str) -> list[Guess]:
    """Arrays that differ in one number, and an array that has room for all of them."""
    alike: dict[Hashable, list[list[Candidate]]] = defaultdict(list)
    for group in families(many).values():
        by_kind: dict[Hashable, list[Candidate]] = defaultdict(list)
        for c in group:
            by_kind[c.collection, c.shape].append(c)
        for kind, members in by_kind.items():
            counted = [members] if _count_up(members) else families(members, first_open).values()
            alike[kind] += [found for found in counted if len(found) > 1 and _count_up(found)]
    guesses = []
    tied: dict[tuple[str, ...], tuple[str, ...]] = {}  # the leaves of a layer stay together

    def layer(c: Candidate) -> tuple[str, ...]:
        return ("many", *first_open(_module(c.path)))

    for whole in one:
        home = ("one", *_module(whole.path))
        for axis, n in enumerate(whole.shape):
            part = (*whole.shape[:axis], *whole.shape[axis + 1 :])
            fits = [
                f
                for f in alike.get((whole.collection, part), ())
                if len(f) == n
                and may_pair(unboxed(f[0].path)[-1], unboxed(whole.path)[-1], (), placed=True)
                and tied.get(layer(f[0]), home) == home
                and tied.get(home, layer(f[0])) == layer(f[0])
            ]
            if fits:
                text = "/".join(words(whole.path)).lower()
                best = max(fits, key=lambda f: likeness("/".join(words(f[0].path)).lower(), text))
                alike[whole.collection, part].remove(best)
                if len(home) > 1:
                    tied[home], tied[layer(best[0])] = layer(best[0]), home
                how = f'{{op = "{op}", axis = {axis}}}'
                parts = tuple(best)
                ours, theirs = (parts, (whole,)) if op == "stack" else ((whole,), parts)
                guesses.append(Guess(ours, theirs, how))
                break
    return guesses


def _count_up(members: list[Candidate]) -> bool:
    """Whether one number tells the members apart and counts without gaps; sorts them by it."""
    columns = list(zip(*(numbers(c.path) for c in members), strict=True))
    varying = [n for n, column in enumerate(columns) if len(set(column)) > 1]
    if len(varying) != 1:
        return False
    members.sort(key=lambda c: int(numbers(c.path)[varying[0]]))
    counted = [int(numbers(c.path)[varying[0]]) for c in members]
    return counted == list(range(counted[0], counted[0] + len(counted)))
