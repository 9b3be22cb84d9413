"""The leaves that a tree folder says it has, from whichever index is there.

``_METADATA`` (JSON) knows the types; ``checkpoint`` (msgpack) knows some values; without both there
are only the names of the arrays. Two indices that name different leaves are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn, TypeAlias

from legacy.errors import DamagedCheckpoint, LegacyError, NotACheckpoint, UnsupportedCheckpoint
from legacy.flax_msgpack import index_msgpack
from legacy.leaves import Leaf, LeafPath, Node, format_path
from legacy.orbax_documents import cannot_look, entry_kind
from legacy.orbax_metadata import (
    AGGREGATE,
    ARRAY_TYPE,
    DOCUMENTS,
    EMPTY_TYPES,
    NONE_TYPE,
    PLACEHOLDER,
    SCALAR_TYPE,
    STORES_FILL_VALUE,
    TREE_METADATA,
    TreeMetadata,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from legacy.orbax_arrays import ArrayStores

__all__ = [
    "UNTYPED",
    "Parts",
    "TreeIndex",
    "Wanted",
    "find_aggregate",
    "from_aggregate",
    "from_metadata",
    "from_names",
    "is_value",
    "raise_all",
]

_SHOWN: Final = 5
_HOLLOW: Final = frozenset({NONE_TYPE, *EMPTY_TYPES})
_MAPS: Final = frozenset(bytes([code]) for code in (*range(0x80, 0x90), 0xDE, 0xDF))
_DOTS: Final = (
    "there is no index, only the names of the arrays: a dot in a key cannot be told from nesting, "
    "and None, empty containers and strings are not listed"
)
_LOST: Final = (
    "the index of this checkpoint (checkpoint or _METADATA) is missing: leaves that had no array "
    "of their own (aggregated values, strings, None) cannot be seen"
)
NONE_NOTE: Final = "Orbax writes None, () and EmptyState alike here"
_NONE_TOLD: Final = "Orbax writes None and EmptyState alike here"
_NONE_OR_LOST: Final = (
    "Orbax before 0.5.16 writes as None what it has no handler for: (), EmptyState, numpy.bool_, "
    "scalars of bfloat16, complex numbers, dicts with keys of several types"
)
_EMPTY_OR: Final = (
    "an empty dict; Orbax before 0.1.2 writes empty lists, tuples and EmptyState in the same way"
)
UNTYPED: Final = (
    "this index keeps no types: a Python number or bool and a numpy scalar look like an array of "
    "no dimensions"
)


Parts: TypeAlias = tuple[list[Leaf], dict[LeafPath, Node]]
"""Leaves and nodes of an aggregate file."""


class Wanted(NamedTuple):
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


def find_aggregate(
    folder: Path, names: Iterable[str], metadata: TreeMetadata | None
) -> Parts | None:
    """The content of the msgpack index of a tree, where there is one.

    Args:
        folder: the folder of the tree.
        names: what lies in it.
        metadata: what ``_METADATA`` says, where it is there.

    Returns:
        Leaves and nodes of ``checkpoint``; or of a file of another name (the option
        ``aggregate_filename`` of old handlers), when it stands for arrays, or names the leaves that
        ``_METADATA`` names, and is the only one that does.

    Raises:
        CannotLook: a file cannot be read.
        LegacyError: ``checkpoint`` is damaged; or a file of another name that starts as an index
            is, and nothing else says what the tree holds.
    """
    if entry_kind(folder / AGGREGATE) == "file":
        return index_msgpack(folder / AGGREGATE)
    if metadata is not None and STORES_FILL_VALUE in metadata.keys:
        return None  # a release that aggregates no more
    named = None if metadata is None else {entry.path for entry in metadata.entries}
    found: list[Parts] = []
    broken: list[DamagedCheckpoint] = []
    for name in sorted(names):
        if name in DOCUMENTS or not starts_as_map(folder / name):
            continue
        try:
            parts = index_msgpack(folder / name)
        except DamagedCheckpoint as error:
            broken.append(error)
            continue
        except (NotACheckpoint, UnsupportedCheckpoint):
            continue
        paths = {leaf.path for leaf in parts[0]}
        if paths == named or any(placeholder(leaf) is not None for leaf in parts[0]):
            found.append(parts)
    if broken and not found and metadata is None:
        raise broken[0]  # very likely the only index of this tree
    return found[0] if len(found) == 1 else None


def starts_as_map(file: Path) -> bool:
    """Whether a file starts with a map of msgpack, as every index does.

    Raises:
        CannotLook: the file cannot be read.
    """
    if entry_kind(file) != "file":
        return False
    try:
        with file.open("rb") as stream:
            first = stream.read(1)
    except OSError as error:
        cannot_look(file, error)
    return first in _MAPS


def from_metadata(metadata: TreeMetadata, aggregate: Parts | None, folder: Path) -> TreeIndex:
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
    none_note = _none_note(metadata, has_aggregate=aggregate is not None)
    inner: set[LeafPath] = set()
    if any(entry.value_type in EMPTY_TYPES for entry in metadata.entries):
        # a save in parts (Orbax v1) leaves the entry of a dict that was empty at first
        inner = {entry.path[:n] for entry in metadata.entries for n in range(len(entry.path))}
    for entry in metadata.entries:
        leaf = known.get(entry.path)
        if leaf is None and entry.value_type not in _HOLLOW:
            index.wanted.append(Wanted(entry.path, ".".join(entry.path), entry.value_type))
            continue
        if entry.value_type in EMPTY_TYPES and entry.path in inner:
            continue
        if leaf is not None and _is_text_for_array(leaf, entry.value_type):
            leaf = None  # the array has the name of the path, if it is there
        if leaf is not None and is_value(leaf):
            index.ready.append(leaf)
        elif entry.value_type == NONE_TYPE:
            index.ready.append(Leaf(entry.path, "none", notes=(none_note,)))
        elif entry.value_type in EMPTY_TYPES:
            container = EMPTY_TYPES[entry.value_type]
            index.ready.append(Leaf(entry.path, "empty", container=container))
        else:
            name = None if leaf is None else placeholder(leaf)
            name = ".".join(entry.path) if name is None else name
            index.wanted.append(Wanted(entry.path, name, entry.value_type))
    return index


def _is_text_for_array(leaf: Leaf, value_type: str) -> bool:
    """Whether the aggregate file has text where ``_METADATA`` says array: a damaged placeholder."""
    return leaf.kind == "str" and value_type in (ARRAY_TYPE, SCALAR_TYPE, "np.ndarray")


def _none_note(metadata: TreeMetadata, *, has_aggregate: bool) -> str:
    if has_aggregate:
        return _NONE_OR_LOST
    return _NONE_TOLD if STORES_FILL_VALUE in metadata.keys else NONE_NOTE


def _compare(metadata: TreeMetadata, known: Mapping[LeafPath, Leaf], folder: Path) -> None:
    """Refuse two indices that name different leaves; None and empties come and go harmlessly."""
    named = {entry.path: entry.value_type in _HOLLOW for entry in metadata.entries}
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


def from_aggregate(aggregate: Parts) -> TreeIndex:
    """The leaves that ``checkpoint`` names, for trees without ``_METADATA``.

    Args:
        aggregate: leaves and nodes of the file.

    Returns:
        Leaves that are known, and leaves whose value is to be found.
    """
    index = TreeIndex(nodes=dict(aggregate[1]))
    has_lists = any(node.container == "list" for node in aggregate[1].values())
    for leaf in aggregate[0]:
        name = placeholder(leaf)
        if name is not None:
            index.wanted.append(Wanted(leaf.path, name, None))
        elif leaf.kind == "none":
            index.ready.append(replace(leaf, notes=(*leaf.notes, _NONE_OR_LOST)))
        elif leaf.kind == "empty" and leaf.container == "dict" and not has_lists:
            index.ready.append(replace(leaf, notes=(*leaf.notes, _EMPTY_OR)))
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
