"""Files that are no checkpoints are named, and nothing in them is unpacked or run."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import legacy
from legacy.impostors import HEAD_BYTES, looks_like_msgpack, name_impostor, read_head


def _zip(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return file.getvalue()


def _tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo("checkpoint_3")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))
    return file.getvalue()


def _npy():
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


def _npz():
    file = io.BytesIO()
    np.savez(file, a=np.zeros(3))
    return file.getvalue()


def _safetensors(size=2):
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(size)
    return struct.pack("<Q", len(header)) + header + b"\0\0\0\0"


def _crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _tf_record(data=b"example"):
    size = struct.pack("<Q", len(data))
    return size + struct.pack("<I", _crc32c(size)) + data + struct.pack("<I", _crc32c(data))


IMPOSTORS = {
    "an empty file": b"",
    "zero bytes": bytes(5000),
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n",
    "a web page": b"\n<!DOCTYPE html><html><body>Sign in</body></html>",
    "a gzip archive": gzip.compress(b"x"),
    "a bzip2 archive": bz2.compress(b"x"),
    "an xz archive": lzma.compress(b"x"),
    "a zstd archive": b"\x28\xb5\x2f\xfd\x00",
    "a tar archive": _tar(),
    "an .npz file": _npz(),
    "a NumPy .npy file": _npy(),
    "a torch.save file": _zip("archive/data.pkl", "archive/data/0"),
    "a .keras file": _zip("metadata.json", "config.json", "model.weights.h5"),
    r"a zip archive \(first entry 'readme'\)": _zip("readme"),
    "a Python pickle": pickle.dumps({"params": 1}),
    "an old torch.save file": pickle.dumps(0x1950A86A20F9469CFC6C, 2) + b"\x80\x02}q\x00.",
    "a GGUF file": b"GGUF\x03\0\0\0" + bytes(16),
    "a Parquet file": b"PAR1\x15\x04\x15" + bytes(9) + b"PAR1",
    "an Arrow file": b"ARROW1\0\0\xff\xff\xff\xff",
    "an SQLite database": b"SQLite format 3\0" + bytes(84),
    "a TFRecord file": _tf_record(),
    r"a part of a TensorFlow checkpoint \(its index\)": (
        b"\0\x06\x0e\x08\x01\x1a\x02\x08\x01" + bytes(40) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"
    ),
    "the list of steps of a TensorFlow checkpoint": b'model_checkpoint_path: "model-1"\n',
    "a TFLite model": b"\x1c\0\0\0TFL3" + bytes(20),
    "an ONNX model": b"\x08\x0e\x12\x07pytorch:3\n\x0c\n\x01x\x12\x01y",
    "an lz4 archive": b"\x04\x22\x4d\x18\x64\x40",
    "a JPEG image": b"\xff\xd8\xff\xe0\0\x10JFIF",
    "a safetensors file": _safetensors(),
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(8),
    "a JSON file": b'{"params": 1}',
    "a text file that begins with 'epoch 3'": b"epoch 3\nloss 0.1\n",
}


@pytest.mark.parametrize("what", IMPOSTORS)
def test_open_names_the_impostor_and_says_what_to_do(what, tmp_path):
    file = tmp_path / "checkpoint_3"
    file.write_bytes(IMPOSTORS[what])
    with pytest.raises(legacy.NotACheckpoint, match=what) as caught:
        legacy.open(file)
    assert str(file) in str(caught.value)
    assert caught.value.path == file


@pytest.mark.parametrize("what", IMPOSTORS)
def test_find_does_not_take_an_impostor_for_a_checkpoint(what, tmp_path):
    (tmp_path / "model").write_bytes(IMPOSTORS[what])
    assert legacy.find(tmp_path) == ()


FILES_BY_NAME = {
    "saved_model.pb": (b"\x08\x01\x12\x97\x06", "the graph of a SavedModel"),
    "model-1.data-00000-of-00001": (bytes(range(200)), r"a TensorFlow checkpoint \(its values\)"),
}


@pytest.mark.parametrize("name", FILES_BY_NAME)
def test_files_without_a_mark_are_known_by_their_names(name, tmp_path):
    data, what = FILES_BY_NAME[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(legacy.NotACheckpoint, match=what):
        legacy.open(tmp_path / name)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_all_protocols_are_named(protocol):
    for value in ({"params": np.zeros(3)}, [1, "a"]):
        assert "a Python pickle" in name_impostor(pickle.dumps(value, protocol), "model.pkl")


def test_a_file_of_no_known_kind_is_said_to_be_of_another(tmp_path):
    (tmp_path / "model").write_bytes(b"\x08\xf2\xfe\x91\xcc")
    with pytest.raises(legacy.NotACheckpoint, match="begins with the byte 0x08, and a msgpack"):
        legacy.open(tmp_path / "model")


# --- one file of an Orbax checkpoint, given alone

GOLDENS = Path(__file__).parents[1] / "goldens"
OCDBT = "latest/bundle-ptc/ckpt"
ZARR = "flax0610/cnn_state-ptc/ckpt"
PARTS = {
    f"{OCDBT}/_METADATA": "one file of the Orbax checkpoint in its folder",
    f"{OCDBT}/_CHECKPOINT_METADATA": "one file of the Orbax checkpoint in its folder",
    f"{OCDBT}/_sharding": "one file of the Orbax checkpoint in its folder",
    f"{OCDBT}/manifest.ocdbt": "one file of the Orbax checkpoint in its folder",
    f"{OCDBT}/array_metadatas/process_0": "a note on the arrays of an Orbax tree",
    f"{OCDBT}/d/*": r"file of an OCDBT database \(Orbax\)",
    f"{OCDBT}/d": r"the data files of an OCDBT database \(Orbax\)",
    f"{ZARR}/checkpoint": "one file of the Orbax checkpoint in its folder",
    f"{ZARR}/step/.zarray": "the description of one zarr array of a checkpoint",
    f"{ZARR}/step/0": "a chunk of a zarr array",
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_an_orbax_checkpoint_is_named_and_the_folder_asked_for(part):
    (path, *_) = sorted(GOLDENS.glob(part))
    with pytest.raises(legacy.NotACheckpoint, match=PARTS[part]) as caught:
        legacy.open(path)
    assert "Give the path of the folder" in str(caught.value)


@pytest.mark.parametrize("name", ["_strings.json", "_CHECKPOINT_METADATA", "_sharding"])
def test_a_document_of_orbax_far_from_its_folder_is_named(name, tmp_path):
    (tmp_path / name).write_bytes((GOLDENS / OCDBT / name).read_bytes())
    with pytest.raises(legacy.NotACheckpoint, match=f"{name}' is .* no checkpoint by itself"):
        legacy.open(tmp_path / name)


# --- folders of something else

FOLDERS = {
    "a SavedModel folder": {"saved_model.pb": b"\x08\x01", "variables/variables.index": b""},
    "a checkpoint of TensorFlow": {
        "checkpoint": b'model_checkpoint_path: "m-1"\n',
        "m-1.index": b"\0",
        "m-1.data-00000-of-00001": bytes(100),
    },
    r"a Hugging Face model of PyTorch \(pytorch_model.bin\)": {
        "config.json": b"{}",
        "pytorch_model.bin": _zip("archive/data.pkl"),
    },
    r"a Hugging Face model of PyTorch \(model-00001-of-00002.safetensors\)": {
        "config.json": b"{}",
        "model-00001-of-00002.safetensors": _safetensors(),
        "model-00002-of-00002.safetensors": _safetensors(),
    },
    "a git repository": {".git/HEAD": b"ref: refs/heads/main\n", "train.py": b"import jax\n"},
    r"Found files of other kinds: README.md": {"README.md": b"# Model\n"},
    "The folder is empty": {},
    "temporary file of a flax save": {"checkpoint_tmp": msgpack.packb({"a": 1})},
    "temporary folder of an Orbax save": {"3.orbax-checkpoint-tmp-12/_METADATA": b"{}"},
}


@pytest.mark.parametrize("what", FOLDERS)
def test_a_folder_of_something_else_is_named(what, tmp_path):
    for name, data in FOLDERS[what].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with pytest.raises(legacy.NotACheckpoint, match=what) as caught:
        legacy.open(tmp_path)
    assert "Expected a flax msgpack file" in str(caught.value)
    assert [run for run in legacy.find(tmp_path) if run.steps] == []


def test_a_flax_model_beside_one_of_pytorch_is_opened(tmp_path):
    (tmp_path / "config.json").write_bytes(b"{}")
    (tmp_path / "pytorch_model.bin").write_bytes(_zip("archive/data.pkl"))
    (tmp_path / "flax_model.msgpack").write_bytes(msgpack.packb({"a": 1}))
    assert legacy.open(tmp_path).leaves["a",].read() == 1


def test_a_safetensors_header_whose_length_looks_like_a_msgpack_map_is_seen(tmp_path):
    file = tmp_path / "model"
    file.write_bytes(_safetensors(0x88))
    head = read_head(file)
    assert head[0] == 0x88
    assert "safetensors" in name_impostor(head, file)
    assert not looks_like_msgpack(head, file.stat().st_size)


def test_a_pickle_is_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path.joinpath("exploded").write_text, ("",))

    file = tmp_path / "checkpoint_3"
    file.write_bytes(pickle.dumps({"params": Bomb()}))
    with pytest.raises(legacy.NotACheckpoint, match="never loaded"):
        legacy.open(file)
    assert not (tmp_path / "exploded").exists()


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"])),
        st.none() | st.integers(0, 9) | st.binary(),
        max_size=20,
    )
)
def test_what_msgpack_writes_for_a_tree_is_never_an_impostor(tree):
    data = msgpack.packb(tree)
    assert name_impostor(data[:HEAD_BYTES], "x") is None
    assert looks_like_msgpack(data[:HEAD_BYTES], len(data))


@pytest.mark.parametrize("size", [1, 200, 70000])
def test_a_bare_array_looks_like_msgpack_of_flax(size):
    data = msgpack.packb(msgpack.ExtType(1, bytes(size)))
    assert looks_like_msgpack(data[:HEAD_BYTES], len(data))


@pytest.mark.parametrize("count", [3, 300, 70000])
def test_a_map_that_promises_more_than_the_file_holds_does_not_look_like_msgpack(count):
    data = msgpack.Packer().pack_map_header(count) + b"\xa1a\x01"
    assert not looks_like_msgpack(data, len(data))


@given(st.binary(max_size=300))
def test_any_bytes_give_an_answer(data):
    assert name_impostor(data, "x") is None or ". " in name_impostor(data, "x")
    assert looks_like_msgpack(data, len(data)) in (True, False)
