"""Reads a stored array, or a block of one, with TensorStore.

TensorStore gives zeros for a chunk that is lost, and takes memory for whatever shape a document
claims. So chunks are counted, and sizes compared with the machine, before anything is read.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from legacy.errors import DamagedCheckpoint, LegacyError, UnsupportedCheckpoint
from legacy.leaves import Index, LeafPath, StoredArray, format_path
from legacy.orbax_stores import TENSORSTORE_ERRORS, Database, Folder, translated
from legacy.orbax_zarr import ZARR2_METADATA, ArrayMetadata

__all__ = ["ArrayReader", "FoundArray"]


@dataclass(frozen=True, slots=True)
class FoundArray:
    """An array that is there: in which store, under which key, and what its metadata says."""

    store: Database | Folder
    key: str
    metadata: ArrayMetadata
    notes: tuple[str, ...] = ()

    @property
    def stored(self) -> StoredArray:
        """Where TensorStore opens it."""
        ocdbt = isinstance(self.store, Database)
        return StoredArray(self.metadata.driver, self.store.root, ocdbt, self.key)

    @property
    def opens_in_place(self) -> bool:
        """Whether TensorStore can open it: not as raw bytes, nor where a name has a backslash."""
        return not self.metadata.is_void and (
            isinstance(self.store, Database) or "\\" not in self.key
        )

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
        block = None if index is None else self._block(index)
        self._check_sizes(block)
        self._check_chunks()
        try:
            store = self._open()
            array = (store if block is None else store[block]).read().result()
        except TENSORSTORE_ERRORS as error:
            raise translated(error, self._what, self.found.store.root) from error
        array = np.asarray(array)
        return array[()] if self.scalar and array.shape == () else array

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
        if max(nbytes, metadata.chunk_nbytes if nbytes else 0) > memory:
            raise UnsupportedCheckpoint(
                f"{self._what} says shape {metadata.shape}, chunks {metadata.chunks}: {nbytes} "
                f"bytes to read, chunks of {metadata.chunk_nbytes}, more than the {memory} bytes "
                "of this machine. Read it in blocks, or take a larger machine.",
                path=self.found.store.root,
                leaf=self.path,
            )

    def _check_chunks(self) -> None:
        metadata = self.found.metadata
        stored = self.found.store.chunk_names(self.found.key)
        wrong = None
        missing = metadata.missing(stored) if self.complete or not metadata.fills else None
        is_sparse = metadata.missing(stored) is not None
        if is_sparse and (link := self.found.store.dangling(self.found.key)) is not None:
            wrong = (
                f"its chunk {link!r} is missing: the file is a link to a target that is not here"
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

    def _open(self) -> Any:
        import tensorstore as ts  # noqa: PLC0415 - slow to import; `inspect --help` is quick

        if self.found.opens_in_place:
            context = self.found.store.context
            return ts.open(self.found.stored.spec(), read=True, context=context).result()
        assert isinstance(self.found.store, Folder)  # noqa: S101 - databases open in place
        context = ts.Context()
        base = {"driver": "memory", "path": "array/"}
        memory = ts.KvStore.open(base, context=context).result()
        for name, content in self.found.store.contents(self.found.key).items():
            is_void = self.found.metadata.is_void and name == ZARR2_METADATA
            memory[name] = _named_bfloat16(content) if is_void else content
        spec = {"driver": self.found.metadata.driver, "kvstore": base}
        return ts.open(spec, read=True, open=True, context=context).result()


def _named_bfloat16(raw: bytes) -> bytes:
    return json.dumps(json.loads(raw) | {"dtype": "bfloat16"}).encode()


@cache
def _memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
