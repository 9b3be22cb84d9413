"""Describes the raw bytes of an array in a msgpack file as chunks of a zarr array.

Flax writes an array as its bytes in C order, in the byte order of the machine. That is exactly what
an uncompressed zarr chunk is, so such an array need not be encoded: its ``.zarray`` is written
anew, and its chunks are ranges of the old file.
"""

from __future__ import annotations

import json
import math
from itertools import product
from typing import Any

import numpy as np

from bridge.layout import ZARRAY
from bridge.repack_copy import Stored
from legacy.leaves import FileRegion

__all__ = ["choose_rows", "described", "held", "zarr_dtype"]

_SMALL = 1 << 20


def zarr_dtype(dtype: np.dtype[Any]) -> str | None:
    """How zarr 2 names an element type; None for types whose raw bytes it has no name for.

    Args:
        dtype: of the array, in the byte order of the machine.

    >>> zarr_dtype(np.dtype("float32")), zarr_dtype(np.dtype("U3"))
    ('<f4', None)
    """
    if dtype.kind in "biufc" and dtype.isbuiltin == 1:  # float8 is of kind f, too
        return dtype.str
    return dtype.name if dtype.name == "bfloat16" else None


def choose_rows(
    shape: tuple[int, ...], itemsize: int, limit: int, *, even: bool = True
) -> tuple[int, ...]:
    """The chunk shape of an array: a run of whole rows, so that a chunk is a run of bytes.

    Raw bytes can be taken over in such chunks, and both sides of a comparison can be read block by
    block in C order.

    Args:
        shape: of the array, without zeros.
        itemsize: bytes of an element.
        limit: bytes that a chunk should not exceed.
        even: all chunks are full, as raw bytes must be; else the last one may be shorter.

    Returns:
        Ones, then rows of one axis (a divisor, when even), then whole axes; the whole shape where
        no such chunk of 1 MiB or more exists.

    >>> choose_rows((50257, 768), 4, 32 << 20), choose_rows((4, 8192, 4096), 4, 32 << 20)
    ((1733, 768), (1, 2048, 4096))
    >>> choose_rows((1000003, 768), 4, 32 << 20)
    (1000003, 768)
    >>> choose_rows((1000003, 768), 4, 32 << 20, even=False)
    (10870, 768)
    """
    if math.prod(shape) * itemsize <= limit:
        return shape
    for axis, size in enumerate(shape):
        row = math.prod(shape[axis + 1 :]) * itemsize
        if row <= limit:
            most = limit // row
            least = -(-size // most)
            parts = next(k for k in range(least, size + 1) if size % k == 0) if even else least
            rows = -(-size // parts)
            chunk = (*[1] * axis, rows, *shape[axis + 1 :])
            return chunk if rows * row >= _SMALL else shape
    return shape


def described(
    region: FileRegion, shape: tuple[int, ...], dtype: np.dtype[Any], limit: int
) -> dict[str, bytes | Stored] | None:
    """The ``.zarray`` of an array and its chunks, by name.

    Args:
        region: where its bytes lie.
        shape: of the array, without zeros.
        dtype: of the array.
        limit: bytes that a chunk should not exceed.

    Returns:
        The text of the document and the ranges of the chunks; None when the type has no name, or
        the region is not as long as the array.
    """
    name = zarr_dtype(dtype)
    if name is None or region.nbytes != math.prod(shape) * dtype.itemsize:
        return None
    chunks = choose_rows(shape, dtype.itemsize, limit)
    values: dict[str, bytes | Stored] = {ZARRAY: _document(shape, chunks, name)}
    nbytes = math.prod(chunks) * dtype.itemsize
    counts = [n // c for n, c in zip(shape, chunks, strict=True)]
    for k, corner in enumerate(product(*map(range, counts))):
        key = ".".join(map(str, corner)) or "0"
        values[key] = Stored(region.file, region.offset + k * nbytes, nbytes)
    return values


def held(value: np.ndarray[Any, Any]) -> dict[str, bytes | Stored] | None:
    r"""The same for a small array in memory, in one chunk; None when its type has no name.

    >>> held(np.uint32(3).reshape(()))["0"]
    b'\x03\x00\x00\x00'
    """
    name = zarr_dtype(value.dtype)
    if name is None:
        return None
    key = ".".join("0" * value.ndim) or "0"
    return {ZARRAY: _document(value.shape, value.shape, name), key: value.tobytes()}


def _document(shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str) -> bytes:
    document = {
        "chunks": chunks,
        "compressor": None,
        "dimension_separator": ".",
        "dtype": dtype,
        "fill_value": None,
        "filters": None,
        "order": "C",
        "shape": shape,
        "zarr_format": 2,
    }
    return json.dumps(document, separators=(",", ":")).encode()
