"""OCDBT databases as files: what they hold, where it lies, and how a copy is rearranged.

Facts about TensorStore (0.1.86), found by experiment and held by the tests:

- ``experimental_copy_range_to`` works inside one database only. Within a transaction its source
  is the *committed* state, not what the transaction has done so far. So names can be swapped or
  shifted in one transaction, and a ``delete_range`` of everything that comes first takes away
  the old keys and not the new ones.
- It copies references; no value is read. Only B-tree nodes are written, into new files: data
  files are never changed or appended to, and ``manifest.ocdbt`` is replaced by rename. That is
  why data files may be hard links and the manifest is always a copy.
- ``ts.ocdbt.dump`` names every value as ``value:<base>:<file>:<offset>:<length>``, where base and
  file are percent-encoded and the file is ``<base><file>`` below the database. A checkpoint of
  Orbax >= 0.5 has its values in ``ocdbt.process_N/d/``; the manifests in those folders are not
  needed by the one at the root.
- The ranges of ``a/`` and ``a.b/`` are disjoint, since ``.`` sorts before ``/``. ``a/`` and
  ``a/b/`` are not: keys below a nested name are copied one by one.
- The file driver syncs each file unless ``file_io_sync`` is off; ours is, because the whole folder
  is synced once before it is committed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from bridge.errors import BridgeError
from bridge.layout import MANIFEST, OCDBT_CONFIG, TARGET_DATA_FILE_SIZE, ZARRAY
from legacy import DamagedCheckpoint

__all__ = ["Survey", "Value", "open_database", "open_for_reading", "rearrange", "survey"]

_CONTEXT = {
    "file_io_sync": False,
    "file_io_concurrency": {"limit": 32},
    "cache_pool#nodes": {"total_bytes_limit": 32 << 20},
}


@dataclass(frozen=True, slots=True)
class Value:
    """Where the value of a key lies; ``file`` is None for values inside a B-tree node."""

    file: str | None
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Survey:
    """What an OCDBT database holds.

    Attributes:
        root: its folder.
        arrays: for each name with a ``.zarray``, the keys directly below it.
        nested: names with keys of other arrays below them.
        zarrays: the parsed ``.zarray`` of each name.
        nodes: files with the B-tree nodes that are needed to read it, relative to ``root``.
    """

    root: Path
    arrays: Mapping[str, Mapping[str, Value]]
    nested: frozenset[str]
    zarrays: Mapping[str, Mapping[str, Any]]
    nodes: frozenset[str]

    def values(self, names: Iterable[str]) -> Iterator[Value]:
        """Where the values of some arrays lie, without those inside B-tree nodes."""
        for name in names:
            yield from (v for v in self.arrays[name].values() if v.file is not None)

    def files(self, names: Iterable[str]) -> frozenset[str]:
        """The data files that hold values of some arrays."""
        return frozenset(v.file for v in self.values(names) if v.file is not None)


@dataclass(slots=True)
class _Reader:
    """Walks the B-tree of one database."""

    root: Path
    base: Any
    dump: Any
    sizes: dict[str, int] = field(default_factory=dict)
    nodes: set[str] = field(default_factory=set)
    found: dict[str, dict[str, Value]] = field(default_factory=dict)
    documents: dict[str, bytes] = field(default_factory=dict)

    def walk(self, location: str) -> None:
        self.nodes.add(self.place(location).file or "")
        node = self.dump(self.base, location).result()
        for entry in node["entries"]:
            if node["height"]:
                self.walk(entry["location"])
            else:
                self.take(entry)

    def take(self, entry: Mapping[str, Any]) -> None:
        name, slash, rest = bytes(entry["key"]).decode().rpartition("/")
        inline = entry.get("inline_value")
        if inline is not None:
            value = Value(None, 0, len(inline))
        else:
            value = self.place(entry["indirect_value"])
        self.found.setdefault(name, {})[name + slash + rest] = value
        if rest == ZARRAY:
            if inline is None:
                inline = self.dump(self.base, entry["indirect_value"]).result()
            self.documents[name] = bytes(inline)

    def place(self, location: str) -> Value:
        _, base, name, offset, length = location.split(":")
        relative = unquote(base) + unquote(name)
        if relative.startswith("/") or ".." in PurePosixPath(relative).parts:
            raise DamagedCheckpoint(
                f"the OCDBT database in {self.root} refers to {relative!r}, outside its folder. "
                "It is damaged or hostile; take another step or a backup.",
                path=self.root,
            )
        if relative not in self.sizes:
            file = self.root / relative
            self.sizes[relative] = file.stat().st_size if file.is_file() else -1
        size = self.sizes[relative]
        if int(offset) + int(length) > size:
            have = "is not there" if size < 0 else f"has {size} bytes"
            raise DamagedCheckpoint(
                f"the OCDBT database in {self.root} wants bytes {offset}..+{length} of "
                f"{relative}, which {have}. The checkpoint is truncated or was copied in part; "
                "copy it again, or take another step.",
                path=self.root / relative,
                offset=int(offset),
            )
        return Value(relative, int(offset), int(length))


def survey(root: Path) -> Survey:
    """List a database without reading values; only its B-tree is read.

    Args:
        root: the folder with ``manifest.ocdbt``.

    Returns:
        What it holds.

    Raises:
        DamagedCheckpoint: a node or value lies outside the files that are there.
    """
    import tensorstore as ts  # noqa: PLC0415 - a plan is made and printed without it

    base = ts.KvStore.open({"driver": "file", "path": f"{root}/"}).result()
    reader = _Reader(root, base, ts.ocdbt.dump)
    try:
        location = ts.ocdbt.dump(base).result()["versions"][-1]["root"].get("location")
        if location is not None:
            reader.walk(location)
        zarrays = {name: json.loads(text) for name, text in reader.documents.items()}
    except (KeyError, IndexError, TypeError) as error:
        raise DamagedCheckpoint(
            f"the OCDBT manifest in {root} is not understood ({error!r}). It is damaged, or of "
            "a kind that Orbax does not write.",
            path=root / MANIFEST,
        ) from error
    except ValueError as error:
        if isinstance(error, DamagedCheckpoint):
            raise
        raise DamagedCheckpoint(
            f"the OCDBT database in {root} cannot be read: {error}. Copy the checkpoint again, "
            "or take another step.",
            path=root,
        ) from error
    names = set(reader.found)
    nested = {p for n in names for p in _above(n)} & names
    arrays = {name: keys for name, keys in reader.found.items() if name in zarrays}
    return Survey(root, arrays, frozenset(nested), zarrays, frozenset(reader.nodes))


def _above(name: str) -> Iterator[str]:
    at = name.find("/")
    while at >= 0:
        yield name[:at]
        at = name.find("/", at + 1)


def open_database(root: Path, *, create: bool = False) -> Any:
    """Open a database of our own for writing.

    Args:
        root: its folder.
        create: begin a new one, with the configuration that Orbax gives.

    Returns:
        The TensorStore key-value store.
    """
    import tensorstore as ts  # noqa: PLC0415

    spec: dict[str, Any] = {
        "driver": "ocdbt",
        "base": {"driver": "file", "path": f"{root}/"},
        "cache_pool": "cache_pool#nodes",
        "target_data_file_size": TARGET_DATA_FILE_SIZE,
    }
    if create:
        spec |= {"config": dict(OCDBT_CONFIG)}
    return ts.KvStore.open(spec, context=ts.Context(_CONTEXT)).result()


def open_for_reading(root: Path) -> Any:
    """Open a database of the source, which is never written to.

    Args:
        root: its folder.

    Returns:
        The TensorStore key-value store.
    """
    import tensorstore as ts  # noqa: PLC0415

    base = {"driver": "file", "path": f"{root}/"}
    return ts.KvStore.open({"driver": "ocdbt", "base": base}).result()


def rearrange(database: Any, content: Survey, names: Iterable[tuple[str, str]]) -> None:
    """Give the arrays of a database new names and drop all others, in one transaction.

    Args:
        database: an open copy; see :func:`open_database`.
        content: the survey of the database that it is a copy of.
        names: old and new name of each array that stays; an old name may occur several times.

    Raises:
        BridgeError: two arrays get one name.
    """
    import tensorstore as ts  # noqa: PLC0415

    pairs = tuple(names)
    if len({new for _, new in pairs}) != len(pairs):
        raise BridgeError("two arrays would get one name on disk; make the plan again.")
    transaction = ts.Transaction(atomic=True)
    target = database.with_transaction(transaction)
    stay, move = _ranges(content, pairs)
    at = ""
    for first, past in sorted(stay):
        target.delete_range(ts.KvStore.KeyRange(at, first)).result()
        at = past
    target.delete_range(ts.KvStore.KeyRange(at, "")).result()
    work = []
    for old, new, whole in move:
        only = None if whole else ts.KvStore.KeyRange("", "\0")
        work.append((database / old).experimental_copy_range_to(target / new, source_range=only))
    for future in work:
        future.result()
    transaction.commit_async().result()


def _ranges(
    content: Survey, pairs: Iterable[tuple[str, str]]
) -> tuple[list[tuple[str, str]], list[tuple[str, str, bool]]]:
    """Ranges of keys that stay, and what is copied: old, new, whether all keys with that prefix.

    TensorStore leaves undefined what a copy onto its own range does, so such ranges are not
    touched, and names of which one lies below the other are copied key by key.
    """
    stay: list[tuple[str, str]] = []
    move: list[tuple[str, str, bool]] = []
    for old, new in pairs:
        before, after = f"{old}/", f"{new}/"
        if old == new:
            stay += [(key, key + "\0") for key in content.arrays[old]]
        elif old in content.nested or before.startswith(after) or after.startswith(before):
            move += [(key, new + key[len(old) :], False) for key in content.arrays[old]]
        else:
            move.append((before, after, True))
    return stay, move
