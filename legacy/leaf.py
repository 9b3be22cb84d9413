"""One value of a checkpoint that has not been read yet: its kind, shape, dtype, and how to read it.

Whatever wrote a checkpoint, the rest of the program sees a :class:`Leaf` for each of its values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from legacy.errors import DamagedCheckpoint, LegacyError
from legacy.leaf_paths import LeafPath, format_path

if TYPE_CHECKING:
    from legacy.orbax_stores import Database

__all__ = [
    "ARRAY_KINDS",
    "FileRegion",
    "Index",
    "Kind",
    "Leaf",
    "Node",
    "StoredArray",
    "error_of",
    "unreadable",
]

Index: TypeAlias = tuple[slice, ...]

Kind = Literal[
    "array", "scalar", "number", "bool", "str", "bytes", "none", "empty", "key", "unreadable"
]
"""What a leaf is.

``array``: an n-d array. ``scalar``: a numpy scalar (Orbax writes Python numbers as such, too).
``number``: a Python int, float or complex. ``bool``, ``str``, ``bytes``, ``none``: the Python
values. ``empty``: a container without children; ``Leaf.container`` says which. ``key``: a typed
PRNG key; ``read`` gives its uint32 data and ``Leaf.key_impl`` names the algorithm.
``unreadable``: the tree has a leaf here whose value is damaged, not on disk, or was lost when it
was saved; ``Leaf.problem`` says why, and ``read`` raises.
"""

ARRAY_KINDS: frozenset[str] = frozenset({"array", "scalar", "key"})
"""Kinds whose value is bytes of a shape and a dtype."""


@dataclass(frozen=True, slots=True)
class FileRegion:
    """Raw C-order little-endian bytes of one array inside a file (msgpack)."""

    file: Path
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class StoredArray:
    """One array of a TensorStore-readable store.

    ``root`` is the absolute folder of the OCDBT database, or the folder that holds one folder per
    parameter; ``key`` is the name inside it, without a trailing slash. ``metadata_key`` is the name
    of the file that describes it, where that is not the driver's own. ``database`` is the OCDBT
    database as it has been listed.
    """

    driver: Literal["zarr", "zarr3"]
    root: Path
    ocdbt: bool
    key: str
    metadata_key: str | None = None
    database: Database | None = field(default=None, repr=False, compare=False)

    def spec(self) -> dict[str, Any]:
        """The TensorStore spec that opens this array (for reading)."""
        base = {"driver": "file", "path": f"{self.root}/"}
        inside = f"{self.key}/" if self.key else ""  # the key "" lies at the root
        if self.ocdbt:
            kv: dict[str, Any] = {"driver": "ocdbt", "base": base, "path": inside}
        else:
            kv = {"driver": "file", "path": f"{self.root}/{inside}"}
        named = {} if self.metadata_key is None else {"metadata_key": self.metadata_key}
        return {"driver": self.driver, "kvstore": kv, "open": True, **named}


@dataclass(frozen=True, slots=True)
class Node:
    """What an inner node of the tree was, where the file still says so.

    ``container`` is ``dict``, ``list``, ``tuple`` or ``namedtuple``; ``name`` the class name.
    Plain dicts get no entry in :attr:`LeafTable.nodes`.
    """

    container: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Leaf:
    """One value of a checkpoint, not read until :meth:`read` is called.

    Attributes:
        path: where it is in the tree.
        kind: see :data:`Kind`.
        shape: ``()`` for everything that is no array.
        dtype: None for kinds that have none (``number``, ``str``, ``none``, ``empty``, ...).
        nbytes: bytes of the value when read (0 for ``none`` and ``empty``).
        storage: where the bytes lie, for writers that move them without decoding.
        container: for ``empty``: ``dict``, ``list``, ``tuple``, or a class name.
        key_impl: for ``key``: ``threefry2x32``, ``rbg``, ...
        chunks: chunk shape on disk, where the store has one.
        notes: what the file no longer says about this leaf, in words.
        problem: for ``unreadable``: why it cannot be read, and what to do.
    """

    path: LeafPath
    kind: Kind
    shape: tuple[int, ...] = ()
    dtype: np.dtype[Any] | None = None
    nbytes: int = 0
    reader: Callable[[Index | None], Any] = field(default=lambda _: None, repr=False, compare=False)
    storage: FileRegion | StoredArray | None = field(default=None, repr=False, compare=False)
    container: str | None = None
    key_impl: str | None = None
    chunks: tuple[int, ...] | None = field(default=None, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)
    problem: str | None = field(default=None, compare=False)

    def read(self, index: Index | None = None, out: np.ndarray[Any, Any] | None = None) -> Any:
        """The value: a numpy array for ``array`` and ``key``, a numpy scalar, or a Python value.

        Args:
            index: slices (step 1), one for each axis; only this block is read. Arrays only.
            out: memory for an ``array``, of the shape of the block and of ``dtype``. A store that
                must decode anyway decodes into it, and it is what is returned; a mapped file
                leaves it alone.

        Returns:
            An array of exactly ``shape`` (of the block) and ``dtype``. It may be a read-only view
            of the mapped file: copy it before writing to it.

        Raises:
            DamagedCheckpoint: the bytes are not what the index of the checkpoint promised.
            LegacyError: the leaf is ``unreadable``; the class says why.
        """
        value = self._read(index, out)
        if self.kind in ("array", "key"):
            want = self.shape if index is None else _block_shape(index, self.shape)
            got = np.asarray(value)
            if got.shape != want or got.dtype != self.dtype:
                raise DamagedCheckpoint(
                    f"leaf {format_path(self.path)}: the checkpoint's index says shape {want} "
                    f"dtype {self.dtype}, its bytes give shape {got.shape} dtype {got.dtype}. "
                    "The checkpoint is damaged; take another step or a backup.",
                    leaf=self.path,
                )
            return got
        return value

    def _read(self, index: Index | None, out: np.ndarray[Any, Any] | None) -> Any:
        into = getattr(self.reader, "into", None) if self.kind == "array" else None
        try:
            return self.reader(index) if out is None or into is None else into(index, out)
        except LegacyError as error:
            # the reader may know no leaf, or the path from before the leaf was moved
            where = f"leaf {format_path(self.path)}"
            if where not in error.message:
                error.message = f"{where}: {error.message}"
            error.leaf = self.path
            raise


def unreadable(
    path: LeafPath,
    error: LegacyError,
    *,
    shape: tuple[int, ...] = (),
    dtype: np.dtype[Any] | None = None,
    notes: tuple[str, ...] = (),
) -> Leaf:
    """A leaf that is listed, so that all others can be read, and that raises when it is read.

    Args:
        path: where it is in the tree.
        error: why it cannot be read.
        shape: of the value, where it is known.
        dtype: of the value, where it is known.
        notes: as of any leaf.

    Returns:
        A leaf of kind ``unreadable``.

    >>> unreadable(("a",), DamagedCheckpoint("ckpt/a/.zarray: no JSON")).read()
    Traceback (most recent call last):
        ...
    legacy.errors.DamagedCheckpoint: leaf a cannot be read: ckpt/a/.zarray: no JSON
    """
    said = error.message
    return Leaf(
        path,
        "unreadable",
        shape=shape,
        dtype=dtype,
        reader=_Unreadable(path, type(error), said, error.path, error.offset),
        notes=notes,
        problem=said,
    )


def error_of(leaf: Leaf) -> LegacyError:
    """The error that reading an ``unreadable`` leaf raises.

    >>> error_of(unreadable(("a",), DamagedCheckpoint("cut"))).message
    'leaf a cannot be read: cut'
    """
    try:
        leaf.read()
    except LegacyError as error:
        return error
    raise AssertionError(leaf)


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """A reader that raises."""

    path: LeafPath
    kind: type[LegacyError]
    said: str
    file: Path | None
    offset: int | None

    def __call__(self, _: Index | None) -> Any:
        # a new error each time: a raised one collects the frames of whoever caught it
        where = format_path(self.path)
        is_named = f"leaf {where}" in self.said
        said = self.said if is_named else f"leaf {where} cannot be read: {self.said}"
        raise self.kind(said, path=self.file, leaf=self.path, offset=self.offset)


def _block_shape(index: Index, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(len(range(*s.indices(n))) for s, n in zip(index, shape, strict=True))
