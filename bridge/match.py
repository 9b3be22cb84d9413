"""Pairs the leaves of a collection with the slots of a model, where the pairing is certain.

Two reasons are found here. ``path``: both have the same path once the spellings of an index
(``layers_3``, ``layers[3]``), of a keyword (``if``, ``if_``) and of a box (a last ``value``) are
made equal. ``unique``: Variable type, leaf name, shape, dtype and the position in a parent that
is already matched leave only one possibility. Whatever has two possibilities stays unmatched:
two Dense layers of one shape are never told apart by their order.

``unique`` is an argument by exclusion, so it only counts while nothing is left that could be the
other possibility after all: an open leaf or slot of the same size that may only be reshaped takes
the certainty away. It does not tell a renamed layer from one that was dropped while another of
its very shape was added: who drops a layer says so by a rule. And where a layer of the same
shape is left over beside a list on both sides, the list may begin elsewhere, so that its indices
say nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from math import prod

from bridge.match_modules import same_modules
from bridge.match_pairs import Pair, paired, path_of, ref_of
from bridge.names import BOX, Families, is_index, may_pair, normal, numbered
from bridge.views import Candidate, Leaf, leaves_of
from legacy import LeafPath

__all__ = [
    "BOX",
    "Candidate",
    "Pair",
    "match",
    "match_leaves",
    "normal",
    "paired",
    "path_of",
    "ref_of",
    "same_paths",
]


def match(sources: Iterable[Candidate], slots: Iterable[Candidate]) -> tuple[Pair, ...]:
    """Pair what can be paired with certainty.

    Args:
        sources: leaves without a slot yet, of one model.
        slots: slots without a source yet, of one item.

    Returns:
        Pairs, each source and each slot at most once. Pairs by ``path`` may differ in shape or
        dtype: that is for the plan to report. Pairs by ``unique`` never do.
    """
    found = match_leaves(leaves_of(sources, boxes=True), leaves_of(slots, boxes=False))
    return tuple(pair for a, b, why in found for pair in paired(a.key, b.key, why))


def match_leaves(
    ours: Iterable[Leaf], theirs: Iterable[Leaf], *, order: bool = False
) -> list[tuple[Leaf, Leaf, str]]:
    """As :func:`match`, for leaves that may be views.

    Args:
        ours: open sources.
        theirs: open slots.
        order: also take what only the order of numbered layers suggests. Then nothing that is
            found has any better reason.
    """
    left, right = list(ours), list(theirs)
    # a stream of random numbers in each block of the model is no reason to find no block
    both = {c.collection for c in left} & {c.collection for c in right}
    left = [c for c in left if c.collection in both]
    right = [c for c in right if c.collection in both]
    doubtful: set[Hashable] = set()
    while True:  # what is doubted may cast doubt on more
        sheet = _Sheet(left, right, doubtful, order=order)
        sheet.fill()
        more = sheet.doubts()
        if not more:
            return sheet.pairs
        doubtful |= more


def same_paths(ours: Iterable[Leaf], theirs: Iterable[Leaf]) -> set[Hashable]:
    """Keys of leaves and slots that have one path and one shape: no other reading is needed.

    Args:
        ours: open sources.
        theirs: open slots.
    """
    sheet = _Sheet(list(ours), list(theirs), set())
    sheet.by_paths()
    return {c.key for a, b, _ in sheet.pairs if a.shape == b.shape for c in (a, b)}


def _no_wrappers(path: LeafPath) -> LeafPath:
    # some code nests one `params` level for each module
    return tuple(p for p in path if p != "params")


def _in_one(path: LeafPath) -> LeafPath:
    # the entry `mean` of a dict `heads` is `heads_mean` in Linen
    return ("_".join(path),)


# (spelling of sources, of slots, and of the numbers in sources), strictest first: an exact name
# wins over a likeness
_Spelling = Callable[[Leaf], LeafPath]
_SPELLINGS: tuple[tuple[_Spelling, _Spelling, _Spelling], ...] = (
    (lambda c: c.path, lambda c: c.path, lambda c: normal(c.path)),
    (lambda c: normal(c.path), lambda c: c.normal, lambda c: normal(c.path)),
    (lambda c: c.normal, lambda c: c.normal, lambda c: c.normal),
    (lambda c: _no_wrappers(c.normal), lambda c: c.normal, lambda c: _no_wrappers(c.normal)),
    (lambda c: _in_one(c.normal), lambda c: _in_one(c.normal), lambda c: c.normal),
)


class _Sheet:
    """One attempt at pairing, with the leaves that only exclusion could pair and must not."""

    def __init__(
        self,
        left: list[Leaf],
        right: list[Leaf],
        doubtful: set[Hashable],
        *,
        order: bool = False,
    ) -> None:
        self.order = order
        self.left = list(left)
        self.right = list(right)
        self.doubtful = doubtful
        self.pairs: list[tuple[Leaf, Leaf, str]] = []
        # positions in `pairs` that rest on exclusion, with the modules in which all others were
        # excluded
        self.weak: dict[int, tuple[LeafPath, LeafPath]] = {}
        self.spelled: list[tuple[Leaf, Leaf]] = []  # by paths that only normal spelling makes equal
        # modules that are matched: all matched leaves of one are in the other, and back
        self._there: dict[LeafPath, set[LeafPath]] = defaultdict(set)
        self._back: dict[LeafPath, set[LeafPath]] = defaultdict(set)

    def fill(self) -> None:
        """Make all pairs."""
        self.by_paths()
        before = -1
        while len(self.pairs) > before:  # each pair may make another one certain
            before = len(self.pairs)
            self._siblings()
            self._modules()
            for key in (_named, _shaped):
                self._by_exclusion(key)
                self._siblings()

    def doubts(self) -> set[Hashable]:
        """Keys of pairs made by exclusion while another possibility of their size is open."""
        open_leaves: dict[Hashable, list[Leaf]] = defaultdict(list)
        # a pair by path whose shapes differ will be refused, so both may still go elsewhere
        # and where not even the names agree, two pairs of one size could be crossed
        unfit = [
            leaf
            for n, (a, b, _) in enumerate(self.pairs)
            if a.shape != b.shape or (n in self.weak and a.name != b.name)
            for leaf in (a, b)
        ]
        here = {id(a) for a, _, _ in self.pairs} | set(map(id, self.left))
        for leaf in (*self.left, *self.right, *unfit):
            open_leaves[leaf.collection, prod(leaf.shape)].append(leaf)
        found: set[Hashable] = set()
        for n, (ours, theirs) in self.weak.items():
            a, b, _ = self.pairs[n]
            rivals = open_leaves.get((a.collection, prod(a.shape)), ())
            names = {
                r.name
                for r in rivals
                if r is not a and r is not b and _below(r, ours if id(r) in here else theirs)
            }
            # sizes are equal and shapes may not be: only names can rule a rival out
            if any(may_pair(m, name, (), placed=True) for m in (a.name, b.name) for name in names):
                found |= {a.key, b.key}
        return (found | self._shifted()) - self.doubtful

    def _shifted(self) -> set[Hashable]:
        """Keys of list members whose list may begin elsewhere on the other side.

        ``stem`` and ``layers_0..2`` may be ``layers[0..2]`` and ``head``.
        """
        paths = {id(leaf) for a, b, why in self.pairs if why == "path" for leaf in (a, b)}
        loose = [(a, b) for a, b, why in self.pairs if why != "path"]
        ours, theirs = (
            {_cut(c, n) for c in side if id(c) not in paths for n in range(len(c.normal) - 1)}
            for side in (
                (*self.left, *(a for a, _ in loose)),
                (*self.right, *(b for _, b in loose)),
            )
        )
        return {
            leaf.key
            for a, b in self.spelled
            for n, part in enumerate(a.normal)
            if is_index(part) and n and len(b.normal) > n
            if _cut(a, n - 1, n) in ours and _cut(b, n - 1, n) in theirs
            for leaf in (a, b)
        }

    def _add(
        self,
        a: Leaf,
        b: Leaf,
        why: str,
        *,
        weak: bool,
        inside: tuple[LeafPath, LeafPath] = ((), ()),
    ) -> None:
        if weak:
            self.weak[len(self.pairs)] = inside
        self.pairs.append((a, b, why))
        self._there[a.module].add(b.module)
        self._back[b.module].add(a.module)

    def _drop(self, start: int) -> None:
        """Take what has been paired since off the lists of open leaves."""
        done = {id(leaf) for a, b, _ in self.pairs[start:] for leaf in (a, b)}
        if done:
            self.left = [c for c in self.left if id(c) not in done]
            self.right = [c for c in self.right if id(c) not in done]

    def by_paths(self) -> None:
        """Pair what has one path once spellings are made equal."""
        # numbers are compared over all leaves, paired ones included
        every, slots = list(self.left), [numbered(c.normal) for c in self.right]
        for n, (spell_source, spell_slot, source) in enumerate(_SPELLINGS):
            if not self.left or not self.right:
                return
            start = len(self.pairs)
            ours = _groups(self.left, _spelled(spell_source))
            theirs = _groups(self.right, _spelled(spell_slot))
            if not ours.keys() & theirs.keys():
                continue
            families = Families((numbered(source(c)) for c in every), slots)
            for key, a in ours.items():
                b = theirs.get(key, [])
                if len(a) == len(b) == 1 and families.agree(numbered(source(a[0])), exact=n == 0):
                    if n and self.doubtful & {a[0].key, b[0].key}:
                        continue
                    if n:
                        self.spelled.append((a[0], b[0]))
                    self._add(a[0], b[0], "path", weak=False)
            self._drop(start)

    def _siblings(self) -> None:
        """A module whose kernel is matched is matched: its bias can only go to the bias there."""
        ours = _groups(self.left, lambda c: c.module)
        theirs = _groups(self.right, lambda c: c.module)
        start = len(self.pairs)
        for module in ours:
            there = self._there.get(module, ())  # type: ignore[call-overload] # modules are paths
            if len(there) == 1:
                (other,) = there
                if len(self._back[other]) == 1 and other in theirs:
                    self._in_module(ours[module], theirs[other], sure=True)
        self._drop(start)

    def _in_module(
        self,
        ours: list[Leaf],
        theirs: list[Leaf],
        *,
        sure: bool,
        inside: tuple[LeafPath, LeafPath] = ((), ()),
    ) -> None:
        """In one matched module, pair the leaves that fit one way: by name, then by shape."""
        done: set[int] = set()
        for key in (_named, _shaped):
            weak = not (sure and key is _named)
            a = _groups((c for c in ours if id(c) not in done), key)
            b = _groups((c for c in theirs if id(c) not in done), key)
            for k in a:
                if len(a[k]) == len(b.get(k, ())) == 1:
                    x, y = a[k][0], b[k][0]
                    if self._may(x, y, placed=True, weak=weak):
                        self._add(x, y, "unique", weak=weak, inside=inside)
                        done |= {id(x), id(y)}

    def _modules(self) -> None:
        """Parents before children: in a matched parent, pair what only fits one way."""
        start = len(self.pairs)
        found = same_modules(self.left, self.right, self.doubtful, order=self.order)
        for same in found:
            # a module that lost a layer may look like another one: only an order may trust it
            inside = same.inside if self.order else ((), ())
            self._in_module(same.ours, same.theirs, sure=same.named, inside=inside)
        self._drop(start)

    def _by_exclusion(self, key: Callable[[Leaf], Hashable]) -> None:
        """What is left in the whole model, by the name of the leaf or by type and shape alone."""
        start = len(self.pairs)
        ours, theirs = _groups(self.left, key), _groups(self.right, key)
        for k, a in ours.items():
            b = theirs.get(k, [])
            if len(a) == len(b) == 1 and self._may(a[0], b[0], placed=False, weak=True):
                self._add(a[0], b[0], "unique", weak=True)
        self._drop(start)

    def _may(self, a: Leaf, b: Leaf, *, placed: bool, weak: bool) -> bool:
        if weak and (a.key in self.doubtful or b.key in self.doubtful):
            return False
        return may_pair(a.name, b.name, a.shape, placed=placed)


def _cut(leaf: Leaf, start: int, end: int | None = None) -> Hashable:
    """A leaf without the name of one module around it, or of a list and its index."""
    end = start if end is None else end
    return (leaf.normal[:start], leaf.normal[end + 1 :], _shaped(leaf))


def _below(leaf: Leaf, module: LeafPath) -> bool:
    return not module or numbered(leaf.normal)[: len(module)] == module


def _spelled(spell: _Spelling) -> Callable[[Leaf], Hashable]:
    return lambda c: (c.collection, spell(c))


def _named(c: Leaf) -> Hashable:
    return (c.collection, c.name, c.shape, c.dtype)


def _shaped(c: Leaf) -> Hashable:
    return (c.collection, c.shape, c.dtype)


def _groups(leaves: Iterable[Leaf], key: Callable[[Leaf], Hashable]) -> dict[Hashable, list[Leaf]]:
    found: dict[Hashable, list[Leaf]] = defaultdict(list)
    for leaf in leaves:
        found[key(leaf)].append(leaf)
    return dict(found)
