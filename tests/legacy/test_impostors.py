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
