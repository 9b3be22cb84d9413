"""From what the user holds to abstract NNX objects by item name.

A model arrives as a factory, a live or abstract object, a state, or several of these; it leaves
here as objects of the same graph whose arrays are all ``jax.ShapeDtypeStruct``. Nothing is
allocated, and no value of a live object can slip into a result.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import linen, nnx

from bridge.errors import TargetError

__all__ = ["HOMELESS", "Items", "gather"]

HOMELESS = ("extras", "metadata")
"""Items of what has no home in a model; as :mod:`bridge.carry` names them."""

_RESERVED = (*HOMELESS, "metrics", "descriptor")
"""The last two are what Orbax's CheckpointManager writes itself."""

_TAKES = (
    "Give a function without arguments that returns an nnx.Module (`lambda: CNN(rngs=nnx.Rngs(0))`"
    "), an nnx object, or a dict of these by item name."
)


@dataclass(frozen=True, slots=True)
class Items:
    """Abstract NNX objects by item name.

    Attributes:
        objects: modules, optimizers and states; their leaves are ``jax.ShapeDtypeStruct``.
        named: whether the names are the user's; then results come back by name, too.
    """

    objects: Mapping[str, Any]
    named: bool


def gather(model: Any, tx: Any = None) -> Items:
    """Trace factories, and make live objects abstract.

    Args:
        model: see :func:`bridge.describe.describe`.
        tx: the same.

    Raises:
        TargetError: something is neither, or a factory fails.
    """
    _refuse(model, "the model")
    if isinstance(model, Mapping) and not _is_object(model):
        items = {name: _maker(value, f"item {name!r}") for name, value in model.items()}
        named = _named(_trace(lambda: {n: make() for n, make in items.items()}, "the model"))
    else:
        named = _named(_trace(_maker(model, "the model"), "the model"))
    if tx is None:
        return named
    return Items({**named.objects, **_optimizers(named, tx)}, named.named)


def _maker(model: Any, what: str) -> Callable[[], Any]:
    _refuse(model, what)
    if _is_object(model) or isinstance(model, tuple):
        return lambda: model
    if callable(model):
        return lambda: _call(model, what)
    raise TargetError(f"{what} is of type {type(model).__name__}. {_TAKES}")


def _is_object(value: Any) -> bool:
    return isinstance(value, nnx.Pytree | nnx.State)


def _refuse(value: Any, what: str) -> None:
    """Tell apart the things that people hold and that are no target."""
    kind = value if isinstance(value, type) else type(value)
    if issubclass(kind, linen.Module):
        raise TargetError(
            f"{what} is a Linen module ({kind.__name__}); the target is NNX. Give the NNX model "
            "here and the Linen module as `linen=`, or wrap it: nnx.bridge.ToNNX(module)."
        )
    if isinstance(value, str):
        raise TargetError(
            f"{what} is the text {value!r}; resolve it first with bridge.describe.resolve(...)."
        )
    if dataclasses.is_dataclass(kind) and hasattr(value, "params"):
        raise TargetError(
            f"{what} is a {kind.__name__}, which is a template for the old checkpoint and not an "
            "NNX object. To fill such a template use legacy.restore(path, template); to convert, "
            f"give the NNX model. {_TAKES}"
        )


def _call(factory: Callable[..., Any], what: str) -> Any:
    required = _required(factory)
    if required == ["rngs"]:
        return factory(rngs=nnx.Rngs(0))
    if required:
        name = getattr(factory, "__name__", "factory")
        bound = ", ".join("rngs=nnx.Rngs(0)" if r == "rngs" else f"{r}=..." for r in required)
        raise TargetError(
            f"{what}: {name} needs the arguments {', '.join(required)}. Bind them: "
            f"lambda: {name}({bound})"
        )
    return factory()


def _required(factory: Callable[..., Any]) -> list[str]:
    """The arguments that a call must give."""
    bound = factory if isinstance(factory, functools.partial) else functools.partial(factory)
    if isinstance(bound.func, type):
        # the metaclass of nnx modules takes anything; their __init__ does not
        bound = functools.partial(bound.func.__init__, None, *bound.args, **bound.keywords)
    try:
        parameters = inspect.signature(bound).parameters.values()
    except (TypeError, ValueError):
        return []
    return [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]


def _trace(make: Callable[..., Any], what: str, leaves: Sequence[Any] = ()) -> Any:
    """Run ``make(*leaves)`` on tracers and return its result with abstract leaves.

    ``nnx.eval_shape`` would do, but for leaves that are no JAX arrays: it gives numpy float64 as
    float32, cannot say which leaf is a string, and does not take abstract objects as results.
    """
    mesh = jax.sharding.get_mesh()
    box: list[tuple[Any, Any, list[Any], Any]] = []

    def run(*args: Any) -> None:
        out = _checked(make(*args), what)
        graphdef, state = nnx.split({"": out})
        found, tree = jax.tree_util.tree_flatten_with_path(state)
        structs = [_struct(x, path[1:], what) for path, x in found]
        box.append((graphdef, tree, structs, list(out) if isinstance(out, dict) else None))

    # an annotated Variable asks for a mesh when it is made; a description needs none
    eager = nnx.use_eager_sharding(False) if mesh.empty else contextlib.nullcontext()
    try:
        with eager:
            jax.eval_shape(run, *leaves)
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
    return made if order is None else {name: made[name] for name in order}


def _checked(out: Any, what: str) -> Any:
    """The result of a factory, when it is of a form that we name."""
    _refuse(out, what)
    if isinstance(out, tuple) and len(out) == 2 and isinstance(out[0], nnx.GraphDef):  # noqa: PLR2004 - a pair
        return nnx.merge(*out)
    if isinstance(out, tuple) and hasattr(out, "_asdict"):
        out = out._asdict()
    if isinstance(out, Mapping) and not _is_object(out):
        return {name: _checked_one(v, f"{what}, item {name!r}") for name, v in out.items()}
    if isinstance(out, tuple):
        return tuple(_checked_one(v, f"{what}, part {n}") for n, v in enumerate(out))
    return _checked_one(out, what)


def _checked_one(value: Any, what: str) -> Any:
    _refuse(value, what)
    if not _is_object(value):
        raise TargetError(f"{what} gives an object of type {type(value).__name__}. {_TAKES}")
    return value


def _struct(x: Any, path: tuple[Any, ...], what: str) -> jax.ShapeDtypeStruct:
    if isinstance(x, bool | int | float | complex):
        # as nnx.eval_shape and nnx.jit take them
        return jax.ShapeDtypeStruct((), jax.dtypes.canonicalize_dtype(np.asarray(x).dtype))
    numeric = isinstance(x, np.ndarray | np.generic) and x.dtype.kind not in "OSUMm"
    if isinstance(x, jax.core.Tracer) or (numeric and x.dtype.fields is None):
        return jax.ShapeDtypeStruct(x.shape, x.dtype)
    if isinstance(x, jax.Array):
        return jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=x.sharding if x.committed else None
        )
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


def _named(made: Any) -> Items:
    if isinstance(made, tuple):
        names = ["optimizer" if isinstance(v, nnx.Optimizer) else "model" for v in made]
        if sorted(names) != ["model", "optimizer"]:
            raise TargetError(
                f"the model is a tuple of {', '.join(type(v).__name__ for v in made)}; expected "
                "one module and one nnx.Optimizer. Give several as a dict by item name."
            )
        return Items(dict(zip(names, made, strict=True)), named=False)
    if not isinstance(made, dict):
        return Items(
            {"optimizer" if isinstance(made, nnx.Optimizer) else "model": made}, named=False
        )
    for name in made:
        if not isinstance(name, str) or not name or "/" in name or name.startswith("."):
            raise TargetError(
                f"{name!r} cannot be an item name: an item becomes a folder. Use a plain word."
            )
        if name in _RESERVED:
            raise TargetError(
                f"the item name {name!r} is taken: {', '.join(_RESERVED)} hold other things. Use "
                "another name."
            )
    return Items(made, named=True)


def _optimizers(items: Items, tx: Any) -> dict[str, Any]:
    models = {n: v for n, v in items.objects.items() if not isinstance(v, nnx.Optimizer)}
    if isinstance(tx, Mapping):
        wanted = dict(tx)
    elif len(models) == 1 and not items.named:
        wanted = {"model": tx}
    else:
        raise TargetError(
            f"tx is one optimizer for the items {', '.join(items.objects)}; give a dict "
            "{model's name: tx}."
        )
    made = {}
    for name, one in wanted.items():
        if name not in models:
            near = difflib.get_close_matches(str(name), models, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise TargetError(f"tx names {name!r}; the models are {', '.join(models)}.{hint}")
        item = f"{name}_optimizer" if items.named else "optimizer"
        if item in items.objects:
            raise TargetError(
                f"tx would make the item {item!r}, which the model has already. Give the "
                "optimizer once."
            )
        made[item] = _optimizer(models[name], one, name)
    return made


def _optimizer(model: Any, tx: Any, name: str) -> Any:
    what = f"tx of {name!r}"
    if isinstance(tx, nnx.Optimizer):
        raise TargetError(
            f"{what} is an nnx.Optimizer; give it with the model: model=(model, optimizer)."
        )
    if isinstance(model, nnx.State):
        raise TargetError(f"{what}: {name!r} is a state; an optimizer needs the module itself.")
    if not _is_transformation(tx) and callable(tx):
        tx = tx()
    if not _is_transformation(tx):
        raise TargetError(
            f"{what} is of type {type(tx).__name__}; expected an optax transformation such as "
            "optax.adamw(1e-3), or a function without arguments that returns one."
        )
    graphdef, state = nnx.split(model)
    leaves, tree = jax.tree.flatten(state)
    made = _trace(
        lambda *args: nnx.Optimizer(nnx.merge(graphdef, tree.unflatten(args)), tx, wrt=nnx.Param),
        what,
        leaves,
    )
    return _follow(made, state)


def _is_transformation(tx: Any) -> bool:
    return callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None))


def _follow(optimizer: Any, params: Any) -> Any:
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


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(str(getattr(k, "key", getattr(k, "name", k))) for k in path)
