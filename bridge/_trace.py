"""Runs what makes nnx objects without making their arrays.

``nnx.eval_shape`` would do, but for leaves that are no JAX arrays: it gives numpy float64 as
float32, cannot say which leaf is a string, and does not take abstract objects as results.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from bridge._describe_places import places
from bridge.errors import TargetError

__all__ = ["follow", "trace"]


def trace(make: Callable[..., Any], what: str, leaves: Sequence[Any] = ()) -> Any:
    """Run ``make(*leaves)`` on tracers.

    Args:
        make: gives an nnx object or state, or a dict or tuple of them.
        what: what it is, for errors.
        leaves: abstract arguments.

    Returns:
        The same objects with ``jax.ShapeDtypeStruct`` leaves, dicts in their order. Under a mesh
        (``jax.set_mesh``) annotated Variables have the shardings that they would get.

    Raises:
        TargetError: ``make`` fails, or a leaf is something that no checkpoint keeps.
    """
    mesh = jax.sharding.get_mesh()
    box: list[tuple[Any, Any, list[Any], Any]] = []
    counts: list[int] = []

    def run(*args: Any) -> None:
        out = make(*args)
        graphdef, state = nnx.split({"": out})
        found, tree = jax.tree_util.tree_flatten_with_path(state)
        structs = [_struct(x, path[1:], what) for path, x in found]
        counts.append(_count(out))
        box.append((graphdef, tree, structs, list(out) if isinstance(out, dict) else None))

    # an annotated Variable asks for a mesh when it is made; a description needs none
    eager = nnx.use_eager_sharding(False) if mesh.empty else contextlib.nullcontext()
    try:
        with eager:
            jax.eval_shape(run, *map(_held, leaves))
    except TargetError:
        raise
    except Exception as error:
        raise TargetError(
            f"{what} could not be traced (it runs without values, as under nnx.eval_shape): "
            f"{type(error).__name__}: {error}"
        ) from error
    graphdef, tree, structs, order = box[0]
    nodes = jax.tree.map(lambda v: _settled(v, mesh), tree.unflatten(structs), is_leaf=_is_variable)
    made = nnx.merge(graphdef, nodes)[""]
    _all_there(counts[0], _count(made), what)
    return made if order is None else {name: made[name] for name in order}


def follow(optimizer: Any, params: Any) -> Any:
    """Place what mirrors a parameter as that parameter is placed."""
    placed = {
        _names(path): x
        for path, x in jax.tree_util.tree_leaves_with_path(params)
        if x.sharding is not None
    }

    def place(path: tuple[Any, ...], x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        names = _names(path)
        twins = (placed[names[n:]] for n in range(len(names)) if names[n:] in placed)
        twin = next(twins, None)
        if x.sharding is not None or twin is None or twin.shape != x.shape:
            return x
        return _on(x, twin.sharding)

    graphdef, state = nnx.split(optimizer)
    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(place, state))


def _count(out: Any) -> int:
    """How many arrays an object would save, or several would."""
    one = isinstance(out, nnx.Pytree | nnx.State)
    several = [out] if one else out.values() if isinstance(out, Mapping) else out
    return sum(not p.empty for value in several for p in places(value))


def _all_there(wanted: int, found: int, what: str) -> None:
    """Refuse what flax loses: 0.12.5 sees no abstract array in a plain dict or list."""
    if found != wanted:
        raise TargetError(
            f"{what} has {wanted} arrays, and this flax finds {found} of them when they are "
            "abstract: the others lie in a dict or list without a Variable (as the scales of "
            "nnx.WeightNorm do in flax 0.12.5). Put them into nnx.Variable, or use a newer flax."
        )


def _held(struct: Any) -> Any:
    """As JAX holds it: a numpy float64 becomes a float32 tracer, and that is no news."""
    dtype = struct.dtype
    if jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
        return struct
    held = jax.dtypes.canonicalize_dtype(dtype)
    return struct if held == dtype else jax.ShapeDtypeStruct(struct.shape, held)


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(str(getattr(k, "key", getattr(k, "name", k))) for k in path)


def _struct(x: Any, path: tuple[Any, ...], what: str) -> jax.ShapeDtypeStruct:
    if isinstance(x, bool | int | float | complex):
        # as nnx.eval_shape and nnx.jit take them
        return jax.ShapeDtypeStruct((), jax.dtypes.canonicalize_dtype(np.asarray(x).dtype))
    numeric = isinstance(x, np.ndarray | np.generic) and x.dtype.kind not in "OSUMm"
    if isinstance(x, jax.core.Tracer) or (numeric and x.dtype.fields is None):
        return jax.ShapeDtypeStruct(x.shape, x.dtype)
    if isinstance(x, jax.Array):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding if x.committed else None)
    if isinstance(x, jax.ShapeDtypeStruct):
        return x
    raise TargetError(_no_array(x, path, what))


def _no_array(x: Any, path: tuple[Any, ...], what: str) -> str:
    return (
        f"{what}: {jax.tree_util.keystr(path)} holds {x!r:.60} ({type(x).__name__}), which no "
        "checkpoint of arrays can keep. Make it a plain attribute (nnx.static), not a Variable."
    )


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)


def _settled(node: Any, context: jax.sharding.Mesh) -> Any:
    """A traced Variable with the metadata and the sharding that it has when made plainly."""
    if not _is_variable(node):
        return node
    metadata = node.get_metadata()
    if context.empty and not metadata.get("out_sharding"):
        node.set_metadata("eager_sharding", nnx.using_eager_sharding())
    struct = node.get_raw_value()
    mesh = metadata.get("mesh") or context
    if not isinstance(struct, jax.ShapeDtypeStruct) or struct.sharding is not None:
        return node
    if not isinstance(mesh, jax.sharding.Mesh) or mesh.empty:
        return node
    spec = nnx.get_partition_spec(node).get_raw_value()
    return node.replace(_on(struct, jax.sharding.NamedSharding(mesh, spec)))


def _on(struct: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(struct.shape, struct.dtype, sharding=sharding)
