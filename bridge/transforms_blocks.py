"""A vector over all parameters, put into the order of their new names."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import numpy as np

from bridge.transforms_base import Array, EachTransform, Spec, Transform
from bridge.transforms_fields import checked, integer, integers

__all__ = ["Blocks"]


@dataclass(frozen=True, slots=True)
class Blocks(EachTransform):
    """Reorder blocks of an axis: block ``i`` of the result is block ``order[i]`` of the old.

    ``optax.flatten`` keeps one vector over all parameters, one block for each.

    >>> Blocks(axis=0, sizes=(1, 2), order=(1, 0)).apply([np.array([10, 11, 12])])
    (array([11, 12, 10]),)
    """

    op: ClassVar[str] = "blocks"
    axis: int = checked(integer)
    sizes: tuple[int, ...] = checked(integers)
    order: tuple[int, ...] = checked(integers)

    def _validate(self) -> None:
        if not self.sizes or min(self.sizes) < 0:
            raise self.refuse("needs at least one size, and none below 0.")
        if sorted(self.order) != list(range(len(self.sizes))):
            raise self.refuse(f"order must name each of 0 to {len(self.sizes) - 1} once.")

    def _infer_one(self, spec: Spec) -> Spec:
        n = spec.shape[self.axis_of(self.axis, spec)]
        if n != sum(self.sizes):
            raise self.refuse(
                f"sizes add up to {sum(self.sizes)}, the axis has {n} elements ({spec})."
            )
        return spec

    def _apply_one(self, array: Array) -> Array:
        parts = np.split(array, list(accumulate(self.sizes))[:-1], axis=self.axis)
        return np.concatenate([parts[n] for n in self.order], axis=self.axis)

    def _inverse_one(self, spec: Spec) -> Transform:  # noqa: ARG002 - the same for all specs
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return Blocks(self.axis, tuple(self.sizes[n] for n in self.order), tuple(back))
