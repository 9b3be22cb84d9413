"""Modules that are the same one by their place and by what is in them.

Both sides are laid out as trees of modules. The roots are the same; in two modules that are the
same, children of one name are, and so are the only two children with one content. The numbers of
two lists under different names say nothing: ``Dense_0`` may be ``layers[1]``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass, field

from bridge.names import Families, is_index
from bridge.target import SlotRef
from legacy import LeafPath

__all__ = ["Leaf", "same_modules"]


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """A source leaf or a slot, with the readings of its path.

    Attributes:
        path: as the file or the model spells it.
        collection: ``params``, ``batch_stats``, ...
        shape: its shape.
        dtype: its numpy dtype name.
        key: the full source path, or the slot's name.
        plain: the path without a box.
        normal: ``plain`` as :func:`~bridge.names.normal` spells it.
    """

    path: LeafPath
    collection: str
    shape: tuple[int, ...]
    dtype: str
    key: LeafPath | SlotRef
    plain: LeafPath
    normal: LeafPath

    @property
    def name(self) -> str:
        """The last component."""
        return self.plain[-1] if self.plain else ""

    @property
    def module(self) -> LeafPath:
        """All but the last component."""
        return self.plain[:-1]


@dataclass(slots=True)
class _Module:
    """Its own leaves, its children by name, and a number for its whole content."""

    leaves: list[Leaf] = field(default_factory=list)
    children: dict[str, _Module] = field(default_factory=dict)
    content: int = -1


def same_modules(
    ours: Iterable[Leaf], theirs: Iterable[Leaf], doubtful: Collection[Hashable]
) -> Iterator[tuple[list[Leaf], list[Leaf]]]:
    """Find modules that are the same on both sides.

    Args:
        ours: open source leaves.
        theirs: open slots.
        doubtful: keys of leaves that prove nothing about their module.

    Yields:
        The leaves of two modules that are the same, their submodules' not included.
    """
    numbers: dict[Hashable, int] = {}
    left, right = _tree(ours), _tree(theirs)
    for root in (left, right):
        _number(root, numbers, doubtful)
    stack = [(left, right, True)]
    while stack:
        mine, other, named = stack.pop()
        if mine.leaves and other.leaves:
            yield mine.leaves, other.leaves
        same = [n for n in mine.children if n in other.children]
        if not named or not _count_alike(mine, other):
            # an index is a place in one order of layers, and another list may have another order
            same = [n for n in same if not is_index(n)]
        stack += [(mine.children[n], other.children[n], True) for n in same]
        gone = set(same)
        a = _only(m for n, m in mine.children.items() if n not in gone)
        b = _only(m for n, m in other.children.items() if n not in gone)
        stack += [(a[c], b[c], False) for c in a if c in b]


def _count_alike(mine: _Module, other: _Module) -> bool:
    """Whether the numbered children of two modules have the same numbers."""
    ours, theirs = ([(n,) for n in m.children if is_index(n)] for m in (mine, other))
    families = Families(ours, theirs)
    return all(families.agree(n) for n in (*ours, *theirs))


def _tree(leaves: Iterable[Leaf]) -> _Module:
    root = _Module()
    for leaf in leaves:
        node = root
        for part in leaf.normal[:-1]:
            node = node.children.setdefault(part, _Module())
        node.leaves.append(leaf)
    return root


def _number(root: _Module, numbers: dict[Hashable, int], doubtful: Collection[Hashable]) -> None:
    """Give equal modules equal numbers; the names of submodules do not count."""
    order = [root]
    for module in order:  # grows: parents first
        order += module.children.values()
    for module in reversed(order):
        content: Hashable = (
            tuple(sorted((c.collection, c.name, c.shape, c.dtype) for c in module.leaves)),
            tuple(sorted(m.content for m in module.children.values())),
        )
        if any(c.key in doubtful for c in module.leaves):
            content = ("doubtful", len(numbers))  # like no other
        module.content = numbers.setdefault(content, len(numbers))


def _only(modules: Iterable[_Module]) -> dict[int, _Module]:
    groups: dict[int, list[_Module]] = defaultdict(list)
    for module in modules:
        groups[module.content].append(module)
    return {c: found[0] for c, found in groups.items() if len(found) == 1}
