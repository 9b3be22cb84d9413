"""Readings of the same bytes that share no code with ``legacy``.

What ``legacy`` accepts must mean what these say: the ``msgpack`` package with numpy for msgpack
files, ``json`` for documents, and forty lines of zlib and numpy for zarr 2 without zstd. They are
written for being obviously right, not for speed, and refuse what they do not understand.
"""

from __future__ import annotations

import itertools
import json
import zlib
from pathlib import Path

import ml_dtypes
import msgpack
import numpy as np

CHUNKED = "__msgpack_chunked_array__"


class Refused(Exception):
    """The reference cannot say what the bytes mean."""


class Missing:
    """A container without children."""

    def __init__(self, container):
        self.container = container


class Lost:
    """A value that cannot be given back, in a tree that can."""

    def __init__(self, why):
        self.why = why


# --- msgpack


def dtype_of(name: str) -> np.dtype:
    """A dtype as flax spells it; ``<V2`` was bfloat16 up to flax 0.2.2."""
    if name == "<V2":
        return np.dtype(ml_dtypes.bfloat16)
    if hasattr(ml_dtypes, name):
        return np.dtype(getattr(ml_dtypes, name))
    for word, code, bits in (("str", "U", 32), ("bytes", "S", 8)):
        if name.startswith(word) and name[len(word) :].isdigit():
            return np.dtype(f"{code}{int(name[len(word) :]) // bits}")
    return np.dtype(name)


def _ext(code, payload):
    try:
        return _EXTENSIONS[code](payload)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with it
        return Lost(repr(error))


def _array(payload):
    shape, name, raw = msgpack.unpackb(payload, raw=True)
    if not all(type(n) is int and n >= 0 for n in shape):
        raise Refused("shape")
    array = np.frombuffer(raw, dtype_of(name.decode())).reshape(shape)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _complex(payload):
    real, imag = msgpack.unpackb(payload)
    return complex(real, imag)


_EXTENSIONS = {
    1: _array,
    2: _complex,
    3: lambda payload: _array(payload)[()],
    4: lambda payload: tuple(msgpack.unpackb(payload, **_OPTIONS)),
}
# text that is no UTF-8 is told by its surrogates
_OPTIONS = {
    "ext_hook": _ext,
    "raw": False,
    "strict_map_key": False,
    "unicode_errors": "surrogateescape",
}


def _fields(value):
    """Name, field names and values of a namedtuple of flax <= 0.3.4."""
    if set(value) != {"name", "fields", "values"}:
        return None
    fields, values = value["fields"], value["values"]
    if not (isinstance(fields, dict) and isinstance(values, dict)):
        return None
    numbers = [str(n) for n in range(len(fields))]
    if {str(k) for k in fields} != set(numbers) or {str(k) for k in values} != set(numbers):
        return None
    fields = {str(k): v for k, v in fields.items()}
    values = {str(k): v for k, v in values.items()}
    names = [fields[n] for n in fields]
    if not all(isinstance(n, str) and n.isidentifier() for n in [value["name"], *names]):
        return None
    if len(set(names)) < len(names):
        return None
    return value["name"], {fields[n]: values[n] for n in fields}


def _join(value):
    shape = [value["shape"][k] for k in sorted(value["shape"], key=int)]
    chunks = [value["chunks"][k] for k in sorted(value["chunks"], key=int)]
    return np.concatenate(chunks).reshape(shape)


def _is_debris(value) -> bool:
    """An array or a namedtuple of which a mark is damaged."""
    if isinstance(value, (list, tuple)) and len(value) == 3:
        shape, dtype, data = value
        if isinstance(shape, (list, tuple)) and isinstance(dtype, str) and type(data) is bytes:
            try:
                made = np.frombuffer(data, dtype_of(dtype)).reshape(shape)
            except (TypeError, ValueError):
                return False
            is_spelled = dtype[:1] in "<>|=" or made.dtype.name == dtype
            return is_spelled and all(type(n) is int and n >= 0 for n in shape)
    if isinstance(value, dict) and {str(k) for k in value} == {"name", "fields", "values"}:
        names = [value["name"]]
        for part in ("fields", "values"):
            inner = value[part]
            if not isinstance(inner, dict) or len(inner) != len(value["fields"]):
                return False
            if {str(k) for k in inner} != {str(n) for n in range(len(inner))}:
                return False
        names += value["fields"].values()
        return any(
            isinstance(n, Lost) or (isinstance(n, str) and not n.isprintable()) for n in names
        )
    return False


def _flatten(path, value, *, flax, into):
    if _is_debris(value):
        into[path] = Lost("debris")
        return
    if isinstance(value, dict):
        if CHUNKED in value:
            try:
                into[path] = _join(value)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with it
                into[path] = Lost(repr(error))
            return
        old = _fields(value) if flax else None
        name, children = ("dict", value) if old is None else old
    elif isinstance(value, (list, tuple)):
        name, children = type(value).__name__, dict(enumerate(value))
    else:
        into[path] = value
        return
    if not children:
        into[path] = Missing(name)
    for key, child in children.items():
        _flatten((*path, str(key)), child, flax=flax, into=into)


def msgpack_leaves(data: bytes, *, flax: bool) -> dict:
    """Values by path, read by the ``msgpack`` package."""
    into: dict = {}
    _flatten((), msgpack.unpackb(data, **_OPTIONS), flax=flax, into=into)
    return into


# --- JSON


def _no_twins(pairs):
    if len(dict(pairs)) < len(pairs):
        raise Refused("a key occurs twice")
    return dict(pairs)


def strict_json(data: bytes):
    """A JSON document in which no key occurs twice."""
    return json.loads(data, object_pairs_hook=_no_twins)


def tree_paths(data: bytes) -> set:
    """The paths of the leaves that a ``_METADATA`` names."""
    rows = strict_json(data)["tree_metadata"].values()
    return {tuple(key["key"] for key in row["key_metadata"]) for row in rows}


# --- zarr 2


def zarr2(folder: Path) -> np.ndarray:
    """An array in chunks of raw, zlib or gzip bytes; Refused for other codecs."""
    about = strict_json((folder / ".zarray").read_bytes())
    codec = about.get("compressor")
    if about.get("filters") or (codec and codec["id"] not in ("zlib", "gzip")):
        raise Refused("codec")
    dtype = about["dtype"]
    dtype = np.dtype(ml_dtypes.bfloat16) if dtype in ("<V2", "|V2") else dtype_of(dtype)
    shape, chunks = about["shape"], about["chunks"]
    fill = about.get("fill_value")
    if fill not in (None, 0, 0.0, False):
        raise Refused("fill value")
    array = np.zeros(shape, dtype)
    for index in itertools.product(
        *(range(-(-n // c)) for n, c in zip(shape, chunks, strict=True))
    ):
        file = folder / (about.get("dimension_separator", ".").join(map(str, index)) or "0")
        if not file.exists():
            continue
        raw = file.read_bytes()
        if codec:
            raw = zlib.decompress(raw, 47)
        block = np.frombuffer(raw, dtype).reshape(chunks, order=about["order"])
        at = tuple(
            slice(i * c, min((i + 1) * c, n)) for i, c, n in zip(index, chunks, shape, strict=True)
        )
        array[at] = block[tuple(slice(0, s.stop - s.start) for s in at)]
    return array.astype(array.dtype.newbyteorder("="), copy=False)


# --- comparing


def same(ours, theirs) -> bool:
    """Whether two values are the same, bit for bit and type for type."""
    if isinstance(ours, (np.ndarray, np.generic)) or isinstance(theirs, (np.ndarray, np.generic)):
        a, b = np.asarray(ours), np.asarray(theirs)
        if a.dtype.hasobject or b.dtype.hasobject:
            return False
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, (float, complex)):  # NaN, and -0.0
        return np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
    return ours == theirs
