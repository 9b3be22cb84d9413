"""Compares what two models give, output by output."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from bridge.fingerprint_run import Ran, Runner
from bridge.fingerprint_values import Random

__all__ = ["Outputs", "relative"]

Array: TypeAlias = np.ndarray[Any, Any]


def relative(a: Array, b: Array, scale: float = 0.0) -> float:
    """The largest difference, relative to the largest number; nan is equal to nan.

    >>> relative(np.array([1.0, 2.0]), np.array([1.0, 1.0]))
    0.5
    """
    a, b = a.reshape(-1), b.reshape(-1)
    if a.size != b.size:
        return 1.0
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)):
        return 1.0
    a, b = a[finite], b[finite]
    if not a.size:
        return 0.0
    largest = max(float(np.abs(a).max()), float(np.abs(b).max()), scale)
    return float(np.abs(a - b).max()) / largest if largest > 0 else 0.0


@dataclass
class Outputs:
    """Which outputs of two models are compared, and with which weights gradients are taken.

    Attributes:
        pairs: positions of outputs, (Linen, NNX).
        weights: of the outputs, for both sides.
        left_over: how many outputs have no partner.
        again: whether a run with the first weights must be repeated.
    """

    pairs: list[tuple[int, int]]
    weights: tuple[list[Array], list[Array]]
    left_over: int
    again: bool

    @classmethod
    def of(
        cls, ours: Ran, theirs: Ran, first: tuple[list[Array], list[Array]], tolerance: float
    ) -> Outputs:
        """Pair outputs by position, or by size where that fails and leaves no doubt.

        While leaves of one class have the same numbers, two heads give the same numbers, too; so
        equal numbers do not show which output is which.

        Args:
            ours: a run of the Linen model.
            theirs: a run of the NNX model with the same numbers.
            first: the weights that they were run with.
            tolerance: relative difference of equal outputs.
        """
        free = list(range(len(theirs.outputs)))
        as_many = len(ours.outputs) == len(theirs.outputs)
        left_sizes, right_sizes = (Counter(o.size for o in r.outputs) for r in (ours, theirs))
        pairs = []
        for i, a in enumerate(ours.outputs):
            order = sorted(free, key=lambda j: j != i)
            single = left_sizes[a.size] == right_sizes[a.size] == 1
            near = [
                j
                for j in order
                if (single or (as_many and i == j)) and relative(a, theirs.outputs[j]) <= tolerance
            ]
            if near:
                pairs.append((i, near[0]))
                free.remove(near[0])
        most = min(len(ours.outputs), len(theirs.outputs))
        if len(pairs) < most:  # they differ: show by how much, position by position
            return cls([(n, n) for n in range(most)] if as_many else [], first, 0, again=False)
        left = [np.zeros_like(w) for w in first[0]]
        right = [np.zeros_like(w) for w in first[1]]
        for i, j in pairs:
            finite = np.isfinite(ours.outputs[i]).reshape(left[i].shape)
            left[i] = np.where(finite, first[0][i], 0.0)
            right[j] = left[i].reshape(right[j].shape)
        again = any(
            not np.array_equal(a, b)
            for one, other in ((left, first[0]), (right, first[1]))
            for a, b in zip(one, other, strict=True)
        )
        extra = len(ours.outputs) + len(theirs.outputs) - 2 * len(pairs)
        return cls(pairs, (left, right), extra, again)

    def apart(self, ours: Ran, theirs: Ran) -> float:
        """The largest relative difference of the outputs."""
        if not self.pairs:
            return 1.0
        scale = 1e-12 * max((float(np.abs(a[np.isfinite(a)]).max(initial=0.0))
                             for a in ours.outputs), default=0.0)  # fmt: skip
        return max(relative(ours.outputs[i], theirs.outputs[j], scale) for i, j in self.pairs)


def first_weights(ours: Runner, theirs: Runner, rng: Random) -> tuple[list[Array], list[Array]]:
    """Weights before anything is known of the outputs: by position and size."""
    return ours.weights(rng), theirs.weights(rng)
