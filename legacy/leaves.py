"""The values every format is read into: a leaf, and a table of leaves.

Whatever wrote a checkpoint, the rest of the program sees one thing: a mapping from a path (a
tuple of strings, see :mod:`legacy.leaf_paths`) to a leaf (see :mod:`legacy.leaf`) that knows its
kind, shape and dtype and has not been read yet.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from legacy.errors import DamagedCheckpoint
from legacy.leaf import (
    ARRAY_KINDS,
    FileRegion,
    Index,
    Kind,
    Leaf,
    Node,
    StoredArray,
    error_of,
    unreadable,
)
from legacy.leaf_paths import LeafPath, format_path, natural_key, parse_path

__all__ = [
    "ARRAY_KINDS",
    "FileRegion",
    "Index",
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


class LeafTable(Mapping[LeafPath, Leaf]):
    """All leaves of one tree, in natural order; reading none of them.

    Args:
        leaves: the leaves; two of one path, or one below another, are an error.
        nodes: what inner nodes were, where the file says so (plain dicts need no entry).
        json_file: the file, when this is a JSON item (metrics, config) rather than a tree item.

    Raises:
        DamagedCheckpoint: a path occurs twice, or a leaf lies below another leaf.
    """

    __slots__ = ("_leaves", "_signature", "json_file", "nodes")

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
        parents: set[LeafPath] = set()
        for path in table:
            above = path[:-1]
            while path and above not in parents:  # those above a known parent are known
                parents.add(above)
                above = above[:-1]
        for path in () if parents.isdisjoint(table) else table:
            if path in parents:
                raise DamagedCheckpoint(
                    f"leaf {format_path(path)} has other leaves below it in this checkpoint.",
                    leaf=path,
                )
        self._leaves: Mapping[LeafPath, Leaf] = MappingProxyType(table)
        self._signature: str | None = None
        self.nodes: Mapping[LeafPath, Node] = MappingProxyType(dict(nodes or {}))
        self.json_file = json_file

    def __getitem__(self, path: LeafPath) -> Leaf:
        return self._leaves[path]

    def __iter__(self) -> Iterator[LeafPath]:
        return iter(self._leaves)

    def __len__(self) -> int:
        return len(self._leaves)

    # those of a Mapping ask for every key anew, which tables of many leaves feel

    def __contains__(self, path: object) -> bool:
        return path in self._leaves

    def keys(self) -> KeysView[LeafPath]:
        """The paths."""
        return self._leaves.keys()

    def values(self) -> ValuesView[Leaf]:
        """The leaves."""
        return self._leaves.values()

    def items(self) -> ItemsView[LeafPath, Leaf]:
        """Paths with their leaves."""
        return self._leaves.items()

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
        if self._signature is None:
            # numpy composes the name of a dtype anew each time: once for each, not for each leaf
            dtypes = {v.dtype for v in self.values() if v.dtype is not None}
            names: dict[np.dtype[Any] | None, str | None] = {dtype: dtype.name for dtype in dtypes}
            names[None] = None
            leaves = self._leaves
            rows = [
                (p, v.kind, v.shape, names[v.dtype]) for p in sorted(leaves) for v in (leaves[p],)
            ]
            text = json.dumps(rows, ensure_ascii=True)
            self._signature = hashlib.sha256(text.encode()).hexdigest()
        return self._signature
