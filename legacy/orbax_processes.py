"""Arrays whose chunks lie in the databases of several processes that were never merged.

Each process of a save writes its chunks into an OCDBT database of its own, ``ocdbt.process_<n>``,
and the first one also writes what describes an array. The last act of a save joins them; where it
did not come to that (or the joined database was lost), an array is the union of what the databases
hold. Only the count of the chunks tells whether that is all of it: a process that was stopped, or
whose database was not copied, leaves no other trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from legacy.errors import DamagedCheckpoint, LegacyError
from legacy.orbax_zarr import ZARR2_METADATA, ZARR3_METADATA, other_metadata

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from legacy.orbax_stores import Database
    from legacy.orbax_zarr import ArrayMetadata

__all__ = ["Scattered", "gather", "incomplete"]

_METADATA: Final = (ZARR2_METADATA, ZARR3_METADATA)
_NEVER_MERGED: Final = (
    "read from the databases of single processes ({names}), which were never merged: the save did "
    "not finish, or its merged database was lost"
)


@dataclass(frozen=True, slots=True)
class Scattered:
    """One array and the database that holds each of its keys: a store like the two others.

    Attributes:
        root: the folder of the tree.
        owners: the database of each chunk and of the metadata, by the name below the array.
        file: the name of the metadata.
    """

    root: Path
    owners: Mapping[str, Database]
    file: str

    context = None

    def chunk_names(self, name: str) -> frozenset[str]:  # noqa: ARG002 - as other stores
        """The keys below the array."""
        return frozenset(self.owners)

    def dangling(self, name: str) -> str | None:  # noqa: ARG002 - folders need it
        """None: the keys of a database are no links."""
        return None

    def contents(self, name: str, wanted: Iterable[str]) -> dict[str, bytes]:
        """The bytes of some keys below the array."""
        return {key: self.owners[key].read(f"{name}/{key}") for key in wanted}

    def otherwise_named(self, name: str) -> tuple[str, bytes] | None:
        """The name and text of the metadata, where its user chose the name."""
        if self.file in _METADATA:
            return None
        return self.file, self.owners[self.file].read(f"{name}/{self.file}")

    @property
    def note(self) -> str:
        """What a leaf says of such an array."""
        names = sorted({database.root.name for database in self.owners.values()})
        return _NEVER_MERGED.format(names=", ".join(names))


def gather(root: Path, name: str, databases: Sequence[Database]) -> Scattered | LegacyError | None:
    """Find the keys of one array in the databases of the processes.

    Args:
        root: the folder of the tree.
        name: the storage name of the array.
        databases: of all processes.

    Returns:
        The array; None where no database knows it; an error where they contradict each other.
    """
    owners: dict[str, Database] = {}
    for database in databases:
        for key in database.chunk_names(name):
            other = owners.setdefault(key, database)
            if other is not database and other.read(f"{name}/{key}") != database.read(
                f"{name}/{key}"
            ):
                return _damaged(
                    root,
                    f"{name}/{key} has other bytes in {database.root.name} than in "
                    f"{other.root.name}, and which are right cannot be known",
                )
    if not owners:
        return None
    files: list[str] = [file for file in _METADATA if file in owners]
    files = files or other_metadata(key for key in owners if "/" not in key)
    if len(files) == 1:
        return Scattered(root, owners, files[0])
    said = f"both {files[0]} and {files[1]}" if files else f"no {' or '.join(_METADATA)}"
    holders = sorted({database.root.name for database in owners.values()})
    return _damaged(root, f"{name} has {said} in {', '.join(holders)}")


def incomplete(store: Scattered, name: str, metadata: ArrayMetadata) -> LegacyError | None:
    """Say which chunk of an array is in none of the databases.

    Also where a chunk that is not stored would count as zeros: in a save that did not finish it
    may as well not have been written yet.

    Args:
        store: the array.
        name: its storage name.
        metadata: what it is.

    Returns:
        The error, or None when every chunk is there.
    """
    chunk = metadata.missing(store.chunk_names(name))
    if chunk is None:
        return None
    holders = sorted({database.root.name for database in store.owners.values()})
    return _damaged(
        store.root,
        f"the chunk {chunk} of {name} (shape {metadata.shape} in chunks of {metadata.chunks}) is "
        f"in none of the databases that hold the array ({', '.join(holders)})",
    )


def _damaged(root: Path, what: str) -> LegacyError:
    return DamagedCheckpoint(
        f"{root}: {what}. The databases of the processes were never merged: the save did not "
        "finish, or not all of it was copied. Take another step, or copy it again.",
        path=root,
    )
