"""Fits one leaf of a checkpoint to one leaf of a restore target.

The type of the target's leaf decides what comes back; the file must agree in shape and dtype. A
difference is reported and not repaired, unless the caller asked for casts.
"""

from __future__ import annotations

import cmath
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from legacy.errors import TargetMismatch
from legacy.leaves import ARRAY_KINDS, Leaf, format_path

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Fit", "describe", "fit_leaf", "is_leaf_target", "raw_value"]

_KEY_DTYPE: Final = re.compile(r"key<(\w+)>")
_KEY_IMPLS: Final = {"fry": "threefry2x32", "rbg": "rbg", "urbg": "unsafe_rbg"}
_KEY_WORDS: Final = {"threefry2x32": 2, "rbg": 4, "unsafe_rbg": 4}
_EXACT_TYPES: Final = (str, bytes)
_NUMBER_TYPES: Final = (bool, int, float, complex)
_PYTHON_DTYPES: Final = tuple(np.dtype(t) for t in ("int64", "float64", "complex128", "bool"))
_RAW_KEY: Final = "threefry2x32"
_WIDER: Final[dict[type | None, tuple[type, ...]]] = {
    bool: (bool, int, float, complex),
    int: (int, float, complex),
    float: (float, complex),
    complex: (complex,),
}
_FAMILIES: Final = {"b": bool, "i": int, "u": int, "f": float, "c": complex, "V": float}


@dataclass(frozen=True, slots=True)
class Fit:
    """How a leaf is made, or why it cannot be: exactly one of the two is set."""

    make: Callable[[], Any] | None = None
    problem: str | None = None


def is_leaf_target(target: Any) -> bool:
    """Whether a value of the target is something that a leaf of a file can fill.

    >>> is_leaf_target(3), is_leaf_target(np.zeros(2)), is_leaf_target(print)
    (True, True, False)
    """
    return isinstance(target, (*_NUMBER_TYPES, *_EXACT_TYPES)) or _is_array(target)


def _is_array(value: Any) -> bool:
    """Numpy's and jax's arrays, and jax.ShapeDtypeStruct: not every object with a shape."""
    if isinstance(value, (np.ndarray, np.generic)):
        return True
    module = type(value).__module__.partition(".")[0]
    return module in ("jax", "jaxlib") and hasattr(value, "shape") and hasattr(value, "dtype")


def describe(value: Any) -> str:
    """Name a leaf of the target or of a file, with its shape and dtype.

    >>> describe(np.zeros((2, 3), np.float32)), describe(3)
    ('array of shape (2, 3) float32', 'int')
    >>> describe(Leaf(("a",), "array", (4,), np.dtype("int8")))
    'array of shape (4,) int8'
    """
    if isinstance(value, Leaf):
        return _describe_leaf(value)
    if _is_array(value):
        return f"array of shape {tuple(value.shape)} {value.dtype}"
    return type(value).__name__


def _describe_leaf(leaf: Leaf) -> str:
    if leaf.kind == "empty":
        return f"an empty {leaf.container or 'container'}"
    if leaf.kind == "none":
        return "None"
    if leaf.kind == "key":
        return f"typed key {leaf.key_impl}, data of shape {leaf.shape}"
    if leaf.dtype is None:
        return f"Python {leaf.kind}"
    return f"{leaf.kind} of shape {leaf.shape} {leaf.dtype}"


def raw_value(leaf: Leaf) -> Any:
    """The value of a leaf as plain Python or numpy, its memory its own.

    >>> raw_value(Leaf(("a",), "empty", container="list"))
    []
    """
    if leaf.kind == "none":
        return None
    if leaf.kind == "empty":
        return {"list": list, "tuple": tuple}.get(leaf.container or "", dict)()
    value = leaf.read()
    # A view of the mapped file would change, or crash, with the file.
    return np.array(value) if isinstance(value, np.ndarray) else value


def fit_leaf(target: Any, leaf: Leaf, *, cast: bool) -> Fit:
    """Decide how a leaf fills a place of the target.

    No array is read here; small Python numbers are, because their values decide whether they fit.

    Args:
        target: an array, ``ShapeDtypeStruct``, number, str or bytes.
        leaf: the leaf of the file.
        cast: whether another dtype or number type may be converted.

    Returns:
        A function that makes the value, or the problem.

    >>> fit_leaf(0, Leaf(("step",), "number", reader=lambda _: 7), cast=False).make()
    7
    >>> leaf = Leaf(("a",), "array", (4,), np.dtype("int8"))
    >>> fit_leaf(np.zeros(3, np.int8), leaf, cast=False).problem
    'target: array of shape (3,) int8; file: array of shape (4,) int8'
    """
    if isinstance(target, _EXACT_TYPES):
        same = leaf.kind == ("str" if isinstance(target, str) else "bytes")
        return Fit(leaf.read) if same else _differ(target, leaf)
    if not _is_array(target):
        return _fit_number(target, leaf, cast=cast)
    if impl := _target_key_impl(target):
        return _fit_key(target, leaf, impl)
    of_number = _may_be_python_number(leaf) and tuple(target.shape) == ()
    return (_fit_number_into if of_number else _fit_array)(target, leaf, cast=cast)


def _may_be_python_number(leaf: Leaf) -> bool:
    """A Python number; Orbax writes those as numpy scalars of 64 bits."""
    if leaf.kind == "scalar":
        return leaf.shape == () and leaf.dtype in _PYTHON_DTYPES
    return leaf.kind in ("number", "bool")


def _differ(target: Any, leaf: Leaf, more: str = "") -> Fit:
    return Fit(problem=f"target: {describe(target)}; file: {describe(leaf)}{more}")


def _fit_number(target: Any, leaf: Leaf, *, cast: bool) -> Fit:
    kind = type(target)
    in_file = _number_type(leaf)
    if in_file is None or kind not in _NUMBER_TYPES:
        return _differ(target, leaf)
    if in_file is kind:
        return Fit(lambda: kind(_item(leaf)))
    if kind not in _WIDER[in_file]:
        return _differ(target, leaf)
    if not cast:
        return _differ(target, leaf, "; cast=True converts it")
    value = _item(leaf)
    made = kind(value)
    if made != value:
        return _differ(target, leaf, f"; {value!r} is no {kind.__name__}")
    return Fit(lambda: made)


def _number_type(leaf: Leaf) -> type | None:
    """The Python type of a leaf that holds one number."""
    if leaf.kind in ("number", "bool"):
        return type(leaf.read())
    if leaf.kind in ("array", "scalar") and leaf.shape == () and leaf.dtype is not None:
        return _family(leaf.dtype)
    return None


def _item(leaf: Leaf) -> Any:
    value = leaf.read()
    # item() of a bfloat16 scalar is itself: ml_dtypes' numbers become Python's by their type
    return value if leaf.dtype is None else (_family(leaf.dtype) or float)(value)


def _family(dtype: np.dtype[Any]) -> type | None:
    """The Python type that holds every value of a dtype (ml_dtypes are of kind V, or f, or i)."""
    if dtype.kind == "V":
        return int if dtype.name.startswith(("int", "uint")) else float
    return _FAMILIES.get(dtype.kind)


def _fit_array(target: Any, leaf: Leaf, *, cast: bool) -> Fit:
    dtype = np.dtype(target.dtype)
    if leaf.kind == "key" and leaf.key_impl != _RAW_KEY:
        return _differ(target, leaf, f"; only {_RAW_KEY} keys may become raw arrays")
    same_shape = leaf.shape == tuple(target.shape) and leaf.dtype is not None
    if not same_shape or leaf.kind not in ARRAY_KINDS:
        return _differ(target, leaf)
    if leaf.dtype == dtype:
        return Fit(lambda: _placed(np.array(leaf.read()), target))
    if leaf.dtype is None or _family(dtype) not in _WIDER.get(_family(leaf.dtype), ()):
        return _differ(target, leaf)
    if not cast:
        return _differ(target, leaf, "; cast=True converts it")
    return Fit(lambda: _placed(_cast(leaf, dtype), target))


def _cast(leaf: Leaf, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    value = np.asarray(leaf.read())
    with np.errstate(over="ignore"):
        made = value.astype(dtype)
    if _family(dtype) is int and not np.array_equal(made.astype(value.dtype), value):
        raise TargetMismatch(
            f"leaf {format_path(leaf.path)}: has integers that {dtype} cannot hold "
            f"({value.min()} to {value.max()}). Change the dtype of the target.",
            leaf=leaf.path,
        )
    lost = np.zeros(made.shape, bool)
    if _family(dtype) in (float, complex):
        lost = ~np.isfinite(made)
        if _family(value.dtype) in (float, complex):
            lost &= np.isfinite(value)
    if lost.any():
        raise TargetMismatch(
            f"leaf {format_path(leaf.path)}: has {value[lost].flat[0]} ({value.dtype}), which "
            f"{dtype} cannot hold: it would become {made[lost].flat[0]}. Change the dtype of the "
            "target.",
            leaf=leaf.path,
        )
    return made


def _fit_number_into(target: Any, leaf: Leaf, *, cast: bool) -> Fit:
    value, dtype = _item(leaf), np.dtype(target.dtype)
    if not cast and _family(dtype) is not type(value):
        return _differ(target, leaf, f"; {value!r} becomes {dtype} with cast=True")
    try:
        with np.errstate(over="ignore"):
            array = np.asarray(value).astype(dtype)
    except (OverflowError, TypeError) as error:
        return _differ(target, leaf, f"; {value!r} does not fit: {error}")
    became = (_family(dtype) or float)(array.item())
    same = became == value or np.isnan(value)
    if _is_finite(value) and not _is_finite(became):
        return _differ(target, leaf, f"; {value!r} would become {became!r}: {dtype} is too small")
    if not same and not (cast and _family(dtype) is float):
        hint = "; cast=True rounds it" if _family(dtype) is float else ""
        return _differ(target, leaf, f"; {value!r} would become {became!r}{hint}")
    return Fit(lambda: _placed(array, target))


def _is_finite(value: complex) -> bool:
    return isinstance(value, int) or cmath.isfinite(value)


def _target_key_impl(target: Any) -> str | None:
    found = _KEY_DTYPE.fullmatch(str(target.dtype))
    return _KEY_IMPLS.get(found[1], found[1]) if found else None


def _fit_key(target: Any, leaf: Leaf, impl: str) -> Fit:
    """A typed key; the raw uint32 keys of old code fit when their words are those of the target."""
    if leaf.kind == "key" and leaf.key_impl != impl:
        return _differ(target, leaf)
    words = _KEY_WORDS.get(impl)
    shape = tuple(target.shape)
    if leaf.kind == "array":
        fits = leaf.dtype == np.uint32 and words is not None and leaf.shape == (*shape, words)
    else:
        fits = leaf.kind == "key" and leaf.shape[:-1] == shape
    if not fits:
        return _differ(target, leaf)

    def make() -> Any:
        jax = sys.modules["jax"]
        key = jax.random.wrap_key_data(np.array(leaf.read()), impl=impl)
        return _put(key, target)

    return Fit(make)


def _placed(array: np.ndarray[Any, Any], target: Any) -> Any:
    """The array as the type of the target's leaf: numpy stays numpy, jax becomes jax."""
    if isinstance(target, np.generic):
        return array[()]
    if isinstance(target, np.ndarray):
        return array
    return _put(array, target)


def _put(value: Any, target: Any) -> Any:
    """Place a value as a jax target is placed.

    jax is not imported: a target that is a jax array means that the caller has done so. A
    ShapeDtypeStruct without a sharding names no place, so the value stays where it is.
    """
    jax = sys.modules["jax"]
    sharding = getattr(target, "sharding", None)
    if isinstance(target, jax.ShapeDtypeStruct):
        return value if sharding is None else jax.device_put(value, sharding)
    if getattr(target, "committed", False):
        return jax.device_put(value, sharding)
    return jax.numpy.asarray(value)
