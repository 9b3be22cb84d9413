"""The leaves that a tree folder says it has, from whichever index is there.

``_METADATA`` (JSON) knows the types; ``checkpoint`` (msgpack) knows some values; without both there
are only the names of the arrays. Two indices that name different leaves are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NoReturn

from legacy.errors import DamagedCheckpoint, LegacyError, NotACheckpoint
from legacy.leaves import Leaf, LeafPath, Node, format_path
from legacy.orbax_metadata import (
    AGGREGATE,
    EMPTY_TYPES,
    NONE_TYPE,
    PLACEHOLDER,
    TREE_METADATA,
    TreeMetadata,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from legacy.orbax_arrays import ArrayStores

__all__ = [
    "TreeIndex",
    "Wanted",
    "from_aggregate",
    "from_metadata",
    "from_names",
    "is_value",
    "raise_all",
]

_SHOWN: Final = 5
_DOTS: Final = (
    "there is no index, only the names of the arrays: a dot in a key cannot be told from nesting, "
    "and None, empty containers and strings are not listed"
)
_LOST: Final = (
    "the index of this checkpoint (checkpoint or _METADATA) is missing: leaves that had no array "
    "of their own (aggregated values, strings, None) cannot be seen"
)
NONE_NOTE: Final = "Orbax writes None, () and EmptyState alike here"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A leaf whose value is not in the index: an array, or a string."""

    path: LeafPath
    name: str
    value_type: str | None


@dataclass(slots=True)
class TreeIndex:
    """What the index of a folder says, whichever it is."""

    ready: list[Leaf] = field(default_factory=list)
    wanted: list[Wanted] = field(default_factory=list)
    nodes: dict[LeafPath, Node] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def placeholder(leaf: Leaf) -> str | None:
    """The storage name that a leaf of the aggregate file stands for."""
    value = leaf.read() if leaf.kind == "str" else None
    if isinstance(value, str) and value.startswith(PLACEHOLDER):
        return value.removeprefix(PLACEHOLDER)
    return None


def is_value(leaf: Leaf) -> bool:
    """Whether a leaf of the aggregate file is a value, and no placeholder, None or empty."""
    return leaf.kind not in ("none", "empty") and placeholder(leaf) is None


def from_metadata(
    metadata: TreeMetadata, aggregate: tuple[list[Leaf], dict[LeafPath, Node]] | None, folder: Path
) -> TreeIndex:
    """The leaves that ``_METADATA`` names, with the values that the aggregate file has for them.

    Args:
        metadata: the parsed document.
        aggregate: leaves and nodes of ``checkpoint``, where there is one.
        folder: the folder of the tree, for messages.

    Returns:
        Leaves that are known, and leaves whose value is to be found.

    Raises:
        DamagedCheckpoint: the two indices name different leaves.
    """
    index = TreeIndex(nodes=dict(metadata.nodes))
    known = {leaf.path: leaf for leaf in aggregate[0]} if aggregate else {}
    if aggregate is not None:
        _compare(metadata, known, folder)
        index.nodes.update({p: n for p, n in aggregate[1].items() if n.container == "tuple"})
    for entry in metadata.entries:
        leaf = known.get(entry.path)
        if leaf is not None and is_value(leaf):
            index.ready.append(leaf)
        elif entry.value_type == NONE_TYPE:
            index.ready.append(Leaf(entry.path, "none", notes=(NONE_NOTE,)))
        elif entry.value_type in EMPTY_TYPES:
            container = EMPTY_TYPES[entry.value_type]
            index.ready.append(Leaf(entry.path, "empty", container=container))
        else:
            name = None if leaf is None else placeholder(leaf)
            name = ".".join(entry.path) if name is None else name
            index.wanted.append(Wanted(entry.path, name, entry.value_type))
    return index


def _compare(metadata: TreeMetadata, known: Mapping[LeafPath, Leaf], folder: Path) -> None:
    """Refuse two indices that name different leaves; None and empties come and go harmlessly."""
    empties = {NONE_TYPE, *EMPTY_TYPES}
    named = {entry.path: entry.value_type in empties for entry in metadata.entries}
    only_json = [p for p, is_empty in named.items() if p not in known and not is_empty]
    only_msgpack = [
        p for p, leaf in known.items() if p not in named and leaf.kind not in ("none", "empty")
    ]
    problems = [f"{format_path(p)} is only in {TREE_METADATA}" for p in sorted(only_json)]
    problems += [f"{format_path(p)} is only in {AGGREGATE}" for p in sorted(only_msgpack)]
    if problems:
        raise_all(
            DamagedCheckpoint,
            f"{folder}: its two indices name different leaves",
            problems,
            folder,
        )


def from_aggregate(aggregate: tuple[list[Leaf], dict[LeafPath, Node]]) -> TreeIndex:
    """The leaves that ``checkpoint`` names, for trees without ``_METADATA``.

    Args:
        aggregate: leaves and nodes of the file.

    Returns:
        Leaves that are known, and leaves whose value is to be found.
    """
    index = TreeIndex(nodes=dict(aggregate[1]))
    for leaf in aggregate[0]:
        name = placeholder(leaf)
        if name is not None:
            index.wanted.append(Wanted(leaf.path, name, None))
        elif leaf.kind == "none":
            index.ready.append(replace(leaf, notes=(*leaf.notes, NONE_NOTE)))
        else:
            index.ready.append(leaf)
    return index


def from_names(folder: Path, stores: ArrayStores) -> TreeIndex:
    """The leaves that the names of the arrays suggest, for trees without any index.

    Args:
        folder: the folder of the tree, for messages.
        stores: where its arrays lie.

    Returns:
        Leaves to be found, with notes: dots in keys look like nesting, leaves may be lost.

    Raises:
        NotACheckpoint: there is no array.
    """
    names = stores.names()
    if not names:
        raise NotACheckpoint(
            f"{folder}: neither {TREE_METADATA} nor {AGGREGATE} nor an array is here; no Orbax "
            "release writes such a folder.",
            path=folder,
        )
    wanted = [Wanted(tuple(name.split(".")), name, None) for name in names]
    return TreeIndex(wanted=wanted, notes=(_DOTS, _LOST))


def raise_all(kind: type[LegacyError], what: str, problems: list[str], path: Path) -> NoReturn:
    """Raise one error that shows the first problems and carries all.

    Args:
        kind: the class of the error.
        what: the sentence before the problems.
        problems: one line each.
        path: the folder.

    Raises:
        LegacyError: always, of the class asked for.
    """
    shown = "; ".join(problems[:_SHOWN])
    more = len(problems) - _SHOWN
    tail = f"; and {more} more (see .problems)" if more > 0 else ""
    raise kind(
        f"{what}: {shown}{tail}. Copy the checkpoint again, or take another step.",
        path=path,
        problems=problems,
    )
