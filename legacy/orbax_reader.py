"""Reads a stored array, or a block of one, with TensorStore.

TensorStore gives zeros for a chunk that is lost, and takes memory for whatever shape a document
claims. So chunks are counted, and sizes compared with the machine, before anything is read.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from legacy.errors import DamagedCheckpoint, LegacyError, UnsupportedCheckpoint
from legacy.leaves import Index, LeafPath, StoredArray, format_path
from legacy.orbax_folders import Folder
from legacy.orbax_processes import Scattered
from legacy.orbax_stores import TENSORSTORE_ERRORS, Database, translated
from legacy.orbax_zarr import ZARR2_METADATA, ZARR3_METADATA, ArrayMetadata

__all__ = ["ArrayReader", "FoundArray"]

_ALWAYS_THERE = 1 << 26


class FoundArray(NamedTuple):
    """An array that is there: in which store, under which key, and what its metadata says."""

    store: Database | Folder | Scattered
    key: str
    metadata: ArrayMetadata
    notes: tuple[str, ...] = ()
    metadata_key: str | None = None
    """The name of its metadata, where it is neither ``.zarray`` nor ``zarr.json``."""

    @property
    def stored(self) -> StoredArray:
        """Where TensorStore opens it."""
        database = self.store if isinstance(self.store, Database) else None
        return StoredArray(
            self.metadata.driver,
            self.store.root,
            database is not None,
            self.key,
            self.metadata_key,
            database,
        )

    @property
    def opens_in_place(self) -> bool:
        """Whether TensorStore can open it: one store, no raw bytes, no backslash in a file."""
        if isinstance(self.store, Folder):
            return not self.metadata.is_void and "\\" not in self.key
        return isinstance(self.store, Database) and not self.metadata.is_void

    @property
    def layout(self) -> frozenset[str]:
        """The words for it in :attr:`legacy.checkpoint.Format.layout`."""
        if isinstance(self.store, Folder):
            return frozenset({self.metadata.driver})
        return frozenset({"ocdbt"} | ({"zarr3"} & {self.metadata.driver}))

    def lacks_chunks(self) -> bool:
        """Whether some chunk is not stored."""
        return self.metadata.missing(self.store.chunk_names(self.key)) is not None


@dataclass(frozen=True, slots=True)
class ArrayReader:
    """Reads one array, or a block of it; see :attr:`legacy.leaves.Leaf.reader`.

    Args:
        found: the array.
        path: the leaf, for messages.
        complete: every chunk was stored, so a missing one is damage.
        scalar: give a numpy scalar.
    """

    found: FoundArray
    path: LeafPath
    complete: bool
    scalar: bool = False

    def __call__(self, index: Index | None) -> Any:
        """Read the block ``index`` (None: all).

        Raises:
            CannotLook: a file cannot be read.
            DamagedCheckpoint: chunks are missing, too many or broken.
            UnsupportedCheckpoint: the block is larger than the memory of this machine.
        """
        array = self._read(index, None)
        return array[()] if self.scalar and array.shape == () else array

    def into(self, index: Index | None, out: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Read the block ``index`` into ``out``, without an array in between.

        Returns:
            ``out``; what was stored, where that has another shape or dtype than ``out``.

        Raises:
            LegacyError: as when called.
        """
        return self._read(index, out)

    def _read(self, index: Index | None, out: np.ndarray[Any, Any] | None) -> np.ndarray[Any, Any]:
        import tensorstore as ts  # noqa: PLC0415 - slow to import; `inspect --help` is quick

        block = None if index is None else self._block(index)
        self._check_sizes(block)
        self._check_chunks()
        try:
            store = self._open(block)
            part = store if block is None else store[block]
            # a write converts dtypes and broadcasts shapes, which no reader may do
            same = out is not None and (store.dtype.numpy_dtype, part.shape) == (
                out.dtype,
                out.shape,
            )
            if out is None or not same:
                return np.asarray(part.read().result())
            ts.array(out, copy=False, write=True).write(part).result()
        except TENSORSTORE_ERRORS as error:
            raise translated(error, self._what, self.found.store.root) from error
        return out

    @property
    def _what(self) -> str:
        return f"leaf {format_path(self.path)}: the array {self.found.store.root}/{self.found.key}"

    def _block(self, index: Index) -> tuple[slice, ...]:
        shape = self.found.metadata.shape
        if len(index) != len(shape) or any(s.step not in (None, 1) for s in index):
            raise LegacyError(
                f"leaf {format_path(self.path)}: index {index} for shape {shape}: give one slice "
                "of step 1 for each axis.",
                leaf=self.path,
            )
        spans = [s.indices(n) for s, n in zip(index, shape, strict=True)]
        return tuple(slice(start, max(start, stop)) for start, stop, _ in spans)

    def _check_sizes(self, block: tuple[slice, ...] | None) -> None:
        metadata, memory = self.found.metadata, _memory()
        nbytes = metadata.nbytes
        if block is not None:
            nbytes = metadata.dtype.itemsize
            for span in block:
                nbytes *= span.stop - span.start
        chunk = metadata.chunk_nbytes if nbytes else 0
        if max(nbytes, chunk) > memory or not _can_have(nbytes + 2 * chunk):
            raise UnsupportedCheckpoint(
                f"{self._what} says shape {metadata.shape}, chunks {metadata.chunks}: {nbytes} "
                f"bytes to read, chunks of {metadata.chunk_nbytes}, more than the {memory} bytes "
                "of this machine, or than this process may have. Read it in blocks, or take a "
                "larger machine.",
                path=self.found.store.root,
                leaf=self.path,
            )

    def _check_chunks(self) -> None:
        metadata = self.found.metadata
        stored = self.found.store.chunk_names(self.found.key)
        wrong = None
        gap = metadata.missing(stored)
        missing = gap if self.complete or not metadata.fills else None
        if gap is not None and (link := self.found.store.dangling(self.found.key)) is not None:
            wrong = (
                f"its chunk {link!r} is missing: the file is a link to a target that is not here "
                "or that lies outside of the checkpoint, or no regular file. Copy the checkpoint "
                "with what its links stand for (cp -rL)"
            )
        elif missing is not None:
            wrong = f"its chunk {missing!r} is missing, and every chunk was written"
        elif (foreign := metadata.foreign(stored)) is not None:
            wrong = f"its chunk {foreign!r} lies outside the array"
        if wrong is not None:
            raise DamagedCheckpoint(
                f"{self._what}, shape {metadata.shape} in chunks of {metadata.chunks}: {wrong}. "
                "Take another step or a backup.",
                path=self.found.store.root,
                leaf=self.path,
            )

    def _open(self, block: tuple[slice, ...] | None) -> Any:
        import tensorstore as ts  # noqa: PLC0415 - slow to import; `inspect --help` is quick

        store, metadata = self.found.store, self.found.metadata
        if isinstance(store, Database) or self.found.opens_in_place:
            # nodes of the database are kept for the next array; its chunks are read once
            spec = {**self.found.stored.spec(), "cache_pool": {"total_bytes_limit": 0}}
            return ts.open(spec, read=True, context=store.context).result()
        context = ts.Context()
        base = {"driver": "memory", "path": "array/"}
        memory = ts.KvStore.open(base, context=context).result()
        for name, content in store.contents(self.found.key, self._needed(block)).items():
            is_usual = name != self.found.metadata_key
            is_void = metadata.is_void and not (is_usual and name != ZARR2_METADATA)
            memory[name if is_usual else ZARR2_METADATA] = (
                _named_bfloat16(content) if is_void else content
            )
        return ts.open(
            {"driver": metadata.driver, "kvstore": base}, read=True, open=True, context=context
        ).result()

    def _needed(self, block: tuple[slice, ...] | None) -> list[str]:
        """The names below the array of which a block needs the content."""
        found, metadata = self.found, self.found.metadata
        stored = found.store.chunk_names(found.key)
        if block is None:
            return sorted(stored)
        documents = (ZARR2_METADATA, ZARR3_METADATA, found.metadata_key)
        return [n for n in sorted(stored) if n in documents or metadata.in_block(n, block)]


def _named_bfloat16(raw: bytes) -> bytes:
    return json.dumps(json.loads(raw) | {"dtype": "bfloat16"}).encode()


def _can_have(nbytes: int) -> bool:
    """Whether this process can get so much memory; TensorStore ends a process that cannot."""
    if nbytes < _ALWAYS_THERE:
        return True
    try:
        np.empty(nbytes, np.uint8)  # promised, not used
    except MemoryError:
        return False
    return True


@cache
def _memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
