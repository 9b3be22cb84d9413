"""How a constructor argument of a Linen layer compares with the attribute of an NNX layer.

The two spell one thing in many ways: no strides are ``None``, ``1`` and ``(1, 1)``; a function may
be wrapped, jitted or bound. What is left apart after that is a difference in behaviour.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

__all__ = ["EFFECTS", "Unknown", "plain", "shown"]

_ONE = frozenset({"strides", "input_dilation", "kernel_dilation", "feature_group_count"})
_DTYPES = frozenset({"dtype", "preferred_element_type"})

EFFECTS: Mapping[str, str] = {
    "epsilon": "outputs differ, most where the variance is small",
    "momentum": "running statistics differ after the first training step",
    "dtype": "outputs are computed at another precision",
    "use_fast_variance": "the variance is computed otherwise, which shows where means are large",
    "use_bias": "one side adds a bias",
    "use_scale": "one side multiplies by a scale",
    "precision": "products are computed at another precision",
    "rate": "training differs; evaluation does not",
    "dropout_rate": "training differs; evaluation does not",
    "broadcast_dropout": "training differs; evaluation does not",
    "axis_name": "statistics are gathered over other devices",
    "axis_index_groups": "statistics are gathered over other devices",
    "unroll": "speed differs, numbers do not",
}


class Unknown:
    """A value of which nothing can be said, such as a lambda; it equals everything."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


def plain(field: str, value: Any) -> Any:  # noqa: PLR0911 - one return for each kind
    """One spelling for all that mean the same.

    >>> plain("strides", None) == plain("strides", (1, 1)) == plain("strides", 1)
    True
    >>> plain("dtype", jnp.bfloat16), plain("padding", "same"), plain("axis", (-1,))
    ('bfloat16', 'SAME', -1)
    """
    if field in _DTYPES:
        return None if value is None else np.dtype(value).name
    if field in _ONE and value is None:
        return 1
    if isinstance(value, str):
        return value.upper()
    if isinstance(value, Mapping):
        return tuple(sorted((str(k), plain(field, v)) for k, v in value.items()))
    if isinstance(value, list | tuple):
        parts = tuple(plain(field, v) for v in value)
        # (2, 2) is 2, and ((1, 1), (1, 1)) is 1
        return parts[0] if parts and all(p == parts[0] for p in parts) else parts
    if isinstance(value, bool | int | float | type(None)):
        return value
    if isinstance(value, jnp.ndarray | np.ndarray | np.generic):
        return np.asarray(value).tolist() if np.ndim(value) == 0 else Unknown()
    return _function(value) if callable(value) else Unknown()


def _function(value: Callable[..., Any]) -> Any:
    bound: dict[str, Any] = {}
    while True:
        if isinstance(value, functools.partial):
            if value.args:
                return Unknown()
            bound = {**value.keywords, **bound}
            value = value.func
        elif hasattr(value, "__wrapped__"):
            value = value.__wrapped__
        else:
            break
    name = getattr(value, "__name__", None)
    if name is None or name == "<lambda>" or isinstance(value, type):
        return Unknown()
    defaults = _defaults(value)
    given = {k: v for k, v in bound.items() if not _is(v, defaults.get(k, bound))}
    return name if not given else f"{name}({', '.join(f'{k}={v}' for k, v in given.items())})"


def _is(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(a == b)


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
    return {n: p.default for n, p in parameters.items() if p.default is not p.empty}


def shown(value: Any) -> str:
    """A plain value for people.

    >>> shown(1e-06), shown("gelu"), shown((1, 2))
    ('1e-06', 'gelu', '(1, 2)')
    """
    return value if isinstance(value, str) and value else repr(value)
