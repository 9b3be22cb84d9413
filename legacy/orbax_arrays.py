"""Finds the stored array of each leaf of a tree folder.

Where an array lies is asked for each leaf, not for each folder: real checkpoints mix folders of
zarr arrays with an OCDBT database, have a database for each process that was never merged, or
(Orbax 0.3) one more database for each key with a slash.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from legacy.errors import DamagedCheckpoint, LegacyError, UnsupportedCheckpoint
from legacy.orbax_folders import Folder, escapes
from legacy.orbax_processes import Scattered, gather, incomplete
from legacy.orbax_reader import FoundArray
from legacy.orbax_stores import (
    MANIFEST,
    Database,
    has_manifest,
    process_databases,
)
from legacy.orbax_zarr import (
    ZARR2_METADATA,
    ZARR3_METADATA,
    ArrayMetadata,
    parse_array_metadata,
)
from legacy.paths import absolute

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ArrayStores"]


class _At(NamedTuple):
    store: Database | Folder | Scattered
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
    def _processes(self) -> tuple[list[Database], list[LegacyError]]:
        """The databases of single processes, and what is wrong with those that are broken."""
        good: list[Database] = []
        broken: list[LegacyError] = []
        for folder in process_databases(self.root):
            database = self._database(folder)
            try:
                _ = database.keys
            except LegacyError as error:
                broken.append(error)
            else:
                good.append(database)
        return good, broken

    @property
    def unmerged(self) -> list[str]:
        """The names of the databases of processes that no database at the root has joined."""
        good, broken = ([], []) if self.main is not None else self._processes
        return [database.root.name for database in good] + [
            error.path.parent.name for error in broken if error.path is not None
        ]

    def names(self) -> list[str]:
        """The storage names of all arrays, for trees without an index."""
        if self.main is None and (broken := self._processes[1]):
            raise broken[0]  # without an index, nobody knows what was in it
        return sorted(self.in_databases() | set(self.folder.arrays()))

    def in_databases(self) -> set[str]:
        """The storage names of all arrays in the databases that can be read."""
        databases = [self.main] if self.main is not None else self._processes[0]
        return {name for database in databases for name in database.arrays}

    def uses_gzip(self) -> bool:
        """Whether an array found so far is compressed as Orbax before 0.2 did."""
        return any(b'"gzip"' in raw for raw in self._parsed)

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
            if name in self.folder.names and self.folder.is_array(name):
                raise DamagedCheckpoint(
                    f"{self.root}: {name} is stored in {MANIFEST} and in a folder of its own; "
                    "which one holds the values cannot be known",
                    path=self.root,
                )
            return _At(self.main, name)
        return None

    def _in_folder(self, name: str) -> _At | LegacyError | None:
        if (known := self.folder.plain_metadata(name)) is not None:
            return _At(self.folder, name, known)
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
        if self.main is not None:
            return None  # what was merged is all there is
        found = gather(self.root, name, self._processes[0])
        if not isinstance(found, Scattered):
            return found
        return _At(found, name, found.otherwise_named(name), notes=(found.note,))

    def _nothing(self, name: str) -> LegacyError:
        if self.main is None and self._processes[1]:
            return self._processes[1][0]
        if self.main is None and not self._processes[0] and (self.root / "d").is_dir():
            why = f"{MANIFEST} is missing, and so are the databases of the processes"
        elif self.main is not None:
            why = f"neither {MANIFEST} nor a folder has it"
        else:
            why = f"there is no folder of this name, and no {MANIFEST}"
        return UnsupportedCheckpoint(
            f"the array {name} is not in {self.root}: {why}. Was the checkpoint copied completely?",
            path=self.root,
        )

    def _texts(self, at: dict[str, _At]) -> dict[str, tuple[str, bytes] | LegacyError]:
        """The metadata texts: those of folders are known, those of databases are read at once."""
        texts: dict[str, tuple[str, bytes] | LegacyError] = {}
        inside: dict[Path, dict[str, str]] = {}
        for name, place in at.items():
            database = place.store
            if isinstance(database, Scattered):
                database = database.owners[database.file]
            if place.text is not None:
                texts[name] = place.text
            elif isinstance(database, Database):
                inside.setdefault(database.root, {})[place.key] = name
        for root, names in inside.items():
            database = self._databases[root]
            for key, raw in database.metadata(names).items():
                last = database.arrays[key].rpartition(b"/")[2]
                file = last.decode(errors="surrogateescape")
                texts[names[key]] = raw if isinstance(raw, LegacyError) else (file, raw)
        return texts

    def _parse(
        self, name: str, at: _At, text: tuple[str, bytes] | LegacyError
    ) -> FoundArray | LegacyError:
        if isinstance(text, LegacyError):
            return text
        file, raw = text
        try:
            if raw not in self._parsed:
                where = f"{at.store.root}/{at.key}/{file}"
                self._parsed[raw] = parse_array_metadata(raw, where, at.store.root)
        except (DamagedCheckpoint, UnsupportedCheckpoint) as error:
            return error
        metadata, store = self._parsed[raw], at.store
        is_named_as_usual = file in (ZARR2_METADATA, ZARR3_METADATA)
        if not is_named_as_usual and metadata.driver != "zarr":
            return UnsupportedCheckpoint(
                f"{store.root}/{at.key} has chunks, and {file} in place of {ZARR3_METADATA}, which "
                "no release wrote. Copy the checkpoint again",
                path=store.root,
            )
        if metadata.is_void and not isinstance(store, Folder):
            return UnsupportedCheckpoint(
                f"{name} has elements of raw bytes in an OCDBT database", path=store.root
            )
        if isinstance(store, Scattered):
            problem = incomplete(store, name, metadata)
            if problem is not None:
                return next(iter(self._processes[1]), problem)
            alone = {database.root: database for database in store.owners.values()}
            store = next(iter(alone.values())) if len(alone) == 1 else store
        return FoundArray(
            store, at.key, metadata, at.notes, metadata_key=None if is_named_as_usual else file
        )

    def _database(self, root: Path) -> Database:
        return self._databases.setdefault(root, Database(root))
