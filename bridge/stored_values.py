"""The stored bytes of arrays: a ``.zarray`` and chunks, wherever an old store keeps them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from bridge import layout as names
from bridge import ocdbt
from bridge.repack_copy import Stored
from legacy.leaves import FileRegion, StoredArray

__all__ = ["StoredValues"]


class StoredValues:
    """Finds the stored bytes of leaves; each database is listed once."""

    def __init__(self) -> None:
        self._surveys: dict[Path, ocdbt.Survey] = {}

    def of(self, storage: FileRegion | StoredArray | None) -> Mapping[str, bytes | Stored]:
        """What is stored of one array.

        Args:
            storage: of its leaf.

        Returns:
            By name (``.zarray``, ``0.0``, ...) bytes, or where they lie. Empty when it is no
            array of zarr 2, is described under another name, or where it lies cannot be listed.

        Raises:
            DamagedCheckpoint: the database refers to bytes that are not there.
        """
        if not isinstance(storage, StoredArray) or storage.driver != "zarr":
            return {}
        if storage.metadata_key is not None:
            return {}
        if not storage.ocdbt:
            return _in_folder(storage)
        if storage.database is not None and storage.database.entries is None:
            return {}
        if storage.root not in self._surveys:
            self._surveys[storage.root] = ocdbt.survey(storage.root, storage.database)
        return self._surveys[storage.root].arrays.get(storage.key, {})


def _in_folder(storage: StoredArray) -> Mapping[str, bytes | Stored]:
    folder = storage.root / storage.key
    try:
        values: dict[str, bytes | Stored] = {}
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file():  # a pipe would wait for a writer
                    values[entry.name] = Stored(folder / entry.name, 0, entry.stat().st_size)
        values[names.ZARRAY] = (folder / names.ZARRAY).read_bytes()
    except OSError:
        return {}
    return values
