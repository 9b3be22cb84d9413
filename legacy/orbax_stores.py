"""One OCDBT database: which arrays are there, what their metadata says, which chunks are stored.

Its keys are listed once, and metadata is read for many arrays at once. Nothing is created, and
TensorStore's errors become ours. :mod:`legacy.orbax_folders` is the other kind of place.
"""

from __future__ import annotations

import bisect
import os
import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from legacy.errors import CannotLook, DamagedCheckpoint, LegacyError, UnsupportedCheckpoint
from legacy.orbax_documents import (
    entries_of,
    entry_kind,
    leads_out,
    list_folder,
    out_of_checkpoint,
)
from legacy.orbax_folders import both_formats
from legacy.orbax_nodes import dump_entries
from legacy.orbax_zarr import ZARR2_METADATA, ZARR3_METADATA, other_metadata

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Database", "has_manifest", "process_databases", "translated"]

MANIFEST: Final = "manifest.ocdbt"
DATA: Final = "d"
PROCESS_DATABASE: Final = "ocdbt.process_"
TENSORSTORE_ERRORS: Final = (
    ValueError,
    OSError,
    RuntimeError,
    NotImplementedError,
    IndexError,
    MemoryError,
)

NEWER_TENSORSTORE: Final = "the installed TensorStore does not know"
"""In the error for an array that only a newer TensorStore reads."""

_UNKNOWN_DTYPE = re.compile(r"Unsupported (?:zarr dtype|data type): ")
_CACHE_BYTES: Final = 1 << 26
_BATCH: Final = 4096
_METADATA_NAMES: Final = (ZARR2_METADATA.encode(), ZARR3_METADATA.encode())
_SPEC = re.compile(r"\s*\[(?:tensorstore_spec|source locations)=.*", re.DOTALL)


def has_manifest(folder: Path | str) -> bool:
    """Whether the folder is an OCDBT database.

    Raises:
        CannotLook: the folder cannot be looked into.
    """
    return entry_kind(f"{folder}/{MANIFEST}") is not None


def process_databases(folder: Path) -> list[Path]:
    """The databases of single processes below a tree folder, merged since or not.

    Raises:
        CannotLook: the folder cannot be looked into.
    """
    names = [name for name in list_folder(folder) if name.startswith(PROCESS_DATABASE)]
    return [folder / name for name in names if has_manifest(folder / name)]


def translated(error: Exception, what: str, path: Path) -> LegacyError:
    """The error of this package that says what TensorStore said."""
    said = _SPEC.sub("", str(error)) or type(error).__name__
    if "PERMISSION_DENIED" in said or isinstance(error, PermissionError):
        return CannotLook(f"{what} cannot be read: {said}. Make it readable.", path=path)
    if _UNKNOWN_DTYPE.search(said):  # 0.1.84 has no float8_e8m0fnu
        return UnsupportedCheckpoint(
            f"{what} has an element type that {NEWER_TENSORSTORE} ({said}). Upgrade tensorstore.",
            path=path,
        )
    return DamagedCheckpoint(
        f"{what} cannot be read: {said}. The checkpoint is damaged or incomplete; take another "
        "step or a backup.",
        path=path,
    )


class Database:
    """One OCDBT database, its keys listed once.

    Args:
        root: the folder of the manifest.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._texts: dict[str, bytes | LegacyError] = {}

    @cached_property
    def context(self) -> Any:
        """The TensorStore context in which the nodes of the database are kept."""
        import tensorstore as ts  # noqa: PLC0415 - slow to import; `inspect --help` is quick

        return ts.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})

    @cached_property
    def _kvstore(self) -> Any:
        import tensorstore as ts  # noqa: PLC0415

        base = {"driver": "file", "path": f"{self.root}/"}
        return ts.KvStore.open({"driver": "ocdbt", "base": base}, context=self.context).result()

    def _refuse_strangers(self) -> None:
        """Refuse what TensorStore would wait for, read without an end, or look for elsewhere."""
        parts = [name for name in list_folder(self.root) if name.startswith(PROCESS_DATABASE)]
        folders = [self.root / DATA, *(self.root / part / DATA for part in parts)]
        for folder in folders:
            if not (os.path.islink(folder) or os.path.islink(folder.parent)):  # noqa: PTH114 - hot
                continue
            if not os.path.realpath(folder).startswith(f"{os.path.realpath(self.root)}{os.sep}"):
                raise out_of_checkpoint(folder, os.path.realpath(folder))
        files = [
            folder / entry.name
            for folder in folders
            for entry in entries_of(folder)
            if not entry.is_file(follow_symlinks=False)
        ]
        for file in (self.root / MANIFEST, *files):
            if entry_kind(file) == "other":
                raise DamagedCheckpoint(
                    f"{file}: should be a file of an OCDBT database, and is a pipe or a device. "
                    "Copy the checkpoint again, or take another step.",
                    path=file,
                )
            real = leads_out(file, self.root)
            if real is not None and entry_kind(file) == "file":
                raise out_of_checkpoint(file, real)

    @cached_property
    def entries(self) -> Mapping[bytes, bytes | str] | None:
        """For each key, in order, its value, or where that lies in the words of ``ocdbt.dump``.

        The B-tree is read once for all that is asked of it. None where it is damaged or of a form
        that is not known; listing and reading key by key then tell.
        """
        import tensorstore as ts  # noqa: PLC0415

        self._refuse_strangers()
        files = {"driver": "file", "path": f"{self.root}/"}
        found: dict[bytes, bytes | str] = {}
        try:
            base = ts.KvStore.open(files, context=self.context).result()
            for _, entries in dump_entries(base):
                for key, entry in entries.items():
                    value = entry.get("inline_value")
                    found[key] = entry["indirect_value"] if value is None else bytes(value)
        except (*TENSORSTORE_ERRORS, KeyError, TypeError):
            return None
        return found

    @cached_property
    def keys(self) -> list[bytes]:
        """All keys, sorted."""
        if self.entries is not None:
            return list(self.entries)
        try:
            return sorted(self._kvstore.list().result())
        except LegacyError:
            raise
        except TENSORSTORE_ERRORS as error:
            raise self._broken(error) from error

    @cached_property
    def arrays(self) -> Mapping[str, bytes]:
        """The key of the metadata of each array, by the name of the array."""
        found: dict[str, bytes] = {}
        for key in self.keys:
            if key.endswith(_METADATA_NAMES):
                name, _, last = key.rpartition(b"/")
                if last not in _METADATA_NAMES:
                    continue
                text = name.decode(errors="surrogateescape")
                if text in found:
                    raise both_formats(f"{self.root}: the array {text}", self.root)
                found[text] = key
        return found | self._otherwise_named(found)

    def _otherwise_named(self, known: Mapping[str, bytes]) -> dict[str, bytes]:
        """As :attr:`arrays`, those whose metadata has a name that its user chose."""
        names = {key.rpartition(b"/")[0] for key in known.values()}
        below: dict[bytes, list[str]] = {}
        for key in self.keys:
            name, _, last = key.rpartition(b"/")
            if name not in names:
                below.setdefault(name, []).append(last.decode(errors="surrogateescape"))
        found = {name: other_metadata(lasts) for name, lasts in below.items()}
        return {
            name.decode(errors="surrogateescape"): name
            + f"/{files[0]}".encode(errors="surrogateescape")
            for name, files in found.items()
            if len(files) == 1 and name
        }

    def metadata(self, names: Iterable[str]) -> dict[str, bytes | LegacyError]:
        """The metadata texts of many arrays, read at once (10,000 in 0.1 s).

        One that cannot be read (its data file is gone) is an error, and leaves the others alone.
        """
        import tensorstore as ts  # noqa: PLC0415

        arrays, known = self.arrays, self.entries or {}
        wanted: list[str] = []
        names = list(names)
        for name in names:
            text = known.get(arrays[name])
            if isinstance(text, bytes):
                self._texts[name] = text
            elif name not in self._texts:
                wanted.append(name)
        for at in range(0, len(wanted), _BATCH):
            batch, part = ts.Batch(), wanted[at : at + _BATCH]
            futures = [self._kvstore.read(arrays[name], batch=batch) for name in part]
            batch.submit()
            for name, future in zip(part, futures, strict=True):
                try:
                    self._texts[name] = future.result().value
                except TENSORSTORE_ERRORS as error:
                    self._texts[name] = translated(error, f"{self.root}/{name}", self.root)
        return {name: self._texts[name] for name in names}

    def chunk_names(self, name: str) -> frozenset[str]:
        """The keys below an array, without its name."""
        if not name:  # a tree that is one array lies at the root
            return frozenset(key.decode(errors="replace") for key in self.keys)
        prefix = f"{name}/".encode(errors="surrogateescape")
        first = bisect.bisect_left(self.keys, prefix)
        # no key goes on with the character after the slash: all that start with prefix lie between
        end = bisect.bisect_left(self.keys, prefix[:-1] + b"0", first)
        return frozenset(
            key[len(prefix) :].decode(errors="replace") for key in self.keys[first:end]
        )

    def read(self, key: str) -> bytes:
        """The bytes of one key.

        Raises:
            DamagedCheckpoint: they are not there.
        """
        try:
            found = self._kvstore.read(key.encode(errors="surrogateescape")).result()
        except TENSORSTORE_ERRORS as error:
            raise translated(error, f"{self.root}/{key}", self.root) from error
        if found.state != "value":
            raise DamagedCheckpoint(f"{self.root}/{key} is not there.", path=self.root)
        return bytes(found.value)

    def dangling(self, name: str) -> str | None:  # noqa: ARG002 - folders need it
        """None: the keys of a database are no links."""
        return None

    def _broken(self, error: Exception) -> LegacyError:
        file = self.root / MANIFEST
        return translated(error, f"{file}: the OCDBT database", file)
