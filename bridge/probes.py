"""Calls a Linen model and an NNX model alike, as pure functions of their arrays.

Whatever compares the two (gradients, data flow, outputs, training steps) needs the same thing: a
function from arrays by path to outputs. The models' own randomness is tied: every draw of one
shape gives the same numbers on both sides, whatever the key, so that dropout in training mode and
sampling in a VAE can be compared at all. A factory runs inside the traced function, so what it
would initialise is never computed, and its constants are as the model makes them.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from bridge._describe import places
from bridge.errors import BridgeError, TargetError
from bridge.probe import Probe
from bridge.spec import resolve
from bridge.target import SlotPath
from legacy import LeafPath, format_path

__all__ = [
    "Call",
    "Called",
    "Model",
    "Probe",
    "linen_model",
    "linen_of",
    "linen_variables",
    "nnx_model",
    "takes",
    "tied",
]

_TRAINING = frozenset({"train", "training", "is_training", "is_train"})
_EVALUATION = frozenset({"deterministic", "eval", "evaluate", "use_running_average"})
_KEYED = ("key",)
_NO_DRAW = frozenset(
    {"split", "fold_in", "key_data", "key_impl", "clone", "wrap_key_data", "key", "PRNGKey"}
)
_SEEN = 4
"""Names that fit into one line of an error."""


class Called(NamedTuple):
    """What one call gives.

    Attributes:
        outputs: all arrays of the result, in the order of its tree.
        updates: new values of mutable variables, by the paths of :attr:`Model.specs`; only in
            training mode.
    """

    outputs: tuple[Any, ...]
    updates: dict[tuple[str, ...], Any]


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call of a model.

    Attributes:
        probe: what is called.
        inputs: the arrays among its arguments, in the order of their tree.
        run: ``run(values, inputs)``: pure, traceable; ``values`` has an array for each path of
            :attr:`Model.specs`.
    """

    probe: Probe
    inputs: tuple[Any, ...]
    run: Callable[[Mapping[tuple[str, ...], Any], Sequence[Any]], Called]


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A model as pure functions of its arrays.

    Attributes:
        name: ``Linen`` or ``NNX``.
        specs: shape and dtype by path: variable paths, collection first, on the Linen side; slot
            paths below the model on the NNX side.
        calls: one for each probe.
    """

    name: str
    specs: Mapping[tuple[str, ...], jax.ShapeDtypeStruct]
    calls: tuple[Call, ...]


def linen_of(given: Any) -> Any:
    """The Linen module that a user means: a module, a class or function that makes one, a name.

    Raises:
        TargetError: it is none of these.

    >>> linen_of(lambda: linen.Dense(3)).features
    3
    """
    found = resolve(given) if isinstance(given, str) else given
    if not isinstance(found, linen.Module) and callable(found):
        try:
            found = found()
        except TypeError as error:
            raise TargetError(f"linen: the module could not be made: {error}") from error
    if not isinstance(found, linen.Module):
        raise TargetError(
            f"linen is of type {type(found).__name__}; give the Linen module whose parameters the "
            "checkpoint holds, or a function without arguments that makes it."
        )
    return found


def takes(module: Any, probe: Probe) -> bool:
    """Whether the Linen method takes the names of a probe's keyword arguments.

    >>> takes(linen.Dense(3), Probe(kwargs={"inputs": 1}))
    True
    >>> takes(linen.Dense(3), Probe(kwargs={"image": 1}))
    False
    """
    parameters = inspect.signature(_method(type(linen_of(module)), probe.method)).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return open_ended or set(probe.kwargs) <= set(parameters)


def _method(kind: type[Any], method: Any) -> Any:
    if method is None:
        return kind.__call__
    if isinstance(method, str) and not callable(getattr(kind, method, None)):
        own = (n for n, v in vars(kind).items() if inspect.isfunction(v) and not n.startswith("_"))
        raise BridgeError(
            f"the Linen module {kind.__name__} has no method {method!r}; it has "
            f"{', '.join(own) or '__call__ only'}."
        )
    return getattr(kind, method) if isinstance(method, str) else method


def linen_model(
    module: Any, probes: Iterable[Probe], leaves: Mapping[LeafPath, tuple[tuple[int, ...], str]]
) -> Model:
    """The Linen side.

    Args:
        module: the ``flax.linen`` module; it is traced abstractly to learn its variables.
        probes: how it is called.
        leaves: shape and dtype name by variable path (collection first), of the checkpoint.

    Returns:
        The model; ``specs`` has the checkpoint's spelling of each path.

    Raises:
        BridgeError: the module fails, or its variables are not those of the checkpoint.
    """
    module = linen_of(module)
    calls = [_LinenCall(module, p) for p in probes]
    wanted: dict[LeafPath, jax.ShapeDtypeStruct] = {}
    for call in calls:
        wanted |= call.variables()
    ours = _spelled(leaves, wanted)
    specs = {ours[p]: jax.ShapeDtypeStruct(s.shape, leaves[ours[p]][1]) for p, s in wanted.items()
             if p in ours}  # fmt: skip
    return Model("Linen", specs, tuple(c.made(ours) for c in calls))


def linen_variables(module: Any, probe: Probe) -> Any:
    """The abstract variables of a Linen module, in the boxes that it makes for them.

    Raises:
        BridgeError: the module fails.
    """
    return _LinenCall(linen_of(module), probe).boxed()


def nnx_model(make: Callable[[], Any], probes: Iterable[Probe], paths: Iterable[SlotPath]) -> Model:
    """The NNX side.

    Args:
        make: gives a new live module each time, or an abstract one (then constants are zeros).
        probes: how it is called.
        paths: the slots that are varied; everything else stays as the model makes it.

    Raises:
        TargetError: the model fails.
    """
    wanted = set(paths)
    specs: dict[SlotPath, jax.ShapeDtypeStruct] = {}

    def look() -> None:
        for place in places(make()):
            if place.path in wanted and not place.empty:
                specs[place.path] = jax.ShapeDtypeStruct(place.value.shape, place.value.dtype)

    with _quiet():
        jax.eval_shape(look)
    return Model("NNX", specs, tuple(_NnxCall(make, p, tuple(specs)).made() for p in probes))


def trouble(model: Model, call: Call) -> str:
    """Why a call cannot be traced; empty when it can."""
    try:
        jax.eval_shape(call.run, dict(model.specs), list(call.inputs))
    except Exception as error:  # noqa: BLE001 - the user's code may raise anything
        shown = _shown(call.inputs)
        name = call.probe.nnx_name() if model.name == "NNX" else call.probe.method or "__call__"
        return f"{model.name}: {name}({shown}) fails: {type(error).__name__}: {error}"
    return ""


@contextlib.contextmanager
def tied() -> Iterator[None]:
    """Every random draw of one shape gives the same numbers, whatever its key.

    Only what is called as ``jax.random.<name>`` (or ``from jax import random``) is tied, which is
    how both flavours of Flax draw.

    >>> with tied():
    ...     a, b = (jax.random.normal(jax.random.key(n), (3,)) for n in range(2))
    >>> bool((a == b).all())
    True
    """
    with contextlib.ExitStack() as stack:
        for name in dir(jax.random):
            draw = getattr(jax.random, name)
            if name not in _NO_DRAW and inspect.isfunction(draw) and _draws(draw):
                stack.enter_context(mock.patch.object(jax.random, name, _one_key(draw)))
        yield


def _draws(function: Any) -> bool:
    return next(iter(inspect.signature(function).parameters), "") in _KEYED


def _one_key(draw: Callable[..., Any]) -> Callable[..., Any]:
    def tied_draw(*args: Any, **kwargs: Any) -> Any:
        if "key" in kwargs:
            return draw(**{**kwargs, "key": jax.random.key(0)})
        return draw(jax.random.key(0), *args[1:], **kwargs)

    return tied_draw


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with nnx.use_eager_sharding(False), tied():  # annotated Variables ask for no mesh
        yield


def _arguments(function: Any, args: tuple[Any, ...], *, train: bool) -> dict[str, bool]:
    """The mode arguments that a call needs and the user did not give."""
    parameters = list(inspect.signature(function).parameters.values())
    by_position = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    open_ones = {p.name for p in by_position[len(args) :]}
    open_ones |= {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    return dict.fromkeys(open_ones & _TRAINING, train) | dict.fromkeys(
        open_ones & _EVALUATION, not train
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Given:
    """Arguments, cut into arrays that may be varied and the rest."""

    arrays: tuple[Any, ...]
    where: tuple[int, ...]
    leaves: tuple[Any, ...]
    tree: Any

    @classmethod
    def of(cls, args: Any, kwargs: Any) -> _Given:
        leaves, tree = jax.tree.flatten((tuple(args), dict(kwargs)))
        where = tuple(n for n, x in enumerate(leaves) if isinstance(x, _ARRAYS))
        return cls(tuple(leaves[n] for n in where), where, tuple(leaves), tree)

    def filled(self, inputs: Sequence[Any]) -> Any:
        leaves = list(self.leaves)
        for n, x in zip(self.where, inputs, strict=True):
            leaves[n] = x
        return self.tree.unflatten(leaves)


_ARRAYS = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)


@dataclass(frozen=True, slots=True, eq=False)
class _LinenCall:
    module: Any
    probe: Probe
    given: _Given = field(init=False)
    mode: dict[str, bool] = field(init=False)

    def __post_init__(self) -> None:
        args = self.probe.linen_arguments()
        object.__setattr__(self, "given", _Given.of(*args))
        method = self._method() or type(self.module).__call__
        function = method if inspect.ismethod(method) else lambda: None
        if not inspect.ismethod(method):
            function = method.__get__(self.module) if hasattr(method, "__get__") else method
        mode = _arguments(function, args[0], train=self.probe.train)
        object.__setattr__(self, "mode", {k: v for k, v in mode.items() if k not in args[1]})

    def _method(self) -> Any:
        method = self.probe.method
        return method if method is None else _method(type(self.module), method)

    def variables(self) -> dict[LeafPath, jax.ShapeDtypeStruct]:
        """What the module keeps, by path with the collection first, unboxed."""
        found, _ = jax.tree_util.tree_flatten_with_path(linen.meta.unbox(self.boxed()))
        return {tuple(_key(k) for k in path): struct for path, struct in found}

    def boxed(self) -> Any:
        """What the module keeps, as it makes it."""

        def init(inputs: Sequence[Any]) -> Any:
            args, kwargs = self.given.filled(inputs)
            rngs = {"params": jax.random.key(0)}
            return self.module.init(rngs, *args, **kwargs, **self.mode, method=self._method())

        try:
            with tied():
                return jax.eval_shape(init, self.given.arrays)
        except Exception as error:
            raise BridgeError(
                f"the Linen module {type(self.module).__name__} could not be traced with the "
                f"sample input ({_shown(self.given.arrays)}): {type(error).__name__}: {error}"
            ) from error

    def made(self, ours: Mapping[LeafPath, LeafPath]) -> Call:
        """The call, for values under the checkpoint's paths."""

        def run(values: Mapping[tuple[str, ...], Any], inputs: Sequence[Any]) -> Called:
            tree: dict[str, Any] = {}
            for path, spelled in ours.items():
                node = tree
                for part in path[:-1]:
                    node = node.setdefault(part, {})
                node[path[-1]] = values[spelled]
            args, kwargs = self.given.filled(inputs)
            mutable = [c for c in tree if c != "params"] if self.probe.train else False
            with _quiet():
                out = self.module.apply(
                    tree, *args, **kwargs, **self.mode, rngs={"params": jax.random.key(0)},
                    method=self._method(), mutable=mutable,
                )  # fmt: skip
            if mutable is False:
                return Called(_outputs(out), {})
            new, _ = jax.tree_util.tree_flatten_with_path(linen.meta.unbox(out[1]))
            updated = {tuple(_key(k) for k in path): x for path, x in new}
            return Called(_outputs(out[0]), {ours[p]: x for p, x in updated.items() if p in ours})

        return Call(self.probe, self.given.arrays, run)


@dataclass(frozen=True, slots=True, eq=False)
class _NnxCall:
    make: Callable[[], Any]
    probe: Probe
    paths: tuple[SlotPath, ...]

    def made(self) -> Call:
        args, kwargs = self.probe.nnx_arguments()
        given = _Given.of(args, kwargs)

        def run(values: Mapping[tuple[str, ...], Any], inputs: Sequence[Any]) -> Called:
            with _quiet():
                model = _filled(self.make(), values)
                (model.train if self.probe.train else model.eval)()
                function = self.probe.of_nnx(model)
                now_args, now_kwargs = given.filled(inputs)
                mode = _arguments(function, args, train=self.probe.train)
                mode = {k: v for k, v in mode.items() if k not in kwargs}
                out = function(*now_args, **now_kwargs, **mode)
                after = {}
                if self.probe.train:
                    known = set(self.paths)
                    after = {p.path: p.value for p in places(model) if p.path in known}
            return Called(_outputs(out), after)

        return Call(self.probe, given.arrays, run)


def _filled(model: Any, values: Mapping[tuple[str, ...], Any]) -> Any:
    """A new model of the same graph with other arrays."""
    graphdef, state = nnx.split(model)
    leaves, tree = jax.tree.flatten(state)
    named = [p.path for p in places(state) if not p.empty]
    new = [_array(values.get(path, x)) for path, x in zip(named, leaves, strict=True)]
    return nnx.merge(graphdef, tree.unflatten(new))


def _array(x: Any) -> Any:
    return jnp.zeros(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x


def _outputs(out: Any) -> tuple[Any, ...]:
    return tuple(x for x in jax.tree.leaves(out) if isinstance(x, (jax.Array, np.ndarray)))


def _key(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))))


def _shown(arrays: Sequence[Any]) -> str:
    return ", ".join(f"{x.dtype}{list(x.shape)}" for x in arrays) or "no arrays"


def _spelled(
    leaves: Mapping[LeafPath, tuple[tuple[int, ...], str]],
    wanted: Mapping[LeafPath, jax.ShapeDtypeStruct],
) -> dict[LeafPath, LeafPath]:
    """The checkpoint's path of each variable of the module.

    Raises:
        BridgeError: variables that the checkpoint lacks or has in another shape.
    """
    boxed = {p[:-1]: p for p in leaves if p[-1:] == ("value",)}
    found = {p: p if p in leaves else boxed[p] for p in wanted if p in leaves or p in boxed}
    lost = [p for p in wanted if p not in found]
    apart = [p for p, q in found.items() if wanted[p].shape != leaves[q][0]]
    if not lost and not apart:
        return found
    text = [f"{format_path(p)} is not in the checkpoint" for p in lost[:_SEEN]]
    text += [
        f"{format_path(p)} has shape {list(wanted[p].shape)} in the module and "
        f"{list(leaves[found[p]][0])} in the checkpoint"
        for p in apart[:_SEEN]
    ]
    more = len(lost) + len(apart) - len(text)
    text += [f"and {more} more"] if more > 0 else []
    raise BridgeError(
        "the Linen module is not the one whose variables the checkpoint holds:\n  "
        + "\n  ".join(text)
        + "\nGive the module with the arguments that it was trained with and a sample input of the "
        "sizes that it was trained on, or leave linen= away."
    )
