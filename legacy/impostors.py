"""Names the files that are taken for checkpoints and are none.

A download that was not unpacked, a Git LFS pointer, a web page saved under the name of the file:
a parser only says that a byte is wrong. Here the first bytes are looked at before any parser, so
that the error says what the file is and what to do. Nothing is unpacked and no pickle is loaded.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Final

from legacy.strangers import NOT_FLAX, TENSORFLOW, WHOLE, orbax_part, tensorflow_file

__all__ = ["HEAD_BYTES", "looks_like_msgpack", "name_impostor", "read_head"]

HEAD_BYTES: Final = 1024
"""How many first bytes the functions of this module want to see."""

_PICKLES: Final = (
    *(bytes([0x80, protocol]) for protocol in range(2, 6)),
    *(b"}q\x00", b"]q\x00"),  # protocol 1
    *(b"(dp", b"(lp", b"ccopy_reg\n", b"c__builtin__\n", b"cnumpy"),  # protocol 0
)
_TORCH_MAGIC: Final = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
"""The number that torch.save pickled first until it wrote zips (1.6)."""
_FIXMAP: Final = range(0x80, 0x90)
_MAPS: Final = {0xDE: 3, 0xDF: 5}
"""Msgpack's longer maps, and where their first key begins."""
_EXTS: Final = {0xC7: 2, 0xC8: 3, 0xC9: 5} | dict.fromkeys(range(0xD4, 0xD9), 1)
"""Msgpack's extensions, and where their type is."""
_FIXSTR: Final = range(0xA0, 0xC0)
_STRS: Final = {0xD9: 1, 0xDA: 2, 0xDB: 4}
"""Msgpack's longer strings, and the width of their length."""
_FLAX_ARRAY: Final = b"\x01"
_FIRST_NON_ASCII: Final = 0x80
_SAFETENSORS_JSON: Final = slice(8, 9)
_SAFETENSORS_LIMIT: Final = 100_000_000
_ZIP_NAME_AT: Final = 30
_TAR_MAGIC: Final = slice(257, 262)
_TEXT_CONTROLS: Final = frozenset("\t\n\r\f\v\x1b")

_UNPACK: Final = "Unpack it and give the path of what was inside"
_MAGIC: Final = (
    (b"\x1f\x8b", "a gzip archive", f"{_UNPACK}."),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", f"{_UNPACK}."),
    (b"BZh", "a bzip2 archive", f"{_UNPACK}."),
    (b"\xfd7zXZ\x00", "an xz archive", f"{_UNPACK}."),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", f"{_UNPACK}."),
    (
        b"\x93NUMPY",
        "a NumPy .npy file",
        "Load it with numpy.load; it holds one array and no names.",
    ),
    (
        b"\x89HDF\r\n\x1a\n",
        "an HDF5 file (Keras, or h5py)",
        "Load it with h5py or Keras; it was not written by Flax.",
    ),
    (b"GGUF", "a GGUF file (llama.cpp)", NOT_FLAX),
    (b"PAR1", "a Parquet file (a table)", NOT_FLAX),
    (b"ARROW1", "an Arrow file (a table)", NOT_FLAX),
    (b"SQLite format 3\x00", "an SQLite database", NOT_FLAX),
    (b"\x7fELF", "a program or a library", "Give the path of the checkpoint."),
    (b"\xff\xd8\xff", "a JPEG image", "Give the path of the checkpoint."),
    (b"\x04\x22\x4d\x18", "an lz4 archive", f"{_UNPACK}."),
    (b"Rar!\x1a\x07", "a rar archive", f"{_UNPACK}."),
    (b"\x89PNG\r\n", "a PNG image", "Give the path of the checkpoint."),
    (b"%PDF-", "a PDF document", "Give the path of the checkpoint."),
)


def read_head(file: Path) -> bytes:
    """The first bytes of a file.

    Args:
        file: a regular file.

    Returns:
        At most :data:`HEAD_BYTES` bytes.

    Raises:
        OSError: the file cannot be read.
    """
    # a pipe would wait for a writer
    with open(file, "rb", opener=_at_once) as stream:
        return stream.read(HEAD_BYTES)


def _at_once(file: str, flags: int) -> int:
    return os.open(file, flags | os.O_NONBLOCK)


def name_impostor(head: bytes, path: str | os.PathLike[str]) -> str | None:
    r"""Say what a file is, if it is one of the things often taken for a checkpoint.

    Args:
        head: its first :data:`HEAD_BYTES` bytes, or all of them.
        path: the file. Its name counts, too, and so do its size, its last bytes and what lies
            beside it, where it exists.

    Returns:
        What it is and what to do, as ``"<what>. <do>"``; None when it is none of them.

    >>> name_impostor(b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "model")
    'a Git LFS pointer, not the file itself. Fetch the file with: git lfs pull'
    >>> name_impostor(b"\x81\xa1a\x01", "checkpoint_1") is None
    True
    """
    if not head:
        return (
            "an empty file (0 bytes). The save or the copy was interrupted; take another step "
            "or copy it again."
        )
    if not any(head):
        return (
            f"a file that begins with {len(head)} zero bytes. The save or the copy was "
            "interrupted; take another step or copy it again."
        )
    place = Path(path)
    part = orbax_part(head, place)
    if part is not None:
        return f"{part}, no checkpoint by itself. {WHOLE}."
    for magic, what, todo in _MAGIC:
        if head.startswith(magic):
            return f"{what}. {todo}"
    return _container(head, place) or tensorflow_file(head, place) or _text(head)


def _container(head: bytes, path: Path) -> str | None:
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip(head)
    if head[_TAR_MAGIC] == b"ustar":
        return f"a tar archive. {_UNPACK}."
    if head.startswith(_PICKLES):
        what = "an old torch.save file (a pickle)" if _TORCH_MAGIC in head else "a Python pickle"
        return (
            f"{what}. A pickle can run any code, so it is "
            "never loaded here. If you trust it, load it yourself and save its arrays with "
            "flax.serialization.to_bytes."
        )
    if _is_safetensors(head, path):
        return (
            "a safetensors file. Load it with safetensors.numpy.load_file and save the tree "
            "with flax.serialization.to_bytes."
        )
    return None


def _zip(head: bytes) -> str:
    size = int.from_bytes(head[26:28], "little")
    first = head[_ZIP_NAME_AT : _ZIP_NAME_AT + size].decode("utf-8", "replace")
    if first.endswith(".npy"):
        return (
            "an .npz file of NumPy. Load it with numpy.load; it holds arrays by name and no "
            "Flax tree."
        )
    if first.endswith(("/data.pkl", "/byteorder", "/.format_version")):
        return (
            "a torch.save file (a zip that holds a pickle). A pickle is never loaded here; "
            "convert it with PyTorch."
        )
    if first in ("metadata.json", "config.json", "model.weights.h5"):
        return "a .keras file. Load it with Keras; it was not written by Flax."
    return f"a zip archive (first entry {first!r}). {_UNPACK}."


def _is_safetensors(head: bytes, file: Path) -> bool:
    if head[_SAFETENSORS_JSON] != b"{":
        return False
    (size,) = struct.unpack_from("<Q", head)
    limit = _SAFETENSORS_LIMIT
    if file.is_file():
        limit = min(limit, file.stat().st_size - 8)
    return bool(len("{}") <= size <= limit)


def _text(head: bytes) -> str | None:
    is_ascii = head[0] < _FIRST_NON_ASCII or head.startswith(b"\xef\xbb\xbf")
    text = head.decode("utf-8-sig", "ignore")
    if not is_ascii or not all(c.isprintable() or c in _TEXT_CONTROLS for c in text):
        return None
    start = text.lstrip()[:200]
    if start.startswith("version https://git-lfs"):
        return "a Git LFS pointer, not the file itself. Fetch the file with: git lfs pull"
    low = start.lower()
    if low.startswith(("<!doctype html", "<html", "<head", "<?xml", "<!--")):
        return (
            "a web page (HTML or XML), not the file itself. The download went wrong, often for "
            "want of a login; download it again."
        )
    if low.startswith(("{", "[")):
        return (
            "a JSON file. It is no checkpoint by itself; give the path of the folder or file "
            "that holds the arrays."
        )
    if low.startswith("model_checkpoint_path:"):
        return f"the list of steps of a TensorFlow checkpoint. {TENSORFLOW}"
    first = start.splitlines()[0][:60] if start else ""
    return f"a text file that begins with {first!r}. Give the path of the checkpoint."


def looks_like_msgpack(head: bytes, size: int) -> bool:
    r"""Whether a file begins as Flax's msgpack files do; a look, not a proof.

    A tree is a map whose first key is a string; a bare array is Flax's extension type 1.

    Args:
        head: the first bytes of the file.
        size: the size of the whole file.

    Returns:
        True when it may be msgpack of Flax.

    >>> looks_like_msgpack(b"\x81\xa6params\x80", 9)
    True
    >>> looks_like_msgpack(b"\x81\x00\x00\x00", 4), looks_like_msgpack(b"\x89PNG\r\n", 6)
    (False, False)
    """
    if name_impostor(head, os.devnull) is not None:
        return False
    kind = head[0]
    if kind in _EXTS:
        return head[_EXTS[kind] :][:1] == _FLAX_ARRAY
    if kind in _FIXMAP:
        count, at = kind - _FIXMAP.start, 1
    elif kind in _MAPS:
        at = _MAPS[kind]
        count = int.from_bytes(head[1:at], "big")
    else:
        return False
    if count == 0:
        return size == at
    # a key and a value are two bytes at least
    return size >= at + 2 * count and _is_key(head[at:])


def _is_key(data: bytes) -> bool:
    kind = data[0]
    if kind in _FIXSTR:
        text = data[1 : 1 + kind - _FIXSTR.start]
    elif kind in _STRS:
        start = 1 + _STRS[kind]
        text = data[start : start + int.from_bytes(data[1:start], "big")]
    else:
        return False
    try:
        return all(c.isprintable() for c in text.decode("utf-8"))
    except UnicodeDecodeError as error:
        # cut inside a character by the end of the head
        return error.start >= len(text) - 3 and len(data) >= HEAD_BYTES // 2
