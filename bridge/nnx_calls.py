"""An NNX model as pure functions of its arrays.

A factory runs inside the traced function: what it would initialise is never computed, and its
constants are as the model makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bridge._describe import places
from bridge.calls import (
    Arguments,
    Call,
    Called,
    Model,
    Name,
    in_mode,
    mode_of,
    outputs_of,
    quiet,
    taken,
)
from bridge.probe import Probe
from bridge.target import SlotPath

__all__ = ["nnx_model"]


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

    with quiet():
        jax.eval_shape(look)
    return Model("NNX", specs, tuple(_NnxCall(make, p, tuple(specs)).made() for p in probes))


@dataclass(frozen=True, slots=True, eq=False)
class _NnxCall:
    make: Callable[[], Any]
    probe: Probe
    paths: tuple[SlotPath, ...]

    def made(self) -> Call:
        args, kwargs = self.probe.nnx_arguments()
        names: list[Name] = []
        positions: list[str] = []
        given = Arguments.of(args, kwargs)

        def run(values: Mapping[tuple[str, ...], Any], inputs: Sequence[Any]) -> Called:
            with quiet():
                model = _filled(self.make(), values)
                (model.train if self.probe.train else model.eval)()
                function = self.probe.of_nnx(model)
                now, named = given.filled(inputs)
                if self.probe.nnx_kwargs is None:
                    named = taken(function, named)
                now, named = in_mode(function, now, named, train=self.probe.train)
                mode, takes = mode_of(function, now, train=self.probe.train)
                positions[:] = takes
                out = function(*now, **{**mode, **named})
                after = {}
                if self.probe.train:
                    known = set(self.paths)
                    after = {p.path: p.value for p in places(model) if p.path in known}
            return Called(outputs_of(out, names), after)

        return Call(self.probe, given.arrays, run, positions, names)


def _filled(model: Any, values: Mapping[tuple[str, ...], Any]) -> Any:
    """A new model of the same graph with other arrays."""
    graphdef, state = nnx.split(model)
    leaves, tree = jax.tree.flatten(state)
    named = [p.path for p in places(state) if not p.empty]
    new = [_array(values.get(path, x)) for path, x in zip(named, leaves, strict=True)]
    return nnx.merge(graphdef, tree.unflatten(new))


def _array(x: Any) -> Any:
    return jnp.zeros(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x
