"""JSON documents that every parser accepts and that people can read, quickly.

The standard encoder writes ``NaN``, which is no JSON, and is slow when it indents: here what is
made of plain values only is one line, encoded in one go, and everything above it is indented.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["dumps"]

_INFINITE = {math.inf: "Infinity", -math.inf: "-Infinity"}


def dumps(value: Any) -> str:
    """A value as a JSON document.

    Args:
        value: of dicts, lists, texts, numbers, booleans and None; anything else becomes text.

    Returns:
        Strict JSON in ASCII. Numbers that JSON has not are the texts ``NaN``, ``Infinity`` and
        ``-Infinity``.

    >>> print(dumps({"leaves": [{"path": ["a"]}, {"path": ["b"]}], "std": float("nan")}))
    {
     "leaves": [
      {"path": ["a"]},
      {"path": ["b"]}
     ],
     "std": "NaN"
    }
    """
    encode = json.JSONEncoder(default=str, allow_nan=False).encode
    try:
        return _lines(value, "", encode)
    except ValueError:
        return _lines(_strict(value), "", encode)


def _lines(value: Any, indent: str, encode: Callable[[Any], str]) -> str:
    deeper = f"{indent} "
    if isinstance(value, dict) and (not indent or any(_holds(v) for v in value.values())):
        rows = [f"{encode(str(k))}: {_lines(v, deeper, encode)}" for k, v in value.items()]
        ends = "{}"
    elif isinstance(value, list | tuple) and _holds(value):
        rows = [_lines(v, deeper, encode) for v in value]
        ends = "[]"
    else:
        return encode(value)
    if not rows:
        return ends
    body = f",\n{deeper}".join(rows)
    return f"{ends[0]}\n{deeper}{body}\n{indent}{ends[1]}"


def _holds(value: Any) -> bool:
    """Whether a value is or holds a dict, and deserves lines of its own."""
    if isinstance(value, list | tuple):
        return any(isinstance(v, dict) for v in value)
    return isinstance(value, dict)


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return _INFINITE.get(value, "NaN")
    if isinstance(value, Mapping):
        return {k: _strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(v) for v in value]
    return value
