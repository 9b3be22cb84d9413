"""Runs a traced function in double precision, whatever types its code fixes.

Comparing two models in float32 cannot tell an epsilon of 1e-6 from rounding, and code that casts
to float32 or bfloat16 on its own (a softmax, a mixed precision layer) does so even in JAX's x64
mode. So a model is traced once and its jaxpr is evaluated with every floating type widened.
``stop_gradient`` is left out, too: what lies behind it does have an influence, and the gradient of
the function that is computed shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

__all__ = ["Unliftable", "evaluate", "is_float", "narrow", "used", "wide"]

_INLINED = {
    "jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr",
    "core_closed_call": "call_jaxpr", "remat": "jaxpr", "remat2": "jaxpr", "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr", "custom_lin": "call_jaxpr",
}  # fmt: skip
_NOTHING = frozenset(
    {"stop_gradient", "reduce_precision", "sharding_constraint", "mesh_cast", "copy", "copy_p",
     "optimization_barrier", "name", "pvary", "device_put"}
)  # fmt: skip
_SCATTERS = {
    "scatter": jax.lax.scatter,
    "scatter-add": jax.lax.scatter_add,
    "scatter_add": jax.lax.scatter_add,
    "scatter_mul": jax.lax.scatter_mul,
    "scatter-mul": jax.lax.scatter_mul,
    "scatter_min": jax.lax.scatter_min,
    "scatter-min": jax.lax.scatter_min,
    "scatter_max": jax.lax.scatter_max,
    "scatter-max": jax.lax.scatter_max,
}
_TYPES = ("new_dtype", "dtype", "preferred_element_type")
_OPAQUE = frozenset({"pure_callback", "io_callback", "custom_call", "ffi_call", "shard_map",
                     "pallas_call", "reduce", "reduce_window", "run_state"})  # fmt: skip


class Unliftable(Exception):
    """The function does something that has no wider form."""


def is_float(dtype: Any) -> bool:
    """Whether a dtype is floating or complex; false for keys.

    >>> is_float(jnp.bfloat16), is_float(jnp.int32)
    (True, False)
    """
    return bool(jnp.issubdtype(dtype, jnp.inexact))


def wide(dtype: Any) -> Any:
    """The type that stands for a dtype in wide evaluation.

    >>> wide(jnp.bfloat16), wide(jnp.int8)
    (<class 'numpy.float64'>, <class 'jax.numpy.int8'>)
    """
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return np.complex128
    return np.float64 if jnp.issubdtype(dtype, jnp.floating) else dtype


def used(jaxpr: Any) -> list[Any]:
    """The equations that results depend on; a traced factory leaves many others."""
    wanted = {v for v in jaxpr.outvars if not isinstance(v, core.Literal)}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if any(v in wanted for v in eqn.outvars):
            kept.append(eqn)
            wanted |= {v for v in eqn.invars if not isinstance(v, core.Literal)}
    return kept[::-1]


def narrow(jaxpr: Any) -> bool:
    """Whether a jaxpr computes in a type below float64 anywhere, so its constants are rounded."""
    for eqn in used(jaxpr):
        for var in (*eqn.invars, *eqn.outvars):
            dtype = getattr(var.aval, "dtype", None)
            if dtype is not None and is_float(dtype) and dtype != wide(dtype):
                return True
        if any(narrow(j) for j in _inner(eqn.params)):
            return True
    return False


def _inner(params: Mapping[str, Any]) -> list[Any]:
    found = []
    for value in params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, core.ClosedJaxpr):
                found.append(one.jaxpr)
            elif isinstance(one, core.Jaxpr):
                found.append(one)
    return found


def evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Evaluate a jaxpr in wide types; traceable. Call it where x64 is enabled.

    Args:
        jaxpr: an open jaxpr.
        consts: its constants.
        args: its arguments, already wide.

    Raises:
        Unliftable: a primitive that has no wide form.
    """
    env: dict[Any, Any] = {}

    def read(var: Any) -> Any:
        return _widened(var.val) if isinstance(var, core.Literal) else env[var]

    env.update(zip(jaxpr.constvars, map(_widened, consts), strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    for eqn in used(jaxpr):
        out = _one(eqn, [read(v) for v in eqn.invars])
        env.update(zip(eqn.outvars, out, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _widened(x: Any) -> Any:
    dtype = getattr(x, "dtype", None)
    if dtype is None:
        dtype = np.result_type(x)
    if not is_float(dtype):
        return x
    return jnp.asarray(x, wide(dtype))


def _opened(given: Any) -> Callable[..., list[Any]]:
    if isinstance(given, core.ClosedJaxpr):
        return lambda *args: evaluate(given.jaxpr, given.consts, args)
    return lambda *args: evaluate(given, (), args)


def _one(eqn: Any, args: list[Any]) -> Sequence[Any]:
    name, params = eqn.primitive.name, eqn.params
    if name in _INLINED:
        return _opened(params[_INLINED[name]])(*args)
    if name in _NOTHING:
        return args
    if name in _RULES:
        return _RULES[name](eqn, args)
    if name in _SCATTERS:
        return [_scattered(_SCATTERS[name], params, args)]
    if name in _OPAQUE or _inner(params):
        raise Unliftable(name)
    params = dict(params)
    for key in _TYPES:
        if params.get(key) is not None and name != "argmax":
            params[key] = np.dtype(wide(params[key]))
    out = eqn.primitive.bind(*args, **params)
    return out if eqn.primitive.multiple_results else [out]


def _scattered(function: Any, params: Mapping[str, Any], args: list[Any]) -> Any:
    return function(
        *args,
        params["dimension_numbers"],
        indices_are_sorted=params["indices_are_sorted"],
        unique_indices=params["unique_indices"],
        mode=params["mode"],
    )


def _converted(eqn: Any, args: list[Any]) -> list[Any]:
    return [jax.lax.convert_element_type(args[0], wide(eqn.params["new_dtype"]))]


def _bits(eqn: Any, args: list[Any]) -> list[Any]:
    before = eqn.invars[0].aval.dtype
    bits = jax.lax.bitcast_convert_type(args[0].astype(before), eqn.params["new_dtype"])
    return [_widened(bits)]


def _scan(eqn: Any, args: list[Any]) -> Sequence[Any]:
    params = eqn.params
    if "ft_in" in params:  # newer JAX
        n_consts, n_carry, _ = (len(list(group)) for group in params["ft_in"].unpack())
    else:
        n_consts, n_carry = params["num_consts"], params["num_carry"]
    body, consts = _opened(params["jaxpr"]), args[:n_consts]

    def step(carry: Any, xs: Any) -> Any:
        out = body(*consts, *carry, *xs)
        kept = [_as(x, like) for x, like in zip(out[:n_carry], carry, strict=True)]
        return tuple(kept), tuple(out[n_carry:])

    carry, xs = tuple(args[n_consts : n_consts + n_carry]), tuple(args[n_consts + n_carry :])
    carry = tuple(map(jnp.asarray, carry))
    last, ys = jax.lax.scan(step, carry, xs, params["length"], params["reverse"])
    return [*last, *ys]


def _as(x: Any, like: Any) -> Any:
    return x if jnp.issubdtype(like.dtype, jax.dtypes.prng_key) else jnp.asarray(x, like.dtype)


def _while(eqn: Any, args: list[Any]) -> Sequence[Any]:
    p = eqn.params
    n, m = p["cond_nconsts"], p["body_nconsts"]
    test, body = _opened(p["cond_jaxpr"]), _opened(p["body_jaxpr"])
    for_test, for_body = args[:n], args[n : n + m]
    last: tuple[Any, ...] = jax.lax.while_loop(
        lambda now: test(*for_test, *now)[0],
        lambda now: tuple(_as(x, y) for x, y in zip(body(*for_body, *now), now, strict=True)),
        tuple(map(jnp.asarray, args[n + m :])),
    )
    return last


def _cond(eqn: Any, args: list[Any]) -> Sequence[Any]:
    index, *rest = args
    ways = [_opened(b) for b in eqn.params["branches"]]
    out: tuple[Any, ...] = jax.lax.switch(
        index, [lambda *a, w=w: tuple(w(*a)) for w in ways], *rest
    )
    return out


_RULES: Mapping[str, Callable[[Any, list[Any]], Sequence[Any]]] = {
    "convert_element_type": _converted,
    "bitcast_convert_type": _bits,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}
