"""Files made to do harm: sizes that are lies, names that lead out, pipes, bombs, code.

The right answers are a ``LegacyError`` or the values that are there. Nothing is executed, nothing
outside the folder is opened, nothing waits for a pipe, and memory stays within what the leaf says.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import msgpack
import pytest

import legacy
from legacy import DamagedCheckpoint, LegacyError, UnsupportedCheckpoint

ROOT = Path(__file__).parents[2]
DATABASE = ROOT / "tests" / "goldens" / "latest" / "boxed-ptc" / "ckpt"
ARRAY = {
    "zarr_format": 2,
    "shape": [2],
    "chunks": [2],
    "dtype": "<i4",
    "compressor": None,
    "fill_value": None,
    "filters": None,
    "order": "C",
    "dimension_separator": ".",
}
TWO = struct.pack("<2i", 1, 2)
MEMORY = 1 << 32
"""Address space for readers of bombs. Libraries and threads take most of it."""

OUTSIDE = ["../secret", "..", "a/../../secret", "/secret", "a\\..\\..\\secret", "a\0b", "\0"]


def write_array(folder, chunk=TWO, **changes):
    folder.mkdir(parents=True)
    (folder / ".zarray").write_text(json.dumps(ARRAY | changes))
    (folder / "0").write_bytes(chunk)
    return folder


def entry(*path, kind="np.ndarray"):
    keys = [{"key": name, "key_type": 2} for name in path]
    return {"key_metadata": keys, "value_metadata": {"value_type": kind}}


def write_index(folder, *entries):
    folder.mkdir(parents=True, exist_ok=True)
    rows = {str(n): row for n, row in enumerate(entries)}
    (folder / "_METADATA").write_text(json.dumps({"tree_metadata": rows}))


@pytest.fixture
def tree(tmp_path):
    """A folder with one good array, to which harm is done."""
    write_array(tmp_path / "ckpt" / "good")
    return tmp_path / "ckpt"


def write_file(tmp_path, data):
    file = tmp_path / "checkpoint_1"
    file.write_bytes(data)
    return file


def refused(path):
    """The error of opening it."""
    with pytest.raises(LegacyError) as caught:
        legacy.open(path)
    return caught.value


def answers(path):
    """Values by path; for a leaf that cannot be read the class of its error."""
    found = {}
    for where, leaf in legacy.open(path).leaves.items():
        try:
            value = leaf.read()
            found["/".join(where)] = value.tolist() if hasattr(value, "tolist") else value
        except LegacyError as error:
            found["/".join(where)] = type(error)
    return found


def in_a_process(code, *args, memory=MEMORY):
    """Run code under a limit of memory and time; what it printed."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))\n"
    done = subprocess.run(
        [sys.executable, "-c", limit + code, *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


READ = """
import sys, json, legacy
for path in sys.argv[1:]:
    found = {}
    try:
        for where, leaf in legacy.open(path).leaves.items():
            try:
                value = leaf.read()
                found["/".join(where)] = value.tolist() if hasattr(value, "tolist") else value
            except legacy.LegacyError as error:
                found["/".join(where)] = type(error).__name__
    except legacy.LegacyError as error:
        found = type(error).__name__
    print(json.dumps(found))
"""


def answers_in_a_process(*paths):
    """What the paths say, each opened in one process that may not take much memory."""
    return [json.loads(line) for line in in_a_process(READ, *paths)]


# --- sizes that are lies

TOO_LONG = {
    "map32": b"\xdf\xff\xff\xff\xff",
    "array32": b"\x81\xa1a\xdd\xff\xff\xff\xff",
    "str32": b"\x81\xa1a\xdb\xff\xff\xff\xff",
    "bin32": b"\x81\xa1a\xc6\xff\xff\xff\xff",
    "ext32": b"\x81\xa1a\xc9\xff\xff\xff\xff\x01",
    "key": b"\x81\xdb\xff\xff\xff\xffa",
    "map16": b"\xde\xff\xff\xa1a\x01",
    "tuple in an ext": b"\x81\xa1a\xc7\x05\x04\xdd\xff\xff\xff\xff",
}


@pytest.mark.parametrize("what", TOO_LONG)
def test_a_length_beyond_the_file_is_damage(what, tmp_path):
    assert isinstance(refused(write_file(tmp_path, TOO_LONG[what])), DamagedCheckpoint)


def test_a_length_beyond_the_file_takes_no_memory(tmp_path):
    files = [tmp_path / f"{n}.msgpack" for n in range(len(TOO_LONG))]
    for file, data in zip(files, TOO_LONG.values(), strict=True):
        file.write_bytes(data)
    assert answers_in_a_process(*files) == ["DamagedCheckpoint"] * len(files)


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ((2**40,), b"\0"),
        ((2**32, 2**32), b""),
        ((2**62, 4), b""),
        ((0, 2**63), b""),
        ((-1,), b"\0"),
    ],
    ids=str,
)
def test_a_shape_that_its_bytes_do_not_have_is_damage(shape, data, tmp_path):
    array = msgpack.ExtType(1, msgpack.packb((shape, "int8", data)))
    file = write_file(tmp_path, msgpack.packb({"a": array, "good": 1}))
    assert answers(file) == {"a": DamagedCheckpoint, "good": 1}


@pytest.mark.parametrize("opener", [b"\x91", b"\x81\xa1a", b"\xc7\xff\x04\x91"])
def test_a_million_containers_in_each_other_are_refused(opener, tmp_path):
    file = write_file(tmp_path, b"\x81\xa1a" + opener * (1 << 20))
    assert isinstance(refused(file), (DamagedCheckpoint, UnsupportedCheckpoint))


def test_many_empty_values_are_refused_before_they_take_memory(tmp_path):
    count = 1 << 23
    file = write_file(tmp_path, b"\x81\xa1a\xdd" + struct.pack(">I", count) + b"\xc0" * count)
    assert answers_in_a_process(file) == ["UnsupportedCheckpoint"]


@pytest.mark.parametrize("opener", ["[", '{"a":', '{"tree_metadata":{"a":'])
def test_json_in_json_a_million_times_is_refused(opener, tree):
    (tree / "_METADATA").write_text(opener * (1 << 20))
    assert "nested too deeply" in str(refused(tree))


@pytest.mark.parametrize("digits", [400, 10_000])
def test_an_integer_of_thousands_of_digits_is_damage(digits, tree):
    text = json.dumps(ARRAY).replace('"shape": [2]', f'"shape": [{"1" * digits}]')
    (write_array(tree / "bad") / ".zarray").write_text(text)
    assert answers(tree) == {"bad": DamagedCheckpoint, "good": [1, 2]}


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "2.0", "true", "-1"])
def test_what_is_no_size_is_damage(number, tree):
    text = json.dumps(ARRAY).replace('"shape": [2]', f'"shape": [{number}]')
    (write_array(tree / "bad") / ".zarray").write_text(text)
    assert answers(tree) == {"bad": DamagedCheckpoint, "good": [1, 2]}


LIES = (
    {"shape": [1 << 45], "chunks": [1 << 45]},
    {"shape": [1 << 32], "chunks": [1 << 32]},
    {"shape": [1 << 32], "fill_value": 0},
    {"chunks": [1 << 32]},
    {"chunks": [1 << 32], "fill_value": 0},
    {"shape": [1 << 20] * 4, "chunks": [1] * 4},
)


def test_an_array_that_asks_for_all_memory_is_refused_and_the_others_are_read(tree):
    for n, lie in enumerate(LIES):
        write_array(tree / f"bad{n}", **lie)
    (found,) = answers_in_a_process(tree)
    assert found.pop("good") == [1, 2]
    assert len(found) == len(LIES)
    assert set(found.values()) == {"DamagedCheckpoint", "UnsupportedCheckpoint"}


def rle_frame(nbytes):
    """A zstd frame that says ``nbytes`` zeros in blocks of four bytes."""
    count = nbytes >> 17
    heads = [(n == count - 1) | 1 << 1 | 1 << 20 for n in range(count)]
    return b"\x28\xb5\x2f\xfd\x00\x58" + b"".join(h.to_bytes(3, "little") + b"\0" for h in heads)


def gzip_frame(nbytes):
    pack = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = bytes(1 << 24)
    return b"".join([*(pack.compress(block) for _ in range(nbytes >> 24)), pack.flush()])


BOMBS = {"zstd": rle_frame(8 << 30), "gzip": gzip_frame(1 << 29)}


def write_zarr3(folder, codec, chunk):
    (folder / "c").mkdir(parents=True)
    settings = {"level": 1} | ({"checksum": False} if codec == "zstd" else {})
    about = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [2],
        "data_type": "int32",
        "fill_value": 0,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2]}},
        "chunk_key_encoding": {"name": "default"},
        "codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": codec, "configuration": settings},
        ],
    }
    (folder / "zarr.json").write_text(json.dumps(about))
    (folder / "c" / "0").write_bytes(chunk)


def test_a_chunk_that_unpacks_to_far_more_than_it_says_is_damage(tree):
    for codec, bomb in BOMBS.items():
        write_array(tree / codec, bomb, compressor={"id": codec, "level": 1})
        write_zarr3(tree / f"{codec}3", codec, bomb)
    (found,) = answers_in_a_process(tree)
    assert found.pop("good") == [1, 2]
    assert found == dict.fromkeys(("zstd", "zstd3", "gzip", "gzip3"), "DamagedCheckpoint")


def test_a_chunk_of_a_megabyte_for_eight_bytes_is_damage(tree):
    write_array(tree / "bad", bytes(1 << 20))
    assert answers(tree) == {"bad": DamagedCheckpoint, "good": [1, 2]}


# --- one name for two things


@pytest.mark.parametrize(
    "data",
    [
        b"\x82\xa1a\x01\xa1a\x02",
        b"\x82\xa1a\x01\xd9\x01a\x02",
        b"\x82\x01\x01\xcc\x01\x02",
        b"\x81\xa1x\x82\xa1a\x01\xa1a\x02",
    ],
    ids=["same", "another length", "an integer", "deeper"],
)
def test_a_key_twice_in_a_msgpack_map_is_damage(data, tmp_path):
    assert "occurs twice" in str(refused(write_file(tmp_path, data)))


def test_text_and_integers_as_keys_of_one_map_are_damage(tmp_path):
    said = str(refused(write_file(tmp_path, b"\x82\xa1a\x01\x07\x02")))
    assert "key '7' is an integer" in said


DOCUMENTS = {
    "_METADATA": '{"tree_metadata": {}, "tree_metadata": {}}',
    "_CHECKPOINT_METADATA": '{"custom_metadata": {"a": 1, "a": 2}}',
    "good/.zarray": json.dumps(ARRAY)[:-1] + ', "dtype": "<u4"}',
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_key_twice_in_a_document_is_damage_and_not_the_last_one(name, tree):
    (tree / name).write_text(DOCUMENTS[name])
    assert "occurs twice" in str(refused(tree))


def test_a_string_twice_in_the_strings_is_damage(tree):
    write_index(tree, entry("good"), entry("s", kind="string"))
    (tree / "_strings.json").write_text('{"s": "yes", "s": "no"}')
    assert answers(tree) == {"good": [1, 2], "s": DamagedCheckpoint}


def test_a_key_twice_in_a_json_item_is_damage(tmp_path):
    write_array(tmp_path / "1" / "state" / "good")
    (tmp_path / "1" / "metrics").mkdir()
    (tmp_path / "1" / "metrics" / "metrics").write_text('{"loss": 1.0, "loss": 2.0}')
    (tmp_path / "1" / "_CHECKPOINT_METADATA").write_text("{}")
    try:
        metrics = legacy.open(tmp_path / "1").items["metrics"]
    except DamagedCheckpoint as error:
        said = str(error)
    else:
        said = " ".join(leaf.problem or "" for leaf in metrics.values())
    assert "occurs twice" in said


def test_two_leaves_of_one_path_in_the_index_are_damage(tree):
    write_index(tree, entry("good"), entry("good"))
    assert isinstance(refused(tree), DamagedCheckpoint)


# --- names that lead out of the folder


@pytest.fixture
def secret(tmp_path):
    """An array beside the checkpoint, which must never be read."""
    write_array(tmp_path / "secret", struct.pack("<2i", 42, 42))
    (tmp_path / "secret" / "_strings.json").write_text('{"../secret": "42", "s": "42"}')
    return tmp_path / "secret"


def is_safe(path):
    """Whether it is refused, or read without the secret."""
    try:
        found = answers(path)
    except LegacyError as error:
        return str(path) in str(error)
    return "42" not in repr(found)


@pytest.mark.usefixtures("secret")
@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("kind", ["np.ndarray", "string"])
def test_a_name_in_the_index_leads_nowhere(name, kind, tree):
    write_index(tree, entry("good"), entry(name, kind=kind))
    assert answers(tree)["good"] == [1, 2]
    assert is_safe(tree)


@pytest.mark.usefixtures("secret")
@pytest.mark.parametrize("name", OUTSIDE)
def test_a_placeholder_leads_nowhere(name, tree):
    index = {"good": "PLACEHOLDER://good", "bad": f"PLACEHOLDER://{name}"}
    (tree / "checkpoint").write_bytes(msgpack.packb(index))
    assert answers(tree)["good"] == [1, 2]
    assert is_safe(tree)


@pytest.mark.usefixtures("secret")
@pytest.mark.parametrize("name", OUTSIDE)
def test_a_placeholder_of_several_processes_leads_nowhere(name, tmp_path):
    (tmp_path / "run" / "checkpoint_1_gda").mkdir(parents=True)
    file = write_file(
        tmp_path / "run", msgpack.packb({"bad": f"//GDAPlaceholder:{name}", "good": 1})
    )
    found = answers(file)
    assert found["good"] == 1
    assert issubclass(found["bad"], LegacyError)


@pytest.mark.usefixtures("secret")
@pytest.mark.parametrize("name", OUTSIDE)
def test_names_in_strings_and_notes_on_arrays_are_only_compared(name, tree):
    write_index(tree, entry("good"), entry("s", kind="string"))
    (tree / "_strings.json").write_text(json.dumps({name: "x", "s": "yes"}))
    (tree / "array_metadatas").mkdir()
    row = {"array_metadata": {"param_name": name, "ext_metadata": {"random_key_impl": "rbg"}}}
    (tree / "array_metadatas" / "process_0").write_text(json.dumps({"array_metadatas": [row]}))
    assert is_safe(tree)


@pytest.mark.usefixtures("secret")
@pytest.mark.parametrize("name", OUTSIDE)
def test_an_item_that_leads_out_of_the_step_is_not_opened(name, tmp_path):
    step = tmp_path / "step"
    write_array(step / "state" / "good")
    handlers = {"state": "PyTreeCheckpointHandler", name: "PyTreeCheckpointHandler"}
    (step / "_CHECKPOINT_METADATA").write_text(json.dumps({"item_handlers": handlers}))
    assert set(legacy.open(step).items) == {"state"}


# --- links


@pytest.mark.usefixtures("secret")
def test_a_folder_that_is_a_link_out_of_the_checkpoint_is_not_followed(tree):
    (tree / "linked").symlink_to("../secret")
    write_index(tree, entry("good"), entry("linked"))
    assert answers(tree) == {"good": [1, 2], "linked": UnsupportedCheckpoint}


@pytest.mark.parametrize("name", ["good", "good/.zarray", "good/0", "_METADATA", "checkpoint"])
def test_a_link_to_itself_is_an_error(name, tree):
    write_index(tree, entry("good"))
    place = tree / name
    if place.is_dir():
        place.rename(tree / "moved")
    else:
        place.unlink(missing_ok=True)
    place.symlink_to(place.name)
    assert is_safe(tree)


@pytest.mark.parametrize("name", ["d", "ocdbt.process_0"])
def test_the_data_of_a_database_is_not_looked_for_elsewhere(name, tmp_path):
    database = Path(shutil.copytree(DATABASE, tmp_path / "ckpt"))
    (database / name).rename(tmp_path / "elsewhere")
    (database / name).symlink_to("../elsewhere")
    assert "is a symbolic link out of the checkpoint" in str(refused(database))


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_a_database_whose_manifest_names_a_file_elsewhere_is_refused(tmp_path):
    import tensorstore as ts

    base = {"driver": "file", "path": f"{tmp_path}/ckpt/"}
    config = {"compression": None, "max_inline_value_bytes": 8}
    store = ts.KvStore.open({"driver": "ocdbt", "base": base, "config": config}).result()
    with ts.Transaction() as transaction:
        inside = store.with_transaction(transaction)
        inside[b"a/.zarray"] = json.dumps(ARRAY).encode()
        inside[b"a/0"] = TWO
    manifest = tmp_path / "ckpt" / "manifest.ocdbt"
    assert answers(manifest.parent) == {"a": [1, 2]}
    # a machine with much to do may get a second file, with the values alone
    files = (tmp_path / "ckpt" / "d").iterdir()
    (data,) = (file for file in files if file.name.encode() in manifest.read_bytes())
    elsewhere = "../" + "s" * (len(data.name) - 1)
    data.rename(tmp_path / elsewhere[3:])
    text = manifest.read_bytes()[:-4].replace(f"d/{data.name}".encode(), elsewhere.encode())
    manifest.write_bytes(text + struct.pack("<I", crc32c(text)))
    assert "Invalid key" in str(refused(manifest.parent))


# --- what is no file

PLACES = [
    "_METADATA",
    "checkpoint",
    "_CHECKPOINT_METADATA",
    "manifest.ocdbt",
    "ocdbt.process_0/manifest.ocdbt",
    "_strings.json",
    "array_metadatas/process_0",
    "bad/.zarray",
    "bad/0",
    "bad/zarr.json",
    "_sharding",
    "d/0123456789abcdef0123456789abcdef",
]


def put(kind, place):
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "device":
        place.symlink_to("/dev/zero")
    elif kind == "folder":
        place.mkdir()
    else:
        here = Path.cwd()
        os.chdir(place.parent)  # the name of a socket has a hundred characters at most
        try:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(place.name)
        finally:
            os.chdir(here)


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "folder"])
def test_what_is_no_file_is_neither_waited_for_nor_read(kind, tmp_path):
    trees = [tmp_path / str(n) / "ckpt" for n in range(len(PLACES))]
    for tree, name in zip(trees, PLACES, strict=True):
        write_array(tree / "good")
        write_array(tree / "bad")
        if name == "_strings.json":
            write_index(tree, entry("good"), entry("bad"), entry("s", kind="string"))
        if name.startswith("d/"):
            put("pipe", tree / "manifest.ocdbt")
        put(kind, tree / name)
    errors = {n for n in legacy.__all__ if n[0].isupper()}
    for name, found in zip(PLACES, answers_in_a_process(*trees), strict=True):
        if isinstance(found, str):
            assert found in errors
            continue
        assert found.pop("good") == [1, 2]
        assert all(value == [1, 2] or value in errors for value in found.values()), name
        assert not name.startswith("bad/") or found["bad"] != [1, 2] or kind == "folder"


def test_a_step_and_a_side_folder_that_are_no_files_are_not_waited_for(tmp_path):
    # the device is a link to one, as everybody can make it
    kinds = {"pipe": "DamagedCheckpoint", "device": "UnsupportedCheckpoint", "socket": "CannotLook"}
    for kind in kinds:
        run = tmp_path / kind
        write_array(run / "checkpoint_1_gda" / "a")
        put(kind, run / "checkpoint_1_gda" / "a" / ".zarray")
        put(kind, run / "checkpoint_2")
        write_file(run, msgpack.packb({"a": "//GDAPlaceholder:a", "b": 1}))
    found = answers_in_a_process(*(tmp_path / kind for kind in kinds))
    assert found == [{"a": error, "b": 1} for error in kinds.values()]
    assert len(legacy.find(tmp_path)) == len(kinds)


# --- types, codecs, code


@pytest.mark.parametrize("code", [-128, -1, 0, 5, 42, 127])
def test_an_extension_of_an_unknown_type_is_not_guessed(code, tmp_path):
    value = b"\xd6" + struct.pack("b", code) + bytes(4)  # -1: a timestamp
    file = write_file(tmp_path, b"\x82\xa1a" + value + b"\xa4good\x01")
    assert answers(file) == {"a": UnsupportedCheckpoint, "good": 1}


@pytest.mark.parametrize("dtype", ["|O", "object", "O", "V8", "|V8", "i4,i4", "{'names': ['a']}"])
def test_dtypes_of_objects_and_records_are_refused(dtype, tmp_path, tree):
    array = msgpack.ExtType(1, msgpack.packb(((1,), dtype, pickle.dumps(print)[:8])))
    assert answers(write_file(tmp_path, msgpack.packb({"a": array, "good": 1}))) == {
        "a": UnsupportedCheckpoint,
        "good": 1,
    }
    write_array(tree / "bad", dtype=dtype)
    assert answers(tree) == {"bad": UnsupportedCheckpoint, "good": [1, 2]}


@pytest.mark.parametrize("dtype", [[["a", "<i4"]], [["a", "|O"]], {"a": 1}, None, 4])
def test_dtypes_that_are_no_text_are_refused(dtype, tree):
    write_array(tree / "bad", dtype=dtype)
    assert issubclass(answers(tree)["bad"], LegacyError)


@pytest.mark.parametrize("text", [b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\xaf", b"a\x80"])
def test_text_that_is_no_utf8_is_damage(text, tmp_path):
    head = bytes([0xA0 + len(text)]) + text
    value = write_file(tmp_path, b"\x82\xa1a" + head + b"\xa4good\x01")
    assert answers(value) == {"a": DamagedCheckpoint, "good": 1}
    key = write_file(tmp_path, b"\x82" + head + b"\x01\xa4good\x01")
    assert "not UTF-8" in str(refused(key))


@pytest.mark.parametrize(
    "change",
    [
        {"compressor": {"id": "evil"}},
        {"compressor": {"id": "pickle", "level": 1}},
        {"compressor": "gzip"},
        {"filters": [{"id": "pickle"}]},
        {"filters": [{"id": "json2"}], "compressor": {"id": "gzip"}},
    ],
    ids=str,
)
def test_codecs_that_nobody_knows_are_an_error_of_their_leaf(change, tree):
    write_array(tree / "bad", **change)
    assert answers(tree) == {"bad": DamagedCheckpoint, "good": [1, 2]}


@pytest.mark.parametrize(
    "smuggled",
    [
        {"kvstore": "http://127.0.0.1:9/"},
        {"kvstore": {"driver": "file", "path": "/etc/passwd"}},
        {"path": "../secret", "driver": "json"},
        {"url": "gs://bucket/a", "storage_transformers": [{"name": "http"}]},
    ],
    ids=str,
)
@pytest.mark.usefixtures("secret")
def test_a_store_in_the_metadata_of_an_array_is_not_followed(smuggled, tree):
    write_array(tree / "bad", **smuggled)
    assert answers(tree) == {"bad": [1, 2], "good": [1, 2]}


def test_a_tensorstore_spec_in_a_msgpack_file_is_not_opened(tmp_path):
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": "/etc"}}
    file = write_file(tmp_path, msgpack.packb({"a": spec}))
    assert "TensorStore spec" in str(refused(file))


class Bomb:
    """Explodes when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (self.file.write_text, ("",))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_never_loaded(protocol, tmp_path, tree):
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"), protocol)
    assert isinstance(refused(write_file(tmp_path, bomb)), legacy.NotACheckpoint)
    for name in ("checkpoint", "_METADATA", "_strings.json", "_sharding", "good/.zarray"):
        (tree / name).write_bytes(bomb)
        assert is_safe(tree)
        (tree / name).unlink()
    assert not (tmp_path / "exploded").exists()


WATCH = """
import os, sys
allowed = tuple(sys.argv[2:])
seen = []
def watch(event, args):
    if event in ("open", "os.listdir", "os.scandir", "import", "exec", "compile",
                 "pickle.find_class", "socket.connect", "subprocess.Popen", "os.system"):
        seen.append((event, args[0]))
import legacy, legacy.opening, legacy.orbax_tree, numpy, tensorstore
sys.addaudithook(watch)
try:
    for leaf in legacy.open(sys.argv[1]).leaves.values():
        try:
            leaf.read()
        except legacy.LegacyError:
            pass
except legacy.LegacyError:
    pass
here = os.path.realpath(sys.argv[1])
for event, what in list(seen):
    if event in ("open", "os.listdir", "os.scandir") and not isinstance(what, int | None):
        place = os.path.realpath(os.fsdecode(what))
        if not (place + "/").startswith((here + "/", sys.prefix, sys.base_prefix)):
            print(event, place)
    elif event in ("pickle.find_class", "socket.connect", "subprocess.Popen", "os.system"):
        print(event, what)
"""


def test_only_the_folder_itself_is_opened(tmp_path, tree, secret):
    entries = [entry("good"), entry("linked"), entry("gone")]
    entries += [entry(name) for name in OUTSIDE] + [entry("s", kind="string")]
    write_index(tree, *entries)
    (tree / "linked").symlink_to(secret)
    (tree / "_strings.json").write_text(json.dumps({"s": "x"}))
    assert in_a_process(WATCH, tree) == []
    run = tmp_path / "run"
    run.mkdir()
    index = {f"a{n}": f"//GDAPlaceholder:{name}" for n, name in enumerate(OUTSIDE)}
    write_file(run, msgpack.packb(index | {"good": 1}))
    write_array(run / "checkpoint_1_gda" / "a")
    (run / "checkpoint_1_gda" / "b").symlink_to(secret)
    assert in_a_process(WATCH, run) == []


def test_the_watch_would_see_what_is_opened(tmp_path):
    """The check itself is checked."""
    (tmp_path / "in").mkdir()
    write_file(tmp_path, msgpack.packb({"a": 1}))
    (tmp_path / "in" / "checkpoint_1").symlink_to(tmp_path / "checkpoint_1")
    seen = in_a_process(WATCH, tmp_path / "in")
    assert set(seen) == {f"open {tmp_path.resolve()}/checkpoint_1"}


def test_gzip_is_named_and_not_unpacked(tmp_path):
    file = write_file(tmp_path, gzip.compress(msgpack.packb({"a": 1})))
    assert "gzip archive" in str(refused(file))
