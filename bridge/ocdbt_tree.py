"""Writes an OCDBT database whose values lie in files that are there already.

TensorStore writes a value by copying it into a data file of its own. An array that only changes
its name needs no copy: a B-tree is a list of keys with places (file, offset, length), and the
bytes of an old checkpoint are good where they are, be it in a data file of another database, in
a chunk file of a zarr folder, or in the middle of a msgpack file. So only the index is written
here: nodes into one new data file, and the manifest. TensorStore reads it like any other, and
goes on writing to it.

Source of the format: "Storage format" in TensorStore's documentation of its ``ocdbt`` driver
(https://google.github.io/tensorstore/kvstore/ocdbt/index.html), version 0 of every part. Held by
the tests against what TensorStore itself dumps, lists and reads. Facts that cost time:

- Columns, not rows: all key lengths, then all keys, and so on. A key shares a prefix with the one
  before it. Below a node whose entry names a common prefix, keys lack it; ours name none.
- A data file's number counts in the sorted table of its own node.
- Any node size is legal. TensorStore goes through a whole node for each read, so small is quick.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias, TypeVar

import google_crc32c

from bridge.layout import MANIFEST, OCDBT_CONFIG

__all__ = ["DATA_FOLDER", "Place", "new_data_file", "write_database"]

DATA_FOLDER = "d"

_MANIFEST_MAGIC = 0x0CDB3A2A
_NODE_MAGIC = 0x0CDB20DE
_MORE = 0x80
_NODE_BYTES = 64 << 10
"""Keys and inline values of a node, roughly."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes of a value lie: a file below the database, and a range of it."""

    file: str
    offset: int
    length: int


Value: TypeAlias = bytes | Place
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Node:
    """A node that has been written, or that is about to be referred to."""

    first: bytes
    place: Place
    keys: int
    tree_bytes: int
    value_bytes: int


def new_data_file() -> str:
    """A name that no other data file has, relative to the database."""
    return f"{DATA_FOLDER}/{os.urandom(16).hex()}"


def write_database(root: Path, entries: Mapping[str, Value]) -> None:
    """Write the B-tree and the manifest of a new database.

    Args:
        root: its folder, with the data files that ``entries`` name.
        entries: the value of each key: bytes to keep in the tree itself, or where they lie.

    Raises:
        ValueError: there are no entries.
        OSError: the files cannot be written.

    >>> import tempfile
    >>> import tensorstore as ts
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "any.bin").write_bytes(b"....abc..")
    ...     write_database(Path(folder), {"a/0": Place("any.bin", 4, 3), "a/.zarray": b"{}"})
    ...     store = ts.KvStore.open(f"file://{folder}/|ocdbt:").result()
    ...     store["a/0"], store["a/.zarray"]
    (b'abc', b'{}')
    """
    if not entries:
        raise ValueError("a database without keys has no B-tree.")
    file = new_data_file()
    (root / DATA_FOLDER).mkdir(exist_ok=True)
    ordered = sorted((key.encode(), value) for key, value in entries.items())
    with (root / file).open("xb") as data:

        def write(encoded: bytes) -> Place:
            place = Place(file, data.tell(), len(encoded))
            data.write(encoded)
            return place

        level = []
        for part in _parts(ordered, lambda e: len(e[0]) + _size(e[1])):
            encoded = _node(0, [k for k, _ in part], [v for _, v in part])
            held = sum(v.length for _, v in part if isinstance(v, Place))
            level.append(_Node(part[0][0], write(encoded), len(part), len(encoded), held))
        height = 0
        while len(level) > 1:
            height += 1
            above = []
            for nodes in _parts(level, lambda n: len(n.first) + 32):
                encoded = _node(height, [n.first for n in nodes], nodes)
                above.append(
                    _Node(
                        nodes[0].first,
                        write(encoded),
                        sum(n.keys for n in nodes),
                        sum(n.tree_bytes for n in nodes) + len(encoded),
                        sum(n.value_bytes for n in nodes),
                    )
                )
            level = above
    (root / MANIFEST).write_bytes(_manifest(level[0], height))


def _size(value: Value) -> int:
    return len(value) if isinstance(value, bytes) else 16


def _parts(rows: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Runs of rows of about one node each; above the leaves at least two, so that it ends."""
    part: list[T] = []
    held = 0
    for row in rows:
        if held >= _NODE_BYTES and len(part) > 1:
            yield part
            part, held = [], 0
        part.append(row)
        held += size(row)
    yield part


def _node(height: int, keys: Sequence[bytes], values: Sequence[Value | _Node]) -> bytes:
    places = [v.place if isinstance(v, _Node) else v for v in values if not isinstance(v, bytes)]
    table, number = _files({p.file for p in places})
    columns = [bytes([height]), table, _varint(len(keys)), _keys(keys, inner=height > 0)]
    nodes = [v for v in values if isinstance(v, _Node)]
    if not height:
        columns += [_varints(_length(v) for v in values)]
        columns += [_varints(not isinstance(v, bytes) for v in values)]
    columns += [_varints(number[p.file] for p in places), _varints(p.offset for p in places)]
    if height:
        columns += [_varints(p.length for p in places)]
        columns += [_varints(n.keys for n in nodes), _varints(n.tree_bytes for n in nodes)]
        columns += [_varints(n.value_bytes for n in nodes)]
    else:
        columns += [v for v in values if isinstance(v, bytes)]
    return _sealed(_NODE_MAGIC, b"".join(columns))


def _length(value: Value | _Node) -> int:
    if isinstance(value, _Node):
        return value.place.length
    return len(value) if isinstance(value, bytes) else value.length


def _keys(keys: Sequence[bytes], *, inner: bool) -> bytes:
    shared = [_common(a, b) for a, b in pairwise(keys)]
    rest = [key[n:] for key, n in zip(keys, [0, *shared], strict=True)]
    common = bytes(len(keys)) if inner else b""  # no prefix that a whole subtree shares
    return _varints(shared) + _varints(map(len, rest)) + common + b"".join(rest)


def _common(a: bytes, b: bytes) -> int:
    length = min(len(a), len(b))
    return next((n for n in range(length) if a[n] != b[n]), length)


def _files(names: set[str]) -> tuple[bytes, dict[str, int]]:
    """The table of data files, and the number of each. None has a base path."""
    ordered = sorted(name.encode() for name in names)
    shared = [_common(a, b) for a, b in pairwise(ordered)]
    rest = [name[n:] for name, n in zip(ordered, [0, *shared], strict=False)]
    table = _varint(len(ordered)) + _varints(shared) + _varints(map(len, rest))
    table += bytes(len(ordered)) + b"".join(rest)
    return table, {name.decode(): n for n, name in enumerate(ordered)}


def _manifest(root: _Node, height: int) -> bytes:
    table, number = _files({root.place.file})
    config = os.urandom(16) + bytes([0])  # the uuid; a manifest in a single file
    config += _varint(OCDBT_CONFIG["max_inline_value_bytes"])
    config += _varint(OCDBT_CONFIG["max_decoded_node_bytes"])
    config += bytes([4]) + _varint(1) + struct.pack("<i", 0)  # arity 2**4; zstd, default level
    first = (1, 1)  # one version, of generation 1
    version = _varints(first) + bytes([height])
    version += _varints((number[root.place.file], root.place.offset, root.place.length))
    version += _varints((root.keys, root.tree_bytes, root.value_bytes))
    version += struct.pack("<Q", time.time_ns())
    return _sealed(_MANIFEST_MAGIC, config + table + version + _varint(0))


def _sealed(magic: int, body: bytes) -> bytes:
    """With magic, length, version 0, no compression, and the checksum."""
    head = struct.pack(">I", magic)
    length = len(head) + 8 + 2 + len(body) + 4
    whole = head + struct.pack("<Q", length) + bytes(2) + body
    return whole + struct.pack("<I", google_crc32c.value(whole))


def _varint(number: int) -> bytes:
    r"""ULEB128.

    >>> _varint(300)
    b'\xac\x02'
    """
    found = bytearray()
    while number >= _MORE:
        found.append(number % _MORE | _MORE)
        number >>= 7
    found.append(number)
    return bytes(found)


def _varints(numbers: Iterable[int]) -> bytes:
    found = list(numbers)
    if max(found, default=0) < _MORE:  # most columns are small numbers
        return bytes(found)
    return b"".join(map(_varint, found))
