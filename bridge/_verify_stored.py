"""Level ``fast``: arrays that were taken over as they were stored are compared as they are stored.

An array that only changed its name has the same ``.zarray`` and the same chunks on both sides, and
equal stored bytes are equal values, whoever decodes them (the bytes of a msgpack array are what an
uncompressed chunk holds). So nothing need be decoded: documents,
names and lengths of all chunks are compared, and of each chunk the first and last
:data:`EDGE` bytes (the whole chunk, up to twice as many). Bytes of one file (a hard link) are equal
without being read.

Where the two are not stored alike, are no zarr arrays on both sides, or differ, nothing is said
here, and the values are read.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import numpy as np

from bridge import ocdbt
from bridge._plan import Step
from bridge._verify_output import Output
from bridge._verify_values import Job
from bridge.layout import ZARRAY
from bridge.repack_arrays import chunk_names
from bridge.repack_copy import Stored
from bridge.repack_regions import zarr_dtype
from bridge.stored_values import StoredValues
from legacy import Leaf, LeafTable
from legacy.leaves import FileRegion

__all__ = ["ComparedStored", "compare_stored"]

EDGE = 32 << 10
"""Bytes at both ends of a chunk."""

_OPEN = 32


@dataclass(slots=True)
class ComparedStored:
    """What comparing stored bytes came to.

    Attributes:
        left: the jobs whose values have to be read.
        whole: how many slots were compared byte for byte.
        sampled: how many were compared in part.
        suspect: jobs whose stored bytes differ. Reading their values says how far they are apart
            (or that they are not: one value can be compressed in many ways).
    """

    left: list[Job] = field(default_factory=list)
    whole: int = 0
    sampled: int = 0
    suspect: list[Job] = field(default_factory=list)


def compare_stored(jobs: Iterable[Job], leaves: LeafTable, output: Output) -> ComparedStored:
    """Compare what is stored alike on both sides.

    Args:
        jobs: steps and initialised slots.
        leaves: the source.
        output: the written step.

    Returns:
        What was compared, and what is left.

    Raises:
        LegacyError: a database refers to bytes that are not there.
    """
    found = ComparedStored()
    before, after = StoredValues(), StoredValues()
    with _Files() as files:
        for job in jobs:
            pair = _pair(job, leaves, output, before, after)
            if pair is None:
                found.left.append(job)
                continue
            state = _compared(*pair, files)
            if state == "differ":
                found.suspect.append(job)
            found.whole += state == "whole"
            found.sampled += state == "sampled"
    return found


Chunk: TypeAlias = bytes | Stored
_Values: TypeAlias = Mapping[str, Chunk]


def _pair(
    job: Job, leaves: LeafTable, output: Output, before: StoredValues, after: StoredValues
) -> tuple[_Values, _Values] | None:
    """The stored bytes of both sides, by chunk; None when they are not stored alike."""
    if not isinstance(job, Step) or job.transforms or len(job.sources) * len(job.slots) != 1:
        return None
    ours, leaf = leaves.get(job.sources[0]), output.leaf(job.slots[0])
    if ours is None or leaf is None or (ours.shape, ours.dtype) != (leaf.shape, leaf.dtype):
        return None
    old, new = before.of(ours.storage), after.of(leaf.storage)
    text = new.get(ZARRAY)
    if not isinstance(text, bytes):
        return None
    document = ocdbt.parsed(text)
    if isinstance(ours.storage, FileRegion):
        old = {ZARRAY: text, **_raw_chunks(ours, ours.storage, document)}
    chunks = chunk_names(document)
    if old.get(ZARRAY) != text or not chunks <= old.keys() or not chunks <= new.keys():
        return None
    return {name: old[name] for name in chunks}, {name: new[name] for name in chunks}


def _raw_chunks(leaf: Leaf, region: FileRegion, document: Mapping[str, Any]) -> _Values:
    """The bytes that uncompressed chunks of an array must have; none when there are others.

    Where they lie is asked of numpy, by cutting the array that is mapped, and is not computed as
    the writer does.
    """
    plain = document.get("compressor") is None and not document.get("filters")
    if leaf.kind != "array" or not plain or document.get("order") != "C":
        return {}
    value, found = np.asarray(leaf.read()), dict[str, bytes | Stored]()
    if region.nbytes != value.nbytes or zarr_dtype(value.dtype) != document.get("dtype"):
        return {}
    for name in chunk_names(document):
        corner = [int(n) for n in name.split(".")] if leaf.shape else []
        cuts = zip(corner, document["chunks"], leaf.shape, strict=True)
        where: Any = tuple(slice(k * c, min((k + 1) * c, n)) for k, c, n in cuts)
        block = value[(*where, ...)]  # the ellipsis keeps it a view, also without axes
        if block.shape == tuple(document["chunks"]) and block.flags.c_contiguous:
            found[name] = Stored(region.file, region.offset + _at(block) - _at(value), block.nbytes)
    return found


def _at(array: np.ndarray[Any, Any]) -> int:
    """Where the first element of an array lies in memory."""
    address: int = array.__array_interface__["data"][0]
    return address


def _compared(old: _Values, new: _Values, files: _Files) -> Literal["differ", "whole", "sampled"]:
    """Whether bytes differ, and if not, whether every byte was compared."""
    whole = True
    for name, one in old.items():
        other = new[name]
        lengths = _length(one), _length(other)
        if lengths[0] != lengths[1]:
            return "differ"
        if files.same(one, other):
            continue
        whole = whole and lengths[0] <= 2 * EDGE
        for at, size in _edges(lengths[0]):
            if files.differ(one, other, at, size):
                return "differ"
    return "whole" if whole else "sampled"


def _length(value: Chunk) -> int:
    return value.length if isinstance(value, Stored) else len(value)


def _edges(length: int) -> tuple[tuple[int, int], ...]:
    """Where and how many bytes to compare.

    >>> _edges(10), _edges(100_000)
    (((0, 10),), ((0, 32768), (67232, 32768)))
    """
    return ((0, length),) if length <= 2 * EDGE else ((0, EDGE), (length - EDGE, EDGE))


class _Files:
    """Reads ranges of files, of which a few are kept open."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, tuple[int, tuple[int, int]]] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for handle, _ in self._open.values():
            os.close(handle)

    def same(self, one: Chunk, other: Chunk) -> bool:
        """Whether two values are one range of one file."""
        both = isinstance(one, Stored) and isinstance(other, Stored)
        return both and self._identity(one) == self._identity(other)

    def differ(self, one: Chunk, other: Chunk, at: int, size: int) -> bool:
        """Whether two values differ in a range of their bytes."""
        return self._read(one, at, size) != self._read(other, at, size)

    def _identity(self, value: Chunk) -> tuple[int, ...]:
        """Which bytes of which file these are."""
        return (value.offset, *self._file(value.file)[1]) if isinstance(value, Stored) else ()

    def _file(self, path: Path) -> tuple[int, tuple[int, int]]:
        if path not in self._open:
            handle = os.open(path, os.O_RDONLY)
            status = os.fstat(handle)
            self._open[path] = handle, (status.st_dev, status.st_ino)
            if len(self._open) > _OPEN:
                os.close(self._open.popitem(last=False)[1][0])
        self._open.move_to_end(path)
        return self._open[path]

    def _read(self, value: Chunk, at: int, size: int) -> bytes:
        if not isinstance(value, Stored):
            return value[at : at + size]
        return os.pread(self._file(value.file)[0], size, value.offset + at)
