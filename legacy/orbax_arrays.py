"""Finds the stored array of each leaf of a tree folder.

Where an array lies is asked for each leaf, not for each folder: real checkpoints mix folders of
zarr arrays with an OCDBT database, have a database for each process that was never merged, or
(Orbax 0.3) one more database for each key with a slash.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from legacy.errors import DamagedCheckpoint, LegacyError, UnsupportedCheckpoint
from legacy.orbax_reader import FoundArray
from legacy.orbax_stores import (
    MANIFEST,
    Database,
    Folder,
    escapes,
    has_manifest,
    process_databases,
)
from legacy.orbax_zarr import ArrayMetadata, parse_array_metadata
from legacy.paths import absolute

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ArrayStores"]

_NO_MERGE: Final = "read from the database of one process; the databases were never merged"


@dataclass(frozen=True, slots=True)
class _At:
    store: Database | Folder
    key: str
    text: tuple[str, bytes] | None = None
    notes: tuple[str, ...] = ()


class ArrayStores:
    """All places below a tree folder where its arrays can lie.

    Args:
        root: the folder of the tree.
    """

    def __init__(self, root: Path) -> None:
        self.root = absolute(root)
        self.folder = Folder(self.root)
        self._databases: dict[Path, Database] = {}
        self._parsed: dict[bytes, ArrayMetadata] = {}

    @cached_property
    def main(self) -> Database | None:
        """The database at the root."""
        return self._database(self.root) if has_manifest(self.root) else None

    @cached_property
    def _processes(self) -> list[Database]:
        return [self._database(folder) for folder in process_databases(self.root)]

    def names(self) -> list[str]:
        """The storage names of all arrays, for trees without an index."""
        databases = [self.main] if self.main is not None else self._processes
        found = {name for database in databases for name in database.arrays}
        return sorted(found | set(self.folder.arrays()))

    def find(self, names: Iterable[str]) -> dict[str, FoundArray | LegacyError]:
        """Find many arrays and parse their metadata.

        Args:
            names: storage names.

        Returns:
            For each name the array, or the error that says why there is none. A damaged database
            is raised, since it concerns all of them.

        Raises:
            CannotLook: something cannot be read.
            DamagedCheckpoint: a database is broken.
        """
        if self.main is not None:
            _ = self.main.arrays  # a broken database is one problem, not one for each leaf
        found: dict[str, FoundArray | LegacyError] = {}
        at: dict[str, _At] = {}
        for name in names:
            try:
                place = self._in_databases(name) or self._in_folder(name)
            except LegacyError as error:
                found[name] = error
                continue
            if isinstance(place, _At):
                at[name] = place
            else:
                found[name] = place or self._nothing(name)
        for name, raw in self._texts(at).items():
            found[name] = self._parse(name, at[name], raw)
        return found

    def _in_databases(self, name: str) -> _At | None:
        if self.main is not None and name in self.main.arrays:
            if name in self.folder.names and self.folder.metadata(name) is not None:
                raise DamagedCheckpoint(
                    f"{self.root}: {name} is stored in {MANIFEST} and in a folder of its own; "
                    "which one holds the values cannot be known",
                    path=self.root,
                )
            return _At(self.main, name)
        return None

    def _in_folder(self, name: str) -> _At | LegacyError | None:
        if escapes(name):
            self.folder.metadata(name)  # raises
        for spelled in dict.fromkeys((name, name.replace("\\", "/"))):
            text = self.folder.metadata(spelled)
            if text is not None:
                return _At(self.folder, spelled, text)
        return self._in_nested_database(name) or self._in_processes(name)

    def _in_nested_database(self, name: str) -> _At | None:
        parts = name.split("/")
        for n in range(1, len(parts)):
            place = Path(self.root, *parts[:n])
            if parts[0] in self.folder.names and has_manifest(place):
                database, key = self._database(place), "/".join(parts[n:])
                if key in database.arrays:
                    return _At(database, key)
        return None

    def _in_processes(self, name: str) -> _At | LegacyError | None:
        inside = [database for database in self._processes if name in database.arrays]
        if len(inside) > 1:
            return UnsupportedCheckpoint(
                f"{name} has parts in {len(inside)} databases ({inside[0].root.name}, "
                f"{inside[1].root.name}, ...) that were never merged, and no {MANIFEST} joins "
                "them: the save did not finish. Merging is not supported; take another step",
                path=self.root,
            )
        return _At(inside[0], name, notes=(_NO_MERGE,)) if inside else None

    def _nothing(self, name: str) -> LegacyError:
        if self.main is None and not self._processes and (self.root / "d").is_dir():
            why = f"{MANIFEST} is missing, and so are the databases of the processes"
        elif self.main is not None:
            why = f"neither {MANIFEST} nor a folder has it"
        else:
            why = f"there is no folder of this name, and no {MANIFEST}"
        return UnsupportedCheckpoint(
            f"the array {name} is not in {self.root}: {why}. Was the checkpoint copied completely?",
            path=self.root,
        )

    def _texts(self, at: dict[str, _At]) -> dict[str, tuple[str, bytes]]:
        """The metadata texts: those of folders are known, those of databases are read at once."""
        texts = {name: place.text for name, place in at.items() if place.text is not None}
        for database in self._databases.values():
            names = {p.key: name for name, p in at.items() if p.store is database}
            for key, raw in database.metadata(names).items():
                texts[names[key]] = (database.arrays[key].rpartition(b"/")[2].decode(), raw)
        return texts

    def _parse(self, name: str, at: _At, text: tuple[str, bytes]) -> FoundArray | LegacyError:
        file, raw = text
        try:
            if raw not in self._parsed:
                where = f"{at.store.root}/{at.key}/{file}"
                self._parsed[raw] = parse_array_metadata(raw, where, at.store.root)
        except (DamagedCheckpoint, UnsupportedCheckpoint) as error:
            return error
        metadata = self._parsed[raw]
        if metadata.is_void and isinstance(at.store, Database):
            return UnsupportedCheckpoint(
                f"{name} has elements of raw bytes in an OCDBT database", path=at.store.root
            )
        return FoundArray(at.store, at.key, metadata, at.notes)

    def _database(self, root: Path) -> Database:
        return self._databases.setdefault(root, Database(root))
