"""The values every format is read into: a leaf, and a table of leaves.

Whatever wrote a checkpoint, the rest of the program sees one thing: a mapping from a path (a
tuple of strings, see :mod:`legacy.leaf_paths`) to a leaf that knows its kind, shape and dtype and
has not been read yet.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import numpy as np

from legacy.errors import DamagedCheckpoint, LegacyError
from legacy.leaf_paths import LeafPath, format_path, natural_key, parse_path

__all__ = [
    "FileRegion",
    "Kind",
    "Leaf",
    "LeafPath",
    "LeafTable",
    "Node",
    "StoredArray",
    "error_of",
    "format_path",
    "natural_key",
    "parse_path",
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
    of the file that describes it, where that is not the driver's own.
    """

    driver: Literal["zarr", "zarr3"]
    root: Path
    ocdbt: bool
    key: str
    metadata_key: str | None = None

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

    def read(self, index: Index | None = None) -> Any:
        """The value: a numpy array for ``array`` and ``key``, a numpy scalar, or a Python value.

        Args:
            index: slices (step 1), one for each axis; only this block is read. Arrays only.

        Returns:
            An array of exactly ``shape`` (of the block) and ``dtype``. It may be a read-only view
            of the mapped file: copy it before writing to it.

        Raises:
            DamagedCheckpoint: the bytes are not what the index of the checkpoint promised.
            LegacyError: the leaf is ``unreadable``; the class says why.
        """
        value = self._read(index)
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

    def _read(self, index: Index | None) -> Any:
        try:
            return self.reader(index)
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


class LeafTable(Mapping[LeafPath, Leaf]):
    """All leaves of one tree, in natural order; reading none of them.

    Args:
        leaves: the leaves; two of one path, or one below another, are an error.
        nodes: what inner nodes were, where the file says so (plain dicts need no entry).
        json_file: the file, when this is a JSON item (metrics, config) rather than a tree item.

    Raises:
        DamagedCheckpoint: a path occurs twice, or a leaf lies below another leaf.
    """

    __slots__ = ("_leaves", "json_file", "nodes")

    def __init__(
        self,
        leaves: Iterable[Leaf],
        nodes: Mapping[LeafPath, Node] | None = None,
        *,
        json_file: Path | None = None,
    ) -> None:
        ordered = sorted(leaves, key=lambda leaf: natural_key(leaf.path))
        table: dict[LeafPath, Leaf] = {}
        for leaf in ordered:
            if leaf.path in table:
                raise DamagedCheckpoint(
                    f"leaf {format_path(leaf.path)} occurs twice in this checkpoint.",
                    leaf=leaf.path,
                )
            table[leaf.path] = leaf
        parents = {path[:n] for path in table for n in range(len(path))}
        for path in table:
            if path in parents:
                raise DamagedCheckpoint(
                    f"leaf {format_path(path)} has other leaves below it in this checkpoint.",
                    leaf=path,
                )
        self._leaves: Mapping[LeafPath, Leaf] = MappingProxyType(table)
        self.nodes: Mapping[LeafPath, Node] = MappingProxyType(dict(nodes or {}))
        self.json_file = json_file

    def __getitem__(self, path: LeafPath) -> Leaf:
        return self._leaves[path]

    def __iter__(self) -> Iterator[LeafPath]:
        return iter(self._leaves)

    def __len__(self) -> int:
        return len(self._leaves)

    def __repr__(self) -> str:
        return f"<LeafTable of {len(self)} leaves, {self.nbytes} bytes>"

    @property
    def nbytes(self) -> int:
        """Bytes of all leaves when read."""
        return sum(leaf.nbytes for leaf in self.values())

    def below(self, prefix: LeafPath) -> LeafTable:
        """The leaves below ``prefix``, their paths without it.

        >>> table = LeafTable([Leaf(("a", "b"), "none")])
        >>> list(table.below(("a",)))
        [('b',)]
        """
        n = len(prefix)
        return LeafTable(
            (replace(v, path=p[n:]) for p, v in self.items() if p[:n] == prefix),
            {p[n:]: v for p, v in self.nodes.items() if p[:n] == prefix},
        )

    def under(self, prefix: LeafPath) -> LeafTable:
        """The same leaves moved below ``prefix``.

        >>> list(LeafTable([Leaf(("b",), "none")]).under(("a",)))
        [('a', 'b')]
        """
        return LeafTable(
            (replace(v, path=prefix + p) for p, v in self.items()),
            {prefix + p: v for p, v in self.nodes.items()},
        )

    def signature(self) -> str:
        """Digest of the structure: paths, kinds, shapes and dtypes, no values.

        Checkpoints of one signature can be converted by one plan.

        >>> LeafTable([]).signature()[:12]
        '4f53cda18c2b'
        """
        # numpy composes the name of a dtype anew each time: once for each dtype, not for each leaf
        dtypes = {v.dtype for v in self.values() if v.dtype is not None}
        names: dict[np.dtype[Any] | None, str | None] = {dtype: dtype.name for dtype in dtypes}
        names[None] = None
        rows = [[list(p), v.kind, list(v.shape), names[v.dtype]] for p, v in sorted(self.items())]
        return hashlib.sha256(json.dumps(rows, ensure_ascii=True).encode()).hexdigest()
