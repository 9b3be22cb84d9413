"""Tells rounding from difference, by computing again with twice the digits.

Two programs for one function round differently, and what they give is apart by a little. Two
functions that are nearly the same (an epsilon of 1e-6 for 1e-5) are apart by a little, too. In
float64 the first shrinks by nine orders of magnitude and the second stays as it is, so no tolerance
has to be guessed; unless the model itself asks for a narrow dtype somewhere, which can be seen in
its jaxpr. Then :func:`tolerance` is what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridge._bits import Measure, measure
from bridge.behaviour_values import Compared, State

__all__ = ["EXACT", "Program", "compared", "doubled", "doubles", "tolerance"]

EXACT = 1e-9
"""Relative; what is apart by more in float64 is no rounding."""

_ULPS = 32
_HALF_ULPS = 4
_HALF = 2
"""Bytes of a half precision float."""


def doubles() -> AbstractContextManager[Any]:
    """A context in which float64 is float64."""
    context: AbstractContextManager[Any] = jax.enable_x64(True)
    return context


def doubled(value: Any) -> Any:
    """The same array in double precision; integers, booleans and keys as they are.

    >>> with doubles():
    ...     doubled(np.float32([1])).dtype, doubled(np.int32([1])).dtype
    (dtype('float64'), dtype('int32'))
    """
    dtype = getattr(value, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        return value
    wide = np.complex128 if jnp.issubdtype(dtype, jnp.complexfloating) else np.float64
    return jnp.asarray(np.asarray(value).astype(wide))


class Program:
    """A function that is compiled once, and what its jaxpr says.

    >>> half = Program(lambda x: x.astype(jnp.bfloat16) * 2)
    >>> half.narrowest(np.ones(2, np.float32)).name
    'bfloat16'
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        # a function of its own: jax remembers what it has traced by the function
        self._run = jax.jit(lambda *args: function(*args))  # noqa: PLW0108 - see above

    def __call__(self, *args: Any) -> Any:
        """Run it, jitted."""
        return self._run(*args)

    def narrowest(self, *args: Any) -> np.dtype[Any] | None:
        """The narrowest float dtype of an array that the result depends on; None without any.

        Scalars do not count: a learning rate in float32 is the same number on both sides.
        """
        found = [
            np.dtype(v.aval.dtype)
            for v in _used(self._run.trace(*args).jaxpr.jaxpr)
            if getattr(v.aval, "size", 0) > 1 and jnp.issubdtype(v.aval.dtype, jnp.inexact)
        ]
        return min(found, key=_width, default=None)

    def wide(self, *args: Any) -> bool:
        """Whether it computes in float64 throughout; to be called inside :func:`doubles`."""
        dtype = self.narrowest(*args)
        return dtype is None or _width(dtype) >= np.dtype(np.float64).itemsize


def _width(dtype: np.dtype[Any]) -> int:
    return dtype.itemsize // (2 if dtype.kind == "c" else 1)


def _used(jaxpr: Any) -> Iterator[Any]:
    """Variables of a jaxpr that its results depend on; what is inside a call counts as used."""
    needed = {id(v) for v in jaxpr.outvars}
    for eqn in reversed(jaxpr.eqns):
        if not (eqn.effects or any(id(v) in needed for v in eqn.outvars)):
            continue
        needed |= {id(v) for v in eqn.invars}
        yield from eqn.outvars
        for param in eqn.params.values():
            for inner in param if isinstance(param, tuple | list) else (param,):
                inner = getattr(inner, "jaxpr", inner)  # noqa: PLW2901 - closed or not
                if hasattr(inner, "eqns"):
                    yield from _used(inner)


def tolerance(dtype: np.dtype[Any] | None) -> float:
    """How far apart, in relation to the largest value, two computations in a dtype may be.

    32 units of float32 (4e-6), 4 units of half precisions (bfloat16: 3e-2, float16: 4e-3).

    >>> f"{tolerance(np.dtype('float32')):.1g}"
    '4e-06'
    """
    if dtype is None or _width(dtype) > np.dtype("float32").itemsize:
        return EXACT
    eps = float(jnp.finfo(dtype).eps)
    return eps * (_HALF_ULPS if _width(dtype) <= _HALF else _ULPS)


def compared(name: str, ours: Any, theirs: Any, allowed: float) -> Compared:
    """Compare two arrays.

    Args:
        name: for people.
        ours: of the Linen side.
        theirs: of the NNX side.
        allowed: how far floats may be apart, in relation to the largest of ``ours``, to be called
            noise. Integers and booleans have none.

    >>> compared("x", np.float32([1, 2]), np.float32([1, 2]), 0.0).state
    'bit-equal'
    """
    a, b = _host(ours), _host(theirs)
    scale = _scale(a)
    if a.shape != b.shape:
        note = f"shape {list(a.shape)} in Linen and {list(b.shape)} in NNX"
        return Compared(name, Measure(a.size, a.size), scale, "differs", note)
    found = measure(a, b)
    note = "" if a.dtype == b.dtype else f"{a.dtype} in Linen and {b.dtype} in NNX"
    floating = jnp.issubdtype(a.dtype, jnp.inexact)
    state: State = "differs"
    if not found.differing and not note:
        state = "bit-equal"
    elif floating and not note and not found.nonfinite and found.max_abs <= allowed * (scale or 1):
        state = "noise"
    return Compared(name, found, scale, state, note)


def _host(value: Any) -> np.ndarray[Any, Any]:
    dtype = getattr(value, "dtype", None)
    if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    return np.asarray(value)


def _scale(a: np.ndarray[Any, Any]) -> float:
    if not a.size or not (jnp.issubdtype(a.dtype, jnp.number) or a.dtype.kind == "b"):
        return 0.0
    wide = np.abs(a.astype(np.complex128 if a.dtype.kind == "c" else np.float64))
    return float(wide[np.isfinite(wide)].max(initial=0.0))
