"""Changing the dtype of an array without a value silently becoming another one.

numpy wraps integers, turns what is too large into infinity and infinity into NaN or into the
largest number, whatever the dtype has. Here a value may be rounded, and nothing else; with
``exact`` not even that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import ml_dtypes
import numpy as np

from bridge.errors import TransformError
from bridge.transforms_base import (
    Array,
    Copy,
    EachTransform,
    Spec,
    Transform,
)
from bridge.transforms_fields import checked, flag, text

__all__ = ["Cast", "checked_cast", "fits", "in_blocks", "number_kind"]

NumberKind = Literal["bool", "int", "float", "complex", "other"]
DType: TypeAlias = np.dtype[Any]

BLOCK = 1 << 16
"""Elements that are worked on at once, so that checks take a bounded amount of memory."""


def number_kind(name: DType | str) -> NumberKind:
    """What the values of a dtype are; ml_dtypes included, float128 and strings are ``other``.

    >>> number_kind("bfloat16"), number_kind("int4"), number_kind("str32")
    ('float', 'int', 'other')
    """
    try:
        dtype = np.dtype(name)
    except TypeError:
        return "other"
    kinds: dict[str, NumberKind] = {"b": "bool", "i": "int", "u": "int", "c": "complex"}
    if dtype.kind in kinds:
        return "other" if dtype.itemsize > np.dtype(np.complex128).itemsize else kinds[dtype.kind]
    if dtype.kind not in "fV" or dtype.itemsize > np.dtype(np.float64).itemsize:
        return "other"
    for kind, info in (("float", ml_dtypes.finfo), ("int", ml_dtypes.iinfo)):
        try:
            info(dtype)
        except ValueError:
            continue
        return kind  # type: ignore[return-value]
    return "other"


def in_blocks(array: Array, dtype: DType, work: Callable[[Array, int], Array]) -> Array:
    """A new array of ``dtype``, filled block by block by ``work(block, elements before it)``."""
    out = np.empty(array.shape, dtype)
    done = 0
    for index in _blocks(array.shape):
        block = array[index]
        out[index] = work(block, done)
        done += block.size
    return out


def _blocks(shape: tuple[int, ...]) -> Iterator[tuple[Any, ...]]:
    inner, axis = 1, len(shape)
    while axis and inner * shape[axis - 1] <= BLOCK:
        axis -= 1
        inner *= shape[axis]
    if axis == 0:
        yield (...,)
        return
    for lead in np.ndindex(*shape[: axis - 1]):
        rows = max(1, BLOCK // inner)
        for start in range(0, shape[axis - 1], rows):
            yield (*lead, slice(start, start + rows))


def checked_cast(array: Array, dtype: DType, *, exact: bool = False) -> Array:
    """Cast every value, and refuse to change one beyond rounding.

    Args:
        array: of any number dtype.
        dtype: a number dtype, complex if and only if the array is.
        exact: refuse rounding too: casting back would give the same bits.

    Returns:
        A new array, or ``array`` itself when it has that dtype.

    Raises:
        TransformError: names the first value that would become another one.

    >>> checked_cast(np.array([-1]), np.dtype("uint32"))
    Traceback (most recent call last):
        ...
    bridge.errors.TransformError: value -1 at index (0,) does not fit uint32.
    """
    if array.dtype == dtype:
        return array

    # what cannot be held becomes infinite or NaN in all but a few dtypes, so finite is fine
    quick = not exact and {number_kind(array.dtype), number_kind(dtype)} == {"float"}
    quick = quick and not _saturates(dtype) and np.can_cast(array.dtype, dtype, "unsafe")

    def work(block: Array, before: int) -> Array:
        with np.errstate(all="ignore"):
            if quick:
                out = block.astype(dtype)
                if np.isfinite(out.astype(np.float64)).all():
                    return out
            wide = block.astype(_wide(block.dtype))
            out = _astype(block, wide, dtype)
            bad, why = ~fits(wide, out), "does not fit"
            if not bad.any() and (exact or number_kind(dtype) == "bool"):
                bad, why = _changed(block, out), "is not exactly a value of"
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            index = tuple(int(i) for i in np.unravel_index(before + at, array.shape))
            value = wide.reshape(-1)[at].item()
            raise TransformError(f"value {value} at index {index} {why} {dtype.name}.")
        return out

    return in_blocks(array, dtype, work)


def _wide(dtype: DType) -> DType:
    kind = number_kind(dtype)
    if kind == "int":
        return np.dtype(np.uint64 if dtype == np.uint64 else np.int64)
    names: dict[str, str] = {"bool": "int64", "float": "float64", "complex": "complex128"}
    return np.dtype(names[kind])


def _astype(block: Array, wide: Array, dtype: DType) -> Array:
    try:
        return block.astype(dtype)
    except TypeError:  # ml_dtypes has no direct cast between some of its own
        out: Array = wide.astype(dtype)
        return out


def fits(wide: Array, out: Array) -> Array:
    """Which values became themselves, rounded at most; NaN stays NaN, infinity infinity."""
    kind = number_kind(out.dtype)
    if kind == "complex":
        new = out.astype(np.complex128)
        return _same_class(wide.real, new.real, out.dtype) & _same_class(
            wide.imag, new.imag, out.dtype
        )
    if kind == "float":
        return _same_class(wide, out.astype(np.float64), out.dtype)
    return _in_range(wide, out.dtype)


def _same_class(old: Array, new: Array, dtype: DType) -> Array:
    fits: Array = (np.isnan(old) == np.isnan(new)) & (np.isinf(old) == np.isinf(new))
    if _saturates(dtype):
        fits &= ~(np.abs(old) > float(ml_dtypes.finfo(dtype).max))
    return fits


def _saturates(dtype: DType) -> bool:
    """Whether what is too large becomes the largest number."""
    largest = np.asarray([np.inf, np.nan]).astype(dtype).astype(np.complex128)
    return bool(np.isfinite(largest).any())


def _in_range(wide: Array, dtype: DType) -> Array:
    low, high = _range(dtype)
    if wide.dtype.kind == "f":
        whole = np.trunc(wide)  # float(high + 1) is exact, float(high) is not for 64 bits
        return (whole >= float(low)) & (whole < float(high + 1))
    fits: Array = (wide >= low) & (wide <= high)
    return fits


def _range(dtype: DType) -> tuple[int, int]:
    if number_kind(dtype) == "bool":
        return 0, 1
    info = ml_dtypes.iinfo(dtype)
    return int(info.min), int(info.max)


def _changed(block: Array, out: Array) -> Array:
    wide = out.astype(_wide(out.dtype))
    if number_kind(block.dtype) in ("bool", "int"):
        same: Array = _in_range(wide, block.dtype) & (_astype(out, wide, block.dtype) == block)
        return ~same
    back = _astype(out, wide, block.dtype)
    size = block.dtype.itemsize
    old, new = (np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in (block, back))
    different: Array = (old != new).reshape(-1, size).any(axis=1)
    return different


def number_dtype(value: Any) -> str:
    """Take the name of a number dtype."""
    name = text(value)
    try:
        dtype = np.dtype(name)
    except TypeError as error:
        raise TypeError(f"expected a dtype name such as float32, got {value!r}") from error
    if number_kind(dtype) == "other":
        raise TypeError(f"expected a dtype of numbers, got {value!r}")
    return dtype.name


@dataclass(frozen=True, slots=True)
class Cast(EachTransform):
    """Another dtype; values may be rounded, and with ``exact`` not even that.

    A value that would wrap around, become infinite or lose its NaN is an error either way.
    Moments keep their dtype, because optimizers choose theirs apart from the parameter's
    (``mu_dtype``); a moment that must be cast needs a rule of its own.

    >>> Cast("uint32", exact=True).apply([np.array(7, np.int32)])[0].dtype.name
    'uint32'
    """

    op: ClassVar[str] = "cast"
    dtype: str = checked(number_dtype)
    exact: bool = checked(flag, default=False)

    def _loss(self) -> str | None:
        return None if self.exact else f"values are rounded to {self.dtype}"

    def _infer_one(self, spec: Spec) -> Spec:
        old, new = number_kind(spec.dtype), number_kind(self.dtype)
        if old == "other" or (old == "complex") != (new == "complex"):
            raise self.refuse(f"{spec} cannot be cast; use a function that says what is meant.")
        return Spec(spec.shape, self.dtype)

    def _apply_one(self, array: Array) -> Array:
        try:
            return checked_cast(array, np.dtype(self.dtype), exact=self.exact)
        except TransformError as error:
            raise self.refuse(f"{error.message} Nothing was cast.") from error

    def _inverse_one(self, spec: Spec) -> Transform:
        if spec.dtype == self.dtype:
            return Copy()
        if not (self.exact or _widens(np.dtype(spec.dtype), np.dtype(self.dtype))):
            raise self.refuse(
                f"cannot be undone bit for bit from {spec.dtype} ({self.loss}). "
                "With `exact = true` every value is checked, and it can."
            )
        return Cast(spec.dtype, exact=True)

    def _for_moment(self, order: int) -> Transform:  # noqa: ARG002 - both alike
        return Copy()


def _widens(old: DType, new: DType) -> bool:
    """Whether every value of one integer dtype is one of the other; floats may lose NaN bits."""
    if {number_kind(old), number_kind(new)} - {"int", "bool"}:
        return False
    (low, high), (new_low, new_high) = _range(old), _range(new)
    return new_low <= low and high <= new_high
