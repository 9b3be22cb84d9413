"""JSON items: strings, plain numbers and whatever else StandardSave refuses to keep.

JSON has fewer kinds of values than a checkpoint. What it lacks is written as an object with one
marked key, which :func:`decode` reads back; a tree that uses such a key itself is refused rather
than misread.

==================================  ====================================================
value                               written as
==================================  ====================================================
``b"ab"``                           ``{"__bytes__": "YWI="}``
``1+2j``                            ``{"__complex__": [1.0, 2.0]}``
``nan``, ``inf``, ``-inf``          ``{"__float__": "nan"}``
64-bit numpy scalars and bools      the plain number: Orbax writes Python numbers as such
other numpy scalars, empty arrays   ``{"__array__": {"dtype", "shape", "data": base64}}``
==================================  ====================================================
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np

from bridge.errors import BridgeError
from bridge.target import SlotPath, SlotRef
from legacy import Leaf, LeafPath, LeafTable, format_path

__all__ = ["decode", "document", "encode", "plain"]

_BYTES = "__bytes__"
_COMPLEX = "__complex__"
_FLOAT = "__float__"
_ARRAY = "__array__"
_MARKERS = frozenset({_BYTES, _COMPLEX, _FLOAT, _ARRAY})
_PYTHON_DTYPES = frozenset({"int64", "float64", "bool"})
_SEQUENCES = frozenset({"list", "tuple"})


def document(pairs: Iterable[tuple[SlotRef, Leaf]], leaves: LeafTable) -> Any:
    """Nest values by their slot paths, as plain JSON values.

    Args:
        pairs: each slot and the leaf that fills it.
        leaves: the source table; it says which nodes were lists or tuples. Such a node becomes a
            JSON list again when all its elements are here, else an object with index keys.

    Returns:
        Dicts, lists and scalars that ``json.dumps`` takes without NaN.

    Raises:
        BridgeError: a key is one of the markers, one slot lies below another, or a value has no
            form in JSON.
    """
    tree: dict[str, Any] = {}
    sequences: set[SlotPath] = set()
    for ref, leaf in pairs:
        clash = _MARKERS.intersection(ref.path)
        if clash:
            raise BridgeError(
                f"slot {ref}: the key {min(clash)!r} has a meaning of its own in our JSON items. "
                "Rename it with a rule, or ignore the leaf."
            )
        _insert(tree, ref, encode(leaf))
        sequences |= _sequences(ref.path, leaf.path, leaves)
    return _with_lists(tree, (), sequences)


def encode(leaf: Leaf) -> Any:
    """One value as plain JSON values.

    Args:
        leaf: it is read.

    Returns:
        What :func:`decode` turns back into the value.

    Raises:
        BridgeError: it has no form in JSON.
    """
    if leaf.kind == "empty":
        return [] if leaf.container in _SEQUENCES else {}
    return _encode(leaf.read(), leaf.path)


def plain(value: Any) -> Any:
    """A value as a JSON item keeps it: 64-bit numpy scalars and bools as Python's own.

    Orbax writes Python numbers as such scalars, and has no mark that tells them apart.

    >>> plain(np.float64(0.5)), plain(np.float32(0.5))
    (0.5, np.float32(0.5))
    """
    plainly = isinstance(value, np.generic) and value.dtype.name in _PYTHON_DTYPES
    return value.item() if plainly else value


def decode(data: Any) -> Any:
    """Read back what :func:`document` made.

    Args:
        data: parsed JSON.

    Returns:
        The same tree with bytes, complex numbers, non-finite floats and arrays as such.

    >>> decode({"a": {"__bytes__": "YWI="}, "b": [{"__float__": "-inf"}]})
    {'a': b'ab', 'b': [-inf]}
    """
    if isinstance(data, list):
        return [decode(entry) for entry in data]
    if not isinstance(data, dict):
        return data
    if len(data) == 1 and _MARKERS.intersection(data):
        return _unmark(*next(iter(data.items())))
    return {key: decode(inner) for key, inner in data.items()}


def _unmark(marker: str, inner: Any) -> Any:
    if marker == _BYTES:
        return base64.b64decode(inner)
    if marker == _COMPLEX:
        return complex(decode(inner[0]), decode(inner[1]))
    if marker == _FLOAT:
        return float(inner)
    dtype = np.dtype(getattr(ml_dtypes, inner["dtype"], inner["dtype"]))
    return np.frombuffer(base64.b64decode(inner["data"]), dtype).reshape(inner["shape"])


def _encode(value: Any, path: LeafPath) -> Any:
    value = plain(value)
    if isinstance(value, (np.ndarray, np.generic)):
        return {_ARRAY: _array(np.asarray(value), path)}
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {_BYTES: base64.b64encode(value).decode()}
    if isinstance(value, complex):
        return {_COMPLEX: [_encode(value.real, path), _encode(value.imag, path)]}
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: repr(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise BridgeError(
        f"leaf {format_path(path)}: a {type(value).__name__} has no form in JSON. Ignore it with "
        "a rule."
    )


def _array(value: np.ndarray[Any, Any], path: LeafPath) -> dict[str, Any]:
    if value.dtype.hasobject or value.dtype.names:
        raise BridgeError(
            f"leaf {format_path(path)}: dtype {value.dtype} has no form in JSON. Ignore it with "
            "a rule."
        )
    extension = value.dtype.kind == "V" and hasattr(ml_dtypes, value.dtype.name)
    return {
        "dtype": value.dtype.name if extension else value.dtype.str,
        "shape": list(value.shape),
        "data": base64.b64encode(value.tobytes()).decode(),
    }


def _insert(tree: dict[str, Any], ref: SlotRef, value: Any) -> None:
    node = tree
    for key in ref.path[:-1]:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise BridgeError(f"slot {ref} lies below another value; rename it with a rule.")
    if not ref.path or ref.path[-1] in node:
        raise BridgeError(f"slot {ref} cannot be placed: something is there already.")
    node[ref.path[-1]] = value


def _sequences(slot: SlotPath, source: LeafPath, leaves: LeafTable) -> set[SlotPath]:
    """The prefixes of a slot's path that were lists or tuples in the source."""
    found: set[SlotPath] = set()
    for n in range(1, min(len(slot), len(source)) + 1):
        if slot[-n] != source[-n]:
            break
        node = leaves.nodes.get(source[:-n])
        if node is not None and node.container in _SEQUENCES:
            found.add(slot[:-n])
    return found


def _with_lists(node: Any, path: SlotPath, sequences: set[SlotPath]) -> Any:
    if not isinstance(node, dict) or _MARKERS.intersection(node):
        return node
    done = {key: _with_lists(value, (*path, key), sequences) for key, value in node.items()}
    if path in sequences and done.keys() == {str(n) for n in range(len(done))}:
        return [done[str(n)] for n in range(len(done))]
    return done
