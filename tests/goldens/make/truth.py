"""Writes down what a saved tree held, without help from any checkpoint format.

A golden checkpoint is only worth something if its right answer comes from elsewhere. `record`
walks the live Python object that was given to the old release and stores every leaf: names,
kinds and plain numbers as `truth.json`, array bytes as `truth.npz` (read both with nothing but
json and numpy). It uses neither jax's tree flattening nor flax's state dicts.

Runs on Python 3.8 - 3.12 and on every release of flax since 0.1.0.
"""
import dataclasses
import json
import sys
from collections.abc import Mapping
from importlib import metadata

import jax
import numpy as np


def record(folder, tree, step, arrays=None, suffix="", losses=(), **facts):
    """Write `truth<suffix>.json` and `.npz` for `tree` into `folder`.

    `losses` is a list of `{"path": [...], "why": "..."}`: leaves that this release does not store
    as they were. Nobody can read them back; a reader must say so, or refuse them.
    """
    stored = dict(arrays or {})
    leaves = [_describe(path, leaf, stored) for path, leaf in walk(tree)]
    document = {"leaves": leaves, "nodes": list(_nodes(tree)), "step": step, **versions(), **facts}
    if losses:
        document["losses"] = list(losses)
    text = json.dumps(document, indent=1, ensure_ascii=False)
    (folder / f"truth{suffix}.json").write_text(text + "\n", encoding="utf-8")
    np.savez_compressed(folder / f"truth{suffix}.npz", **stored)


def versions():
    """The releases at work."""
    names = {"flax": "flax", "orbax": "orbax-checkpoint", "jax": "jax", "jaxlib": "jaxlib",
             "optax": "optax", "numpy": "numpy", "msgpack": "msgpack", "tensorstore": "tensorstore"}
    found = {short: _version(full) for short, full in names.items()}
    found["orbax"] = found["orbax"] or _version("orbax")  # its name before 0.2
    found["jaxlib"] = found["jaxlib"] or f"rocm {_version('jaxlib-rocm')}"
    found["python"] = ".".join(map(str, sys.version_info[:3]))
    return found


def _version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def walk(node, path=()):
    """Yield (path, leaf) for every leaf, empty containers and None included."""
    children = _children(node)
    if not children:
        yield path, node
        return
    for name, child in children:
        yield from walk(child, path + (name,))


def _nodes(node, path=()):
    """What each inner node was, plain dicts left out."""
    children = _children(node)
    if not children:
        return
    if type(node) is not dict:
        kinds = (("namedtuple", hasattr(node, "_fields")), ("list", isinstance(node, list)),
                 ("tuple", isinstance(node, tuple)), ("mapping", isinstance(node, Mapping)))
        kind = next((kind for kind, true in kinds if true), "object")
        yield {"path": list(path), "container": kind, "name": type(node).__name__}
    for name, child in children:
        yield from _nodes(child, path + (name,))


def _children(node):
    """The named children of a container; None or nothing for a leaf or an empty container."""
    if hasattr(node, "as_dict"):  # the Collection of flax.nn, which keeps statistics by module
        node = node.as_dict()
    if isinstance(node, Mapping):
        return [(str(key), node[key]) for key in node]
    if hasattr(node, "_fields"):
        return [(name, getattr(node, name)) for name in node._fields]
    if isinstance(node, (list, tuple)):
        return [(str(index), child) for index, child in enumerate(node)]
    if dataclasses.is_dataclass(node):
        saved = [f for f in dataclasses.fields(node) if f.metadata.get("pytree_node", True)]
        return [(field.name, getattr(node, field.name)) for field in saved]
    return None


def _describe(path, leaf, stored):
    entry = {"path": list(path)}
    if leaf is None:
        return {**entry, "kind": "none"}
    if isinstance(leaf, (Mapping, list, tuple)) or dataclasses.is_dataclass(leaf):
        return {**entry, "kind": "empty", "container": type(leaf).__name__}
    if not isinstance(leaf, np.generic):
        for kind, types in (("bool", bool), ("str", str), ("number", (int, float))):
            if isinstance(leaf, types):
                return {**entry, "kind": kind, "value": leaf}
        if isinstance(leaf, complex):
            parts = [leaf.real, leaf.imag]
            return {**entry, "kind": "number", "type": "complex", "value": parts}
        if isinstance(leaf, bytes):
            return {**entry, "kind": "bytes", "value": leaf.hex()}
    if _is_typed_key(leaf):
        impl = str(jax.random.key_impl(leaf))
        entry.update(kind="key", key_impl={"fry": "threefry2x32"}.get(impl, impl))  # jax < 0.4.36
        dtype, shape, data = str(leaf.dtype), leaf.shape, np.asarray(jax.random.key_data(leaf))
    else:
        data = np.asarray(leaf)
        if data.dtype == object:
            raise TypeError("no truth for a %s at %r" % (type(leaf), path))
        entry["kind"] = "scalar" if isinstance(leaf, np.generic) else "array"
        dtype, shape = data.dtype.name, data.shape
    name = f"a{len(stored)}"
    stored[name] = _for_npz(data)
    return {**entry, "dtype": dtype, "shape": list(shape), "data": name}


def _for_npz(data):
    """The array as npz keeps it: dtypes that are not numpy's own as unsigned integers."""
    own = data.dtype.isbuiltin == 1 and data.dtype.kind != "V"
    if own or (data.dtype.isbuiltin == 0 and data.dtype.kind in "biufcSUmM"):  # 0: other byte order
        return data
    return np.ascontiguousarray(data).view("u%d" % data.dtype.itemsize).reshape(data.shape)


def _is_typed_key(leaf):
    extended = getattr(jax.dtypes, "prng_key", None)
    return extended is not None and hasattr(leaf, "dtype") and jax.dtypes.issubdtype(
        leaf.dtype, extended)
