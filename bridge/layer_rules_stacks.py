"""Stacks of scanned layers, and lists of layers: one array with an axis for them, or many arrays.

Which axis counts the layers is only ever read off the shapes of a whole module: it must be the
same for all leaves of one collection (``nn.scan`` has one ``variable_axes`` for each), and no
other axis may do. A list is stacked in the order of its numbers, never of its stored keys, and
only with a stack of its own name: elsewhere a list may be kept from the last to the first.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from bridge.names import is_index
from bridge.transforms import Reshape, Stack, Transform, Transpose, Unstack
from bridge.views import Leaf, Sides, modules, show
from legacy import LeafPath

__all__ = ["ORDER", "loop_stack", "ordered_stack", "scan_axis", "scan_unstack", "unsure_axes"]

ORDER = "order"
"""The code of views that rest on an order alone."""

_VECTORS = frozenset({"bias", "scale"})
_LEADING = 99
"""Stands for two axes at the front, of ``nn.remat_scan``."""


@dataclass(frozen=True, slots=True)
class _List:
    """A list of modules that are all alike.

    Attributes:
        path: of the list.
        members: leaf by collection and path in the module, for each number in order.
    """

    path: LeafPath
    members: tuple[Mapping[LeafPath, Leaf], ...]

    @property
    def leaves(self) -> list[Leaf]:
        """All of them."""
        return [leaf for member in self.members for leaf in member.values()]

    def content(self) -> Counter[Hashable]:
        """What each of its modules holds."""
        return _content(self.members[0].values())


def _content(leaves: Iterable[Leaf]) -> Counter[Hashable]:
    return Counter(_kind(leaf, leaf.shape) for leaf in leaves)


def _counted(content: Counter[Hashable]) -> frozenset[tuple[Hashable, int]]:
    """A content that can be looked up."""
    return frozenset(content.items())


def _kind(leaf: Leaf, shape: Sequence[int]) -> Hashable:
    return (leaf.collection, leaf.name, tuple(shape), leaf.dtype)


def _lists(leaves: Sequence[Leaf]) -> Iterator[_List]:
    """Lists of two and more like modules, counted without gaps; the outermost first."""
    for path, inside in sorted(modules(leaves).items(), key=lambda item: len(item[0])):
        if not path or not all(len(rel) > 2 and is_index(rel[1]) for rel in inside):  # noqa: PLR2004 - collection, number, leaf
            continue
        by_number: dict[int, dict[LeafPath, Leaf]] = defaultdict(dict)
        for rel, leaf in inside.items():
            by_number[int(rel[1])][rel[0], *rel[2:]] = leaf
        numbers = sorted(by_number)
        if len(numbers) < 2 or numbers[-1] - numbers[0] + 1 != len(numbers):  # noqa: PLR2004 - one is no list
            continue
        members = tuple(by_number[n] for n in numbers)
        alike = {
            frozenset((rel, leaf.shape, leaf.dtype) for rel, leaf in member.items())
            for member in members
        }
        if len(alike) == 1:
            yield _List(path, members)


def _stacks(
    insides: Iterable[Mapping[LeafPath, Leaf]], one: _List
) -> Iterator[tuple[list[Leaf], Mapping[str, int] | None]]:
    """Modules that hold what a list holds, with one more axis; None where two axes would do."""
    wanted = one.content()
    collections = {rel[0] for rel in one.members[0]}
    seen: set[frozenset[int]] = set()
    n = len(one.members)
    for inside in insides:
        if len(inside) != len(one.members[0]) or not all(
            n in leaf.shape or prod(leaf.shape[:2]) == n for leaf in inside.values()
        ):
            continue
        ids = frozenset(map(id, inside.values()))
        if ids in seen:  # a level that holds nothing else
            continue
        seen.add(ids)
        if {rel[0] for rel in inside} != collections:
            continue
        axes: dict[str, list[int]] = {}
        for collection in collections:
            parts = [leaf for leaf in inside.values() if leaf.collection == collection]
            part = Counter({k: n for k, n in wanted.items() if k[0] == collection})  # type: ignore[index] # a tuple
            axes[collection] = _axes(parts, n, part)
        if all(axes.values()):
            sure = all(len(found) == 1 for found in axes.values())
            yield list(inside.values()), {c: a[0] for c, a in axes.items()} if sure else None


def _namesakes(
    there: Mapping[LeafPath, Mapping[LeafPath, Leaf]], one: _List
) -> Iterator[tuple[list[Leaf], Mapping[str, int] | None]]:
    """The stack of a list's own name, with layers of the same names."""
    inside = there.get(one.path, {})
    return _stacks([inside] if inside.keys() == one.members[0].keys() else [], one)


def _axes(leaves: Sequence[Leaf], n: int, wanted: Counter[Hashable]) -> list[int]:
    """Axes that could count the layers; counted from the end where they are negative."""
    most = max(len(leaf.shape) for leaf in leaves)
    found: dict[tuple[int, ...], int] = {}
    for axis in (*range(most), *range(-1, -most - 1, -1)):
        at = tuple(axis % len(leaf.shape) if leaf.shape else -1 for leaf in leaves)
        if all(
            -len(leaf.shape) <= axis < len(leaf.shape) and leaf.shape[axis] == n for leaf in leaves
        ) and wanted == Counter(
            _kind(leaf, (*leaf.shape[:i], *leaf.shape[i + 1 :]))
            for leaf, i in zip(leaves, at, strict=True)
        ):
            found.setdefault(at, axis)
    lengths = {leaf.shape[:2] for leaf in leaves}
    if len(lengths) == 1 and all(len(s) > 1 and prod(s) == n for s in lengths):
        inner = Counter(_kind(leaf, leaf.shape[2:]) for leaf in leaves)
        if inner == wanted:
            found.setdefault((_LEADING,), _LEADING)
    return list(found.values())


def _stacked(
    one: _List, axes: Mapping[str, int], like: Sequence[Leaf], code: str, *, slots: bool
) -> list[Leaf] | None:
    """A list seen as the stack that the other side has."""
    n = len(one.members)
    views = []
    lengths = like[0].shape[:2]
    for rel, first in one.members[0].items():
        axis = axes[rel[0]]
        shape = first.shape
        made: tuple[Transform, ...]
        if axis == _LEADING:
            wide, flat = (*lengths, *shape), (n, *shape)
            made = (Reshape(flat), Unstack(0)) if slots else (Stack(0), Reshape(wide))
        else:
            at = axis % (len(shape) + 1)
            wide = (*shape[:at], n, *shape[at:])
            made = (Unstack(at) if slots else Stack(at),)
        parts = [member[rel] for member in one.members]
        view = show(parts, (*one.path, *rel[1:]), wide, code, made)
        if view is None:
            return None
        views.append(view)
    return views


def _seen_as_stacks(
    lists: tuple[Leaf, ...], stacks: tuple[Leaf, ...], code: str, *, slots: bool
) -> tuple[Leaf, ...]:
    """The side with the lists, where the other side has a stack and no list of their content.

    That the first of a list is the first of a stack is certain where both have one name; else it
    is an order, and the code says so.
    """
    rivals = {_counted(other.content()) for other in _lists(stacks)}
    there = modules(stacks)
    # blocks repeat: lists and modules of one content need one look
    contents: dict[Hashable, Mapping[LeafPath, Leaf]] = {}
    for inside in there.values() if code == ORDER else ():
        contents.setdefault(_counted(_content(inside.values())), inside)
    looks: dict[Hashable, list[tuple[list[Leaf], Mapping[str, int] | None]]] = {}
    done: set[int] = set()
    shown: list[Leaf] = []
    for one in _lists(lists):
        content = _counted(one.content())
        if any(id(leaf) in done for leaf in one.leaves) or content in rivals:
            continue
        if code == ORDER:
            look = len(one.members), content
            if look not in looks:
                looks[look] = list(_stacks(contents.values(), one))
            found = looks[look]
        else:
            found = list(_namesakes(there, one))
        ways = {tuple(sorted(axes.items())) for _, axes in found if axes is not None}
        if len(ways) != 1 or any(axes is None for _, axes in found):
            continue
        (way,) = ways
        views = _stacked(one, dict(way), found[0][0], code, slots=slots)
        if views is not None:
            done |= set(map(id, one.leaves))
            shown += views
    return (*(leaf for leaf in lists if id(leaf) not in done), *shown)


def unsure_axes(sides: Sides) -> Iterator[str]:
    """Stacks and lists of one name whose shapes leave more than one axis.

    Args:
        sides: what is left.

    Yields:
        A sentence for each.
    """
    for lists, stacks, op in (
        (sides.right, sides.left, "unstack"),
        (sides.left, sides.right, "stack"),
    ):
        there = modules(stacks)
        for one in _lists(lists):
            for leaves, axes in _namesakes(there, one):
                if axes is None:
                    shapes = sorted({str(list(leaf.shape)) for leaf in leaves})
                    yield (
                        f"the {len(one.members)} layers of {'/'.join(one.path)} may lie along more "
                        f"than one axis of its arrays (shapes {', '.join(shapes)}): say which one "
                        f'by a rule with {{op = "{op}", axis = ...}}'
                    )


def scan_unstack(sides: Sides) -> Sides:
    """A list of the model is seen as the stack of its name that the checkpoint has."""
    right = _seen_as_stacks(sides.right, sides.left, "scan-unstack", slots=True)
    return Sides(sides.left, right)


def loop_stack(sides: Sides) -> Sides:
    """A list of the checkpoint is seen as the stack of its name that the model has."""
    return Sides(_seen_as_stacks(sides.left, sides.right, "loop-stack", slots=False), sides.right)


def ordered_stack(sides: Sides) -> Sides:
    """Lists are seen as stacks of other names, in the order of their numbers."""
    right = _seen_as_stacks(sides.right, sides.left, ORDER, slots=True)
    return Sides(_seen_as_stacks(sides.left, right, ORDER, slots=False), right)


def scan_axis(sides: Sides) -> Sides:
    """A stack of the checkpoint is seen with its layers along the axis that the model has."""
    # blocks repeat: modules of one content need one look
    wanted: dict[int, dict[Hashable, list[Leaf]]] = defaultdict(dict)
    for inside in modules(sides.right).values():
        stack = list(inside.values())
        if _is_stack(stack):
            wanted[len(stack)].setdefault(_counted(_content(stack)), stack)
    moves_of: dict[Hashable, set[tuple[int, int]]] = {}
    seen: set[int] = set()
    shown: list[Leaf] = []
    for inside in sorted(modules(sides.left).values(), key=len, reverse=True):
        ours = list(inside.values())
        if not _is_stack(ours) or any(id(leaf) in seen for leaf in ours):
            continue
        content = _counted(_content(ours))
        if content not in moves_of:
            others = wanted.get(len(ours), {}).values()
            moves_of[content] = {m for other in others for m in _moves(ours, other)}
        moves = moves_of[content]
        if len(moves) != 1 or (0, 0) in moves:
            continue
        ((a, b),) = moves
        views = [_moved(leaf, a, b) for leaf in ours]
        if all(view is not None for view in views):
            seen |= set(map(id, ours))
            shown += [view for view in views if view is not None]
    return Sides((*(leaf for leaf in sides.left if id(leaf) not in seen), *shown), sides.right)


def _is_stack(leaves: Sequence[Leaf]) -> bool:
    """Whether biases and scales have an axis too many."""
    vectors = [leaf for leaf in leaves if leaf.name in _VECTORS]
    return bool(vectors) and all(len(leaf.shape) == 2 for leaf in vectors)  # noqa: PLR2004 - a stack of vectors


def _moves(ours: Sequence[Leaf], theirs: Sequence[Leaf]) -> set[tuple[int, int]]:
    """From which axis to which the layers move; (0, 0) where they stay."""
    there = _content(theirs)
    if _content(ours) == there:
        return {(0, 0)}
    rank = max(len(leaf.shape) for leaf in ours)
    specs = (*range(rank), *range(-1, -rank, -1))
    found: dict[Hashable, tuple[int, int]] = {}
    for a in specs:
        counts = {leaf.shape[a] if -len(leaf.shape) <= a < len(leaf.shape) else -1 for leaf in ours}
        if len(counts) > 1 or -1 in counts:
            continue
        for b in specs:
            orders = [_order(len(leaf.shape), a, b) for leaf in ours]
            if None in orders:
                continue
            moved = [
                tuple(leaf.shape[i] for i in order or ())
                for leaf, order in zip(ours, orders, strict=True)
            ]
            if Counter(_kind(leaf, s) for leaf, s in zip(ours, moved, strict=True)) == there:
                found.setdefault(tuple(orders), (a, b))
    return set(found.values())


def _order(rank: int, a: int, b: int) -> tuple[int, ...] | None:
    """The axes of an array whose axis ``a`` moves to ``b``."""
    if not (-rank <= a < rank and -rank <= b < rank):
        return None
    rest = [i for i in range(rank) if i != a % rank]
    rest.insert(b % rank, a % rank)
    return tuple(rest)


def _moved(leaf: Leaf, a: int, b: int) -> Leaf | None:
    order = _order(len(leaf.shape), a, b)
    assert order is not None  # noqa: S101 - looked at by `_moves`
    shape = tuple(leaf.shape[i] for i in order)
    return show([leaf], leaf.normal, shape, "scan-axis", (Transpose(order),))
