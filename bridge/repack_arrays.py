"""Writes arrays into an OCDBT database in transactions of bounded size.

Measured with TensorStore 0.1.86 on two cores: memory held is about four times the bytes of the
largest chunk (decoded view, zstd output, the data file being put together), plus the transaction.
Hence ``BATCH`` and ``CHUNK``. Writing a memory-mapped array with
``can_reference_source_data_indefinitely`` takes no copy of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ml_dtypes
import numpy as np

from bridge._memory import passed
from bridge.errors import BridgeError, WriteFailed
from bridge.layout import zarr_metadata

__all__ = [
    "CHUNK",
    "COMPRESSIONS",
    "LARGE",
    "ArrayWriter",
    "chunk_names",
    "chunks_unread",
    "parse_compression",
    "stored_chunks",
]

BATCH = 16 << 20
"""Bytes of arrays in one transaction (one chunk, when that is more)."""

LARGE = 2 * BATCH
"""What is larger is not held while the next array is read."""

CHUNK = 16 << 20
"""Arrays above this are cut, so that memory stays small and all cores compress. Orbax cuts at 2 GiB
by default."""

COMPRESSIONS = "keep, none, zstd or zstd:LEVEL (1 to 22)"

_MOST = 22
_SEPARATOR = "."


def parse_compression(text: str) -> tuple[bool, int | None]:
    """What a user says of compression.

    Args:
        text: ``keep`` leaves every stored byte as it is, and compresses what has to be encoded as
            Orbax does (zstd, level 1); ``none`` compresses nothing anew; ``zstd`` and
            ``zstd:LEVEL`` compress whatever is not compressed, arrays of msgpack files too.

    Returns:
        Whether uncompressed arrays stay as they are, and the level of zstd (None: none).

    Raises:
        BridgeError: it is none of these.

    >>> parse_compression("keep"), parse_compression("none"), parse_compression("zstd:3")
    ((True, 1), (True, None), (False, 3))
    """
    name, _, level = text.partition(":")
    if text in ("keep", "none"):
        return True, 1 if text == "keep" else None
    if name == "zstd" and (text == name or (level.isdecimal() and 1 <= int(level) <= _MOST)):
        return False, int(level or 1)
    raise BridgeError(f"compression {text!r}: expected {COMPRESSIONS}.")


def stored_chunks(document: Mapping[str, Any]) -> tuple[int, ...]:
    """The chunk shape that a ``.zarray`` document names."""
    return tuple(int(n) for n in document["chunks"])


def chunk_names(document: Mapping[str, Any]) -> frozenset[str]:
    """The names of all chunks of an array.

    Args:
        document: its ``.zarray``.

    Returns:
        Names relative to the array; ``0`` for an array without dimensions.

    >>> sorted(chunk_names({"shape": [3, 2], "chunks": [2, 2]}))
    ['0.0', '1.0']
    """
    counts = [-(-n // c) for n, c in zip(document["shape"], document["chunks"], strict=True)]
    if not counts:
        return frozenset({"0"})
    return frozenset(_SEPARATOR.join(map(str, i)) for i in itertools.product(*map(range, counts)))


def chunks_unread(
    document: Mapping[str, Any], shape: tuple[int, ...], dtype: str
) -> frozenset[str] | None:
    """The names of an array's chunks, when they are those of the slot byte for byte.

    Args:
        document: the ``.zarray`` of the source.
        shape: of the slot where it goes.
        dtype: of that slot.

    Returns:
        None when the array has to be decoded: another dtype, byte order or shape than the slot,
        filters, or chunks in folders.
    """
    try:
        text = str(document["dtype"])
        stored = np.dtype(getattr(ml_dtypes, text, text))
        wanted = np.dtype(getattr(ml_dtypes, dtype, dtype))
        fits = (
            document["zarr_format"] == 2  # noqa: PLR2004 - zarr 2
            and stored == wanted
            and tuple(document["shape"]) == shape
            and not document.get("filters")
            and document.get("dimension_separator", _SEPARATOR) == _SEPARATOR
        )
        return chunk_names(document) if fits else None
    except (KeyError, TypeError, ValueError):
        return None


class ArrayWriter:
    """Collects arrays in a transaction and commits it whenever it is full.

    Args:
        database: an open TensorStore key-value store.
        folder: where it lies, for messages.
        level: of zstd; None for no compression.

    Use it as a context manager: leaving without an error commits the rest.
    """

    def __init__(self, database: Any, folder: Path, level: int | None = 1) -> None:
        import tensorstore as ts  # noqa: PLC0415

        self._ts = ts
        self._database = database
        self._folder = folder
        self._level = level
        self._context = ts.Context({"cache_pool": {"total_bytes_limit": 0}})
        self._transaction = ts.Transaction()
        self._held = 0
        self._pending: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.settle()
        else:
            self._transaction.abort()
            with suppress(WriteFailed):  # nothing may be writing when the folder is removed
                self._settle()

    def write(self, name: str, value: np.ndarray[Any, Any], chunks: tuple[int, ...]) -> None:
        """Encode and write an array.

        Args:
            name: its name in the item.
            value: its contents. It is read until the transaction is committed, and not copied.
            chunks: the chunk shape.

        Raises:
            WriteFailed: the disk is full, or the folder cannot be written.
        """
        spec = {
            "driver": "zarr",
            "metadata": zarr_metadata(value.shape, chunks, self._level),
            "dtype": value.dtype.name,
            "recheck_cached_data": False,
            "recheck_cached_metadata": False,
            "store_data_equal_to_fill_value": True,
        }
        store = self._wait(
            self._ts.open(
                spec, kvstore=self._bound / f"{name}/", create=True, context=self._context
            )
            if chunks == value.shape
            else self._ts.open(
                spec, kvstore=self._database / f"{name}/", create=True, context=self._context
            )
        )
        if chunks == value.shape:
            self._write(store, value)
            return
        for block in _blocks(value.shape, chunks):
            self._write(store.with_transaction(self._transaction)[block], value[block])

    def commit(self) -> None:
        """Begin to commit what was collected; at most one transaction is on its way."""
        self._settle()
        if self._held:
            large = self._held > LARGE
            self._pending = self._transaction.commit_async()
            self._transaction = self._ts.Transaction()
            self._held = 0
            if large:
                self._settle()

    def settle(self) -> None:
        """Commit what was collected, and wait until it is written."""
        self.commit()
        self._settle()

    @property
    def _bound(self) -> Any:
        return self._database.with_transaction(self._transaction)

    def _write(self, store: Any, value: np.ndarray[Any, Any]) -> None:
        self._wait(store.write(value, can_reference_source_data_indefinitely=True).copy)
        self._count(value.nbytes)

    def _count(self, nbytes: int) -> None:
        self._held += max(nbytes, 1)
        if self._held >= BATCH:
            self.commit()

    def _settle(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._wait(pending)
            passed(BATCH)

    def _wait(self, future: Any) -> Any:
        try:
            return future.result()
        except (ValueError, OSError, RuntimeError) as error:
            raise WriteFailed(f"{self._folder}: could not be written: {error}") from error


def _blocks(shape: tuple[int, ...], chunks: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    starts = (range(0, n, c) for n, c in zip(shape, chunks, strict=True))
    for corner in itertools.product(*starts):
        yield tuple(
            slice(at, min(at + c, n)) for at, c, n in zip(corner, chunks, shape, strict=True)
        )
