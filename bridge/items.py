"""From what the user holds to abstract NNX objects by item name.

A model arrives as a factory, a live or abstract object, a state, or several of these; it leaves
here as objects of the same graph whose arrays are all ``jax.ShapeDtypeStruct``. Nothing is
allocated, and no value of a live object can slip into a result.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import jax
from flax import linen, nnx

from bridge._trace import follow, trace
from bridge.errors import TargetError

__all__ = ["HOMELESS", "Items", "gather", "live", "made"]

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
        model: see :func:`bridge.describe`.
        tx: the same.

    Raises:
        TargetError: something is neither, or a factory fails.
    """
    _refuse(model, "the model")
    if isinstance(model, Mapping) and not _is_object(model):
        makers = {name: _maker(value, f"item {name!r}") for name, value in model.items()}
        named = _named(trace(lambda: _all(makers), "the model"))
    else:
        named = _named(trace(_maker(model, "the model"), "the model"))
    if tx is None:
        return named
    return Items({**named.objects, **_optimizers(named, tx)}, named.named)


def live(model: Any) -> dict[str, Callable[[], Any]]:
    """What makes a new live object of each item; to be called inside a traced function.

    Args:
        model: see :func:`bridge.describe`.

    Returns:
        A maker by item name, for modules only; where a live or abstract object was given, of
        copies of it, so that the user's object never holds a tracer.

    >>> live(lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)))["model"]().kernel.shape
    (2, 3)
    """
    items = gather(model)
    return {
        name: functools.partial(_live, model, name)
        for name, value in items.objects.items()
        if _module_of(value) is not None
    }


def made(model: Any) -> Mapping[str, Any]:
    """What a model is, by item name, made anew; to be called inside a traced function.

    Args:
        model: see :func:`bridge.describe`.

    >>> list(made(lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0))))
    ['model']
    """
    if isinstance(model, Mapping) and not _is_object(model):
        makers = {name: _maker(value, f"item {name!r}") for name, value in model.items()}
        return _named(_all(makers)).objects
    return _named(_maker(model, "the model")()).objects


def _module_of(value: Any) -> Any:
    """The module in an object: itself, or that of a ``ModelAndOptimizer``; None without one."""
    if isinstance(value, nnx.Optimizer):
        value = getattr(value, "model", None)
    return value if isinstance(value, nnx.Module) else None


def _live(model: Any, item: str) -> Any:
    if isinstance(model, Mapping) and not _is_object(model):
        made = _parts(item, _maker(model[item], f"item {item!r}")(), f"item {item!r}")[item]
    else:
        made = _named(_maker(model, "the model")()).objects[item]
    return nnx.clone(_module_of(made))


def _all(makers: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    # in one trace, so that items go on sharing what they share
    found: dict[str, Any] = {}
    for name, make in makers.items():
        for part, value in _parts(name, make(), f"item {name!r}").items():
            if part in found:
                raise TargetError(f"the item {part!r} is given twice. Use another name.")
            found[part] = value
    return found


def _parts(name: str, value: Any, what: str) -> dict[str, Any]:
    """An item, or a module and its optimizer as two."""
    if not isinstance(value, tuple) or not value or isinstance(value[0], nnx.GraphDef):
        return {name: _checked_one(value, what)}
    optimizers = [v for v in value if isinstance(v, nnx.Optimizer)]
    others = [_checked_one(v, what) for v in value if not isinstance(v, nnx.Optimizer)]
    if len(optimizers) != 1 or len(others) != 1:
        raise TargetError(
            f"{what} is a tuple of {', '.join(type(v).__name__ for v in value)}; expected one "
            "module and one nnx.Optimizer."
        )
    return {name: others[0], f"{name}_optimizer": optimizers[0]}


def _maker(model: Any, what: str) -> Callable[[], Any]:
    _refuse(model, what)
    if _is_object(model) or isinstance(model, tuple):
        return lambda: _checked(model, what)
    if callable(model):
        return lambda: _checked(_call(model, what), what)
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
            f"{what} is the text {value!r}; resolve it first with bridge.spec.resolve(...)."
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
        init = cast("Any", bound.func).__init__
        bound = functools.partial(init, None, *bound.args, **bound.keywords)
    try:
        parameters = inspect.signature(bound).parameters.values()
    except (TypeError, ValueError):
        return []
    return [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]


def _checked(out: Any, what: str) -> Any:
    """The result of a factory, when it is of a form that we name."""
    _refuse(out, what)
    if isinstance(out, tuple) and len(out) == 2 and isinstance(out[0], nnx.GraphDef):  # noqa: PLR2004 - a pair
        return nnx.merge(*out)
    if isinstance(out, tuple) and hasattr(out, "_asdict"):
        out = out._asdict()
    if isinstance(out, Mapping) and not _is_object(out):
        return {
            part: one
            for name, v in out.items()
            for part, one in _parts(name, v, f"{what}, item {name!r}").items()
        }
    if isinstance(out, tuple):
        return tuple(_checked_one(v, f"{what}, part {n}") for n, v in enumerate(out))
    return _checked_one(out, what)


def _checked_one(value: Any, what: str) -> Any:
    _refuse(value, what)
    if not _is_object(value):
        raise TargetError(f"{what} gives an object of type {type(value).__name__}. {_TAKES}")
    return value


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
        tx = _call(tx, what)
    if not _is_transformation(tx):
        raise TargetError(
            f"{what} is of type {type(tx).__name__}; expected an optax transformation such as "
            "optax.adamw(1e-3), or a function without arguments that returns one."
        )
    graphdef, state = nnx.split(model)
    leaves, tree = jax.tree.flatten(state)
    made = trace(
        lambda *args: nnx.Optimizer(nnx.merge(graphdef, tree.unflatten(args)), tx, wrt=nnx.Param),
        what,
        leaves,
    )
    return follow(made, state)


def _is_transformation(tx: Any) -> bool:
    return callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None))
