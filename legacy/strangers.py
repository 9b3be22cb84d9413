"""What a file or a folder is by its name, its last bytes, or what lies beside it.

TensorFlow's files begin with nothing that tells them, and one file of an Orbax checkpoint is JSON
or compressed bytes like any other. :mod:`legacy.impostors` asks here.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final

__all__ = ["NOT_FLAX", "TENSORFLOW", "WHOLE", "name_folder", "orbax_part", "tensorflow_file"]

NOT_FLAX: Final = "It was not written by Flax."
TENSORFLOW: Final = (
    "Load it with TensorFlow and save the tree with flax.serialization.to_bytes; it was not "
    "written by Flax."
)
WHOLE: Final = "Give the path of the folder that holds the whole checkpoint"
_OCDBT: Final = (b"\x0c\xdb\x3a\x2a", b"\x0c\xdb\x20\xde", b"\x0c\xdb\x1c\xde")
"""How TensorStore's OCDBT files begin: manifest, node of values, node of versions."""
_OCDBT_DATA: Final = re.compile(r"[0-9a-f]{32}")
_ZARR_FILES: Final = (".zarray", "zarr.json")
_CHUNK: Final = re.compile(r"\d+(?:[./]\d+)*")
_PARTS: Final = {
    "_METADATA": "the index of an Orbax tree",
    "_CHECKPOINT_METADATA": "the description of an Orbax step",
    "_strings.json": "the strings of an Orbax tree",
    "_sharding": "a note on devices in an Orbax tree",
    ".zarray": "the description of one zarr array of a checkpoint",
    "zarr.json": "the description of one zarr array of a checkpoint",
}
_SEARCH: Final = 4
"""How many folders above a file are asked whether they are an array or a database."""
_LEVELDB_END: Final = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"
_TF_SHARD: Final = re.compile(r".*\.data-\d{5}-of-\d{5}")
_TF_RECORD: Final = struct.Struct("<QI")
_CRC32C: Final = 0x82F63B78
_CRC_MASK: Final = 0xA282EAD8
_ONNX: Final = re.compile(rb"\x08[\x03-\x20][\x12\x3a\x42]", re.DOTALL)


def name_folder(names: AbstractSet[str]) -> str | None:
    """Say what a folder is, if it is one of those often taken for a checkpoint.

    Args:
        names: the names of everything in it.

    Returns:
        What it is and what to do, as ``"<what>. <do>"``; None when it is none of them.

    >>> name_folder({"saved_model.pb", "variables"})[:22]
    'a SavedModel folder of'
    >>> name_folder({"checkpoint_1"}) is None
    True
    """
    if "saved_model.pb" in names or "saved_model.pbtxt" in names:
        return f"a SavedModel folder of TensorFlow. {TENSORFLOW}"
    if any(_TF_SHARD.fullmatch(name) for name in names):
        return f"a checkpoint of TensorFlow. {TENSORFLOW}"
    torch = [n for n in names if re.fullmatch(r"pytorch_model.*\.bin|model.*\.safetensors", n)]
    if torch and "config.json" in names:
        return (
            f"a Hugging Face model of PyTorch ({min(torch)}). Take its flax_model.msgpack from the "
            "hub if there is one, or load it with from_pretrained(..., from_pt=True) and save it."
        )
    if ".git" in names:
        return "a git repository. Give the path of the checkpoint in it."
    if names and all(_OCDBT_DATA.fullmatch(name) for name in names):
        return f"the data files of an OCDBT database (Orbax). {WHOLE}, one above this one."
    return None


def orbax_part(head: bytes, place: Path) -> str | None:
    """Say which file of an Orbax checkpoint this is, given alone.

    Args:
        head: its first bytes.
        place: the file; its name and what lies beside it are asked.

    Returns:
        What it is; None for a file that is no part of one.

    >>> orbax_part(b"{}", Path("_METADATA"))
    "'_METADATA' is the index of an Orbax tree"
    """
    name = place.name
    if name in _PARTS and head.lstrip().startswith(b"{"):
        return f"{name!r} is {_PARTS[name]}"
    if head.startswith(_OCDBT):
        return "a file of an OCDBT database (Orbax)"
    above = list(place.parents)[:_SEARCH]
    if _OCDBT_DATA.fullmatch(name) and place.parent.name == "d":
        return "a data file of an OCDBT database (Orbax)"
    if _CHUNK.fullmatch(name) and any((p / z).is_file() for p in above for z in _ZARR_FILES):
        return "a chunk of a zarr array"
    if place.parent.name == "array_metadatas":
        return f"{name!r} is a note on the arrays of an Orbax tree"
    return None


def tensorflow_file(head: bytes, place: Path) -> str | None:
    """Say which file of TensorFlow (or ONNX) this is: they have no mark in front.

    Args:
        head: its first bytes.
        place: the file; its name and its last bytes are asked.

    Returns:
        What it is and what to do, as ``"<what>. <do>"``; None for other files.

    >>> tensorflow_file(b"", Path("model-1.data-00000-of-00001"))[:37]
    'a part of a TensorFlow checkpoint (it'
    """
    is_values = _TF_SHARD.fullmatch(place.name) is not None
    if is_values or _last(place, len(_LEVELDB_END)) == _LEVELDB_END:
        part = "its values" if is_values else "its index"
        return f"a part of a TensorFlow checkpoint ({part}). {TENSORFLOW}"
    if place.name == "saved_model.pb":
        return f"the graph of a SavedModel (TensorFlow). {TENSORFLOW}"
    what = None
    if head[4:8] == b"TFL3":
        what = "a TFLite model"
    elif _is_tf_record(head):
        what = "a TFRecord file (training data)"
    elif _ONNX.match(head):
        what = "an ONNX model"
    return what and f"{what}. {NOT_FLAX}"


def _is_tf_record(head: bytes) -> bool:
    if len(head) < _TF_RECORD.size:
        return False
    size, crc = _TF_RECORD.unpack_from(head)
    return bool(size) and crc == _masked_crc32c(head[:8])


def _last(place: Path, count: int) -> bytes:
    if not place.is_file():
        return b""
    with place.open("rb") as stream:
        stream.seek(max(0, place.stat().st_size - count))
        return stream.read(count)


def _masked_crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (_CRC32C if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + _CRC_MASK) & 0xFFFFFFFF
