"""Chooses among several sets of params: by what their names say, then by what is in them.

A name that says it is worth more than a shape that fits, so names go first, the plainest likeness
before the fainter ones; then an item may take the only set of params whose leaf names and shapes
are its own, and the plan says so. Each set feeds one item, and an item for which two would do gets
none: that is for the user to say.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal

from bridge.names import BOX
from bridge.roles import PARAMS, Group, Roles
from bridge.target import Slot
from bridge.words import copy_words, name_words, without_copy_words
from legacy import LeafPath, LeafTable, format_path

__all__ = ["Choice", "Wanted", "choices", "choose", "fitting", "from_copy", "inside", "whole"]

Shapes = Counter[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Choice:
    """Params that could feed an item, with the collections that go with them.

    Attributes:
        groups: params first.
        kind: a state, a copy of the params of one, or a part of its params tree.
        words: what its whole path says, see :func:`bridge.words.name_words`.
        last: what the last component says that says anything.
        shapes: name and shape of each parameter.
    """

    groups: tuple[Group, ...]
    kind: Literal["state", "copy", "part"]
    words: tuple[str, ...]
    last: tuple[str, ...]
    shapes: Shapes = field(compare=False, hash=False)

    @property
    def prefix(self) -> LeafPath:
        """Where the params are."""
        return self.groups[0].prefix


@dataclass(frozen=True, slots=True)
class Wanted:
    """An item that needs params.

    Attributes:
        item: its name.
        shapes: name and shape of each of its ``nnx.Param``.
    """

    item: str
    shapes: Shapes = field(compare=False, hash=False)

    @classmethod
    def of(cls, item: str, slots: Sequence[Slot]) -> Wanted:
        """Gather the params of an item from all slots of a target."""
        mine = (s for s in slots if s.item == item and s.collection == PARAMS)
        return cls(item, Counter((s.path[-1] if s.path else "", s.shape) for s in mine))

    @property
    def words(self) -> tuple[str, ...]:
        """What its name says."""
        return name_words(self.item)


_MOST_PARTS = 64
"""Models that lie in one params tree are few; what has more entries is one model."""

# -- what there is --------------------------------------------------------------------------------


def choices(table: LeafTable, roles: Roles) -> list[Choice]:
    """All sets of params of a checkpoint: states, copies, and parts of one params tree."""
    found = []
    for params in roles.of("params"):
        at = roles.states[params.state].prefix
        found.append(_choice(table, whole(roles, params), "state", at))
    copies = (g for g in roles.of("copy") if g.collection == PARAMS)
    found += [_choice(table, from_copy(roles, g), "copy", g.prefix) for g in copies]
    for params in roles.of("params"):
        names = dict.fromkeys(p[0] for p in params.paths if len(p) > 1)
        for name in names if len(names) <= _MOST_PARTS else ():
            groups = inside(table, roles, params, (*params.prefix, name))
            if groups:
                found.append(_choice(table, groups, "part", (name,)))
    return found


def _choice(
    table: LeafTable,
    groups: tuple[Group, ...],
    kind: Literal["state", "copy", "part"],
    at: LeafPath,
) -> Choice:
    last = next((w for part in reversed(at) if (w := name_words(part))), ())
    shapes: Shapes = Counter()
    for rel in groups[0].paths:
        leaf = table[groups[0].prefix + rel]
        if leaf.kind in ("array", "scalar"):
            named = [p for p in rel if p != BOX]
            shapes[named[-1] if named else "", leaf.shape] += 1
    return Choice(groups, kind, name_words(at), last, shapes)


def whole(roles: Roles, params: Group) -> tuple[Group, ...]:
    """A state's params with its collections."""
    return (params, *roles.of("collection", params.state))


def from_copy(roles: Roles, copy: Group) -> tuple[Group, ...]:
    """A copy of the params as a feed; collections copied beside it, else the state's own."""
    params = Group("params", copy.prefix, PARAMS, copy.paths, copy.state)
    beside = {
        g.collection: Group("collection", g.prefix, g.collection, g.paths, g.state)
        for g in roles.of("copy", copy.state)
        if g.collection != PARAMS and g.prefix[:-1] == copy.prefix[:-1]
    }
    own = [g for g in roles.of("collection", copy.state) if g.collection not in beside]
    return (params, *beside.values(), *own)


def inside(table: LeafTable, roles: Roles, params: Group, path: LeafPath) -> tuple[Group, ...]:
    """One of several models in one params tree, with its part of the other collections.

    Args:
        table: the source.
        roles: its roles.
        params: the params of the state.
        path: where the model is in it: its params, or its variables.
    """
    variables = {p[0] for p in table.below(path) if p}
    if PARAMS in variables and all(len(p) > 1 for p in table.below(path)):
        return tuple(
            Group(
                "params" if name == PARAMS else "collection",
                (*path, name),
                name,
                tuple(table.below((*path, name))),
                params.state,
            )
            for name in (PARAMS, *sorted(variables - {PARAMS}))
        )
    part = tuple(table.below(path))
    if not part:
        return ()
    sub = path[len(params.prefix) :]
    found = [Group("params", path, PARAMS, part, params.state)]
    for group in roles.of("collection", params.state):
        below = tuple(p[len(sub) :] for p in group.paths if p[: len(sub)] == sub)
        if below:
            name = group.collection
            found.append(Group("collection", group.prefix + sub, name, below, params.state))
    return tuple(found)


# -- what is chosen -------------------------------------------------------------------------------

_Fits = Callable[[Wanted, Choice], bool]


def choose(wanted: Sequence[Wanted], found: Sequence[Choice]) -> dict[str, tuple[Choice, str]]:
    """Give items the params that are theirs beyond doubt.

    Args:
        wanted: the items without params.
        found: the params that nothing feeds from.

    Returns:
        The choice by item, with what to tell the user about it (empty where its name says it).
    """
    chosen: dict[str, tuple[Choice, str]] = {}
    for fits, note in _levels(chosen):
        left = [w for w in wanted if w.item not in chosen]
        free = [c for c in found if all(not _overlap(c, o) for o, _ in chosen.values())]
        for item, choice in _only_pairs(left, free, fits):
            chosen[item] = (choice, note and _note(item, choice, note))
    return chosen


def _only_pairs(
    wanted: Sequence[Wanted], found: Sequence[Choice], fits: _Fits
) -> Iterator[tuple[str, Choice]]:
    """Pairs of which both sides have no other."""
    for want in wanted:
        mine = [c for c in found if fits(want, c)]
        if len(mine) == 1 and sum(fits(w, mine[0]) for w in wanted) == 1:
            yield want.item, mine[0]


def _levels(chosen: Mapping[str, tuple[Choice, str]]) -> Iterator[tuple[_Fits, str]]:
    """From a name that is the item's to params that merely fit."""
    yield lambda w, c: c.kind == "state" and (w.item in c.prefix or _same(w, c)), ""
    yield lambda w, c: c.kind == "copy" and _same(w, c), ""
    yield lambda w, c: c.kind == "part" and (w.item == c.prefix[-1] or _same(w, c)), ""
    yield lambda w, c: c.kind == "copy" and _copied(w, c, chosen), ""
    yield lambda w, c: c.kind != "copy" and _short(w, c), "whose name is like it"
    yield lambda w, c: c.kind == "state" and not c.words and not copy_words(w.words), ""
    for same, fit in _FIT.items():
        yield functools.partial(_holds, same), f"the only params whose {fit}"
    yield lambda w, c: c.kind == "part" and _equal(w, c), "the only part whose " + _FIT[_equal]


def _overlap(a: Choice, b: Choice) -> bool:
    n = min(len(a.prefix), len(b.prefix))
    return a.prefix[:n] == b.prefix[:n]


def _same(want: Wanted, choice: Choice) -> bool:
    return bool(want.words) and want.words in (choice.words, choice.last)


def _copied(want: Wanted, choice: Choice, chosen: Mapping[str, tuple[Choice, str]]) -> bool:
    """``target_critic`` or ``teacher``: a copy of that kind, of the state that is meant."""
    kinds = copy_words(want.words)
    if not kinds or kinds != copy_words(choice.words):
        return False
    base = without_copy_words(want.words)
    of = choice.groups[0].state
    owners = [n for n, (c, _) in chosen.items() if of >= 0 and c.groups[0].state == of]
    return (
        not base
        or base == without_copy_words(choice.words)
        or any(base == name_words(n) for n in owners)
    )


def _short(want: Wanted, choice: Choice) -> bool:
    """``disc`` for ``discriminator``: word by word, one is the start of the other."""
    pairs = list(zip(want.words, choice.last, strict=False))
    return len(want.words) == len(choice.last) > 0 and all(
        a == b or (min(len(a), len(b)) > 2 and (a.startswith(b) or b.startswith(a)))  # noqa: PLR2004 - 'gen', 'enc'
        for a, b in pairs
    )


def _holds(same: _Fits, want: Wanted, choice: Choice) -> bool:
    """Whether content decides; a copy never passes for the original, nor the reverse."""
    alike = copy_words(want.words) == copy_words(choice.words)
    return choice.kind == "state" and alike and same(want, choice)


def _equal(want: Wanted, choice: Choice) -> bool:
    return bool(want.shapes) and want.shapes == choice.shapes


def _shaped(want: Wanted, choice: Choice) -> bool:
    return bool(want.shapes) and _only_shapes(want.shapes) == _only_shapes(choice.shapes)


def _sized(want: Wanted, choice: Choice) -> bool:
    return _total(want.shapes) == _total(choice.shapes) > 0


_FIT: Mapping[_Fits, str] = {
    _equal: "leaf names and shapes are those of the model",
    _shaped: "shapes are those of the model",
    _sized: "size is that of the model",
}


def fitting(want: Wanted, choice: Choice) -> bool:
    """Whether names and shapes are the same; for the order of candidates."""
    return _equal(want, choice) or _shaped(want, choice)


def _only_shapes(shapes: Shapes) -> Counter[tuple[int, ...]]:
    found: Counter[tuple[int, ...]] = Counter()
    for (_, shape), n in shapes.items():
        found[shape] += n
    return found


def _total(shapes: Shapes) -> int:
    return sum(prod(shape) * n for (_, shape), n in shapes.items())


def _note(item: str, choice: Choice, note: str) -> str:
    return (
        f"item {item!r} is fed from {format_path(choice.prefix)}, {note}; "
        f"at={{{item!r}: ...}} says otherwise"
    )
