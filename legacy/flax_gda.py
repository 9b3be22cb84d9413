"""The arrays that flax's multi-process checkpoints keep in a folder beside the msgpack file.

From flax 0.6.0 on, ``save_checkpoint_multiprocess`` writes ``checkpoint_10`` (msgpack) and
``checkpoint_10_gda/`` with one zarr2 array for each array that was spread over processes. The
msgpack file holds a placeholder string instead. Today's flax reads them only with a
``GlobalAsyncCheckpointManager`` and a target; TensorStore alone needs neither.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from legacy.errors import DamagedCheckpoint, UnsupportedCheckpoint
from legacy.leaves import Index, Leaf, LeafPath, StoredArray, format_path
from legacy.msgpack_dtypes import resolve_dtype
from legacy.orbax_stores import dangling_chunk

__all__ = ["GDA_SUFFIX", "gda_leaf", "is_gda_placeholder"]

GDA_SUFFIX: Final = "_gda"
_PLACEHOLDER: Final = "//GDAPlaceholder:"
_ZARRAY: Final = ".zarray"


def is_gda_placeholder(value: object) -> bool:
    """Whether a value of a msgpack tree stands for an array in the side folder.

    Args:
        value: any value of the tree.

    Returns:
        True for the placeholder strings of flax.

    >>> is_gda_placeholder("//GDAPlaceholder:params/kernel")
    True
    """
    return isinstance(value, str) and value.startswith(_PLACEHOLDER)


def gda_leaf(file: Path, path: LeafPath, placeholder: str) -> Leaf:
    """The leaf that a placeholder stands for; its array is opened when it is read.

    Args:
        file: the msgpack file.
        path: where the placeholder is.
        placeholder: the string found there.

    Returns:
        An array leaf whose storage is the zarr array in ``<file>_gda``.

    Raises:
        UnsupportedCheckpoint: the folder or the array is not there, its name leads out of the
            folder, or its dtype is not known.
        DamagedCheckpoint: the description of the array cannot be understood.
    """
    root = file.with_name(file.name + GDA_SUFFIX).absolute()
    name = placeholder.removeprefix(_PLACEHOLDER)
    where = f"{file}: leaf {format_path(path)}"
    parts = name.split("/")
    if name and any(p in ("", ".", "..") or "\\" in p or "\0" in p for p in parts):
        raise UnsupportedCheckpoint(
            f"{where}: its array is named {name!r}, which leads out of the folder {root}. "
            "This name is not followed; no release of flax needs it.",
            path=file,
            leaf=path,
        )
    folder = root / name
    try:
        text = (folder / _ZARRAY).read_bytes()
    except OSError as error:
        missing = root if not root.is_dir() else folder / _ZARRAY
        raise UnsupportedCheckpoint(
            f"{where}: its array should lie in {folder}, and {missing} cannot be read "
            f"({error.strerror}). Multi-process flax checkpoints are a file and a folder: put the "
            f"folder {root.name} beside {file.name}.",
            path=file,
            leaf=path,
        ) from error
    shape, spelling, chunks, filled = _parse_zarray(text, folder, path)
    dtype = resolve_dtype(spelling)
    if dtype is None or dtype.dtype.kind in "USmM" or dtype.note:
        raise UnsupportedCheckpoint(
            f"{where}: the array in {folder} has dtype {spelling!r}, which is not known here.",
            path=folder,
            leaf=path,
        )
    # a root placeholder has no name, and a TensorStore key must have one
    stored = (
        StoredArray("zarr", root, ocdbt=False, key=name)
        if name
        else StoredArray("zarr", root.parent, ocdbt=False, key=root.name)
    )
    return Leaf(
        path,
        "array",
        shape=shape,
        dtype=dtype.dtype,
        nbytes=math.prod(shape) * dtype.dtype.itemsize,
        reader=_Reader(stored, path, filled),
        storage=stored,
        chunks=chunks,
    )


def _parse_zarray(
    text: bytes, folder: Path, path: LeafPath
) -> tuple[tuple[int, ...], str, tuple[int, ...], bool]:
    """Shape, dtype, chunks, and whether a missing chunk means the fill value."""
    try:
        found = json.loads(text)
        if not isinstance(found, Mapping) or found["zarr_format"] != 2:  # noqa: PLR2004
            raise ValueError("zarr_format is not 2")  # noqa: TRY301
        spelling = found["dtype"]
        shape, chunks = _sizes(found["shape"]), _sizes(found["chunks"])
        if not isinstance(spelling, str) or len(shape) != len(chunks):
            raise ValueError("dtype, shape and chunks do not fit")  # noqa: TRY301
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedCheckpoint(
            f"{folder / _ZARRAY}: leaf {format_path(path)}: no zarr array is described here "
            f"({type(error).__name__}: {error}). Take another step or a backup.",
            path=folder / _ZARRAY,
            leaf=path,
        ) from error
    return shape, spelling, chunks, found.get("fill_value") is not None


def _sizes(value: Any) -> tuple[int, ...]:
    sizes = tuple(value)
    if not all(type(n) is int and 0 <= n <= sys.maxsize for n in sizes):
        raise ValueError(f"{value!r} are no sizes")
    return sizes


class _Reader:
    """Reads one array of the side folder, or a block of it."""

    def __init__(self, stored: StoredArray, path: LeafPath, filled: bool) -> None:
        self.stored = stored
        self.path = path
        # without a fill value every chunk was written: one that is missing was lost, not zero
        self.spec = stored.spec() | {"fill_missing_data_reads": filled}

    def __call__(self, index: Index | None) -> np.ndarray[Any, Any]:
        import tensorstore as ts  # noqa: PLC0415

        folder = self.stored.root / self.stored.key
        if (link := dangling_chunk(folder)) is not None:
            raise DamagedCheckpoint(
                f"{folder / link}: leaf {format_path(self.path)}: this chunk is missing: the file "
                "is a link to a target that is not here. Fetch the data, or take a backup.",
                path=folder / link,
                leaf=self.path,
            )
        try:
            opened = ts.open(self.spec, read=True).result()
            block = opened if index is None else opened[_clip(index, opened.shape)]
            return np.asarray(block.read().result())
        except (ValueError, OSError) as error:
            raise DamagedCheckpoint(
                f"{folder}: leaf {format_path(self.path)}: the array could not be read: {error}. "
                "Take another step or a backup.",
                path=folder,
                leaf=self.path,
            ) from error


def _clip(index: Index, shape: tuple[int, ...]) -> Index:
    """The same slices within bounds; TensorStore has no others."""
    ranges = [range(*s.indices(n)) for s, n in zip(index, shape, strict=True)]
    return tuple(slice(r.start, max(r.start, r.stop)) for r in ranges)
