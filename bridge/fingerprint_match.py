"""Finds pieces of two models whose gradients and updates are the same numbers.

A gradient is kept as its norm and two random projections: two different gradients agree in all
three to nine digits as good as never, and the same one does up to rounding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from bridge.fingerprint_readings import Path, Reading
from bridge.fingerprint_run import Ran
from bridge.fingerprint_values import Random

__all__ = ["Array", "Found", "Sketches", "Unit", "alike", "clusters", "features_of"]

Array: TypeAlias = np.ndarray[Any, Any]

_PROJECTIONS = 2
_MOST_SUMMED = 200
"""Of more units sums are not looked for."""
_NEVER = -1e9
"""Stands for the logarithm of zero."""
_MARGIN = 30.0
"""How much farther than the tolerance anything else must be from a pair."""


class Unit(NamedTuple):
    """A piece of a leaf under one reading.

    Attributes:
        path: of the leaf.
        reading: how it is taken apart.
        piece: which piece.
        size: its elements.
    """

    path: Path
    reading: Reading
    piece: int
    size: int


@dataclass(frozen=True, slots=True)
class Found:
    """Sketches of units of one size.

    Attributes:
        units: what they are of.
        raw: projections of the gradients, by unit.
        features: what is compared, by unit: relative numbers.
        silent: whether a unit has neither a gradient nor an update.
        moved: whether a call gave it a new value.
    """

    units: tuple[Unit, ...]
    raw: Array
    features: Array
    silent: Array
    moved: Array

    def still(self) -> Found:
        """The same without updates."""
        features = self.features[:, : 1 + _PROJECTIONS]
        return Found(self.units, self.raw, features, features[:, 0] <= _NEVER, self.moved)


class Sketches:
    """Makes sketches.

    Args:
        rng: where projections come from.
    """

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._directions: dict[int, Array] = {}

    def _along(self, flat: Array) -> list[float]:
        n = flat.size
        if n not in self._directions:
            self._directions[n] = np.stack(
                [self._rng(f"projection {m}", n) for m in range(_PROJECTIONS)]
            )
        return [float(x) for x in self._directions[n] @ flat]

    def of(
        self, ran: Ran, before: Mapping[Path, Array], units: Iterable[Unit], floor: float
    ) -> dict[int, Found]:
        """Sketches of units, by size.

        Args:
            ran: a run.
            before: the values that it was made with.
            units: which.
            floor: gradients whose norm is below this are rounding noise.
        """
        groups: dict[int, list[Unit]] = defaultdict(list)
        for unit in units:
            groups[unit.size].append(unit)
        taken: dict[tuple[Path, Reading, int], list[Array]] = {}

        def piece(unit: Unit, array: Array, which: int) -> Array:
            key = (unit.path, unit.reading, which)
            if key not in taken:
                taken[key] = unit.reading.pieces(array)
            return taken[key][unit.piece]

        result = {}
        for size, members in groups.items():
            rows = []
            for unit in members:
                parts = []
                grad = ran.grads.get(unit.path)
                flat = None if grad is None else _real(piece(unit, grad, 0))
                parts.append(self._part(flat, floor))
                for n, update in enumerate(ran.updates, 1):
                    new = update.get(unit.path)
                    changed = new is not None and not np.array_equal(new, before[unit.path])
                    flat = _real(piece(unit, new, n)) if changed and new is not None else None
                    parts.append(self._part(flat, 0.0))
                rows.append(parts)
            result[size] = features_of(members, np.asarray(rows))
        return result

    def _part(self, flat: Array | None, floor: float) -> list[float]:
        if flat is None or not np.isfinite(flat).all():
            return [0.0] * (1 + _PROJECTIONS)
        norm = float(np.linalg.norm(flat))
        if norm <= floor:
            return [0.0] * (1 + _PROJECTIONS)
        return [norm, *self._along(flat)]


def features_of(units: Sequence[Unit], table: Array) -> Found:
    """What is compared of some units.

    Args:
        units: which.
        table: units × parts × (norm, projections); the first part is the gradient.
    """
    norms = table[:, :, :1]
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(norms > 0, table[:, :, 1:] / norms, 0.0)
        logs = np.where(norms > 0, np.log(norms), _NEVER)
    features = np.concatenate([logs, relative], axis=2).reshape(len(units), -1)
    shown = norms[:, :, 0] > 0
    silent = np.logical_not(shown.any(axis=1))
    moved = np.asarray(shown[:, 1:].any(axis=1))
    return Found(tuple(units), table[:, 0, 1:], features, silent, moved)


def _real(x: Array) -> Array:
    return (x.real + 0.7312 * x.imag if np.iscomplexobj(x) else x).astype(np.float64)


def _distances(a: Array, b: Array) -> Array:
    if not len(a) or not len(b):
        return np.zeros((len(a), len(b)))
    result = np.zeros((len(a), len(b)))
    for column in range(a.shape[1]):
        np.maximum(result, np.abs(a[:, column, None] - b[None, :, column]), out=result)
    return result


def alike(
    ours: Found, theirs: Found, tolerance: float
) -> tuple[list[tuple[Unit, Unit]], list[tuple[Unit, Unit]]]:
    """Pairs of units that belong together.

    Args:
        ours: units of the Linen model.
        theirs: units of the NNX model, of the same size.
        tolerance: relative difference of equal gradients.

    Returns:
        Pairs that have nothing else near them; and pairs that only have another reading of one
        of their own leaves near them.
    """
    apart = _distances(ours.features, theirs.features)
    apart[ours.silent] = np.inf
    apart[:, theirs.silent] = np.inf
    near = apart <= _MARGIN * tolerance
    certain, doubtful = [], []
    for i, j in zip(*np.nonzero(apart <= tolerance), strict=True):
        row, column = np.nonzero(near[i])[0], np.nonzero(near[:, j])[0]
        pair = (ours.units[i], theirs.units[j])
        if len(row) == 1 and len(column) == 1:
            certain.append(pair)
        elif (
            len({theirs.units[n][::2] for n in row}) == 1
            and len({ours.units[n][::2] for n in column}) == 1
        ):
            doubtful.append(pair)
    return certain, doubtful


def clusters(
    ours: Found, theirs: Found, tolerance: float
) -> list[tuple[tuple[Unit, ...], tuple[Unit, ...]]]:
    """Groups of units that nothing tells apart, with equally many on both sides.

    Args:
        ours: units of the Linen model.
        theirs: units of the NNX model, of the same size.
        tolerance: relative difference of equal gradients.
    """
    left = [n for n in range(len(ours.units)) if not ours.silent[n]]
    right = [n for n in range(len(theirs.units)) if not theirs.silent[n]]
    features = np.concatenate([ours.features[left], theirs.features[right]])
    near = _distances(features, features) <= tolerance
    result = []
    seen: set[int] = set()
    for n in range(len(features)):
        if n in seen:
            continue
        group = {n}
        waiting = [n]
        while waiting:
            for m in np.nonzero(near[waiting.pop()])[0]:
                if int(m) not in group:
                    group.add(int(m))
                    waiting.append(int(m))
        seen |= group
        a = tuple(ours.units[left[m]] for m in sorted(group) if m < len(left))
        b = tuple(theirs.units[right[m - len(left)]] for m in sorted(group) if m >= len(left))
        one_each = len({u[::2] for u in a}) == len(a) and len({u[::2] for u in b}) == len(b)
        if len(a) == len(b) > 1 and one_each:
            result.append((a, b))
    return result


def sums(ours: Found, theirs: Found, tolerance: float) -> list[tuple[Unit, tuple[Unit, Unit]]]:
    """Units of one side whose gradient is the sum of two of the other side.

    Args:
        ours: the one side.
        theirs: the other side.
        tolerance: relative difference of equal gradients.
    """
    found: list[tuple[Unit, tuple[Unit, Unit]]] = []
    if max(len(ours.units), len(theirs.units)) > _MOST_SUMMED:
        return found
    both = theirs.raw[:, None] + theirs.raw[None, :]
    for i, unit in enumerate(ours.units):
        scale = float(np.abs(ours.raw[i]).max())
        if ours.silent[i] or not scale:
            continue
        close = np.abs(both - ours.raw[i]).max(axis=2) <= tolerance * scale
        pairs = [
            (theirs.units[a], theirs.units[b])
            for a, b in zip(*np.nonzero(np.triu(close, 1)), strict=True)
            if theirs.units[a].path != theirs.units[b].path
            and not (theirs.silent[a] or theirs.silent[b])
        ]
        if len(pairs) == 1:
            found.append((unit, pairs[0]))
    return found


def pieces_of(readings: Mapping[Path, Sequence[Reading]], sizes: Mapping[Path, int]) -> list[Unit]:
    """All units of some leaves.

    Args:
        readings: the readings that are open, by path.
        sizes: elements by path.
    """
    return [
        Unit(path, reading, n, sizes[path] // reading.count)
        for path, ways in readings.items()
        for reading in ways
        for n in range(reading.count)
    ]
