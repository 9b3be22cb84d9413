"""Puts one tree folder together: structure from its index, arrays from their stores.

The index is ``_METADATA``, or else ``checkpoint``, or else nothing but the names of the arrays.
All that is wrong with a folder is collected before one error says it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np

from legacy.errors import DamagedCheckpoint, LegacyError, UnsupportedCheckpoint
from legacy.leaves import Kind, Leaf, LeafPath, LeafTable, format_path, unreadable
from legacy.orbax_arrays import ArrayStores
from legacy.orbax_index import (
    NONE_NOTE,
    UNTYPED,
    TreeIndex,
    Wanted,
    find_aggregate,
    from_aggregate,
    from_metadata,
    from_names,
    is_value,
    raise_all,
)
from legacy.orbax_items import Constant
from legacy.orbax_metadata import (
    AGGREGATE,
    ARRAY_TYPE,
    CUSTOM_METADATA,
    DOCUMENTS,
    SCALAR_TYPE,
    SHARDING,
    STRING_TYPE,
    STRINGS,
    TREE_METADATA,
    TreeMetadata,
    random_key_impls,
    read_strings,
    read_tree_metadata,
)
from legacy.orbax_reader import ArrayReader, FoundArray
from legacy.orbax_stores import escapes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from legacy.orbax_zarr import ArrayMetadata

__all__ = ["OpenedTree", "read_tree"]

_NO_ARRAY: Final = "none"
_HOLLOW: Final = ("none", "empty", "unreadable")
_CLASH: Final = (
    "shares its storage name {name!r} with {other}: one value overwrote the other when it was "
    "saved, and which one is left cannot be known"
)
_UNSTORED: Final = (
    "chunks that are not stored count as the fill value: Orbax 0.5-0.9 left out zarr3 chunks that "
    "are all zero, so a lost chunk would look the same"
)
_PERHAPS_KEY: Final = (
    "array_metadatas is missing or does not list it, so a typed PRNG key cannot be told from an "
    "array of uint32"
)
_ZARR3_ERA: Final = "orbax 0.5-0.9 (2024)"
_ERAS: Final = (
    ("use_ocdbt", "orbax 0.12 or newer"),
    (CUSTOM_METADATA, "orbax 0.11 (2024-2025)"),
    ("store_array_data_equal_to_fill_value", "orbax 0.7-0.10 (2024)"),
    ("use_zarr3", _ZARR3_ERA),
)

UNKNOWN: Final = "an unknown release of orbax"
INDEX_LOST: Final = (
    "the index is missing, so leaves that had no array of their own (aggregated values, strings, "
    "none) cannot be seen"
)
"""Evidence that a plan repeats as a warning: what is not seen cannot be accounted for."""

NOT_COMMITTED: Final = "not committed"
"""Evidence that a plan repeats as a warning: a save that did not finish may lack anything."""


@dataclass(frozen=True, slots=True)
class OpenedTree:
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
    metadata = read_tree_metadata(folder)
    stores = ArrayStores(folder)
    aggregate = find_aggregate(folder, stores.folder.names, metadata)
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
        _layout(arrays, aggregate=has_values, stores=stores),
        _era(metadata, stores, has_aggregate=aggregate is not None),
        tuple(_evidence(metadata, stores, has_aggregate=aggregate is not None)),
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
    build = _Builder(index, metadata, stores.root)
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
    kinds = {_kind_of(leaf) for leaf in lost}
    worst = DamagedCheckpoint if DamagedCheckpoint in kinds else UnsupportedCheckpoint
    count = f"{len(lost)} of {len(leaves) + len(lost)} leaves cannot be read"
    raise_all(kinds.pop() if len(kinds) == 1 else worst, f"{root}: {count}", problems, root)


def _kind_of(leaf: Leaf) -> type[LegacyError]:
    try:
        leaf.read()
    except LegacyError as error:
        return type(error)
    raise AssertionError(leaf)


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


class _Builder:
    """Makes leaves of what was found."""

    def __init__(self, index: TreeIndex, metadata: TreeMetadata | None, root: Path) -> None:
        self.metadata = metadata
        self.notes = index.notes
        self.impls: Mapping[str, str | None] | None = None
        self.no_impls: LegacyError | None = None
        try:
            self.impls = random_key_impls(root)
        except LegacyError as error:
            self.no_impls = error
        self.count = Counter(want.name for want in index.wanted)
        self.paths: dict[str, list[LeafPath]] = {}
        for want in index.wanted:
            if self.count[want.name] > 1:
                self.paths.setdefault(want.name, []).append(want.path)

    def string(self, want: Wanted, value: str) -> Leaf:
        nbytes = len(value.encode(errors="replace"))
        reader = Constant(value)
        leaf = Leaf(want.path, "str", nbytes=nbytes, reader=reader, notes=self.notes)
        return self._checked(leaf, want)

    def array(self, want: Wanted, found: FoundArray) -> Leaf:
        facts = found.metadata
        if self.no_impls is not None and _may_be_key(facts):
            # a typed key or plain numbers: the broken document is the only one that knows
            return unreadable(want.path, self.no_impls, shape=facts.shape, dtype=facts.dtype)
        complete = self.metadata is not None and self.metadata.stores_fill_value
        kind: Kind = "scalar" if want.value_type == SCALAR_TYPE and not facts.shape else "array"
        impl = (self.impls or {}).get(want.name)
        kind = "key" if impl is not None else kind
        leaf = Leaf(
            want.path,
            kind,
            shape=facts.shape,
            dtype=facts.dtype,
            nbytes=facts.nbytes,
            reader=ArrayReader(found, want.path, complete=complete, scalar=kind == "scalar"),
            storage=found.stored if found.opens_in_place else None,
            key_impl=impl,
            chunks=facts.chunks,
            notes=(*self.notes, *found.notes, *self._doubts(found, want, impl, complete=complete)),
        )
        return self._checked(leaf, want)

    def _doubts(
        self, found: FoundArray, want: Wanted, impl: str | None, *, complete: bool
    ) -> Iterable[str]:
        facts = found.metadata
        if facts.fills and not complete and found.lacks_chunks():
            yield _UNSTORED
        if self.metadata is None and not facts.shape:
            yield UNTYPED
        if (
            impl is None
            and want.name not in (self.impls or {})
            and want.value_type in (None, ARRAY_TYPE)
            and self.metadata is not None
            and CUSTOM_METADATA in self.metadata.keys
            and _may_be_key(facts)
        ):
            yield _PERHAPS_KEY

    def _checked(self, leaf: Leaf, want: Wanted) -> Leaf:
        if self.count[want.name] == 1:
            return leaf
        others = [format_path(p) for p in self.paths[want.name] if p != want.path]
        lost = UnsupportedCheckpoint(
            f"leaf {format_path(want.path)} "
            f"{_CLASH.format(name=want.name, other=', '.join(others))}. Ignore both leaves by a "
            "rule, or save again with other keys.",
            leaf=want.path,
        )
        return unreadable(want.path, lost, notes=leaf.notes)


def _may_be_key(facts: ArrayMetadata) -> bool:
    return facts.dtype == np.uint32 and facts.shape[-1:] in ((2,), (4,))


# --- what tells the release


def _layout(arrays: list[FoundArray], *, aggregate: bool, stores: ArrayStores) -> frozenset[str]:
    found = {"aggregate"} if aggregate else set()
    for stored in {array.layout for array in arrays}:
        found |= stored
    if not found:
        found = {"aggregate" if stores.main is None else "ocdbt"}
    return frozenset(found)


def _era(metadata: TreeMetadata | None, stores: ArrayStores, *, has_aggregate: bool) -> str:
    if metadata is not None:
        marks = (era for key, era in _ERAS if key in metadata.keys)
        known = next(marks, "orbax 0.3-0.4 (2023)")
        is_early = has_aggregate and known == _ZARR3_ERA
        return "orbax 0.5.0-0.5.15 (2024)" if is_early else known
    if has_aggregate:
        return _era_without_types(stores)
    return f"{UNKNOWN} (its index is missing)"


def _era_without_types(stores: ArrayStores) -> str:
    """``checkpoint`` alone: until 0.4, and later by ``write_tree_metadata=False``."""
    if SHARDING in stores.folder.names:
        return "orbax 0.4-0.5 (2023-2024)"
    if stores.main is not None:
        return "orbax 0.2-0.5 (2023-2024)"
    if stores.uses_gzip():  # later releases compress with zstd
        return "orbax 0.0-0.1 (2022-2023)"
    return "orbax 0.0-0.5 (2022-2024)"


def _evidence(
    metadata: TreeMetadata | None, stores: ArrayStores, *, has_aggregate: bool
) -> Iterable[str]:
    if metadata is not None:
        yield f"{TREE_METADATA} with {', '.join(sorted(metadata.keys))}"
    else:
        yield f"no {TREE_METADATA}"
    if has_aggregate:
        yield f"the msgpack file {AGGREGATE}"
    elif metadata is None:
        yield INDEX_LOST
    if stores.main is not None:
        yield "an OCDBT database (manifest.ocdbt)"
    elif stores.unmerged:
        yield f"{NOT_COMMITTED}: the databases {', '.join(stores.unmerged)} were never merged"
