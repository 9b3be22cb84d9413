"""What a golden keeps of each leaf: enough to notice a changed bit, and to say what changed.

The digest decides. The numbers beside it (range, mean, values at places spread evenly) are for the
reader of a failure, since the old values themselves are not kept.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import ml_dtypes
import numpy as np

from bridge._bits import blocks, host_bytes, show_value
from legacy import Checkpoint, Leaf, LeafTable, format_path, parse_path
from legacy.errors import LegacyError
from legacy.leaves import ARRAY_KINDS, Node

__all__ = [
    "SAMPLES",
    "changes",
    "differing",
    "named_leaves",
    "nodes_json",
    "places_of",
    "record",
    "records",
    "shape_words",
    "structure",
]

SAMPLES: Final = 6
"""Values that are kept of an array, at places spread evenly from the first to the last."""

_DIGITS: Final = 32
"""Hexadecimal digits of a digest: 128 bits."""

Record = Mapping[str, Any]


def record(leaf: Leaf) -> Record:
    """What is kept of a leaf; it is read, a block at a time.

    Raises:
        LegacyError: it cannot be read, though its index says that it can.

    >>> record(Leaf(("a",), "number", reader=lambda _: 3))["value"]
    '3'
    """
    kept: dict[str, Any] = {"kind": leaf.kind}
    if leaf.dtype is not None:
        kept |= {"dtype": leaf.dtype.name, "shape": list(leaf.shape)}
    if leaf.container is not None:
        kept["container"] = leaf.container
    if leaf.key_impl is not None:
        kept["key_impl"] = leaf.key_impl
    if leaf.kind in ("unreadable", "none", "empty"):
        return kept
    if leaf.kind not in ARRAY_KINDS:
        value = leaf.read()
        return kept | {"sha256": _short(hashlib.sha256(repr(value).encode())),
                       "value": show_value(value)}  # fmt: skip
    total, numbers = hashlib.sha256(), _Numbers(leaf)
    for block in blocks(leaf):
        array = np.asarray(leaf.read(block))
        total.update(host_bytes(array))
        numbers.add(array)
    return kept | {"sha256": _short(total)} | numbers.told()


def records(leaves: Mapping[str, Leaf]) -> dict[str, Record]:
    """What is kept of each of some leaves."""
    return {name: record(leaf) for name, leaf in leaves.items()}


def named_leaves(checkpoint: Checkpoint) -> dict[str, Leaf]:
    """All leaves of a source, by path. JSON items are carried as they are: the output has them."""
    return {format_path(path): leaf for path, leaf in checkpoint.leaves.items()}


def nodes_json(table: LeafTable) -> dict[str, list[str | None]]:
    """What inner nodes of a tree were, for :func:`structure`."""
    return {format_path(path): [node.container, node.name] for path, node in table.nodes.items()}


def structure(kept: Mapping[str, Record], nodes: Mapping[str, Sequence[Any]]) -> LeafTable:
    """A table of leaves that have everything but values.

    Args:
        kept: what :func:`records` gave for the leaves of a source.
        nodes: what :func:`nodes_json` gave.
    """
    leaves = []
    for name, entry in kept.items():
        dtype = entry.get("dtype")
        leaves.append(
            Leaf(
                parse_path(name),
                entry["kind"],
                shape=tuple(entry.get("shape", ())),
                dtype=None if dtype is None else np.dtype(getattr(ml_dtypes, dtype, dtype)),
                reader=_absent,
                container=entry.get("container"),
                key_impl=entry.get("key_impl"),
                problem="it could not be read" if entry["kind"] == "unreadable" else None,
            )
        )
    return LeafTable(leaves, {parse_path(p): Node(*node) for p, node in nodes.items()})


def _absent(_: Any) -> Any:
    raise LegacyError("the golden keeps digests only, no values.")


def places_of(shape: Sequence[int]) -> list[tuple[int, ...]]:
    """Where the values lie that are kept of an array.

    >>> places_of((2, 2)), len(places_of((100, 100)))
    ([(0, 0), (0, 1), (1, 0), (1, 1)], 6)
    """
    size = math.prod(shape)
    few = min(size, SAMPLES)
    flat = [n * (size - 1) // max(few - 1, 1) for n in range(few)]
    return [tuple(int(i) for i in np.unravel_index(n, tuple(shape))) for n in flat]


class _Numbers:
    """Range, mean and a few values of an array that comes in blocks."""

    def __init__(self, leaf: Leaf) -> None:
        self.shape = leaf.shape
        self._flat = [int(np.ravel_multi_index(p, self.shape)) for p in places_of(self.shape)]
        self._seen = 0
        self._few: list[str] = []
        self._finite = self._size = 0
        self._sum = 0.0
        self._low, self._high = math.inf, -math.inf
        self._numeric = True

    def add(self, array: np.ndarray[Any, Any]) -> None:
        flat = array.reshape(-1)
        inside = (n - self._seen for n in self._flat)
        self._few += [_number(flat[n]) for n in inside if 0 <= n < flat.size]
        self._seen += flat.size
        self._size += flat.size
        try:
            wide = np.abs(flat) if flat.dtype.kind == "c" else flat.astype(np.float64)
        except (TypeError, ValueError):
            self._numeric = False
            return
        finite: Any = wide[np.isfinite(wide)]
        self._finite += finite.size
        if finite.size:
            self._sum += float(finite.sum())
            self._low = min(self._low, float(finite.min()))
            self._high = max(self._high, float(finite.max()))

    def told(self) -> dict[str, Any]:
        few = {"few": self._few} if self._few else {}
        if not self._numeric or not self._finite:
            return few
        kept = {
            "min": _number(self._low),
            "max": _number(self._high),
            "mean": _number(self._sum / self._finite),
        }
        lost = self._size - self._finite
        return kept | ({"not_finite": lost} if lost else {}) | few


def _number(value: Any) -> str:
    """A number with as many digits as every release of numpy agrees on."""
    try:
        return f"{complex(value):.6g}" if np.iscomplexobj(value) else f"{float(value):.6g}"
    except (TypeError, ValueError):
        return str(value)


def _short(digest: Any) -> str:
    text: str = digest.hexdigest()
    return text[:_DIGITS]


def differing(was: Record, now: Record) -> bool:
    """Whether two records are of different leaves; the numbers beside the digest do not count."""
    return any(was.get(k) != now.get(k) for k in (*_SHAPE, "sha256"))


_SHAPE = ("kind", "dtype", "shape", "key_impl")


def shape_words(entry: Record) -> str:
    """Kind, dtype and shape in words.

    >>> shape_words({"kind": "array", "dtype": "float32", "shape": [2, 3]})
    'float32 (2, 3)'
    """
    if entry.get("dtype") is None:
        return str(entry["kind"])
    kind = f" of {entry['key_impl']} keys" if entry.get("key_impl") else ""
    return f"{entry['dtype']} {tuple(entry['shape'])}{kind}"


def changes(
    was: Mapping[str, Record], now: Mapping[str, Record]
) -> Iterator[tuple[str, Record | None, Record | None]]:
    """Leaves that differ: name, what was recorded and what is there, None for nothing."""
    for name in dict.fromkeys([*was, *now]):
        before, after = was.get(name), now.get(name)
        if before is None or after is None or differing(before, after):
            yield name, before, after
