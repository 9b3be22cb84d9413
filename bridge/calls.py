"""Calls of a model as values: what goes in, what comes out, and randomness that is the same twice.

The models' own randomness is tied: every draw of one shape gives the same numbers on both sides,
whatever the key, so that dropout in training mode and sampling in a VAE can be compared at all.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias
from unittest import mock

import jax
import numpy as np
from flax import nnx

from bridge.probe import Probe

__all__ = [
    "Arguments",
    "Call",
    "Called",
    "Model",
    "in_mode",
    "key_text",
    "mode_of",
    "outputs_of",
    "quiet",
    "shapes_text",
    "taken",
    "tied",
    "trains",
]

_TRAINING = frozenset({"train", "training", "is_training", "is_train"})
_EVALUATION = frozenset({"deterministic", "eval", "evaluate", "use_running_average"})
_KEYED = ("key",)
_NO_DRAW = frozenset(
    {"split", "fold_in", "key_data", "key_impl", "clone", "wrap_key_data", "key", "PRNGKey"}
)
_ARRAYS = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)

Name: TypeAlias = tuple[tuple[int, str], ...]
"""Where an output is in the result: for each level 0 and a position, or 1 and a name."""


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
        takes: names of the positional parameters that get an argument.
        names: where each output is in the result; filled when the call is traced.
    """

    probe: Probe
    inputs: tuple[Any, ...]
    run: Callable[[Mapping[tuple[str, ...], Any], Sequence[Any]], Called]
    takes: Sequence[str] = ()
    names: list[Name] = field(default_factory=list)


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
def quiet() -> Iterator[None]:
    """What a model is traced in: tied, and without a mesh that annotated Variables ask for."""
    with nnx.use_eager_sharding(False), tied():
        yield


def mode_of(
    function: Any, args: tuple[Any, ...], *, train: bool
) -> tuple[dict[str, bool], tuple[str, ...]]:
    """The mode arguments that a call needs and the user did not give; and what the others are.

    Args:
        function: bound.
        args: the positional arguments that are given.
        train: whether it is training mode.
    """
    parameters = inspect.signature(function).parameters.values()
    by_position = _positions(function)
    open_ones = {*by_position[len(args) :]}
    open_ones |= {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    mode = dict.fromkeys(open_ones & _TRAINING, train)
    mode |= dict.fromkeys(open_ones & _EVALUATION, not train)
    return mode, tuple(by_position[: len(args)])


def in_mode(
    function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, train: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with every mode argument among them as the mode wants it.

    Args:
        function: bound.
        args: positional arguments.
        kwargs: keyword arguments.
        train: whether it is training mode.
    """
    names = _positions(function)[: len(args)]
    given = list(args)
    for n, name in enumerate(names):
        if isinstance(given[n], bool) and name in _TRAINING | _EVALUATION:
            given[n] = train == (name in _TRAINING)
    changed = {
        name: train == (name in _TRAINING)
        for name, value in kwargs.items()
        if isinstance(value, bool) and name in _TRAINING | _EVALUATION
    }
    return tuple(given), {**kwargs, **changed}


def trains(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether the arguments themselves ask for training mode."""
    named = {**dict(zip(_positions(function), args, strict=False)), **kwargs}
    asked = [v is (n in _TRAINING) for n, v in named.items()
             if n in _TRAINING | _EVALUATION and isinstance(v, bool)]  # fmt: skip
    return bool(asked) and all(asked)


def _positions(function: Any) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def taken(function: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Those keyword arguments that a function takes."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return dict(kwargs)
    return {name: value for name, value in kwargs.items() if name in parameters}


@dataclass(frozen=True, slots=True, eq=False)
class Arguments:
    """Arguments, cut into arrays that may be varied and the rest."""

    arrays: tuple[Any, ...]
    where: tuple[int, ...]
    leaves: tuple[Any, ...]
    tree: Any

    @classmethod
    def of(cls, args: Any, kwargs: Any) -> Arguments:
        """Cut them."""
        leaves, tree = jax.tree.flatten((tuple(args), dict(kwargs)))
        where = tuple(n for n, x in enumerate(leaves) if isinstance(x, _ARRAYS))
        return cls(tuple(leaves[n] for n in where), where, tuple(leaves), tree)

    def filled(self, inputs: Sequence[Any]) -> Any:
        """``(args, kwargs)`` with other arrays."""
        leaves = list(self.leaves)
        for n, x in zip(self.where, inputs, strict=True):
            leaves[n] = x
        return self.tree.unflatten(leaves)


def outputs_of(out: Any, names: list[Name]) -> tuple[Any, ...]:
    """All arrays of a result, those of a dict or of a dataclass in the order of their names.

    Args:
        out: what a model returned.
        names: gets where each array was.
    """
    found, _ = jax.tree_util.tree_flatten_with_path(out)
    named = sorted(
        ((tuple(map(_level, path)), x) for path, x in found if isinstance(x, _ARRAYS[:2])),
        key=lambda pair: pair[0],
    )
    names[:] = [name for name, _ in named]
    return tuple(x for _, x in named)


def _level(key: Any) -> tuple[int, str]:
    position = getattr(key, "idx", None)
    return (1, key_text(key)) if position is None else (0, f"{position:0>6}")


def key_text(key: Any) -> str:
    """An entry of a tree path as text."""
    return str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))))


def shapes_text(arrays: Sequence[Any]) -> str:
    """Arrays as a user writes their shapes."""
    return ", ".join(f"{x.dtype}{list(x.shape)}" for x in arrays) or "no arrays"
