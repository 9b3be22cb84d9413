"""Views: several leaves seen as one, or one under another name, so that matching can pair them.

NNX fuses the gates of an LSTM into one kernel, and a stack of scanned layers becomes a list of
blocks. A :class:`View` stands in the place of the leaves it shows: on the source's side its
transforms make one array of them, on the model's side they make the slots' arrays of one. When a
view is paired, what it shows is paired, with its transforms and under the code of its layer rule.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from bridge.names import BOX, normal, unboxed
from bridge.target import SlotRef
from bridge.transforms import Transform
from bridge.transforms_base import EachTransform
from legacy import LeafPath

__all__ = [
    "Candidate",
    "Key",
    "Leaf",
    "Sides",
    "Swaps",
    "View",
    "leaves_of",
    "modules",
    "parts_of",
    "show",
]

Part: TypeAlias = LeafPath | SlotRef


@dataclass(frozen=True, slots=True)
class View:
    """What a candidate shows that is no plain leaf or slot.

    Attributes:
        parts: full source paths, or slots.
        transforms: of a source, from its parts to one array; of a slot, from one array to its
            parts.
        code: of the layer rule.
    """

    parts: tuple[Part, ...]
    transforms: tuple[Transform, ...]
    code: str


Key: TypeAlias = LeafPath | SlotRef | View


@dataclass(frozen=True, slots=True)
class Candidate:
    """A source leaf or a slot, as far as matching looks at it.

    Attributes:
        path: below the collection or the model.
        collection: ``params``, ``batch_stats``, ...
        shape: its shape.
        dtype: its numpy dtype name; empty where casts are allowed, which makes all dtypes equal.
        key: the full source path, or the slot's name.
    """

    path: LeafPath
    collection: str
    shape: tuple[int, ...]
    dtype: str
    key: LeafPath | SlotRef


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """A candidate or a view of some, with the readings of its path.

    Attributes:
        path: as the file or the model spells it.
        collection: ``params``, ``batch_stats``, ...
        shape: its shape.
        dtype: its numpy dtype name.
        key: the full source path, the slot's name, or a view.
        plain: the path without a box.
        normal: ``plain`` as :func:`~bridge.names.normal` spells it.
    """

    path: LeafPath
    collection: str
    shape: tuple[int, ...]
    dtype: str
    key: Key
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


class _Leaves(tuple[Leaf, ...]):  # noqa: SLOT001 - it keeps its modules
    """Leaves that are laid out as modules once, for all layer rules that look at them."""

    modules: Mapping[LeafPath, Mapping[LeafPath, Leaf]] | None = None


@dataclass(frozen=True, slots=True)
class Sides:
    """What a layer rule looks at, and gives back with views in it.

    Attributes:
        left: open sources.
        right: open slots.
    """

    left: tuple[Leaf, ...]
    right: tuple[Leaf, ...]

    def __post_init__(self) -> None:
        for name in ("left", "right"):
            side = getattr(self, name)
            if not isinstance(side, _Leaves):
                object.__setattr__(self, name, _Leaves(side))


def parts_of(key: Key) -> tuple[Part, ...]:
    """What a key stands for, one by one.

    >>> parts_of(("params", "kernel"))
    (('params', 'kernel'),)
    """
    return key.parts if isinstance(key, View) else (key,)


def leaves_of(candidates: Iterable[Candidate], *, boxes: bool) -> tuple[Leaf, ...]:
    """Candidates with the readings of their paths.

    Args:
        candidates: of one side.
        boxes: whether a last ``value`` may be a box, as in source paths.
    """
    found = list(candidates)
    children: dict[LeafPath, set[str]] = defaultdict(set)
    for c in found:
        if c.path[-1:] == (BOX,) or c.path[:-1] in children:
            children[c.path[:-1]].add(c.path[-1] if c.path else "")
    for c in found:  # a `value` with siblings is a leaf of that name and no box
        for n in range(len(c.path)):
            if c.path[:n] in children:
                children[c.path[:n]].add(c.path[n])
    leaves = []
    for c in found:
        boxed = boxes and len(children.get(c.path[:-1], ())) == 1
        plain = unboxed(c.path) if boxed else c.path
        leaves.append(Leaf(c.path, c.collection, c.shape, c.dtype, c.key, plain, normal(plain)))
    return tuple(leaves)


def show(
    leaves: Sequence[Leaf],
    path: LeafPath,
    shape: Sequence[int],
    code: str,
    transforms: tuple[Transform, ...] = (),
) -> Leaf | None:
    """One leaf in the place of several.

    Args:
        leaves: of one side, in the order of the transforms; views may be among them.
        path: what it is to be called, spelled by :func:`~bridge.names.normal`.
        shape: what it is to look like.
        code: of the layer rule.
        transforms: see :class:`View`.

    Returns:
        The view; None when leaves that are views themselves cannot be shown together.
    """
    before = {leaf.key.transforms if isinstance(leaf.key, View) else () for leaf in leaves}
    if len(before) > 1:
        return None
    (first,) = before
    single = all(len(parts_of(leaf.key)) == 1 for leaf in leaves)
    if len(leaves) > 1 and not (single and all(isinstance(t, EachTransform) for t in first)):
        return None
    parts = tuple(part for leaf in leaves for part in parts_of(leaf.key))
    slots = isinstance(parts[0], SlotRef)
    view = View(parts, (*transforms, *first) if slots else (*first, *transforms), code)
    one = leaves[0]
    return Leaf(path, one.collection, tuple(shape), one.dtype, view, path, path)


def modules(leaves: Iterable[Leaf]) -> Mapping[LeafPath, Mapping[LeafPath, Leaf]]:
    """All that is below each module: leaf by collection and path in the module.

    Args:
        leaves: of one side.
    """
    if isinstance(leaves, _Leaves) and leaves.modules is not None:
        return leaves.modules
    found: dict[LeafPath, dict[LeafPath, Leaf]] = defaultdict(dict)
    for leaf in leaves:
        for n in range(len(leaf.normal)):
            found[leaf.normal[:n]][leaf.collection, *leaf.normal[n:]] = leaf
    made = dict(found)
    if isinstance(leaves, _Leaves):
        leaves.modules = made
    return made


class Swaps:
    """Leaves in which views take the place of what they show.

    A block has a few such views, and a model has many blocks, so no swap looks at all leaves.

    Args:
        leaves: of one side.
    """

    def __init__(self, leaves: Iterable[Leaf]) -> None:
        self._by_id = {id(leaf): leaf for leaf in leaves}

    def swap(self, gone: Iterable[Leaf], new: Iterable[Leaf]) -> None:
        """Take some out, and put others at the end."""
        for leaf in gone:
            self._by_id.pop(id(leaf), None)
        for leaf in new:
            self._by_id[id(leaf)] = leaf

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """What there is now."""
        return tuple(self._by_id.values())
