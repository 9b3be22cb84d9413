"""What is read from msgpack files of flax, and what is refused."""

from __future__ import annotations

import json
import mmap
import random
import re
import tracemalloc
from pathlib import Path

import ml_dtypes
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legacy import flax_gda, msgpack_index
from legacy.errors import (
    CannotLook,
    CheckpointNotFound,
    DamagedCheckpoint,
    LegacyError,
    NotACheckpoint,
    UnsupportedCheckpoint,
)
from legacy.flax_msgpack import index_msgpack, open_msgpack
from legacy.leaves import FileRegion, Node, StoredArray
from legacy.msgpack_dtypes import resolve_dtype

GOLDENS = Path(__file__).parents[1] / "goldens"


def ext(code: int, *parts: object) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb(list(parts), use_bin_type=True))


def array(value: object, spelling: str | None = None, *, code: int = 1) -> msgpack.ExtType:
    """Encode an array as flax does; ``spelling`` replaces the name of its dtype."""
    value = np.asarray(value)
    return ext(code, list(value.shape), spelling or value.dtype.name, value.tobytes())


def numbered(*values: object) -> dict[str, object]:
    return {str(n): v for n, v in enumerate(values)}


def chunked(shape: tuple[int, ...], *chunks: object) -> dict[str, object]:
    return {
        "__msgpack_chunked_array__": True,
        "shape": numbered(*shape),
        "chunks": numbered(*chunks),
    }


def old_namedtuple(name: str, **fields: object) -> dict[str, object]:
    return {"name": name, "fields": numbered(*fields), "values": numbered(*fields.values())}


@pytest.fixture
def write(tmp_path):
    def write(value: object, name: str = "checkpoint_3") -> Path:
        file = tmp_path / name
        data = value if isinstance(value, bytes) else msgpack.packb(value, use_bin_type=True)
        file.write_bytes(data)
        return file

    return write


def equal(got, want) -> bool:
    """Bit-equal, with the same type, dtype and shape."""
    if isinstance(want, np.ndarray | np.generic):
        return (
            type(got) is type(want)
            and got.dtype == want.dtype
            and got.shape == want.shape
            and got.tobytes() == want.tobytes()
        )
    return type(got) is type(want) and repr(got) == repr(want)


# --- values

ODD = {
    "f32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bf16": np.arange(4).astype(ml_dtypes.bfloat16),
    "f8": np.arange(4).astype(ml_dtypes.float8_e4m3fn),
    "i4": np.arange(-2, 2).astype(ml_dtypes.int4),
    "bool": np.array([True, False]),
    "c64": np.array([1 + 2j], np.complex64),
    "0-d": np.array(3.5),
    "no values": np.zeros((0, 4), np.float16),
    "Fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "np scalar": np.float32(2.5),
    "bf16 scalar": ml_dtypes.bfloat16(2.5),
    "np bool": np.bool_(True),
    "int": 2**63,
    "negative": -(2**40),
    "float": 0.1,
    "complex": 1 - 2j,
    "yes": True,
    "text": "grüße/.. ",
    "bytes": b"\x00\xff",
    "none": None,
    "a/b": {"": {"..": 1}},
}


def test_values_of_every_kind_written_by_todays_flax_are_read_bit_equal(write):
    serialization = pytest.importorskip("flax.serialization")
    table, found = open_msgpack(write(serialization.to_bytes(ODD)))
    assert {p[0] for p in table} == set(ODD)
    for name, want in ODD.items():
        if not isinstance(want, dict):
            assert equal(table[name,].read(), want), name
    assert table["a/b", "", ".."].read() == 1
    kinds = {p[0]: leaf.kind for p, leaf in table.items()}
    assert kinds["f32"] == kinds["0-d"] == "array"
    assert kinds["np scalar"] == kinds["np bool"] == "scalar"
    assert kinds["int"] == kinds["complex"] == "number"
    assert [kinds[k] for k in ("yes", "text", "bytes", "none")] == ["bool", "str", "bytes", "none"]
    assert (found.name, found.layout, found.era) == (
        "flax-msgpack",
        "msgpack",
        "flax 0.3.0 or newer",
    )


def test_storage_of_an_array_is_where_its_bytes_lie(write):
    file = write({"x": 1, "k": array(np.arange(5, dtype=np.int16))})
    at = open_msgpack(file)[0]["k",].storage
    assert isinstance(at, FileRegion)
    found = at.file.read_bytes()[at.offset : at.offset + at.nbytes]
    assert found == np.arange(5, dtype=np.int16).tobytes()


def test_arrays_are_read_only_and_blocks_are_read_by_index(write):
    want = np.arange(12.0).reshape(3, 4)
    leaf = open_msgpack(write({"k": array(want)}))[0]["k",]
    assert not leaf.read().flags.writeable
    assert equal(leaf.read((slice(1, 3), slice(0, 2))), want[1:3, 0:2])


def test_the_map_outlives_table_and_file(write):
    file = write({"k": array(np.arange(4))})
    view = open_msgpack(file)[0]["k",].read()
    file.unlink()
    assert view.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("root", [np.arange(3), np.float32(1)])
def test_a_bare_array_is_one_leaf_at_the_root(write, root):
    table, _ = open_msgpack(write(array(root, code=3 if isinstance(root, np.generic) else 1)))
    assert equal(table[()].read(), root)


def test_dtype_codes_of_the_oldest_files_are_read(write):
    halves = np.array([1.5, -2]).astype(ml_dtypes.bfloat16)
    big = np.array([[1.5, 2.5]], ">f4")
    table, found = open_msgpack(
        write(
            {
                "f4": array(np.float32([1]), "<f4"),
                "b1": array([True], "|b1"),
                "bf": array(halves, "<V2"),
                "big": array(big, ">f4"),
            }
        )
    )
    assert equal(table["bf",].read(), halves)
    assert "<V2" in table["bf",].notes[0]
    assert equal(table["big",].read(), big.astype("=f4"))
    assert table["big",].storage is None
    assert equal(table["big",].read((slice(0, 1), slice(1, 2))), np.float32([[2.5]]))
    assert table["f4",].storage is not None
    assert found.era == "flax 0.2.2 or older"
    assert found.evidence == ("dtypes are codes: <V2, <f4, >f4, |b1",)


def test_text_and_time_arrays_that_todays_flax_cannot_read_are_read(write):
    words = np.array(["ab", "ü"])
    times = np.array(["2020-01-01"], "M8[D]")
    values = {"u": words, "s": np.array([b"abc"]), "t": times}
    table, _ = open_msgpack(write({k: array(v) for k, v in values.items()}))
    for name, want in values.items():
        assert equal(table[name,].read(), want), name
    scalar, _ = open_msgpack(write({"u": array(np.str_("ab"), code=3)}))
    assert scalar["u",].read() == "ab"


def test_keys_that_are_integers_become_text(write):
    assert list(open_msgpack(write({1: {-2: 5}}))[0]) == [("1", "-2")]


def test_empty_containers_are_leaves(write):
    table, found = open_msgpack(write({"a": {}, "b": []}))
    assert [(v.kind, v.container) for v in table.values()] == [("empty", "dict"), ("empty", "list")]
    assert "EmptyState" in table["a",].notes[0]
    assert found.era == "any release of flax"
    assert open_msgpack(write({}))[0][()].kind == "empty"


def test_numbered_dicts_are_not_called_lists_but_lists_are(write):
    table, found = open_msgpack(write({"l": [1, [2]], "d": numbered(1, 2)}))
    assert dict(table.nodes) == {("l",): Node("list"), ("l", "1"): Node("list")}
    assert "lists are stored as lists" in found.evidence[0]


def test_orbax_tuples_and_placeholders_are_seen_in_its_index(write):
    inner = msgpack.packb([1, ext(2, 1.0, 2.0), []])
    file = write(
        {"t": msgpack.ExtType(4, inner), "e": msgpack.ExtType(4, b"\x90"), "p": "PLACEHOLDER://p"}
    )
    leaves, nodes = index_msgpack(file)
    assert {v.path: v.read() for v in leaves if v.kind != "empty"} == {
        ("t", "0"): 1,
        ("t", "1"): 1 + 2j,
        ("p",): "PLACEHOLDER://p",
    }
    assert nodes == {("t",): Node("tuple")}
    assert {v.path: v.container for v in leaves if v.kind == "empty"} == {
        ("e",): "tuple",
        ("t", "2"): "list",
    }


# --- namedtuples of flax <= 0.3.4


def test_old_namedtuples_become_their_fields(write):
    state = old_namedtuple("ScaleByAdamState", count=1, mu={"w": 2}, nu={})
    table, found = open_msgpack(write({"0": state, "1": old_namedtuple("EmptyState")}))
    assert {p: v.read() for p, v in table.items() if v.kind == "number"} == {
        ("0", "count"): 1,
        ("0", "mu", "w"): 2,
    }
    assert dict(table.nodes) == {("0",): Node("namedtuple", "ScaleByAdamState")}
    assert (table["1",].kind, table["1",].container) == ("empty", "EmptyState")
    assert table["0", "nu"].container == "dict"
    assert found.era == "flax 0.3.4 or older"


@pytest.mark.parametrize(
    "user",
    [
        {"name": 1, "fields": {}, "values": {}},
        {"name": "my run", "fields": {}, "values": {}},
        {"name": "a", "fields": {"0": "x"}, "values": {"0": 1, "1": 2}},
        {"name": "a", "fields": {"x": "x"}, "values": {"x": 1}},
        {"name": "a", "fields": {"0": 1}, "values": {"0": 1}},
        {"name": "a", "fields": {"0": "x", "1": "x"}, "values": {"0": 1, "1": 2}},
        {"name": "a", "fields": ["x"], "values": [1]},
        {"name": "a", "fields": {"0": "x"}, "values": {"0": 1}, "more": 1},
    ],
)
def test_a_users_dict_with_such_keys_stays_a_dict(write, user):
    table, _ = open_msgpack(write({"u": user}))
    assert "namedtuple" not in {node.container for node in table.nodes.values()}
    assert table["u", "name"].read() == user["name"]


def test_orbax_never_wrote_old_namedtuples(write):
    leaves, nodes = index_msgpack(write({"u": old_namedtuple("State", x=1)}))
    assert not nodes
    assert ("u", "fields", "0") in [leaf.path for leaf in leaves]


@pytest.mark.parametrize("content", ["bundle", "cnn_state"])
def test_the_golden_of_flax_034_has_named_nodes(content):
    file = GOLDENS / "flax034" / f"{content}-flax_msgpack" / "checkpoint_3"
    if not file.exists():
        pytest.skip(f"no golden {file}")
    table, found = open_msgpack(file)
    names = {node.name for node in table.nodes.values()}
    assert "ScaleByAdamState" in names
    assert not any("fields" in path for path in table)
    assert found.era == "flax 0.3.0 to 0.3.4"


# --- arrays in chunks


@pytest.mark.parametrize("index", [None, (slice(1, 4),), (slice(2, 3),), (slice(3, 3),)])
@pytest.mark.parametrize("spelling", ["int32", ">i4"])
def test_chunks_are_joined(write, index, spelling):
    want = np.arange(10, dtype=np.int32).reshape(5, 2)
    flat = want.reshape(-1).astype(">i4" if spelling == ">i4" else "<i4")
    parts = [array(flat[n : n + 3], spelling) for n in range(0, 10, 3)]
    file = write({"k": chunked((5, 2), *parts)})
    leaf = open_msgpack(file)[0]["k",]
    assert (leaf.shape, leaf.dtype, leaf.nbytes, leaf.storage) == ((5, 2), np.int32, 40, None)
    if index is None:
        assert equal(leaf.read(), want)
    else:
        index = (*index, slice(0, 1))
        assert equal(leaf.read(index), want[index])


def test_one_chunk_is_not_copied_and_notes_are_kept(write):
    halves = np.arange(4).astype(ml_dtypes.bfloat16)
    table, found = open_msgpack(write(chunked((2, 2), array(halves, "<V2"))))
    leaf = table[()]
    assert equal(leaf.read(), halves.reshape(2, 2))
    assert not leaf.read().flags.owndata
    assert leaf.notes
    assert found.era == "marks of several eras"


def test_chunks_of_todays_flax_are_read(write, monkeypatch):
    serialization = pytest.importorskip("flax.serialization")
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 64)
    want = np.arange(100.0).reshape(4, 25)
    table, found = open_msgpack(write(serialization.to_bytes({"a": {"k": want}})))
    assert equal(table["a", "k"].read(), want)
    assert found.evidence[0] == "arrays are cut into chunks, first at a/k"


BAD_CHUNKS = {
    "the keys are": chunked((1,), array(np.ones(1))) | {"x": 1},
    "expected": chunked((1,), array(np.ones(1))) | {"__msgpack_chunked_array__": False},
    "no sequence of sizes": chunked((-1,), array(np.ones(1))),
    "the shape is no sequence": chunked((1,), array(np.ones(1))) | {"shape": [1]},
    "no sequence of one-dimensional": chunked((1,), array(np.ones((1, 1)))),
    "the chunks are no": chunked((0,)),
    "different dtypes": chunked((2,), array(np.ones(1)), array(np.ones(1, int))),
    "does not fit the 1 values": chunked((3,), array(np.ones(1))),
    "does not fit the 0 values": chunked((0, 2**63), array(np.ones(0))),
}


@pytest.mark.parametrize("message", BAD_CHUNKS)
def test_chunks_that_do_not_fit_are_refused(write, message):
    with pytest.raises(DamagedCheckpoint, match=f"leaf k: an array in chunks of which .*{message}"):
        open_msgpack(write({"k": BAD_CHUNKS[message]}))


# --- _gda folders


def read_all(file):
    table, _ = open_msgpack(file)
    return {path: leaf.read() for path, leaf in table.items()}


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [
        (ext(1, (3,), "float32", b"\0" * 8), DamagedCheckpoint, "cannot have 8 bytes"),
        (ext(1, (1,), "quarternion", b"\0" * 8), UnsupportedCheckpoint, "dtype b'quarternion'"),
        (ext(1, (1,), "float32"), DamagedCheckpoint, "stored as"),
        (msgpack.ExtType(1, b""), DamagedCheckpoint, "leaf bad"),
        (ext(2, 1.0), DamagedCheckpoint, "two parts"),
        (msgpack.ExtType(9, b"abc"), UnsupportedCheckpoint, "extension type 9"),
        (
            {"__msgpack_chunked_array__": True, "shape": {"0": 1}, "chunks": {}},
            DamagedCheckpoint,
            "no sequence of one-dim",
        ),
    ],
)
def test_a_damaged_leaf_is_listed_and_does_not_stop_the_others(write, value, kind, said):
    good = ext(1, (2,), "float32", np.float32([1, 2]).tobytes())
    table, _ = open_msgpack(write({"a": good, "bad": value, "z": {"n": 3}}))

    assert table["a",].read().tolist() == [1, 2]
    assert table["z", "n"].read() == 3
    bad = table["bad",]
    assert (bad.kind, bad.shape, bad.dtype) == ("unreadable", (), None)
    assert re.search(re.escape(said), bad.problem or "")
    with pytest.raises(kind, match=re.escape(said)) as error:
        bad.read()
    assert error.value.leaf == ("bad",)


def test_a_file_without_one_readable_leaf_is_refused(write):
    file = write({"a": msgpack.ExtType(9, b"abc"), "b": msgpack.ExtType(1, b""), "c": None})
    with pytest.raises(UnsupportedCheckpoint, match="2 leaves cannot be read") as error:
        open_msgpack(file)
    assert len(error.value.problems) == 2


@pytest.fixture
def gda(write):
    """A checkpoint with one array beside it, and its folder."""
    ts = pytest.importorskip("tensorstore")

    def make(value: np.ndarray, placeholder: str = "a/b", dtype: str = "<f4") -> tuple[Path, Path]:
        file = write({"a": {"b": f"//GDAPlaceholder:{placeholder}"}, "n": 1})
        folder = file.with_name("checkpoint_3_gda") / placeholder
        spec = {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": f"{folder}/"},
            "metadata": {"shape": value.shape, "chunks": [2], "dtype": dtype, "fill_value": None},
        }
        ts.open(spec, create=True).result().write(value).result()
        return file, folder

    return make


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_arrays_of_several_processes_are_read_without_devices(gda, dtype):
    want = np.arange(5).astype(dtype)
    file, _ = gda(want, dtype="<f4" if dtype is np.float32 else "bfloat16")
    table, found = open_msgpack(file)
    leaf = table["a", "b"]
    assert (leaf.kind, leaf.shape, leaf.dtype, leaf.chunks) == ("array", (5,), dtype, (2,))
    assert equal(leaf.read(), want)
    assert equal(leaf.read((slice(1, 9),)), want[1:])
    root = file.with_name("checkpoint_3_gda")
    assert leaf.storage == StoredArray("zarr", root, ocdbt=False, key="a/b")
    assert found.layout == "msgpack+gda"
    assert found.era == "flax 0.6.0 or newer, several processes"


def test_a_root_placeholder_names_the_folder_itself(gda):
    file, _ = gda(np.float32([1, 2]), "")
    assert open_msgpack(file)[0]["a", "b"].read().tolist() == [1, 2]


def test_a_missing_chunk_is_damage_and_never_zeros(gda):
    file, folder = gda(np.arange(4, dtype=np.float32))
    (folder / "1").unlink()
    leaf = open_msgpack(file)[0]["a", "b"]
    with pytest.raises(DamagedCheckpoint, match=r"leaf a/b: .* its chunk '1' is missing"):
        leaf.read()


def test_a_missing_folder_is_named(write):
    file = write({"a": "//GDAPlaceholder:a"})
    with pytest.raises(UnsupportedCheckpoint, match=r"leaf a: .*put the folder checkpoint_3_gda"):
        open_msgpack(file)


def test_all_missing_arrays_are_named_at_once(write):
    file = write({"a": "//GDAPlaceholder:a", "b": "//GDAPlaceholder:b"})
    with pytest.raises(UnsupportedCheckpoint, match="2 leaves cannot be read") as caught:
        open_msgpack(file)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("name", ["../x", "/etc", "a/../../b", "a\\b", "a//b", "a\0b"])
def test_names_that_leave_the_folder_are_refused(write, name):
    with pytest.raises(UnsupportedCheckpoint, match="leads out of the folder"):
        open_msgpack(write({"a": f"//GDAPlaceholder:{name}"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"zarr_format": "2"}, "zarr_format should be int"),
        ({"chunks": []}, "chunks has 0 axes and shape has 1"),
        ({"shape": [-1]}, "which no array can have"),
        ({"shape": 1}, "shape should be list"),
    ],
)
def test_a_description_that_is_none_is_damage(gda, change, message):
    file, folder = gda(np.float32([1]))
    about = folder / ".zarray"
    about.write_text(json.dumps(json.loads(about.read_text()) | change))
    with pytest.raises(DamagedCheckpoint, match=rf"leaf a/b: .*\.zarray: .*{message}"):
        read_all(file)
    about.write_text("[" * 100_000)
    with pytest.raises(DamagedCheckpoint, match=r"leaf a/b: .*nested too deeply"):
        read_all(file)


@pytest.mark.parametrize("dtype", ["|O", [["f", "<f4"]], "<U3"])
def test_an_unknown_dtype_beside_the_file_is_refused(gda, dtype):
    file, folder = gda(np.float32([1]))
    about = folder / ".zarray"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"dtype": dtype}))
    with pytest.raises(UnsupportedCheckpoint, match=r"leaf a/b: .*dtype is .*never wrote"):
        read_all(file)


def test_only_placeholders_are_placeholders():
    assert not flax_gda.is_gda_placeholder(3)
    assert not flax_gda.is_gda_placeholder("GDAPlaceholder:")


# --- other people's files


def test_t5x_specs_are_not_taken_for_the_tree(write):
    def spec(path: str) -> dict[str, object]:
        return {"driver": "zarr", "kvstore": {"driver": "gfile", "path": path}, "dtype": "float32"}

    file = write({"optimizer": {"bias": spec("bias/")}})
    message = r"leaf optimizer/bias: .*TensorStore spec .*'bias/'.*load_t5x_checkpoint"
    for read in (open_msgpack, index_msgpack):
        with pytest.raises(UnsupportedCheckpoint, match=message):
            read(file)


@pytest.mark.parametrize("beside", ["a.b", "manifest.ocdbt", "_METADATA"])
def test_the_index_of_an_orbax_folder_is_no_checkpoint(write, tmp_path, beside):
    file = write({"a": {"b": "PLACEHOLDER://a.b"}}, "checkpoint")
    (tmp_path / beside).mkdir()
    with pytest.raises(UnsupportedCheckpoint, match=r"leaf a/b: .*Give the folder"):
        open_msgpack(file)


@pytest.mark.parametrize("text", ["PLACEHOLDER://a.b", "PLACEHOLDER://" + "x" * 5000])
def test_without_a_store_such_a_string_is_a_string_with_a_note(write, text):
    leaf = open_msgpack(write({"a": text}))[0]["a",]
    assert leaf.read() == text
    assert "Orbax" in leaf.notes[0]


def test_what_is_no_file_is_said(tmp_path, write, monkeypatch):
    with pytest.raises(CheckpointNotFound, match="there is no such file"):
        open_msgpack(tmp_path / "nothing")
    with pytest.raises(NotACheckpoint, match="not a regular file"):
        open_msgpack(tmp_path)
    with pytest.raises(NotACheckpoint, match="is empty"):
        open_msgpack(write(b""))
    with pytest.raises(NotACheckpoint, match="holds a single int"):
        open_msgpack(write(b"\x07"))

    def refuse(*_args: object, **_keywords: object) -> None:
        raise PermissionError(13, "Permission denied")

    file = write({})
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CannotLook, match="could not be read: Permission denied"):
        open_msgpack(file)


# --- damage


def packed(value: object) -> bytes:
    return msgpack.packb(value, use_bin_type=True)


ONES = np.ones(2, np.float32).tobytes()
DAMAGED = {
    "2 more bytes follow": packed({"a": 1}) + b"\x00\x00",
    "a tuple should end at byte 7": b"\x81\xa1a\xd5\x04\x90\xc0",
    "the key 'a' occurs twice": b"\x82\xa1a\x01\xa1a\x02",
    r"the key '0' occurs twice in one map \(integer keys": b"\x82\x00\x01\xa10\x02",
    "the unused byte 0xc1 is no msgpack": b"\x81\xa1a\xc1",
    "at byte 4, leaf a: a string is not UTF-8": b"\x81\xa1a\xa1\xff",
    "a map of 4294967295 entries": b"\x81\xa1a\xdf\xff\xff\xff\xff",
    "a list of 65535 entries": b"\x81\xa1a\xdc\xff\xff",
    "a string of 5 bytes": b"\x81\xa1a\xa5b",
    "a bytes value of 255 bytes": b"\x81\xa1a\xc4\xff",
    "an extension value of 16 bytes": b"\x81\xa1a\xd8\x01",
    "leaf a: the next value does not fit": b"\x81\xa1a",
    "a complex number should have two parts": packed({"a": ext(2, 1.0)}),
    "a part of a complex number should have msgpack type": packed({"a": ext(2, 1.0, "b")}),
    "a complex number should end": packed({"a": msgpack.ExtType(2, packed([1.0, 2.0]) + b"\x00")}),
    r"stored as \(shape, dtype, bytes\)": packed({"a": ext(1, [2], "float32")}),
    "the shape of an array should": packed({"a": ext(1, 2, "float32", ONES)}),
    "the data of an array should": packed({"a": ext(1, [2], "float32", [1, 2])}),
    "an array has 65 axes": packed({"a": ext(1, [1] * 65, "float32", ONES[:4])}),
    "the array should end at byte": packed(
        {"a": msgpack.ExtType(1, packed([[2], "float32", ONES]) + b"\x00")}
    ),
    r"leaf a/b: an array of shape \(3,\) and dtype float32 cannot have 8 bytes": packed(
        {"a": {"b": ext(1, [3], "float32", ONES)}}
    ),
    r"shape \(-2,\)": packed({"a": ext(1, [-2], "float32", ONES)}),
    rf"shape \(0, {2**63}\)": packed({"a": ext(1, [0, 2**63], "float32", b"")}),
    rf"shape \(0, {2**62}\)": packed({"a": ext(1, [0, 2**62], "float32", b"")}),
    r"a numpy scalar has shape \(2,\)": packed({"a": ext(3, [2], "float32", ONES)}),
    "the dtype of an array is no string": packed({"a": ext(1, [2], 5, ONES)}),
}


@pytest.mark.parametrize("message", DAMAGED)
def test_damage_is_named_with_its_place(write, message):
    file = write(DAMAGED[message])
    with pytest.raises(DamagedCheckpoint, match=message) as caught:
        open_msgpack(file)
    assert caught.value.path == file
    assert caught.value.offset is not None
    assert "at byte" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": msgpack.ExtType(9, b"x")}, "leaf a: unsupported: the msgpack extension type 9;"),
        ({"a": msgpack.Timestamp(5)}, "extension type -1;"),
        ({b"a": 1}, "a map key is of msgpack type 'bin'"),
        ({None: 1}, "a map key is of msgpack type 'nil'"),
        (
            {"a": array(np.zeros(2, np.int8), "|V1")},
            "leaf a: unsupported: an array of dtype b'|V1'",
        ),
        ({"a": array(np.zeros(2), "object")}, "an array of dtype b'object'"),
        ({"a": array(np.zeros(2), "|O8")}, "an array of dtype"),
        ({"a": array(np.zeros(2), "void64")}, "an array of dtype"),
        ({"a": array(np.zeros(2), "str7")}, "an array of dtype"),
        ({"a": array(np.zeros(2), "<i3")}, "an array of dtype"),
        ({"a": array(np.zeros(2), "<U999999999")}, "an array of dtype"),
        ({"a": array(np.zeros(2), "|S0")}, "an array of dtype"),
    ],
)
def test_what_no_release_writes_is_refused(write, value, message):
    with pytest.raises(UnsupportedCheckpoint, match=message.replace("|", r"\|")):
        open_msgpack(write(value))


def test_text_that_is_no_text_is_damage_when_read(write):
    bad = b"\xff\xff\xff\xff"
    values = {
        "a": ext(3, [], "str32", bad),
        "b": ext(1, [1], "str32", bad),
        "c": chunked((1,), ext(1, [1], "<U1", bad)),
    }
    table, _ = open_msgpack(write(values))
    for leaf in table.values():
        with pytest.raises(DamagedCheckpoint, match=r"leaf [abc]: a text .* is no character"):
            leaf.read()


def test_nesting_is_bounded(write):
    deep = b"\x81\xa1a" * 500 + b"\x01"
    (path,) = open_msgpack(write(deep))[0]
    assert len(path) == 500
    for bomb in (b"\x81\xa1a" * 100_000 + b"\x01", b"\x91" * 100_000 + b"\x01"):
        with pytest.raises(UnsupportedCheckpoint, match="nested deeper than 512 levels"):
            open_msgpack(write(bomb))


def test_the_number_of_values_is_bounded(write, monkeypatch):
    monkeypatch.setattr(msgpack_index, "MAX_VALUES", 10)
    with pytest.raises(UnsupportedCheckpoint, match="more than 10 values"):
        open_msgpack(write({"a": [0] * 11}))


def small_file() -> bytes:
    return packed(
        {
            "params": {"k": array(np.arange(6, dtype=np.float32).reshape(2, 3))},
            "opt": {"0": old_namedtuple("State", count=array(np.int32(3), code=3), mu={})},
            "big": chunked((3,), array(np.ones(2)), array(np.ones(1))),
            "more": {"z": 1 << 40, "t": "text", "f": 0.5, "l": [1, None, True], "b": b"xy"},
            "c": ext(2, 1.0, 2.0),
            "u": array(np.str_("ab"), code=3),
        }
    )


def test_a_file_cut_anywhere_is_refused(write):
    whole = small_file()
    for n in range(len(whole)):
        with pytest.raises((DamagedCheckpoint, NotACheckpoint)):
            open_msgpack(write(whole[:n]))


def test_changed_bytes_raise_nothing_but_our_errors(write):
    whole = small_file()
    dice = random.Random(0)  # noqa: S311
    for n in range(3000):
        damaged = bytearray(whole)
        if n < len(whole):
            damaged[n] ^= 1 << dice.randrange(8)
        else:
            for _ in range(dice.randrange(1, 4)):
                damaged[dice.randrange(len(whole))] = dice.randrange(256)
        try:
            table, _ = open_msgpack(write(bytes(damaged)))
            for leaf in table.values():
                leaf.read()
        except LegacyError:
            pass


@settings(max_examples=300, deadline=None)
@given(data=st.binary(min_size=1, max_size=60))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "any"
    file.write_bytes(data)
    try:
        for leaf in open_msgpack(file)[0].values():
            leaf.read()
    except LegacyError:
        pass


# --- properties

KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6).filter(
    lambda k: k != "__msgpack_chunked_array__"
)
DTYPES = st.sampled_from(["float32", "int8", "bool", "uint16", "complex64", "bfloat16", "int4"])
ARRAYS = st.builds(
    lambda shape, name, seed: (
        np.random.default_rng(seed).integers(0, 2, shape).astype(resolve_dtype(name).dtype)
    ),
    st.lists(st.integers(0, 3), max_size=3),
    DTYPES,
    st.integers(0, 99),
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.complex_numbers()
    | KEYS
    | st.binary(max_size=5)
    | st.floats(width=32).map(np.float32)
)
TREES = st.dictionaries(
    KEYS,
    st.recursive(ARRAYS | SCALARS, lambda t: st.dictionaries(KEYS, t, max_size=4), max_leaves=12),
    max_size=4,
)


def flattened(tree, path=()):
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from flattened(value, (*path, key))
    else:
        yield path, tree


@settings(max_examples=150, deadline=None)
@given(tree=TREES)
def test_whatever_flax_serializes_is_read_bit_equal(tmp_path_factory, tree):
    serialization = pytest.importorskip("flax.serialization")
    file = tmp_path_factory.getbasetemp() / "tree"
    file.write_bytes(serialization.msgpack_serialize(tree))
    table, _ = open_msgpack(file)
    want = dict(flattened(tree))
    assert set(table) == set(want)
    for path, value in want.items():
        if isinstance(value, dict):
            assert table[path].kind == "empty"
        else:
            assert equal(table[path].read(), value)


# --- cost


def test_indexing_reads_no_byte_of_an_array(write, monkeypatch):
    touched: list[tuple[int, int]] = []

    class Spy(mmap.mmap):
        def __getitem__(self, at):
            first, end = (at.start, at.stop) if isinstance(at, slice) else (at, at + 1)
            touched.append((first, end))
            return super().__getitem__(at)

    monkeypatch.setattr(msgpack_index.mmap, "mmap", Spy)
    table, _ = open_msgpack(write({str(n): array(np.arange(50.0)) for n in range(20)}))
    assert touched
    for leaf in table.values():
        at = leaf.storage
        assert not any(a < at.offset + at.nbytes and b > at.offset for a, b in touched)


def anonymous_kb() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs /proc")
    (line,) = [row for row in status.read_text().splitlines() if row.startswith("RssAnon")]
    return int(line.split()[1])


def test_neither_indexing_nor_views_take_memory(tmp_path):
    nbytes = 1 << 26
    head = packed([[nbytes // 4], "float32"])[: -0 or None]
    inner = b"\x93" + head[1:] + b"\xc6" + nbytes.to_bytes(4, "big")
    file = tmp_path / "big"
    with file.open("wb") as out:
        out.write(b"\x81\xa1k\xc9" + (len(inner) + nbytes).to_bytes(4, "big") + b"\x01" + inner)
        out.truncate(out.tell() + nbytes)
    before = anonymous_kb()
    tracemalloc.start()
    table, _ = open_msgpack(file)
    total = float(table["k",].read().sum())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 0
    assert peak < 1_000_000
    assert anonymous_kb() - before < 16_000


def test_a_float8_of_the_first_ml_dtypes_reads_under_its_present_name(write):
    data = np.arange(256, dtype=np.uint8)
    table, _ = open_msgpack(write({"a": ext(1, (256,), "float8_e4m3b11", data.tobytes())}))
    leaf = table["a",]
    assert leaf.dtype == np.dtype(ml_dtypes.float8_e4m3b11fnuz)
    assert leaf.read().view(np.uint8).tolist() == data.tolist()
    assert leaf.notes


@pytest.mark.parametrize(
    ("spelling", "said"), [("int16", True), ("int8", False), ("bfloat16", False), ("<i2", False)]
)
def test_a_leaf_says_that_the_name_of_its_dtype_has_no_byte_order(write, spelling, said):
    nbytes = 1 if spelling == "int8" else 2
    table, _ = open_msgpack(write({"a": ext(1, (1,), spelling, b"\0\1"[:nbytes])}))
    assert any("byte order" in note for note in table["a",].notes) is said
