"""Transforms for a leaf that has no place in the model, and needs none while it is zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bridge.transforms_base import Array, Spec, Transform, show

__all__ = ["Drop", "DropZero", "largest"]


def largest(array: Array) -> float:
    """The largest magnitude in an array; NaN when there is one, 0.0 for no elements.

    >>> largest(np.array([0.5, -2.0]))
    2.0
    """
    if not array.size:
        return 0.0
    return float(np.max(np.abs(array.astype(np.float64, copy=False))))


class _WithoutLast(Transform):
    """All arrays but the last."""

    __slots__ = ()

    def _counts(self) -> tuple[bool, bool]:
        return True, False

    def _infer(self, specs: tuple[Spec, ...]) -> tuple[Spec, ...]:
        if len(specs) < 2:  # noqa: PLR2004 - one to keep and one to drop
            raise self.refuse(f"takes two arrays or more, got {len(specs)} ({show(specs)}).")
        return specs[:-1]

    def _apply(self, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        self._infer(tuple(Spec.of(a) for a in arrays))
        self._check(arrays)
        return arrays[:-1]

    def _check(self, arrays: tuple[Array, ...]) -> None:  # noqa: ARG002 - most may be dropped
        """Look at what is left behind; raise :class:`TransformError` when it must not be."""
        return

    def _inverse(self, specs: Sequence[Spec]) -> Transform:  # noqa: ARG002 - none at all
        raise self.lossy()


@dataclass(frozen=True, slots=True)
class DropZero(_WithoutLast):
    """Leave the last array behind, which must be all zeros.

    Linen's ``GRUCell`` has a bias (``hn/bias``) that ``nnx.GRUCell`` does not have. Zeros there
    change nothing; anything else would be lost, and is refused. Its moments, whatever they hold,
    have nothing to act on in the model, and go (:class:`Drop`); a copy of the parameters, such as
    an average, must have zeros there, too.

    >>> DropZero().apply([np.ones(2), np.zeros(2)])
    (array([1., 1.]),)
    """

    op: ClassVar[str] = "drop_zero"

    def _loss(self) -> str | None:
        return "the last array, which is all zeros, is left behind"

    def _check(self, arrays: tuple[Array, ...]) -> None:
        most = largest(arrays[-1])
        if most != 0:
            raise self.refuse(
                f"the last of {len(arrays)} arrays ({Spec.of(arrays[-1])}) has no place in the "
                f"model and is not zero: its largest value is {most:g}. Accept the loss with an "
                "`ignore` rule, or map it to a model that has a place for it."
            )

    def _for_moment(self, order: int) -> Transform:  # noqa: ARG002 - the same for all
        return Drop()


@dataclass(frozen=True, slots=True)
class Drop(_WithoutLast):
    """Leave the last array behind: the moment of a parameter that :class:`DropZero` left behind.

    >>> Drop().apply([np.ones(2), np.full(2, 7.0)])
    (array([1., 1.]),)
    """

    op: ClassVar[str] = "drop"

    def _loss(self) -> str | None:
        return "the last array is left behind"
