"""Modules that are the same one by their place and by what is in them.

Both sides are laid out as trees of modules. The roots are the same; in two modules that are the
same, children of one name are, and so are the only two children with one content; and so are, in
the whole model, the only two modules with one content. The numbers of two lists under different
names say nothing: ``Dense_0`` may be ``layers[1]``, and a list may be kept from the last to the
first. Neither do words of names: ``generator_b`` may be ``from_a``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass, field

from bridge.names import Families, is_index, numbered
from bridge.views import Leaf
from legacy import LeafPath

__all__ = ["Same", "same_modules"]

_MANY = 4
"""Leaves in a module whose like is not found by accident."""


@dataclass(frozen=True, slots=True)
class Same:
    """Two modules that are the same.

    Attributes:
        ours: leaves of the one, its submodules' not included.
        theirs: leaves of the other.
        named: whether they have one name, which is more than being alike.
        inside: paths, as :func:`~bridge.names.numbered` spells them, of the modules around them
            that have many leaves and the same content; empty for the whole models.
    """

    ours: list[Leaf]
    theirs: list[Leaf]
    named: bool
    inside: tuple[LeafPath, LeafPath]


@dataclass(slots=True, eq=False)
class _Module:
    """Its own leaves, its children by name, a number for its whole content, and how much it is."""

    path: LeafPath = ()
    leaves: list[Leaf] = field(default_factory=list)
    children: dict[str, _Module] = field(default_factory=dict)
    content: int = -1
    count: int = 0

    @property
    def name(self) -> str:
        """The last component of its path."""
        return self.path[-1] if self.path else ""

    def only_child(self) -> _Module | None:
        """The child of a module that has nothing else, and only adds a level."""
        if self.leaves or len(self.children) != 1:
            return None
        return next(iter(self.children.values()))

    def core(self) -> _Module:
        """The first module inside that has more than one child."""
        here = self
        while (inner := here.only_child()) is not None:
            here = inner
        return here


def same_modules(
    ours: Iterable[Leaf],
    theirs: Iterable[Leaf],
    doubtful: Collection[Hashable],
    *,
    order: bool = False,
) -> Iterator[Same]:
    """Find modules that are the same on both sides.

    Args:
        ours: open source leaves.
        theirs: open slots.
        doubtful: keys of leaves that prove nothing about their module.
        order: also take the modules of one content in two lists in the order of their numbers,
            which proves nothing.

    Yields:
        Pairs of modules that are the same.
    """
    numbers: dict[Hashable, int] = {}
    left, right = _tree(ours), _tree(theirs)
    for root in (left, right):
        _number(root, numbers, doubtful)
    seen: set[int] = set()
    for start in ([(left, right, True)], _only_ones(left, right)):
        stack = [(*pair, (left, right)) for pair in start]
        while stack:
            mine, other, named, inside = stack.pop()
            if not mine.children.keys() & other.children.keys():
                # under levels of other names only equal contents make two modules the same
                core, there = mine.core(), other.core()
                named = named and core is mine and there is other
                mine, other = core, there
                if mine.content != other.content and mine.leaves:
                    continue
            if id(mine) in seen or id(other) in seen:
                continue
            seen |= {id(mine), id(other)}
            if mine.content == other.content and mine.count >= _MANY:
                inside = (mine, other)
            if mine.leaves and other.leaves:
                one_name = named and not is_index(mine.name)
                yield Same(mine.leaves, other.leaves, one_name, (inside[0].path, inside[1].path))
            children = list(_same_children(mine, other, named=named))
            children += _in_order(mine, other) if order else ()
            stack += [(*pair, inside) for pair in children]


def _only_ones(left: _Module, right: _Module) -> Iterator[tuple[_Module, _Module, bool]]:
    """Modules of one content that no other module of either side has; the innermost first."""
    ours, theirs = ({m for m in _all(root) if m.only_child() is None} for root in (left, right))
    a, b = _by_content(ours), _by_content(theirs)
    for content, found in sorted(a.items()):
        if len(found) == len(b.get(content, ())) == 1:
            yield found[0], b[content][0], False


def _all(root: _Module) -> list[_Module]:
    """A module and all inside it, parents first."""
    order = [root]
    for module in order:  # grows
        order += module.children.values()
    return order


def _same_children(
    mine: _Module, other: _Module, *, named: bool
) -> Iterator[tuple[_Module, _Module, bool]]:
    """Children of two modules that are the same; whether they have the same name, too."""
    same = {n for n in mine.children if n in other.children}
    if not named or not _count_alike(mine, other):
        # an index is a place in one order of layers, and another list may have another order
        same = {n for n in same if not is_index(n)}
    yield from ((mine.children[n], other.children[n], True) for n in same)
    a = _by_content(m for n, m in mine.children.items() if n not in same)
    b = _by_content(m for n, m in other.children.items() if n not in same)
    for content in a.keys() & b.keys():
        ours, theirs = a[content], b[content]
        if len(ours) == len(theirs) == 1:
            yield ours[0], theirs[0], False


def _count_alike(mine: _Module, other: _Module) -> bool:
    """Whether the numbered children of two modules have the same numbers."""
    ours, theirs = ([(n,) for n in m.children if is_index(n)] for m in (mine, other))
    families = Families(ours, theirs)
    return all(families.agree(n) for n in (*ours, *theirs))


_TWO_WAYS = {"forward_rnn": 0, "backward_rnn": 1}
"""Linen makes the forward cell of ``Bidirectional`` first."""


def _in_order(mine: _Module, other: _Module) -> Iterator[tuple[_Module, _Module, bool]]:
    """Modules of one content that are numbered on both sides, each side in one list."""
    ours, theirs = _listed(mine), _listed(other)
    for content in ours.keys() & theirs.keys():
        left, right = ours[content], theirs[content]
        lists = [len({name for name, _, _ in side}) for side in (left, right)]
        if len(left) == len(right) and lists == [1, 1]:
            for (_, _, one), (_, _, another) in zip(left, right, strict=True):
                yield one, another, False


def _listed(module: _Module) -> dict[int, list[tuple[str, int, _Module]]]:
    """Numbered children, and those of lists that are children: list, number and module."""
    found: dict[int, list[tuple[str, int, _Module]]] = defaultdict(list)
    for name, child in module.children.items():
        inside = child.children if not child.leaves else {}
        if is_index(name):
            found[child.content].append(("", int(name), child))
        elif name in _TWO_WAYS:
            found[child.content].append(("", _TWO_WAYS[name], child))
        elif inside and all(map(is_index, inside)):
            for number, member in inside.items():
                found[member.content].append((name, int(number), member))
        else:  # a layer of this content that is in no list
            found[child.content].append((f"{name} ", 0, child))
    for members in found.values():
        members.sort(key=lambda member: member[1])
    return found


def _tree(leaves: Iterable[Leaf]) -> _Module:
    root = _Module()
    for leaf in leaves:
        node = root
        for part in numbered(leaf.normal[:-1]):
            node = node.children.setdefault(part, _Module((*node.path, part)))
        node.leaves.append(leaf)
    return root


def _number(root: _Module, numbers: dict[Hashable, int], doubtful: Collection[Hashable]) -> None:
    """Give equal modules equal numbers; the names of submodules do not count."""
    for module in reversed(_all(root)):
        module.count = len(module.leaves) + sum(m.count for m in module.children.values())
        inner = module.only_child()
        if inner is not None:  # a level without anything in it is not content
            module.content = inner.content
            continue
        content: Hashable = (
            tuple(sorted((c.collection, c.name, c.shape, c.dtype) for c in module.leaves)),
            tuple(sorted(m.content for m in module.children.values())),
        )
        if any(c.key in doubtful for c in module.leaves):
            content = ("doubtful", len(numbers))  # like no other
        module.content = numbers.setdefault(content, len(numbers))


def _by_content(modules: Iterable[_Module]) -> dict[int, list[_Module]]:
    groups: dict[int, list[_Module]] = defaultdict(list)
    for module in modules:
        groups[module.content].append(module)
    return groups
