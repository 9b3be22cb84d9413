"""OCDBT databases as files: which arrays they hold, and where the bytes of each lie.

Facts about TensorStore (0.1.86), found by experiment and held by the tests:

- ``ts.ocdbt.dump`` names every value as ``value:<base>:<file>:<offset>:<length>``, where base and
  file are percent-encoded and the file is ``<base><file>`` below the database. A checkpoint of
  Orbax >= 0.5 has its values in ``ocdbt.process_N/d/``; the manifests in those folders are not
  needed by the one at the root.
- Data files are never changed or appended to, and ``manifest.ocdbt`` is replaced by rename. That
  is why a data file may have a second name in another database.
- The file driver syncs each file unless ``file_io_sync`` is off; ours is, because the whole folder
  is synced once before it is committed.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias
from urllib.parse import unquote

from bridge.layout import MANIFEST, OCDBT_CONFIG, TARGET_DATA_FILE_SIZE, ZARRAY
from bridge.repack_copy import Stored
from legacy import DamagedCheckpoint, LegacyError
from legacy.orbax_stores import Database

__all__ = ["Survey", "Value", "open_database", "parsed", "survey"]

Value: TypeAlias = bytes | Stored
"""Bytes that lie in the B-tree itself, or where they lie."""

_CONTEXT = {
    "file_io_sync": False,
    "file_io_concurrency": {"limit": 32},
    "cache_pool#nodes": {"total_bytes_limit": 32 << 20},
}


@dataclass(frozen=True, slots=True)
class Survey:
    """What an OCDBT database holds.

    Attributes:
        root: its folder.
        arrays: for each name with a ``.zarray`` the values below it, ``.zarray`` among them, by
            the last part of their key.
        zarrays: the parsed ``.zarray`` of each name.
    """

    root: Path
    arrays: Mapping[str, Mapping[str, Value]]
    zarrays: Mapping[str, Mapping[str, Any]]


@dataclass(slots=True)
class _Places:
    """Finds the bytes that one database refers to."""

    root: Path
    files: dict[str, tuple[Path, int]] = field(default_factory=dict)

    def of(self, location: str) -> Stored:
        _, base, name, offset, length = location.split(":")
        key = base + ":" + name
        if key not in self.files:
            relative = unquote(base) + unquote(name)
            if relative.startswith("/") or ".." in PurePosixPath(relative).parts:
                raise DamagedCheckpoint(
                    f"the OCDBT database in {self.root} refers to {relative!r}, outside its "
                    "folder. It is damaged or hostile; take another step or a backup.",
                    path=self.root,
                )
            file = self.root / relative
            self.files[key] = file, file.stat().st_size if file.is_file() else -1
        file, size = self.files[key]
        if int(offset) + int(length) > size:
            have = "is not there" if size < 0 else f"has {size} bytes"
            raise DamagedCheckpoint(
                f"the OCDBT database in {self.root} wants bytes {offset}..+{length} of "
                f"{file.relative_to(self.root)}, which {have}. The checkpoint is truncated or was "
                "copied in part; copy it again, or take another step.",
                path=file,
                offset=int(offset),
            )
        return Stored(file, int(offset), int(length))


@functools.lru_cache(maxsize=4096)
def parsed(document: bytes) -> Mapping[str, Any]:
    """The parsed ``.zarray``; the layers of a model, and the steps of a run, have a few texts."""
    found: Mapping[str, Any] = json.loads(document)
    return found


def survey(root: Path, database: Database | None = None) -> Survey:
    """List a database without reading values; only its B-tree is read.

    Args:
        root: the folder with ``manifest.ocdbt``.
        database: the same database, when it has been opened before, so that it is read once.

    Returns:
        What it holds.

    Raises:
        DamagedCheckpoint: a node or value lies outside the files that are there.
    """
    database = database or Database(root)
    if database.entries is None:
        _ = database.keys  # says what is wrong, when TensorStore cannot list it either
        raise DamagedCheckpoint(
            f"the OCDBT database in {root} is not understood. It is damaged, or of a kind that "
            "Orbax does not write; copy the checkpoint again, or take another step.",
            path=root / MANIFEST,
        )
    texts: dict[str, bytes] = {}
    for name, text in database.metadata(_zarr2(database)).items():
        if isinstance(text, LegacyError):
            raise text
        texts[name] = text
    places = _Places(root)
    found: dict[str, dict[str, Value]] = {name: {} for name in texts}
    try:
        zarrays = {name: parsed(text) for name, text in texts.items()}
        for key, entry in database.entries.items():
            name, _, rest = key.decode(errors="surrogateescape").rpartition("/")
            if name in found:
                found[name][rest] = entry if isinstance(entry, bytes) else places.of(entry)
    except ValueError as error:
        if isinstance(error, DamagedCheckpoint):
            raise
        raise DamagedCheckpoint(
            f"the OCDBT database in {root} is not understood ({error}). Copy the checkpoint "
            "again, or take another step.",
            path=root,
        ) from error
    for name, text in texts.items():
        found[name][ZARRAY] = text
    return Survey(root, found, zarrays)


def _zarr2(database: Database) -> list[str]:
    last = ZARRAY.encode()
    return [name for name, key in database.arrays.items() if key.rpartition(b"/")[2] == last]


def open_database(root: Path, *, create: bool = False) -> Any:
    """Open a database of our own for writing.

    Args:
        root: its folder.
        create: begin a new one, with the configuration that Orbax gives.

    Returns:
        The TensorStore key-value store.
    """
    import tensorstore as ts  # noqa: PLC0415

    spec: dict[str, Any] = {
        "driver": "ocdbt",
        "base": {"driver": "file", "path": f"{root}/"},
        "cache_pool": "cache_pool#nodes",
        "target_data_file_size": TARGET_DATA_FILE_SIZE,
    }
    if create:
        spec |= {"config": dict(OCDBT_CONFIG)}
    return ts.KvStore.open(spec, context=ts.Context(_CONTEXT)).result()
