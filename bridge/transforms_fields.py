"""The fields of transforms: each value is checked once, when the transform is made.

So a transform that exists is well formed, whether it was written in Python, TOML or JSON.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from dataclasses import field
from typing import Any, TypeAlias

import numpy as np

__all__ = [
    "Check",
    "checked",
    "flag",
    "integer",
    "integers",
    "maybe_integer",
    "number",
    "one_of",
    "real",
    "text",
]

Check: TypeAlias = Callable[[Any], Any]
"""Turns a value from Python, TOML or JSON into the stored one; raises TypeError or ValueError."""


def checked(check: Check, **options: Any) -> Any:
    """A dataclass field whose values are checked when the transform is made."""
    return field(metadata={"check": check}, **options)


def integer(value: Any) -> int:
    """Take an int, and no bool."""
    if isinstance(value, bool):
        raise TypeError(f"expected an integer, got {value!r}")
    return operator.index(value)


def integers(value: Any) -> tuple[int, ...]:
    """Take a list of ints."""
    if isinstance(value, str):
        raise TypeError(f"expected a list of integers, got {value!r}")
    return tuple(integer(v) for v in value)


def maybe_integer(value: Any) -> int | None:
    """Take an int or None."""
    return None if value is None else integer(value)


def number(value: Any) -> float:
    """Take a finite int or float."""
    if isinstance(value, (np.integer, np.floating)):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"expected a number, got {value!r}")
    if not abs(value) <= sys.float_info.max:
        raise ValueError(f"expected a finite number, got {value!r}")
    return value


def real(value: Any) -> float:
    """Take a finite int or float and make it a float."""
    return float(number(value))


def text(value: Any) -> str:
    """Take a string."""
    if not isinstance(value, str):
        raise TypeError(f"expected a string, got {value!r}")
    return value


def flag(value: Any) -> bool:
    """Take a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"expected true or false, got {value!r}")
    return value


def one_of(*allowed: str) -> Check:
    """Take one of some words."""

    def check(value: Any) -> str:
        if value not in allowed:
            raise ValueError(f"expected {' or '.join(map(repr, allowed))}, got {value!r}")
        return str(value)

    return check
