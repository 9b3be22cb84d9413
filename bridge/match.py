"""Pairs the leaves of a collection with the slots of a model, where the pairing is certain.

Two reasons are found here. ``path``: both have the same path once the spellings of an index
(``layers_3``, ``layers[3]``), of a keyword (``if``, ``if_``) and of a box (a last ``value``) are
made equal. ``unique``: Variable type, leaf name, shape, dtype and the position in a parent that
is already matched leave only one possibility. Whatever has two possibilities stays unmatched:
two Dense layers of one shape are never told apart by their order.
"""

from __future__ import annotations

import keyword
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field

from bridge.target import SlotRef
from legacy import LeafPath

__all__ = ["Candidate", "Pair", "match", "normal"]

_INDEXED = re.compile(r"(.+)_(\d+)")
BOX = "value"
"""What ``nn.Partitioned`` and NNX Variables add as the last component of a path."""

LEAF_ROLES: frozenset[str] = frozenset(
    {"kernel", "bias", "scale", "embedding", "mean", "var", "negative_slope", "u", "sigma"}
)
"""Leaf names with a meaning of their own: a ``bias`` never feeds a ``scale``, whatever its shape."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A source leaf or a slot, as far as matching looks at it.

    Attributes:
        path: below the collection or the model.
        collection: ``params``, ``batch_stats``, ...
        shape: its shape.
        dtype: its numpy dtype name.
        key: the full source path, or the slot's name.
    """

    path: LeafPath
    collection: str
    shape: tuple[int, ...]
    dtype: str
    key: LeafPath | SlotRef


@dataclass(frozen=True, slots=True)
class Pair:
    """A source leaf and the slot it belongs to, with the reason."""

    source: LeafPath
    slot: SlotRef
    why: str


def normal(path: LeafPath) -> LeafPath:
    """One spelling for indices and keywords.

    >>> normal(("layers_3", "if_", "kernel"))
    ('layers', '3', 'if', 'kernel')
    >>> normal(("nest_1_0",))
    ('nest', '1', '0')
    """
    parts: list[str] = []
    for part in path:
        tail: list[str] = []
        head = part
        while (found := _INDEXED.fullmatch(head)) is not None:
            head, index = found.groups()
            tail.append(str(int(index)))
        if head.endswith("_") and keyword.iskeyword(head[:-1]):
            head = head[:-1]
        parts += [head, *reversed(tail)]
    return tuple(parts)


def _unboxed(path: LeafPath) -> LeafPath:
    return path[:-1] if len(path) > 1 and path[-1] == BOX else path


def _no_wrappers(path: LeafPath) -> LeafPath:
    # some code nests one `params` level for each module
    return tuple(p for p in path if p != "params")


# (spelling of sources, spelling of slots), strictest first: an exact name wins over a likeness
_SPELLINGS: tuple[tuple[Callable[[LeafPath], LeafPath], Callable[[LeafPath], LeafPath]], ...] = (
    (lambda p: p, lambda p: p),
    (normal, normal),
    (lambda p: normal(_unboxed(p)), normal),
    (lambda p: normal(_no_wrappers(_unboxed(p))), normal),
)


def match(sources: Iterable[Candidate], slots: Iterable[Candidate]) -> tuple[Pair, ...]:
    """Pair what can be paired with certainty.

    Args:
        sources: leaves without a slot yet, of one model.
        slots: slots without a source yet, of one item.

    Returns:
        Pairs, each source and each slot at most once. Pairs by ``path`` may differ in shape or
        dtype: that is for the plan to report. Pairs by ``unique`` never do.
    """
    sources, slots = tuple(sources), tuple(slots)
    left, right = list(sources), list(slots)
    pairs: list[Pair] = []
    for spell_source, spell_slot in _SPELLINGS:
        _pair_by(
            left,
            right,
            lambda c, spell=spell_source: (c.collection, spell(c.path)),
            lambda c, spell=spell_slot: (c.collection, spell(c.path)),
            "path",
            pairs,
        )
    known = _Known(sources, slots)
    before = -1
    while len(pairs) > before:  # each pair may make another one certain
        before = len(pairs)
        _pair_siblings(known, left, right, pairs)
        _pair_modules(_trees(left, boxed=True), _trees(right, boxed=False), left, right, pairs)
        # what is left in the whole model, by name of the leaf and then by type and shape alone
        for key in (_named, _shaped):
            _pair_by(left, right, key, key, "unique", pairs)
            _pair_siblings(known, left, right, pairs)
    return tuple(pairs)


class _Known:
    """Candidates by their key, for pairs that have been made."""

    def __init__(self, sources: Iterable[Candidate], slots: Iterable[Candidate]) -> None:
        self.sources = {c.key: c for c in sources}
        self.slots = {c.key: c for c in slots}

    def modules(self, pairs: Iterable[Pair]) -> dict[LeafPath, LeafPath]:
        """Modules that are matched: all matched leaves of one are in the other, and back."""
        there: dict[LeafPath, set[LeafPath]] = defaultdict(set)
        back: dict[LeafPath, set[LeafPath]] = defaultdict(set)
        for pair in pairs:
            ours = _unboxed(self.sources[pair.source].path)[:-1]
            theirs = self.slots[pair.slot].path[:-1]
            there[ours].add(theirs)
            back[theirs].add(ours)
        single = {m: next(iter(n)) for m, n in there.items() if len(n) == 1}
        return {m: n for m, n in single.items() if len(back[n]) == 1}


def _pair_siblings(
    known: _Known, left: list[Candidate], right: list[Candidate], pairs: list[Pair]
) -> None:
    """A module whose kernel is matched is matched: its bias can only go to the bias there."""
    modules = known.modules(pairs)
    ours: dict[LeafPath, list[Candidate]] = defaultdict(list)
    theirs: dict[LeafPath, list[Candidate]] = defaultdict(list)
    for c in left:
        ours[_unboxed(c.path)[:-1]].append(c)
    for c in right:
        theirs[c.path[:-1]].append(c)
    done: set[Candidate] = set()
    for module, other in modules.items():
        _pair_leaves(ours.get(module, []), theirs.get(other, []), pairs, done)
    _drop(left, done)
    _drop(right, done)


def _pair_leaves(
    ours: Iterable[Candidate],
    theirs: Iterable[Candidate],
    pairs: list[Pair],
    done: set[Candidate],
) -> None:
    """In one matched module, pair the leaves that fit one way: by name first, then by shape."""
    for key in (_named, _shaped):
        a = _singles([c for c in ours if c not in done], key)
        b = _singles([c for c in theirs if c not in done], key)
        for k in a.keys() & b.keys():
            if _may_pair(a[k], b[k]):
                _add(a[k], b[k], "unique", pairs, done)


def _may_pair(a: Candidate, b: Candidate) -> bool:
    names = {_unboxed(a.path)[-1:], b.path[-1:]}
    return len(names) == 1 or not all(n and n[0] in LEAF_ROLES for n in names)


def _named(c: Candidate) -> Hashable:
    return (c.collection, _unboxed(c.path)[-1:], c.shape, c.dtype)


def _shaped(c: Candidate) -> Hashable:
    return (c.collection, c.shape, c.dtype)


def _pair_by(
    left: list[Candidate],
    right: list[Candidate],
    key_left: Callable[[Candidate], Hashable],
    key_right: Callable[[Candidate], Hashable],
    why: str,
    pairs: list[Pair],
) -> None:
    """Pair those whose key occurs once on each side; removes them from both lists."""
    ours: dict[Hashable, list[Candidate]] = defaultdict(list)
    theirs: dict[Hashable, list[Candidate]] = defaultdict(list)
    for c in left:
        ours[key_left(c)].append(c)
    for c in right:
        theirs[key_right(c)].append(c)
    done: set[Candidate] = set()
    for key, mine in ours.items():
        other = theirs.get(key, ())
        if len(mine) == 1 and len(other) == 1 and (why == "path" or _may_pair(mine[0], other[0])):
            _add(mine[0], other[0], why, pairs, done)
    _drop(left, done)
    _drop(right, done)


def _add(a: Candidate, b: Candidate, why: str, pairs: list[Pair], done: set[Candidate]) -> None:
    assert isinstance(a.key, tuple) and isinstance(b.key, SlotRef)  # noqa: S101, PT018 - by construction
    pairs.append(Pair(a.key, b.key, why))
    done |= {a, b}


def _drop(items: list[Candidate], done: set[Candidate]) -> None:
    items[:] = [c for c in items if c not in done]


@dataclass(slots=True)
class _Module:
    """A module of what is still unmatched: its own leaves and its children by name."""

    leaves: list[Candidate] = field(default_factory=list)
    children: dict[str, _Module] = field(default_factory=dict)

    def signature(self) -> Hashable:
        """Everything about a module but the names of its submodules."""
        own = sorted((c.collection, _unboxed(c.path)[-1], c.shape, c.dtype) for c in self.leaves)
        below = sorted((m.signature() for m in self.children.values()), key=repr)
        return (tuple(own), tuple(below))


def _trees(candidates: Iterable[Candidate], *, boxed: bool) -> _Module:
    root = _Module()
    for c in candidates:
        node = root
        for part in normal(_unboxed(c.path) if boxed else c.path)[:-1]:
            node = node.children.setdefault(part, _Module())
        node.leaves.append(c)
    return root


def _pair_modules(
    ours: _Module,
    theirs: _Module,
    left: list[Candidate],
    right: list[Candidate],
    pairs: list[Pair],
) -> None:
    """Parents before children: in a matched parent, pair what only fits one way."""
    done: set[Candidate] = set()
    stack = [(ours, theirs)]
    while stack:
        mine, other = stack.pop()
        _pair_leaves(mine.leaves, other.leaves, pairs, done)
        same = mine.children.keys() & other.children.keys()
        stack += [(mine.children[n], other.children[n]) for n in same]
        a_rest = _single_modules({n: m for n, m in mine.children.items() if n not in same})
        b_rest = _single_modules({n: m for n, m in other.children.items() if n not in same})
        stack += [(a_rest[s], b_rest[s]) for s in a_rest.keys() & b_rest.keys()]
    _drop(left, done)
    _drop(right, done)


def _singles(
    leaves: list[Candidate], key: Callable[[Candidate], Hashable]
) -> dict[Hashable, Candidate]:
    groups: dict[Hashable, list[Candidate]] = defaultdict(list)
    for c in leaves:
        groups[key(c)].append(c)
    return {k: v[0] for k, v in groups.items() if len(v) == 1}


def _single_modules(children: dict[str, _Module]) -> dict[Hashable, _Module]:
    groups: dict[Hashable, list[_Module]] = defaultdict(list)
    for child in children.values():
        groups[child.signature()].append(child)
    return {k: v[0] for k, v in groups.items() if len(v) == 1}
