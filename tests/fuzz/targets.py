"""What is fuzzed: plain functions that take any bytes and say when ``legacy`` breaks its promise.

Each target puts the bytes where a checkpoint has them, opens it, and reads every leaf. Right are
only two answers: a ``LegacyError``, or values that an independent reading of the same bytes (see
``references``) agrees with. An ``AssertionError`` or any other exception is a finding.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgpack
import numpy as np
import references
from references import Missing, Refused, same

from legacy import LegacyError
from legacy.flax_msgpack import index_msgpack, open_msgpack
from legacy.impostors import HEAD_BYTES, looks_like_msgpack, name_impostor
from legacy.orbax import open_items, open_tree
from legacy.orbax_items import open_json
from legacy.orbax_metadata import (
    random_key_impls,
    read_step_metadata,
    read_strings,
    read_tree_metadata,
)
from legacy.orbax_zarr import parse_array_metadata

GOLDENS = Path(__file__).parents[1] / "goldens"
_MEMORY = Path("/dev/shm")  # noqa: S108 - files in memory, where there are such


class Target(NamedTuple):
    """A function of any bytes, and good bytes to begin with."""

    run: Callable[[bytes], str]
    seeds: Callable[[], list[bytes]]


def _files(pattern: str, limit: int = 1 << 14) -> list[bytes]:
    found = {p.read_bytes() for p in GOLDENS.glob(pattern) if p.is_file()}
    return sorted((data for data in found if len(data) <= limit), key=len)


REFUSED = object()


def _read(leaf):
    try:
        value = leaf.read()
    except LegacyError:
        return REFUSED
    assert leaf.kind != "unreadable", f"{leaf.path}: an unreadable leaf was read as {value!r}"
    return value


# --- msgpack


def _agree(leaves, theirs, data) -> None:
    ours = {leaf.path: (leaf.kind, _read(leaf)) for leaf in leaves}
    assert ours.keys() == theirs.keys(), f"leaves differ: {ours.keys() ^ theirs.keys()}"
    for path, (kind, value) in ours.items():
        want = theirs[path]
        if isinstance(want, Missing):
            assert kind == "empty", f"{path}: {kind} for an empty container"
        elif value is not REFUSED:
            assert same(value, want), f"{path}: {value!r} is not {want!r} in {data[:80]!r}"


def _msgpack(data: bytes, *, flax: bool) -> str:
    file = rooms().folder / "checkpoint_1"
    file.write_bytes(data)
    name_impostor(data[:HEAD_BYTES], file)
    looks_like_msgpack(data[:HEAD_BYTES], len(data))
    try:
        leaves = list(open_msgpack(file)[0].values()) if flax else index_msgpack(file)[0]
    except LegacyError:
        return "refused"
    lost = sum(leaf.kind == "unreadable" for leaf in leaves)
    try:
        theirs = references.msgpack_leaves(data, flax=flax)
    except ValueError:
        theirs = None  # msgpack knows timestamps, and gives a whole file up for a bad one
    if theirs is None:
        assert lost, "msgpack refuses what was read"
        return "read in part"
    _agree(leaves, theirs, data)
    return "read in part" if lost else "read"


def flax_msgpack(data: bytes) -> str:
    """A file of ``flax.training.checkpoints``."""
    return _msgpack(data, flax=True)


def aggregate(data: bytes) -> str:
    """The index ``checkpoint`` of an Orbax tree: every value, and each array where it points."""
    said = _msgpack(data, flax=False)
    if said == "read" and zlib.crc32(data) % 4 == 0:
        (rooms().tree / "checkpoint").write_bytes(data)
        try:
            leaves = open_tree(rooms().tree)[0]
        except LegacyError:
            return said
        finally:
            (rooms().tree / "checkpoint").unlink()
        theirs = references.msgpack_leaves(data, flax=False)
        assert leaves.keys() == theirs.keys()
        for path, want in theirs.items():
            is_placeholder = isinstance(want, str) and want.startswith("PLACEHOLDER://")
            if is_placeholder:
                _is_named(leaves[path], want.removeprefix("PLACEHOLDER://"))
            elif want is not None and not isinstance(want, Missing):
                value = _read(leaves[path])
                assert value is REFUSED or same(value, want), path
    return said


def _is_named(leaf, name) -> None:
    """The leaf is the stored array of that name, or nothing that can be read."""
    if leaf.kind in ("unreadable", "none", "str"):
        return
    value = _read(leaf)
    if value is not REFUSED:
        want = rooms().values.get(name.replace("\\", "/"))
        assert want is not None, f"{leaf.path}: {name!r} is no array of this folder"
        assert same(value, want), f"{leaf.path}: not the array {name!r}"


# --- JSON documents


def tree_metadata(data: bytes) -> str:
    """``_METADATA``, alone and with the arrays that it names."""
    file = rooms().folder / "_METADATA"
    file.write_bytes(data)
    try:
        found = read_tree_metadata(rooms().folder)
    except LegacyError:
        return "refused"
    finally:
        file.unlink()
    assert found is not None
    paths = references.tree_paths(data)
    assert {entry.path for entry in found.entries} == paths
    if zlib.crc32(data) % 4 == 0:
        (rooms().tree / "_METADATA").write_bytes(data)
        try:
            leaves = open_tree(rooms().tree)[0]
        except LegacyError:
            return "read, no tree"
        finally:
            (rooms().tree / "_METADATA").unlink()
        assert leaves.keys() == paths
        for path, leaf in leaves.items():
            if leaf.kind != "empty":
                _is_named(leaf, ".".join(path))
    return "read"


def step_metadata(data: bytes) -> str:
    """``_CHECKPOINT_METADATA``, alone and in a step with an item."""
    (rooms().step / "_CHECKPOINT_METADATA").write_bytes(data)
    try:
        found = read_step_metadata(rooms().step)
        document = references.strict_json(data)
        handlers = document.get("item_handlers")
        assert (found.items or {}).keys() == (handlers if isinstance(handlers, dict) else {}).keys()
        assert repr(found.custom) == repr(document.get("custom_metadata") or {})
        items, _, custom = open_items(rooms().step)
    except LegacyError:
        return "refused"
    assert set(items) == {"state", "config"}
    assert repr(custom) == repr(found.custom)
    return "read"


def strings(data: bytes) -> str:
    """``_strings.json``."""
    file = rooms().folder / "_strings.json"
    file.write_bytes(data)
    try:
        found = read_strings(file)
    except LegacyError:
        return "refused"
    assert found == references.strict_json(data)
    assert all(type(value) is str for value in found.values())
    return "read"


def array_metadatas(data: bytes) -> str:
    """``array_metadatas/process_0``."""
    (rooms().folder / "array_metadatas").mkdir(exist_ok=True)
    (rooms().folder / "array_metadatas" / "process_0").write_bytes(data)
    try:
        found = random_key_impls(rooms().folder)
    except LegacyError:
        return "refused"
    rows = [row["array_metadata"] for row in references.strict_json(data)["array_metadatas"]]
    theirs = {
        row["param_name"]: row["ext_metadata"]["random_key_impl"]
        for row in rows
        if (row.get("ext_metadata") or {}).get("random_key_impl") is not None
    }
    assert {name: impl for name, impl in found.items() if impl is not None} == theirs
    return "read"


def json_item(data: bytes) -> str:
    """A JSON item: metrics, config."""
    file = rooms().folder / "metrics"
    file.write_bytes(data)
    try:
        table = open_json(file)
    except LegacyError:
        return "refused"
    theirs: dict = {}
    references._flatten((), references.strict_json(data), flax=False, into=theirs)
    _agree(table.values(), theirs, data)
    return "read"


# --- zarr documents


def _zarr(data: bytes, name: str, source: Path) -> str:
    import tensorstore as ts

    folder = rooms().array / "a"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    (folder / name).write_bytes(data)
    try:
        parse_array_metadata(data, name, folder)
        leaf = open_tree(rooms().array)[0]["a",]
    except LegacyError:
        return "refused"
    value = _read(leaf)
    if value is REFUSED:
        return "refused when read"
    assert value.shape == leaf.shape
    assert value.dtype == leaf.dtype
    driver = "zarr" if name == ".zarray" else "zarr3"
    kvstore = {"driver": "file", "path": f"{folder}/"}
    if leaf.storage is not None:
        theirs = ts.open({"driver": driver, "kvstore": kvstore}, open=True).result()
        assert same(value, theirs.read().result()), "TensorStore reads it otherwise"
    if driver == "zarr":
        try:
            want = references.zarr2(folder)
        except Refused:
            return "read"
        assert same(value, want), "numpy reads it otherwise"
    return "read"


def zarray(data: bytes) -> str:
    """``.zarray`` of an array of two by two chunks, without a compressor."""
    return _zarr(data, ".zarray", rooms().zarr2)


def zarr_json(data: bytes) -> str:
    """``zarr.json`` of an array of two by two shards."""
    return _zarr(data, "zarr.json", rooms().zarr3)


def gda(data: bytes) -> str:
    """``.zarray`` of an array of several processes beside a msgpack file."""
    folder = rooms().folder / "checkpoint_1_gda" / "a"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(rooms().zarr2, folder)
    (folder / ".zarray").write_bytes(data)
    file = rooms().folder / "checkpoint_1"
    file.write_bytes(b"\x82\xa1b\x01\xa1a\xb2//GDAPlaceholder:a")
    try:
        leaf = open_msgpack(file)[0]["a",]
    except LegacyError:
        return "refused"
    value = _read(leaf)
    if value is REFUSED:
        return "refused when read"
    try:
        want = references.zarr2(folder)
    except Refused:
        return "read"
    assert same(value, want), "numpy reads it otherwise"
    return "read"


# --- where the bytes are put


class Rooms(NamedTuple):
    """Folders that the bytes are put into; ``values`` are the arrays of ``tree`` by name."""

    folder: Path
    tree: Path
    step: Path
    array: Path
    zarr2: Path
    zarr3: Path
    values: dict


@functools.cache
def rooms() -> Rooms:
    """The folders of this process, in memory where that can be; removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=_MEMORY if _MEMORY.is_dir() else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tree = folder / "tree"
    shutil.copytree(GOLDENS / "flax0610" / "cnn_state-ptc" / "ckpt", tree)
    (tree / "checkpoint").unlink()
    values = {p.parent.name: _stored(p.parent, "zarr") for p in tree.glob("*/.zarray")}
    assert len(values) > 30
    grid = np.arange(24, dtype="f4").reshape(4, 6)
    inner = {"chunk_shape": [1, 3], "codecs": [{"name": "bytes"}, {"name": "zstd"}]}
    _store(folder / "zarr2", "zarr", grid, {"chunks": [2, 3], "compressor": None})
    _store(
        folder / "zarr3",
        "zarr3",
        grid,
        {
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2, 3]}},
            "codecs": [{"name": "sharding_indexed", "configuration": inner}],
        },
    )
    for name in ("array", "step/config"):
        (folder / name).mkdir(parents=True)
    shutil.copytree(folder / "zarr2", folder / "step" / "state" / "a")
    (folder / "step" / "config" / "metadata").write_text('{"depth": 2}')
    return Rooms(
        folder, tree, folder / "step", folder / "array", folder / "zarr2", folder / "zarr3", values
    )


def _stored(folder: Path, driver: str):
    import tensorstore as ts

    spec = {"driver": driver, "kvstore": {"driver": "file", "path": f"{folder}/"}}
    return ts.open(spec, open=True).result().read().result()


def _store(folder: Path, driver: str, array, metadata) -> None:
    import tensorstore as ts

    spec = {"driver": driver, "kvstore": {"driver": "file", "path": f"{folder}/"}}
    opened = ts.open(
        spec | {"metadata": metadata}, create=True, dtype=array.dtype, shape=array.shape
    )
    opened.result().write(array).result()


# --- what there is to fuzz


def _msgpack_seeds() -> list[bytes]:
    found = _files("*/*/checkpoint_3") + _files("*/*/*/checkpoint") + _files("*/*/*/*/*/checkpoint")
    return [msgpack.packb(value) for value in _SMALL] + sorted(found, key=len)


def _ext(code: int, *value) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb(value))


_SMALL = (
    {"a": {"b": _ext(1, (2,), "float32", bytes(8))}, "c": 3, "d": None, "e": b"x", "f": "y"},
    {"a": _ext(1, (1, 2), "<V2", bytes(4)), "b": _ext(3, (), "bfloat16", bytes(2))},
    {"a": _ext(1, (1,), "str32", b"a\0\0\0"), "b": _ext(1, (1,), ">i4", b"\0\0\0\1")},
    {"a": [_ext(2, 1.0, -0.0), _ext(4, 1, 2.5, {}), [], True], "7": {}},
    {7: {}, 8: {-1: 2}},
    {"a": {"name": "S", "fields": {"0": "x", "1": "y"}, "values": {"0": 1, "1": {}}}},
    {
        "a": {
            references.CHUNKED: True,
            "shape": {"0": 2, "1": 2},
            "chunks": {"0": _ext(1, (3,), "int8", b"abc"), "1": _ext(1, (1,), "int8", b"d")},
        }
    },
)


def _zarray_seeds() -> list[bytes]:
    good = json.loads((rooms().zarr2 / ".zarray").read_bytes())
    changes = ({}, {"order": "F"}, {"dtype": ">f4"}, {"dtype": "<i4"}, {"fill_value": 0})
    return [json.dumps(good | change).encode() for change in changes]


_METADATAS = (
    b'{"array_metadatas": [{"array_metadata": {"param_name": "k", "write_shape": [2], '
    b'"ext_metadata": {"random_key_impl": "threefry2x32"}}}]}'
)

TARGETS: dict[str, Target] = {
    "flax_msgpack": Target(flax_msgpack, _msgpack_seeds),
    "aggregate": Target(aggregate, _msgpack_seeds),
    "tree_metadata": Target(
        tree_metadata, lambda: _files("*/*/ckpt/_METADATA") + _files("*/*/mgr/*/*/_METADATA")
    ),
    "step_metadata": Target(
        step_metadata, lambda: _files("**/_CHECKPOINT_METADATA") or [b'{"item_handlers": {}}']
    ),
    "strings": Target(strings, lambda: _files("**/_strings.json")),
    "array_metadatas": Target(
        array_metadatas, lambda: [_METADATAS, *_files("**/array_metadatas/process_*")]
    ),
    "json_item": Target(json_item, lambda: [b'{"a": [1, NaN, {}]}', *_files("**/metadata")]),
    "zarray": Target(zarray, lambda: [*_zarray_seeds(), *_files("**/.zarray")[:2]]),
    "zarr_json": Target(zarr_json, lambda: [(rooms().zarr3 / "zarr.json").read_bytes()]),
    "gda": Target(gda, _zarray_seeds),
}

BINARY = frozenset({"flax_msgpack", "aggregate"})
"""Targets of msgpack; the others are JSON."""
