"""Transforms that move the elements of each array and change none of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bridge.errors import TransformError
from bridge.transforms_base import (
    Array,
    Copy,
    EachTransform,
    Spec,
    Transform,
)
from bridge.transforms_cast import checked_cast, number_kind
from bridge.transforms_fields import checked, integer, integers, maybe_integer, number

__all__ = ["Pad", "Permute", "Reshape", "Slice", "Transpose"]


def _is_permutation(values: tuple[int, ...]) -> bool:
    return sorted(values) == list(range(len(values)))


@dataclass(frozen=True, slots=True)
class Transpose(EachTransform):
    """Reorder the axes, as ``numpy.transpose`` does.

    >>> Transpose((1, 0)).infer([Spec((2, 3), "float32")])
    (Spec(shape=(3, 2), dtype='float32'),)
    """

    op: ClassVar[str] = "transpose"
    axes: tuple[int, ...] = checked(integers)

    def _validate(self) -> None:
        n = len(self.axes)
        if not all(-n <= a < n for a in self.axes) or not _is_permutation(self._order()):
            raise self.refuse(f"axes must name each of the axes 0 to {n - 1} once.")

    def _order(self) -> tuple[int, ...]:
        return tuple(a % len(self.axes) for a in self.axes)

    def _infer_one(self, spec: Spec) -> Spec:
        if len(spec.shape) != len(self.axes):
            raise self.refuse(
                f"has {len(self.axes)} axes, the array has {len(spec.shape)} ({spec})."
            )
        return Spec(tuple(spec.shape[a] for a in self._order()), spec.dtype)

    def _apply_one(self, array: Array) -> Array:
        return array.transpose(self._order())

    def _inverse_one(self, spec: Spec) -> Transform:  # noqa: ARG002 - the same for all specs
        order = self._order()
        return Transpose(tuple(order.index(i) for i in range(len(order))))


@dataclass(frozen=True, slots=True)
class Reshape(EachTransform):
    """Another shape of the same elements in C order; one size may be -1.

    >>> Reshape((2, -1)).infer([Spec((4, 3), "float32")])
    (Spec(shape=(2, 6), dtype='float32'),)
    """

    op: ClassVar[str] = "reshape"
    shape: tuple[int, ...] = checked(integers)

    def _validate(self) -> None:
        if any(n < -1 for n in self.shape) or self.shape.count(-1) > 1:
            raise self.refuse("sizes are 0 or more, and at most one is -1.")

    def _infer_one(self, spec: Spec) -> Spec:
        size = math.prod(spec.shape)
        known = math.prod(n for n in self.shape if n != -1)
        fits = known > 0 and size % known == 0 if -1 in self.shape else known == size
        if not fits:
            raise self.refuse(f"does not hold the {size} elements of {spec}.")
        return Spec(tuple(size // known if n == -1 else n for n in self.shape), spec.dtype)

    def _apply_one(self, array: Array) -> Array:
        return array.reshape(self._infer_one(Spec.of(array)).shape)

    def _inverse_one(self, spec: Spec) -> Transform:
        return Reshape(spec.shape)


@dataclass(frozen=True, slots=True)
class Slice(EachTransform):
    """Keep ``start`` to ``stop`` of one axis; negative numbers count from the end.

    Unlike Python's slices it refuses bounds outside the array.

    >>> Slice(axis=0, start=1).infer([Spec((4, 3), "float32")])
    (Spec(shape=(3, 3), dtype='float32'),)
    """

    op: ClassVar[str] = "slice"
    axis: int = checked(integer)
    start: int = checked(integer, default=0)
    stop: int | None = checked(maybe_integer, default=None)

    def _loss(self) -> str | None:
        if self.start == 0 and self.stop is None:
            return None
        return "elements outside the slice are dropped"

    def _bounds(self, spec: Spec) -> tuple[int, int, int]:
        axis = self.axis_of(self.axis, spec)
        n = spec.shape[axis]
        start = self.start + n * (self.start < 0)
        stop = n if self.stop is None else self.stop + n * (self.stop < 0)
        if not 0 <= start <= stop <= n:
            raise self.refuse(f"goes from {start} to {stop}, the axis has {n} elements ({spec}).")
        return axis, start, stop

    def _infer_one(self, spec: Spec) -> Spec:
        axis, start, stop = self._bounds(spec)
        return Spec((*spec.shape[:axis], stop - start, *spec.shape[axis + 1 :]), spec.dtype)

    def _apply_one(self, array: Array) -> Array:
        axis, start, stop = self._bounds(Spec.of(array))
        return array[(slice(None),) * axis + (slice(start, stop), ...)]

    def _inverse_one(self, spec: Spec) -> Transform:
        axis, start, stop = self._bounds(spec)
        if (start, stop) != (0, spec.shape[axis]):
            raise self.lossy()
        return Copy()


@dataclass(frozen=True, slots=True)
class Pad(EachTransform):
    """Add elements before and after one axis; moments get zeros there.

    >>> Pad(axis=0, after=1).infer([Spec((4, 3), "float32")])
    (Spec(shape=(5, 3), dtype='float32'),)
    """

    op: ClassVar[str] = "pad"
    axis: int = checked(integer)
    before: int = checked(integer, default=0)
    after: int = checked(integer, default=0)
    value: float = checked(number, default=0)

    def _validate(self) -> None:
        if self.before < 0 or self.after < 0:
            raise self.refuse("before and after are 0 or more; use slice to drop elements.")

    def _infer_one(self, spec: Spec) -> Spec:
        axis = self.axis_of(self.axis, spec)
        self._fill(spec.dtype)
        size = spec.shape[axis] + self.before + self.after
        return Spec((*spec.shape[:axis], size, *spec.shape[axis + 1 :]), spec.dtype)

    def _fill(self, dtype: str) -> Array:
        kind = number_kind(dtype)
        if kind == "other":
            raise self.refuse(f"pads numbers only, the array is of {dtype}.")
        if abs(self.value) >= 2**64 and kind in ("int", "bool"):
            raise self.refuse(f"the value does not fit {dtype}.")
        convert = {"complex": complex, "float": float}.get(kind)
        value = convert(self.value) if convert else self.value
        try:  # exact: 0.5 in an array of integers is refused, not truncated
            return checked_cast(np.asarray(value), np.dtype(dtype), exact=kind in ("int", "bool"))
        except TransformError as error:
            raise self.refuse(f"the value does not fit {dtype}: {error}") from error

    def _apply_one(self, array: Array) -> Array:
        axis = self.axis_of(self.axis, Spec.of(array))
        out = np.empty(self._infer_one(Spec.of(array)).shape, array.dtype)
        fill = self._fill(array.dtype.name)
        lead = (slice(None),) * axis
        end = self.before + array.shape[axis]
        out[(*lead, slice(None, self.before))] = fill
        out[(*lead, slice(self.before, end))] = array
        out[(*lead, slice(end, None))] = fill
        return out

    def _inverse_one(self, spec: Spec) -> Transform:
        axis = self.axis_of(self.axis, spec)
        return Slice(axis, self.before, self.before + spec.shape[axis])

    def _for_moment(self, order: int) -> Transform:  # noqa: ARG002 - both alike
        return Pad(self.axis, self.before, self.after)


@dataclass(frozen=True, slots=True)
class Permute(EachTransform):
    """Reorder the elements of one axis: element ``i`` of the result is ``indices[i]`` of the old.

    >>> Permute(axis=0, indices=(2, 0, 1)).apply([np.array([10, 11, 12])])
    (array([12, 10, 11]),)
    """

    op: ClassVar[str] = "permute"
    axis: int = checked(integer)
    indices: tuple[int, ...] = checked(integers)

    def _validate(self) -> None:
        if not _is_permutation(self.indices):
            raise self.refuse(f"indices must name each of 0 to {len(self.indices) - 1} once.")

    def _infer_one(self, spec: Spec) -> Spec:
        n = spec.shape[self.axis_of(self.axis, spec)]
        if n != len(self.indices):
            raise self.refuse(f"has {len(self.indices)} indices, the axis has {n} ({spec}).")
        return spec

    def _apply_one(self, array: Array) -> Array:
        return np.take(array, self.indices, axis=self.axis)

    def _inverse_one(self, spec: Spec) -> Transform:  # noqa: ARG002 - the same for all specs
        back = sorted(range(len(self.indices)), key=self.indices.__getitem__)
        return Permute(self.axis, tuple(back))
