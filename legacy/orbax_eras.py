"""Which release of Orbax wrote a tree folder, and what in the folder says so.

No file names its writer. What is there, and which keys the documents have, narrows it to a span of
releases; the spans are those of FORMATS.md, measured with the releases themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from legacy.orbax_metadata import (
    AGGREGATE,
    CUSTOM_METADATA,
    SHARDING,
    STORES_FILL_VALUE,
    TREE_METADATA,
    USE_OCDBT,
    USE_ZARR3,
    TreeMetadata,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from legacy.orbax_arrays import ArrayStores
    from legacy.orbax_reader import FoundArray

__all__ = ["INDEX_LOST", "NOT_COMMITTED", "UNKNOWN", "era_of", "evidence_of", "layout_of"]

_ZARR3_ERA: Final = "orbax 0.5-0.9 (2024)"
_ERAS: Final = (
    (USE_OCDBT, "orbax 0.12 or newer"),
    (CUSTOM_METADATA, "orbax 0.11 (2024-2025)"),
    (STORES_FILL_VALUE, "orbax 0.7-0.10 (2024)"),
    (USE_ZARR3, _ZARR3_ERA),
)

UNKNOWN: Final = "an unknown release of orbax"
INDEX_LOST: Final = (
    "the index is missing, so leaves that had no array of their own (aggregated values, strings, "
    "none) cannot be seen"
)
"""Evidence that a plan repeats as a warning: what is not seen cannot be accounted for."""

NOT_COMMITTED: Final = "not committed"
"""Evidence that a plan repeats as a warning: a save that did not finish may lack anything."""


def layout_of(arrays: list[FoundArray], *, aggregate: bool, stores: ArrayStores) -> frozenset[str]:
    """How the arrays of a tree lie, in the words of :attr:`legacy.checkpoint.Format.layout`."""
    found = {"aggregate"} if aggregate else set()
    alike = {(type(array.store), array.metadata.driver): array for array in arrays}
    for array in alike.values():
        found |= array.layout
    if not found:
        found = {"aggregate" if stores.main is None else "ocdbt"}
    return frozenset(found)


def era_of(metadata: TreeMetadata | None, stores: ArrayStores, *, has_aggregate: bool) -> str:
    """The releases that write such a tree: each added keys to ``_METADATA``."""
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


def evidence_of(
    metadata: TreeMetadata | None, stores: ArrayStores, *, has_aggregate: bool
) -> Iterator[str]:
    """The facts in the folder that speak for it, in words."""
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
