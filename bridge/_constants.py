"""Values that the model's own code gives to its Variables: masks, position tables, lists of sizes.

An NNX model may hold arrays that are in no checkpoint because they never change. What a factory
computes without random numbers and without its parameters is such a constant: it is computed
once, when the model is described, and stored in the target, so that a stored plan can write it
without the model's code. Whatever depends on a PRNG key, on a parameter or on batch statistics is
none, nor is what comes out differently when the factory runs again.
"""

from __future__ import annotations

import base64
import contextlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr

from bridge._describe_places import EPHEMERAL_TYPES, places
from bridge.items import made
from bridge.target import SlotRef

__all__ = ["LIMIT", "constants", "encoded"]

LIMIT = 16 << 20
"""Bytes of all constants of a model together; a plan is no place for more."""

_LEARNED = (nnx.Param, nnx.BatchStat)
_OTHERS = (*_LEARNED, nnx.OptState, *EPHEMERAL_TYPES)
_CALLS = frozenset({"jit", "pjit", "closed_call", "core_call", "remat", "checkpoint"})
_RANDOM = ("random_", "threefry", "rng_")


@dataclass(slots=True)
class _Seen:
    """What one run of the factory gave, in the order of the outputs of its jaxpr."""

    refs: list[SlotRef] = field(default_factory=list)
    learned: int = 0


def constants(model: Any) -> dict[SlotRef, np.ndarray[Any, Any]]:
    """The constants of a model, by slot.

    Args:
        model: see :func:`bridge.describe`; live objects keep the values that they have.

    Returns:
        Their values; nothing when there are none, or when they are too large together.

    >>> class Net(nnx.Module):
    ...     def __init__(self):
    ...         self.sizes = nnx.Variable(jax.numpy.arange(3))
    >>> {str(ref): value.tolist() for ref, value in constants(Net).items()}
    {'model:sizes': [0, 1, 2]}
    """
    first = _computed(model)
    if not first:
        return {}
    second = _computed(model)
    # numpy's random numbers are no constants, although no key shows it
    return {r: v for r, v in first.items() if r in second and v.tobytes() == second[r].tobytes()}


def encoded(value: np.ndarray[Any, Any]) -> str:
    """A constant as text; its shape and dtype are those of its slot."""
    data = np.ascontiguousarray(value).tobytes()
    return base64.b64encode(zlib.compress(data, 9)).decode()


def _computed(model: Any) -> dict[SlotRef, np.ndarray[Any, Any]]:
    seen = _Seen()

    def run() -> list[Any]:
        seen.refs.clear()
        learned, own = [], []
        for item, value in made(model).items():
            for place in places(value):
                if place.empty or not _is_array(place.value):
                    continue
                if place.kind is None or not issubclass(place.kind, _OTHERS):
                    own.append(place.value)
                    seen.refs.append(SlotRef(item, place.path))
                elif issubclass(place.kind, _LEARNED):
                    learned.append(place.value)
        seen.learned = len(learned)
        return [*learned, *own]

    mesh = jax.sharding.get_mesh()
    eager = nnx.use_eager_sharding(False) if mesh.empty else contextlib.nullcontext()
    with eager:
        closed = jax.make_jaxpr(run)()
    jaxpr = closed.jaxpr
    learned, own = jaxpr.outvars[: seen.learned], jaxpr.outvars[seen.learned :]
    if not own:
        return {}
    tainted = _tainted(jaxpr, {v for v in learned if not _is_literal(v)}, frozenset())
    chosen = [n for n, v in enumerate(own) if _is_literal(v) or v not in tainted]
    if sum(own[n].aval.size * own[n].aval.dtype.itemsize for n in chosen) > LIMIT:
        return {}
    # only what they need: the parameters of a large model are never made
    used = [False] * seen.learned + [n in chosen for n in range(len(own))]
    needed, _ = dce_jaxpr(jaxpr, used)
    values = core.jaxpr_as_fun(core.ClosedJaxpr(needed, closed.consts))()
    return {seen.refs[n]: np.asarray(v) for n, v in zip(chosen, values, strict=True)}


def _is_array(x: Any) -> bool:
    if isinstance(x, bool | int | float | complex):
        return True
    return isinstance(x, jax.Array | np.ndarray | np.generic) and not jax.dtypes.issubdtype(
        x.dtype, jax.dtypes.prng_key
    )


def _is_literal(v: Any) -> bool:
    return isinstance(v, core.Literal)


def _tainted(jaxpr: Any, learned: set[Any], tainted: frozenset[Any]) -> set[Any]:
    """Variables of a jaxpr that depend on random numbers, or on what is learned."""
    found = learned | tainted
    for eqn in jaxpr.eqns:
        ins = [not _is_literal(v) and v in found for v in eqn.invars]
        found.update(v for v, t in zip(eqn.outvars, _out(eqn, ins), strict=True) if t)
    return found


def _out(eqn: Any, ins: list[bool]) -> list[bool]:
    """Which results of one equation are tainted."""
    inner = eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")
    jaxpr = getattr(inner, "jaxpr", inner)
    whole = eqn.primitive.name in _CALLS and jaxpr is not None and len(jaxpr.invars) == len(ins)
    if not whole:
        return [any(ins) or _is_random(eqn)] * len(eqn.outvars)
    start = frozenset(v for v, t in zip(jaxpr.invars, ins, strict=True) if t)
    found = _tainted(jaxpr, set(), start)
    return [not _is_literal(v) and v in found for v in jaxpr.outvars]


def _is_random(eqn: Any) -> bool:
    """Whether an equation, or one in it, makes random numbers."""
    if eqn.primitive.name.startswith(_RANDOM):
        return True
    return any(_is_random(e) for j in _inner(eqn.params) for e in j.eqns)


def _inner(params: Mapping[str, Any]) -> list[Any]:
    found = []
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            jaxpr = getattr(one, "jaxpr", one)
            if hasattr(jaxpr, "eqns"):
                found.append(jaxpr)
    return found
