"""The index that we write is one that TensorStore lists, reads, dumps, and goes on writing to."""

from __future__ import annotations

import json
import os

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge import ocdbt, ocdbt_tree, repack_copy
from bridge.errors import BridgeError, WriteFailed
from bridge.ocdbt_tree import Place, write_database
from bridge.repack_arrays import chunk_names, parse_compression
from bridge.repack_carry import Carrier
from bridge.repack_copy import INLINE, Stored
from bridge.repack_regions import choose_rows, described, zarr_dtype
from legacy import DamagedCheckpoint
from legacy.leaves import FileRegion

BLOB = np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes()
KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
VALUES = st.one_of(
    st.binary(max_size=40),
    st.tuples(st.sampled_from(["d/x", "b y/ü", "z"]), st.integers(0, 4000), st.integers(0, 900)),
)


def opened(root):
    return ts.KvStore.open({"driver": "ocdbt", "base": f"file://{root}/"}).result()


def tree_of(root):
    """All nodes from the root down: heights with their locations, as TensorStore dumps them."""
    base = ts.KvStore.open(f"file://{root}/").result()
    version = ts.ocdbt.dump(base).result()["versions"][-1]["root"]
    nodes, waiting = [], [version["location"]]
    while waiting:
        location = waiting.pop()
        node = ts.ocdbt.dump(base, location).result()
        nodes.append((node["height"], location))
        waiting += [e["location"] for e in node["entries"] if "location" in e]
    return version["statistics"], nodes


@settings(max_examples=60, deadline=None)
@given(
    entries=st.dictionaries(KEYS, VALUES, min_size=1, max_size=60),
    node=st.sampled_from([1, 100, 1 << 16]),
)
def test_tensorstore_reads_what_was_written(tmp_path_factory, entries, node):
    root = tmp_path_factory.mktemp("db")
    for name in ("d/x", "b y/ü", "z"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(BLOB)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ocdbt_tree, "_NODE_BYTES", node)
        write_database(
            root, {k: v if isinstance(v, bytes) else Place(*v) for k, v in entries.items()}
        )
    wanted = {
        k: v if isinstance(v, bytes) else BLOB[v[1] : v[1] + v[2]] for k, v in entries.items()
    }
    database = opened(root)
    assert {k.decode(): database[k] for k in database.list().result()} == wanted
    statistics, nodes = tree_of(root)
    assert statistics["num_keys"] == len(entries)
    assert statistics["num_tree_bytes"] == sum(int(n[1].rsplit(":", 1)[1]) for n in nodes)
    held = sum(v[2] for v in entries.values() if not isinstance(v, bytes))
    assert statistics["num_indirect_value_bytes"] == held
    if node == 1 and len(entries) > 8:
        assert max(height for height, _ in nodes) > 1


def test_tensorstore_goes_on_writing_to_it(tmp_path):
    write_database(tmp_path, {f"a{n}/0": b"%d" % n for n in range(5000)})
    database = ocdbt.open_database(tmp_path)
    transaction = ts.Transaction()
    database.with_transaction(transaction)["a17/0"] = b"new"
    database.with_transaction(transaction)["z/0"] = bytes(5000)
    transaction.commit_sync()
    again = opened(tmp_path)
    assert again["a17/0"] == b"new"
    assert again["a18/0"] == b"18"
    assert again["z/0"] == bytes(5000)
    assert len(again.list().result()) == 5001


def test_our_configuration_is_that_of_orbax(tmp_path):
    (tmp_path / "ours").mkdir()
    (tmp_path / "theirs").mkdir()
    write_database(tmp_path / "ours", {"a": b"b"})
    ocdbt.open_database(tmp_path / "theirs", create=True)["a"] = b"b"
    ours, theirs = (
        ts.ocdbt.dump(ts.KvStore.open(f"file://{tmp_path}/{name}/").result()).result()
        for name in ("ours", "theirs")
    )
    for dump in (ours, theirs):
        del dump["config"]["uuid"]
    assert ours["config"] == theirs["config"]
    assert ours["versions"][0].keys() == theirs["versions"][-1].keys()


def test_a_damaged_index_is_noticed(tmp_path):
    write_database(tmp_path, {"a/.zarray": b"{}" + b" " * 200})
    for name in ("manifest.ocdbt", os.path.join("d", os.listdir(tmp_path / "d")[0])):  # noqa: PTH208, PTH118
        good = (tmp_path / name).read_bytes()
        for at in (5, len(good) // 2, len(good) - 1):
            bad = bytearray(good)
            bad[at] ^= 4
            (tmp_path / name).write_bytes(bad)
            with pytest.raises(DamagedCheckpoint):
                ocdbt.survey(tmp_path)
        (tmp_path / name).write_bytes(good)
    assert ocdbt.survey(tmp_path).arrays.keys() == {"a"}


def test_a_database_without_keys_is_refused(tmp_path):
    with pytest.raises(ValueError, match="without keys"):
        write_database(tmp_path, {})


# -- raw bytes as chunks ----------------------------------------------------------------------

DTYPES = [
    "bool int8 uint8 int16 uint16 int32 uint32 int64 uint64".split(),
    "float16 float32 float64 complex64 complex128".split(),
    ["bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4"],
]


@pytest.mark.parametrize("name", [name for names in DTYPES for name in names])
def test_raw_bytes_are_chunks_of_every_dtype_that_has_a_name(tmp_path, name):
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    value = np.arange(24).astype(dtype).reshape(4, 3, 2)
    (tmp_path / "d").mkdir()
    (tmp_path / "d/raw").write_bytes(b"xyz" + value.tobytes() + b"more")
    region = FileRegion(tmp_path / "d/raw", 3, value.nbytes)
    row = value.nbytes // 8
    found = described(region, value.shape, dtype, row)
    if zarr_dtype(dtype) is None:
        assert found is None
        return
    entries = {
        f"w/{k}": v if isinstance(v, bytes) else Place("d/raw", v.offset, v.length)
        for k, v in found.items()
    }
    assert set(found) - {".zarray"} == chunk_names(json.loads(found[".zarray"]))
    write_database(tmp_path, entries)
    spec = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": f"file://{tmp_path}/",
                                          "path": "w/"}}  # fmt: skip
    store = ts.open(spec).result()
    assert store.dtype.numpy_dtype == dtype
    assert store.read().result().tobytes() == value.tobytes()


def test_types_that_zarr_has_no_name_for_are_encoded():
    assert zarr_dtype(np.dtype("float32")) == "<f4"
    assert zarr_dtype(np.dtype(ml_dtypes.bfloat16)) == "bfloat16"
    assert [zarr_dtype(np.dtype(t)) for t in ("U3", "S2", "M8[s]", "O", "V4")] == [None] * 5


@given(
    shape=st.lists(st.integers(1, 3000), max_size=4).map(tuple),
    itemsize=st.sampled_from([1, 2, 4, 8]),
    limit=st.sampled_from([1 << 21, 1 << 22, 1 << 24]),
)
def test_chunks_of_an_encoded_array_are_never_too_large(shape, itemsize, limit):
    chunk = choose_rows(shape, itemsize, limit, even=False)
    assert np.prod(chunk) * itemsize <= limit
    assert all(-(-n // c) * c < n + c for n, c in zip(shape, chunk, strict=True))


@given(
    shape=st.lists(st.integers(1, 3000), max_size=4).map(tuple),
    itemsize=st.sampled_from([1, 2, 4, 8]),
    limit=st.sampled_from([1 << 10, 1 << 16, 1 << 20, 1 << 22]),
)
def test_chunks_of_rows_are_runs_of_bytes(shape, itemsize, limit):
    chunk = choose_rows(shape, itemsize, limit)
    assert all(n % c == 0 for n, c in zip(shape, chunk, strict=True))
    if chunk == shape:
        return
    assert 1 << 20 <= np.prod(chunk) * itemsize <= limit
    cut = next(k for k, c in enumerate(chunk) if c != 1 or shape[k] == 1 == c)
    before = [c for k, c in enumerate(chunk) if k < cut]
    assert set(before) <= {1}
    whole = [k for k, (n, c) in enumerate(zip(shape, chunk, strict=True)) if n == c]
    cut = max((k for k in range(len(shape)) if chunk[k] != shape[k]), default=-1)
    assert set(range(cut + 1, len(shape))) <= set(whole)
    assert all(chunk[k] == 1 for k in range(cut))


def test_a_region_of_another_length_is_not_taken():
    region = FileRegion("f", 0, 15)
    assert described(region, (2, 2), np.dtype("float32"), 1 << 20) is None


@pytest.mark.parametrize("text", ["", "gzip", "zstd:", "zstd:0", "zstd:23", "zstd:x", "keep:1"])
def test_an_unknown_compression_is_refused(text):
    with pytest.raises(BridgeError, match="expected keep, none, zstd"):
        parse_compression(text)


# -- files ------------------------------------------------------------------------------------


def carried(tmp_path, values, *, link=False, wanted=()):
    root = tmp_path / f"item{len(list(tmp_path.glob('item*')))}"
    root.mkdir()
    told = []
    found = Carrier(link, dict(wanted)).carry(root, values, told.append)
    assert sorted(told) == sorted(k for k, v in values.items() if not isinstance(v, bytes))
    for key, value in values.items():
        got = found.values[key]
        if isinstance(got, Place):
            held = (root / got.file).read_bytes()
            got = held[got.offset : got.offset + got.length]
        want = value
        if not isinstance(value, bytes):
            want = value.file.read_bytes()[value.offset : value.offset + value.length]
        assert got == want
    return root, found


@settings(max_examples=40, deadline=None)
@given(
    ranges=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9000), st.integers(0, 6000)),
                    min_size=1, max_size=12),
    link=st.booleans(),
    buffer=st.sampled_from([7, 4096, 1 << 20]),
    worth=st.sampled_from([1000, 1 << 24]),
)  # fmt: skip
def test_any_ranges_of_files_get_across(tmp_path_factory, ranges, link, buffer, worth):
    folder = tmp_path_factory.mktemp("files")
    for n in range(3):
        (folder / f"f{n}").write_bytes(os.urandom(15_000))
    values = {f"k{n}": Stored(folder / f"f{f}", o, s) for n, (f, o, s) in enumerate(ranges)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repack_copy, "_BUFFER", buffer)
        patch.setattr(repack_copy, "_WORTH", worth)
        root, found = carried(folder, values | {"kept": b"as it is"}, link=link)
    assert set(found.ways.values()) <= {"linked" if link else "copied"}
    if not link:
        distinct = {v for v in values.values() if v.length > INLINE}
        assert sum(p.stat().st_size for p in root.glob("d/*")) == sum(v.length for v in distinct)


def test_data_files_do_not_grow_without_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(repack_copy, "TARGET_DATA_FILE_SIZE", 5000)
    (tmp_path / "f").write_bytes(os.urandom(20_000))
    values = {str(n): Stored(tmp_path / "f", 2000 * n, 2000) for n in range(10)}
    root, _ = carried(tmp_path, values)
    assert sorted(p.stat().st_size for p in root.glob("d/*")) == [4000] * 5


@pytest.mark.parametrize("size", [None, 1500])
def test_a_source_that_changed_is_named(tmp_path, size):
    (tmp_path / "f").write_bytes(bytes(3000))
    value = Stored(tmp_path / "f", 100, 2000)
    if size is None:
        (tmp_path / "f").unlink()
    else:
        os.truncate(tmp_path / "f", size)
    with pytest.raises(DamagedCheckpoint, match="Was the source changed"):
        carried(tmp_path, {"k": value})


def test_a_file_system_that_shares_blocks_is_used(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def share(to, request, source):
        assert request == 0x40049409
        os.write(to, os.pread(source, 4 << 20, 0))
        return 0

    monkeypatch.setattr(fcntl, "ioctl", share)
    (tmp_path / "f").write_bytes(os.urandom(3 << 20))
    value = Stored(tmp_path / "f", 10, 5000)
    _, found = carried(tmp_path, {"k": value}, wanted={tmp_path / "f": 2 << 20})
    assert found.ways == {"k": "cloned"}
    _, found = carried(tmp_path, {"k": value}, wanted={tmp_path / "f": 5 << 18})
    assert found.ways == {"k": "copied"}  # less than half of it is wanted
    (tmp_path / "f").write_bytes(os.urandom(9000))
    _, found = carried(tmp_path, {"k": value}, wanted={tmp_path / "f": 9000})
    assert found.ways == {"k": "copied"}  # so little is not worth it


def test_a_link_that_is_not_possible_says_so(tmp_path, monkeypatch):
    def no_links(_source, _to):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    (tmp_path / "f").write_bytes(bytes(9000))
    with pytest.raises(WriteFailed, match="leave out link"):
        carried(tmp_path, {"k": Stored(tmp_path / "f", 0, 5000)}, link=True)
