"""Leaves that look into a mapped msgpack file, and read it only when asked.

What :mod:`legacy.msgpack_index` found becomes :class:`~legacy.leaves.Leaf` here. Arrays are views
of the map; a copy is made only where bytes must be swapped or chunks joined.
"""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from legacy.errors import DamagedCheckpoint
from legacy.leaves import FileRegion, Index, Leaf, LeafPath, format_path, unreadable
from legacy.msgpack_dtypes import resolve_dtype
from legacy.msgpack_index import ArrayAt, BytesAt, UnreadableAt, array_size

__all__ = ["Place", "chunked_leaf", "debris", "is_chunked", "plain_leaf"]

_CHUNKED: Final = "__msgpack_chunked_array__"
_CHUNKED_KEYS: Final = frozenset({_CHUNKED, "shape", "chunks"})


class Place(NamedTuple):
    """The file that leaves point into, and its map."""

    file: Path
    buffer: mmap.mmap


def plain_leaf(path: LeafPath, value: Any, place: Place) -> Leaf:
    """The leaf of a value without children.

    Args:
        path: where the value is in the tree.
        value: an array or bytes still in the file, or a Python value.
        place: the file.

    Returns:
        The leaf; nothing has been read.
    """
    if isinstance(value, ArrayAt):
        return _array_leaf(path, value, place)
    if isinstance(value, BytesAt):
        return Leaf(path, "bytes", nbytes=value.nbytes, reader=_Bytes(place, value))
    if value is None:
        return Leaf(path, "none")
    if isinstance(value, bool):
        return Leaf(path, "bool", nbytes=1, reader=_Value(value))
    if isinstance(value, str):
        return Leaf(path, "str", nbytes=len(value.encode()), reader=_Value(value))
    return Leaf(path, "number", nbytes=16 if type(value) is complex else 8, reader=_Value(value))


def is_chunked(value: Mapping[str, Any]) -> bool:
    """Whether a dict stands for an array in chunks.

    Args:
        value: a dict of the tree.

    Returns:
        True when flax would take it for one.

    >>> is_chunked({"__msgpack_chunked_array__": True, "shape": {}, "chunks": {}})
    True
    """
    return _CHUNKED in value


def debris(value: Mapping[str, Any] | list[Any]) -> str | None:
    """What a container was before it was damaged, when nothing else looks so.

    One wrong byte makes an array a list of its parts, or takes a namedtuple of flax <= 0.3.4 its
    name; both would be well-formed trees of things that nobody saved.

    Args:
        value: a container of the tree.

    Returns:
        What it was; None for containers that may be as they were written.

    >>> debris([1, 2]) is None
    True
    """
    if isinstance(value, list):
        return "an array without its mark" if _is_array(value) else None
    if value.keys() != {"name", "fields", "values"}:
        return None
    fields, values = _sequence(value["fields"]), _sequence(value["values"])
    if fields is None or values is None or len(fields) != len(values):
        return None
    for name in (value["name"], *fields):
        if isinstance(name, UnreadableAt) or (isinstance(name, str) and not name.isprintable()):
            return "a namedtuple whose names are damaged"
    return None


def _is_array(value: list[Any]) -> bool:
    """Whether a list is what the extension type of an array holds: shape, dtype and bytes."""
    kinds = tuple(type(part) for part in value)
    if kinds != (list, str, BytesAt) or not all(type(n) is int for n in value[0]):
        return False
    known = resolve_dtype(value[1])
    return known is not None and (
        array_size(tuple(value[0]), known.stored.itemsize) == value[2].nbytes
    )


def _array_leaf(path: LeafPath, value: ArrayAt, place: Place) -> Leaf:
    dtype = value.dtype
    native = dtype.stored is dtype.dtype
    return Leaf(
        path,
        "scalar" if value.scalar else "array",
        shape=value.shape,
        dtype=dtype.dtype,
        nbytes=value.nbytes,
        reader=_Array(place, value, path),
        storage=FileRegion(place.file, value.offset, value.nbytes) if native else None,
        notes=dtype.notes,
    )


@dataclass(frozen=True, slots=True)
class _Value:
    """A value that is known already."""

    value: Any

    def __call__(self, _: Index | None) -> Any:
        return self.value


@dataclass(frozen=True, slots=True)
class _Bytes:
    """Copies bytes out of the map."""

    place: Place
    at: BytesAt

    def __call__(self, _: Index | None) -> bytes:
        region: bytes = self.place.buffer[self.at.offset : self.at.offset + self.at.nbytes]
        return region


@dataclass(frozen=True, slots=True)
class _Array:
    """Views one array of the map; a copy is made only to swap bytes."""

    place: Place
    at: ArrayAt
    path: LeafPath

    def __call__(self, index: Index | None) -> Any:
        whole = _view(self.place, self.at)
        if self.at.scalar:
            return _native(whole, self.at, self.place, self.path)[()]
        return _native(whole if index is None else whole[index], self.at, self.place, self.path)


def _view(place: Place, at: ArrayAt) -> np.ndarray[Any, Any]:
    if at.nbytes == 0:
        empty: np.ndarray[Any, Any] = np.empty(at.shape, at.dtype.stored)
        empty.flags.writeable = False
        return empty
    count = at.nbytes // at.dtype.stored.itemsize
    flat = np.frombuffer(place.buffer, at.dtype.stored, count, at.offset)
    return flat.reshape(at.shape)


def _native(
    array: np.ndarray[Any, Any], at: ArrayAt, place: Place, path: LeafPath
) -> np.ndarray[Any, Any]:
    """The array in native byte order; the same object when it is."""
    native = array if at.dtype.stored.isnative else array.astype(at.dtype.dtype)
    if native.dtype.kind == "U" and native.size:
        # numpy answers such text with a SystemError, long after it was read
        last = int(np.max(np.ascontiguousarray(native).reshape(-1).view(np.uint32)))
        if last > sys.maxunicode:
            raise DamagedCheckpoint(
                f"{place.file}: at byte {at.offset}, leaf {format_path(path)}: a text of dtype "
                f"{at.dtype.spelling} holds {last:#x}, which is no character. "
                "Take another step or a backup.",
                path=place.file,
                leaf=path,
                offset=at.offset,
            )
    return native


# --- arrays in chunks


def chunked_leaf(path: LeafPath, value: Mapping[str, Any], place: Place) -> Leaf:
    """The leaf of an array in chunks.

    Args:
        path: where it is in the tree.
        value: the dict of flag, shape and chunks.
        place: the file.

    Returns:
        One array leaf, whose chunks are joined when it is read; an ``unreadable`` one when shape
        and chunks do not fit.
    """
    shape, chunks = _sequence(value.get("shape")), _sequence(value.get("chunks"))
    wrong = _chunks_problem(value, shape, chunks)
    if wrong is not None or shape is None or not chunks:
        damage = DamagedCheckpoint(
            f"{place.file}: leaf {format_path(path)}: an array in chunks of which {wrong}. "
            "Take another step or a backup.",
            path=place.file,
            leaf=path,
        )
        return unreadable(path, damage)
    dtype = chunks[0].dtype
    return Leaf(
        path,
        "array",
        shape=tuple(shape),
        dtype=dtype.dtype,
        nbytes=sum(chunk.nbytes for chunk in chunks),
        reader=_Chunks(place, tuple(chunks), tuple(shape), path),
        notes=dtype.notes,
    )


def _chunks_problem(
    value: Mapping[str, Any], shape: list[Any] | None, chunks: list[Any] | None
) -> str | None:
    """What is wrong with a chunked array, in words that follow "of which"."""
    if value.keys() != _CHUNKED_KEYS or value[_CHUNKED] is not True:
        return f"the keys are {sorted(value)}, expected {sorted(_CHUNKED_KEYS)}"
    if shape is None or not all(type(n) is int and n >= 0 for n in shape):
        return "the shape is no sequence of sizes"
    if not chunks or not all(isinstance(c, ArrayAt) and len(c.shape) == 1 for c in chunks):
        return "the chunks are no sequence of one-dimensional arrays"
    if len({chunk.dtype for chunk in chunks}) > 1:
        return "the chunks have different dtypes"
    total = sum(chunk.shape[0] for chunk in chunks)
    if array_size(tuple(shape), 1) != total:
        return f"the shape {tuple(shape)} does not fit the {total} values of the chunks"
    return None


def _sequence(value: Any) -> list[Any] | None:
    """A sequence as flax stores it: a dict with the keys ``'0'`` to ``'n-1'``."""
    if not isinstance(value, dict) or value.keys() != {str(n) for n in range(len(value))}:
        return None
    return [value[str(n)] for n in range(len(value))]


@dataclass(frozen=True, slots=True)
class _Chunks:
    """Joins the chunks that a block of rows lies in."""

    place: Place
    chunks: tuple[ArrayAt, ...]
    shape: tuple[int, ...]
    path: LeafPath

    def __call__(self, index: Index | None) -> np.ndarray[Any, Any]:
        if index is None or not self.shape:
            return self.flat(0, math.prod(self.shape)).reshape(self.shape)
        start, stop, _ = index[0].indices(self.shape[0])
        stop = max(start, stop)
        row = math.prod(self.shape[1:])
        block = self.flat(start * row, stop * row).reshape((stop - start, *self.shape[1:]))
        return block[(slice(None), *index[1:])]

    def flat(self, start: int, stop: int) -> np.ndarray[Any, Any]:
        """Values ``start`` to ``stop`` of the flattened array."""
        parts: list[np.ndarray[Any, Any]] = []
        begin = 0
        for chunk in self.chunks:
            end = begin + chunk.shape[0]
            if begin < stop and start < end:
                parts.append(_view(self.place, chunk)[max(start - begin, 0) : stop - begin])
            begin = end
        if not parts:
            parts = [_view(self.place, self.chunks[0])[:0]]
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return _native(joined, self.chunks[0], self.place, self.path)
