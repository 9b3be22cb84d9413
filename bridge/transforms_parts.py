"""Transforms that make one array of many, or many of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import ml_dtypes
import numpy as np

from bridge.transforms_base import (
    Array,
    Spec,
    Transform,
    find_axis,
    show,
)
from bridge.transforms_fields import checked, integer, integers

__all__ = ["Join", "Split", "Stack", "Unstack"]


def _only(transform: Transform, specs: Sequence[Spec]) -> Spec:
    if len(specs) != 1:
        raise transform.refuse(f"takes one array, got {len(specs)} ({show(specs)}).")
    return specs[0]


@dataclass(frozen=True, slots=True)
class Stack(Transform):
    """Arrays of one shape become one array with a new axis.

    >>> Stack(axis=0).infer([Spec((3,), "float32")] * 2)
    (Spec(shape=(2, 3), dtype='float32'),)
    """

    op: ClassVar[str] = "stack"
    axis: int = checked(integer, default=0)

    def _counts(self) -> tuple[bool, bool]:
        return True, False

    def _infer(self, specs: tuple[Spec, ...]) -> tuple[Spec, ...]:
        if not specs:
            raise self.refuse("got no array to stack.")
        for i, spec in enumerate(specs):
            if spec != specs[0]:
                raise self.refuse(
                    f"arrays 0 and {i} of {len(specs)} differ: {specs[0]} and {spec}. "
                    "All must have one shape and dtype."
                )
        shape = specs[0].shape
        axis = find_axis(self, self.axis, len(shape) + 1, specs[0])
        return (Spec((*shape[:axis], len(specs), *shape[axis:]), specs[0].dtype),)

    def _apply(self, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        self.infer([Spec.of(a) for a in arrays])
        whole = arrays[0].base
        if self.axis == 0 and whole is not None and _are_rows(arrays, whole):
            return (whole,)
        return (np.stack(arrays, axis=self.axis),)

    def _room(self, specs: tuple[Spec, ...]) -> tuple[Array, ...] | None:
        (made,) = self._infer(specs)
        if self.axis != 0:
            return None
        whole = np.empty(made.shape, getattr(ml_dtypes, made.dtype, made.dtype))
        return tuple(whole[n, ...] for n in range(len(specs)))

    def _inverse(self, specs: tuple[Spec, ...]) -> Transform:  # noqa: ARG002 - same for all
        return Unstack(self.axis)


def _are_rows(arrays: Sequence[Array], whole: Array) -> bool:
    """Whether arrays are the rows of another, all of them and in order."""
    return (
        isinstance(whole, np.ndarray)
        and whole.shape == (len(arrays), *arrays[0].shape)
        and whole.dtype == arrays[0].dtype
        and all(
            a.base is whole and a.__array_interface__ == whole[n, ...].__array_interface__
            for n, a in enumerate(arrays)
        )
    )


@dataclass(frozen=True, slots=True)
class Unstack(Transform):
    """One array becomes the arrays along one of its axes, which goes.

    >>> Unstack(axis=0).infer([Spec((2, 3), "float32")])
    (Spec(shape=(3,), dtype='float32'), Spec(shape=(3,), dtype='float32'))
    """

    op: ClassVar[str] = "unstack"
    axis: int = checked(integer, default=0)

    def _counts(self) -> tuple[bool, bool]:
        return False, True

    def _infer(self, specs: tuple[Spec, ...]) -> tuple[Spec, ...]:
        spec = _only(self, specs)
        axis = find_axis(self, self.axis, len(spec.shape), spec)
        if not spec.shape[axis]:
            raise self.refuse(f"axis {self.axis} of {spec} has length 0, so nothing comes out.")
        one = Spec(spec.shape[:axis] + spec.shape[axis + 1 :], spec.dtype)
        return (one,) * spec.shape[axis]

    def _apply(self, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        self.infer([Spec.of(a) for a in arrays])
        moved = np.moveaxis(arrays[0], self.axis, 0)
        return tuple(moved[i, ...] for i in range(len(moved)))

    def _inverse(self, specs: tuple[Spec, ...]) -> Transform:  # noqa: ARG002 - same for all
        return Stack(self.axis)


@dataclass(frozen=True, slots=True)
class Join(Transform):
    """Arrays that differ in one axis at most are concatenated along it.

    >>> Join(axis=1).infer([Spec((2, 3), "float32"), Spec((2, 4), "float32")])
    (Spec(shape=(2, 7), dtype='float32'),)
    """

    op: ClassVar[str] = "join"
    axis: int = checked(integer)

    def _counts(self) -> tuple[bool, bool]:
        return True, False

    def _infer(self, specs: tuple[Spec, ...]) -> tuple[Spec, ...]:
        if not specs:
            raise self.refuse("got no array to join.")
        first = specs[0]
        axis = find_axis(self, self.axis, len(first.shape), first)
        for i, spec in enumerate(specs):
            if _without(spec, axis) != _without(first, axis):
                raise self.refuse(
                    f"arrays 0 and {i} of {len(specs)} do not fit together: {first} and {spec}. "
                    "They may differ in the joined axis only."
                )
        size = sum(s.shape[axis] for s in specs)
        return (Spec((*first.shape[:axis], size, *first.shape[axis + 1 :]), first.dtype),)

    def _apply(self, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        self.infer([Spec.of(a) for a in arrays])
        return (np.concatenate(arrays, axis=self.axis),)

    def _inverse(self, specs: tuple[Spec, ...]) -> Transform:
        return Split(self.axis, tuple(s.shape[self.axis] for s in specs))


@dataclass(frozen=True, slots=True)
class Split(Transform):
    """One array becomes pieces of the given sizes along one axis.

    >>> Split(axis=0, sizes=(1, 2)).infer([Spec((3,), "float32")])
    (Spec(shape=(1,), dtype='float32'), Spec(shape=(2,), dtype='float32'))
    """

    op: ClassVar[str] = "split"
    axis: int = checked(integer)
    sizes: tuple[int, ...] = checked(integers)

    def _counts(self) -> tuple[bool, bool]:
        return False, True

    def _validate(self) -> None:
        if not self.sizes or min(self.sizes) < 0:
            raise self.refuse("needs at least one size, and none below 0.")

    def _infer(self, specs: tuple[Spec, ...]) -> tuple[Spec, ...]:
        spec = _only(self, specs)
        axis = find_axis(self, self.axis, len(spec.shape), spec)
        if sum(self.sizes) != spec.shape[axis]:
            raise self.refuse(
                f"sizes add up to {sum(self.sizes)}, axis {self.axis} of {spec} has "
                f"{spec.shape[axis]} elements."
            )
        head, tail = spec.shape[:axis], spec.shape[axis + 1 :]
        return tuple(Spec((*head, size, *tail), spec.dtype) for size in self.sizes)

    def _apply(self, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        self.infer([Spec.of(a) for a in arrays])
        return tuple(np.split(arrays[0], list(accumulate(self.sizes))[:-1], axis=self.axis))

    def _inverse(self, specs: tuple[Spec, ...]) -> Transform:  # noqa: ARG002 - same for all
        return Join(self.axis)


def _without(spec: Spec, axis: int) -> tuple[int, tuple[int, ...], tuple[int, ...], str]:
    return len(spec.shape), spec.shape[:axis], spec.shape[axis + 1 :], spec.dtype
