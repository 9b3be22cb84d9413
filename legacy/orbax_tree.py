"""Puts one tree folder together: structure from its index, arrays from their stores.

The index is ``_METADATA``, or else ``checkpoint``, or else nothing but the names of the arrays.
All that is wrong with a folder is collected before one error says it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from legacy.errors import DamagedCheckpoint, LegacyError, UnsupportedCheckpoint
from legacy.leaves import Leaf, LeafTable, error_of, format_path, unreadable
from legacy.orbax_arrays import ArrayStores
from legacy.orbax_documents import refuse_links
from legacy.orbax_eras import era_of, evidence_of, layout_of
from legacy.orbax_folders import escapes
from legacy.orbax_index import (
    NONE_NOTE,
    TreeIndex,
    Wanted,
    find_aggregate,
    from_aggregate,
    from_metadata,
    from_names,
    is_value,
    raise_all,
)
from legacy.orbax_leaves import LeafMaker
from legacy.orbax_metadata import (
    DOCUMENTS,
    STRING_TYPE,
    STRINGS,
    TreeMetadata,
    read_strings,
    read_tree_metadata,
)
from legacy.orbax_reader import FoundArray

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


__all__ = ["OpenedTree", "read_tree"]

_NO_ARRAY: Final = "none"
_HOLLOW: Final = ("none", "empty", "unreadable")


class OpenedTree(NamedTuple):
    """One tree folder: its leaves, how they lie, and what tells the release."""

    table: LeafTable
    layout: frozenset[str]
    era: str
    evidence: tuple[str, ...]
    custom: Mapping[str, Any]
    has_types: bool


def read_tree(folder: Path) -> OpenedTree:
    """Open one tree folder.

    Args:
        folder: the folder of a save, or of one item of a step.

    Returns:
        Its leaves and the evidence.

    Raises:
        CannotLook: a file or folder cannot be read.
        NotACheckpoint: there is neither an index nor an array.
        DamagedCheckpoint: documents contradict themselves, each other, or the arrays.
        UnsupportedCheckpoint: parts that the index names are not on disk, or cannot be read.
    """
    refuse_links(folder)
    metadata = read_tree_metadata(folder)
    stores = ArrayStores(folder)
    aggregate = find_aggregate(folder, stores.folder.names - stores.folder.folders, metadata)
    if metadata is not None:
        index = from_metadata(metadata, aggregate, folder)
    elif aggregate is not None:
        index = from_aggregate(aggregate)
    else:
        index = from_names(folder, stores)
    leaves, arrays = _resolve(index, metadata, stores)
    try:
        table = LeafTable(leaves, index.nodes)
    except DamagedCheckpoint as error:
        raise DamagedCheckpoint(
            f"{folder}: {error.message}", path=folder, leaf=error.leaf
        ) from error
    has_values = aggregate is not None and any(is_value(leaf) for leaf in aggregate[0])
    return OpenedTree(
        table,
        layout_of(arrays, aggregate=has_values, stores=stores),
        era_of(metadata, stores, has_aggregate=aggregate is not None),
        tuple(evidence_of(metadata, stores, has_aggregate=aggregate is not None)),
        {} if metadata is None else metadata.custom,
        metadata is not None,
    )


# --- arrays and strings


def _resolve(
    index: TreeIndex, metadata: TreeMetadata | None, stores: ArrayStores
) -> tuple[list[Leaf], list[FoundArray]]:
    """The leaves that are ready, and those whose arrays and strings are found now.

    A leaf whose value cannot be had is listed as ``unreadable``, so that the others can be read.
    """
    leaves, arrays = list(index.ready), []
    strings = [w for w in index.wanted if w.value_type == STRING_TYPE]
    others = [w for w in index.wanted if w.value_type != STRING_TYPE]
    found = stores.find(dict.fromkeys(w.name for w in others))
    if metadata is None:  # no types: what is no array can be a string
        strings += [w for w in others if isinstance(found[w.name], UnsupportedCheckpoint)]
    texts = _strings(stores.root, strings) if strings else {}
    build = LeafMaker(index, metadata, stores.root)
    lost: list[Leaf] = []
    for want in index.wanted:
        value = texts.get(want.name, found.get(want.name))
        if isinstance(value, str):
            leaves.append(build.string(want, value))
        elif isinstance(value, FoundArray):
            leaves.append(build.array(want, value))
            arrays.append(value)
        elif want.name == _NO_ARRAY and want.value_type is None:
            leaves.append(Leaf(want.path, "none", notes=(*index.notes, NONE_NOTE)))
        else:
            lost.append(unreadable(want.path, value or _no_string(stores.root, want)))
    if lost and not any(leaf.kind not in _HOLLOW for leaf in leaves):
        _raise_lost(lost, leaves, stores.root)
    _refuse_unnamed(stores, index, lost)
    return [*leaves, *lost], arrays


def _problems(lost: list[Leaf]) -> list[str]:
    return [f"leaf {format_path(leaf.path)}: {(leaf.problem or '').rstrip('.')}" for leaf in lost]


def _raise_lost(lost: list[Leaf], leaves: list[Leaf], root: Path) -> NoReturn:
    """Raise what is wrong with a tree of which not one value can be read."""
    problems = _problems(lost)
    kinds = {type(error_of(leaf)) for leaf in lost}
    worst = DamagedCheckpoint if DamagedCheckpoint in kinds else UnsupportedCheckpoint
    count = f"{len(lost)} of {len(leaves) + len(lost)} leaves cannot be read"
    raise_all(kinds.pop() if len(kinds) == 1 else worst, f"{root}: {count}", problems, root)


def _no_string(root: Path, want: Wanted) -> UnsupportedCheckpoint:
    return UnsupportedCheckpoint(
        f"{root}: the string {want.name} is in no {STRINGS}. Was the checkpoint copied completely?",
        path=root,
    )


def _refuse_unnamed(stores: ArrayStores, index: TreeIndex, lost: list[Leaf]) -> None:
    """Refuse values that lie in the folder and that no index names: they would be lost silently."""
    named = {want.name for want in index.wanted}
    unnamed = sorted(stores.in_databases() - named)
    tops = {name.partition("/")[0] for name in named}
    tops |= {top.replace("\\", "/").partition("/")[0] for top in tops}
    others = stores.folder.names - tops - DOCUMENTS
    unnamed += [name for name in sorted(others) if stores.folder.is_array(name)]
    if not (index.notes or lost):  # an index that is lost names no string
        texts: dict[str, str | LegacyError] = {}
        _read_strings(stores.root / STRINGS, texts)
        unnamed += sorted(texts.keys() - named - {".".join(leaf.path) for leaf in index.ready})
    if unnamed:
        raise_all(
            DamagedCheckpoint,
            f"{stores.root}: {len(unnamed)} stored values are not named by the index",
            [*unnamed, *_problems(lost)],
            stores.root,
        )


def _strings(root: Path, wanted: Iterable[Wanted]) -> dict[str, str | LegacyError]:
    """String values by storage name: at the root, or (0.3) in the folder of one of them."""
    found: dict[str, str | LegacyError] = {}
    broken = _read_strings(root / STRINGS, found)
    for want in wanted:
        if want.name not in found and not escapes(want.name):
            broken = _read_strings(root / want.name / STRINGS, found) or broken
    if broken is not None:
        found |= {w.name: broken for w in wanted if w.name not in found}
    return found


def _read_strings(file: Path, into: dict[str, str | LegacyError]) -> LegacyError | None:
    try:
        into |= read_strings(file)
    except LegacyError as error:
        return error
    return None
