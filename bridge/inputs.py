"""Sample inputs on the command line: ``--input f32[2,28,28,1]``.

A specification names shapes, a file holds arrays, and a function makes what neither can say.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bridge.errors import BridgeError
from bridge.probe import Probe

__all__ = ["read_input"]

_DTYPES = {
    "f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64",
    "i8": "int8", "i16": "int16", "i32": "int32", "i64": "int64",
    "u8": "uint8", "u16": "uint16", "u32": "uint32", "u64": "uint64",
    "bool": "bool", "c64": "complex64", "c128": "complex128",
}  # fmt: skip
_ARRAY = re.compile(r"\s*(\w+)\s*\[\s*((?:\d+\s*(?:,\s*\d+\s*)*)?)\]\s*")
_NAME = re.compile(r"\s*([A-Za-z_]\w*)\s*=")
_WORD = re.compile(r"\s*(true|false|none|[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?)\s*", re.IGNORECASE)
_POSITION = re.compile(r"arr_(\d+)")
_FORMS = (
    "Give shapes (f32[2,28,28,1], or several: f32[2,16],i32[2], or by name: x=f32[2,16],"
    "train=false), a .npy or .npz file, or module:function."
)


def read_input(text: str) -> Any:
    """Read what ``--input`` says.

    Args:
        text: one of

            - shapes: ``f32[2,28,28,1]``, several ``f32[2,16],i32[2]``, with names
              ``x=f32[2,16],train=false`` (keyword arguments; also ``true``, ``none`` and
              numbers). Their values are random, always the same: floats normal, integers 0 or 1;
            - a ``.npy`` file: the one argument; or ``.npz``: ``arr_0``, ``arr_1``, ... are
              positional arguments, as ``np.savez(file, a, b)`` writes them, and other names
              keyword arguments;
            - ``module:name`` or ``file.py:name``: a sample input, probes, or a function that
              returns one.

    Returns:
        A sample input as :func:`bridge.plan` takes it.

    Raises:
        BridgeError: it has no such form, or the file or function cannot be used.

    >>> read_input("f32[2,3],train=false")
    Probe(args=(ShapeDtypeStruct(shape=(2, 3), dtype=float32),), kwargs={'train': False}, ...)
    """
    if text.endswith((".npy", ".npz")):
        return _file(text)
    if ":" in text:
        return _object(text)
    return _specification(text)


def _specification(text: str) -> Probe:
    import jax  # noqa: PLC0415 - only where arrays are described

    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    at = 0
    while True:
        name = _NAME.match(text, at)
        start = name.end() if name else at
        array, word = _ARRAY.match(text, start), _WORD.match(text, start)
        if array and array[1] in (*_DTYPES, *_DTYPES.values()):
            shape = tuple(int(n) for n in array[2].split(",") if n.strip())
            value: Any = jax.ShapeDtypeStruct(shape, _DTYPES.get(array[1], array[1]))
        elif word and name:
            value = _word(word[1])
        else:
            raise BridgeError(f"--input {text!r}: cannot read {text[start:] or text!r}. {_FORMS}")
        at = (array or word).end()  # type: ignore[union-attr]
        if name is None and kwargs:
            raise BridgeError(f"--input {text!r}: an argument without a name follows one with one.")
        if name is None:
            args.append(value)
        elif name[1] in kwargs:
            raise BridgeError(f"--input {text!r}: {name[1]} is given twice.")
        else:
            kwargs[name[1]] = value
        if at == len(text):
            return Probe(tuple(args), kwargs)
        if text[at] != ",":
            raise BridgeError(f"--input {text!r}: expected a comma at {text[at:]!r}. {_FORMS}")
        at += 1


def _word(text: str) -> Any:
    known = {"true": True, "false": False, "none": None}
    if text.lower() in known:
        return known[text.lower()]
    try:
        return int(text)
    except ValueError:
        return float(text)


def _file(text: str) -> Any:
    import numpy as np  # noqa: PLC0415 - only where a file is read

    try:
        found = np.load(Path(text), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BridgeError(f"--input {text}: cannot be read: {error}") from error
    if not hasattr(found, "files"):
        return Probe((found,))
    with found:
        arrays = {name: found[name] for name in found.files}
    places = {int(m[1]): arrays.pop(n) for n in tuple(arrays) if (m := _POSITION.fullmatch(n))}
    if sorted(places) != list(range(len(places))):
        raise BridgeError(f"--input {text}: of arr_0, arr_1, ... some are missing.")
    return Probe(tuple(places[n] for n in range(len(places))), arrays)


def _object(text: str) -> Any:
    from bridge.spec import resolve  # noqa: PLC0415 - only where a module is named

    module, _, name = text.rpartition(":")
    if module.endswith(".py"):
        import sys  # noqa: PLC0415 - rare

        # a file anywhere: its folder is where it imports from
        sys.path.insert(0, str(Path(module).absolute().parent))
        module = Path(module).stem
    found = resolve(f"{module}:{name}")
    if not callable(found):
        return found
    try:
        return found()
    except Exception as error:
        raise BridgeError(f"--input {text}: {type(error).__name__}: {error}") from error
