"""Tells leaves apart that have an influence but no gradient: by changing them.

A code book that only chooses (``argmax``), a threshold, whatever is rounded: outputs are constant
around any value of theirs, so they have no gradient, and yet other numbers give other outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from bridge.fingerprint_compare import Outputs
from bridge.fingerprint_match import Found, Unit, features_of
from bridge.fingerprint_readings import Leaves
from bridge.fingerprint_run import Ran, Values
from bridge.fingerprint_values import Random

__all__ = ["poked"]

Run: TypeAlias = Callable[[tuple[Values, Values]], tuple[Ran, Ran]]

_MOST = 64
"""Leaves of one side that are changed one by one."""
_SEEN = 1e-7
"""Smallest relative change of an output that counts."""


def poked(
    units: tuple[Sequence[Unit], Sequence[Unit]],
    shapes: tuple[Leaves, Leaves],
    values: tuple[Values, Values],
    base: tuple[Ran, Ran],
    outputs: Outputs,
    run: Run,
    rng: Random,
) -> list[tuple[Found, Found]]:
    """What changes when leaves are given other numbers, by size of the leaf.

    Args:
        units: pieces without a gradient, of both models.
        shapes: of the leaves of both models.
        values: the numbers that ``base`` was run with.
        base: a run of both models.
        outputs: which outputs are compared.
        run: runs both models.
        rng: random numbers by name.
    """
    if not all(units) or max(map(len, units)) > _MOST:
        return []
    sides = [
        _Side(n, units[n], shapes[n], values[n], base[n], outputs, rng, _scale(base[0], outputs))
        for n in (0, 1)
    ]
    every = run((sides[0].changed(units[0]), sides[1].changed(units[1])))
    if not any(p[0] for side, now in zip(sides, every, strict=True) for p in side.parts(now)):
        return []
    for n in range(max(map(len, units))):
        both = run((sides[0].changed(units[0][n : n + 1]), sides[1].changed(units[1][n : n + 1])))
        for side, now in zip(sides, both, strict=True):
            if n < len(side.units):
                side.seen.append(side.parts(now))
    sizes = dict.fromkeys(u.size for u in units[0])
    return [(sides[0].found(n), sides[1].found(n)) for n in sizes]


def _scale(base: Ran, outputs: Outputs) -> list[float]:
    return [float(np.linalg.norm(np.nan_to_num(base.outputs[i]))) for i, _ in outputs.pairs]


@dataclass
class _Side:
    """One model."""

    side: int
    units: Sequence[Unit]
    shapes: Leaves
    values: Values
    base: Ran
    outputs: Outputs
    rng: Random
    scale: list[float]
    seen: list[list[list[float]]] = field(default_factory=list)

    def changed(self, some: Sequence[Unit]) -> Values:
        """The values with other numbers in some pieces."""
        new = dict(self.values)
        for unit in some:
            pieces = unit.reading.pieces(new[unit.path])
            noise = self.rng("poke", unit.size)
            positive = bool((self.values[unit.path] > 0).all())
            pieces[unit.piece] = 0.9 + 0.6 * np.tanh(noise) if positive else noise
            new[unit.path] = unit.reading.built(pieces, self.shapes[unit.path])
        return new

    def parts(self, now: Ran) -> list[list[float]]:
        """How the outputs changed."""
        found = []
        for n, pair in enumerate(self.outputs.pairs):
            at = pair[self.side]
            delta = np.nan_to_num(now.outputs[at] - self.base.outputs[at]).reshape(-1)
            norm = float(np.linalg.norm(delta))
            along = [float(self.rng(f"poke {n} {m}", delta.size) @ delta) for m in range(2)]
            found.append([norm, *along] if norm > _SEEN * self.scale[n] else [0.0, 0.0, 0.0])
        return found

    def found(self, size: int) -> Found:
        """What changes of one size did."""
        at = [n for n, u in enumerate(self.units) if u.size == size]
        table = np.asarray([self.seen[n] for n in at]).reshape(len(at), -1, 3)
        return features_of([self.units[n] for n in at], table)
