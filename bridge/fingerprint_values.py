"""Random values that make two models compute the same function before any map is known.

Leaves of one class (one size, and where both sides agree how many there are, one role) get the
same numbers, in C order. Where a leaf may be read in several ways, the numbers are the same in all
of them: elements that one reading puts where another puts others are made equal.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from bridge.fingerprint_readings import Leaves, Path, Reading
from bridge.names import unboxed

__all__ = ["Classes", "Random", "role_of"]

Array: TypeAlias = np.ndarray[Any, Any]
Key: TypeAlias = tuple[str, int]
Random: TypeAlias = Callable[[str, int], Array]

_ROLES = {
    "bias": "bias", "beta": "bias", "b": "bias", "shift": "bias", "offset": "bias",
    "scale": "scale", "gamma": "scale", "gain": "scale", "g": "scale",
    "mean": "mean", "running_mean": "mean", "moving_mean": "mean",
    "var": "var", "running_var": "var", "moving_var": "var", "variance": "var",
}  # fmt: skip
_ANY = "any"
_MOST_ELEMENTS = 30_000_000
"""More elements are not made equal across readings; the first reading is taken."""


def role_of(path: Path) -> str:
    """What a leaf is by its name; ``other`` when the name does not say.

    >>> role_of(("params", "Dense_0", "bias", "value"))
    'bias'
    """
    return _ROLES.get(unboxed(path)[-1], "other")


def randoms(seed: int) -> Random:
    """``rng(name, size)``: standard normal numbers that only depend on name, size and seed."""

    def rng(name: str, size: int) -> Array:
        mixed = np.random.default_rng([seed, zlib.crc32(name.encode()), size])
        return mixed.standard_normal(size)

    return rng


@dataclass
class Classes:
    """The values of classes.

    Args:
        linen: shapes by path.
        nnx: shapes by path.
        ours: readings of the Linen leaves.
        theirs: readings of the slots.
        rng: where random numbers come from.
        roles: whether leaves of different roles get different numbers where both sides have
            equally many of each.
        without: zeros for biases of the sizes that one side has more leaves of.
    """

    linen: Leaves
    nnx: Leaves
    ours: Mapping[Path, Sequence[Reading]]
    theirs: Mapping[Path, Sequence[Reading]]
    rng: Random
    roles: bool = True
    without: bool = False

    def __post_init__(self) -> None:
        counts = [self._counted(self.linen, self.ours), self._counted(self.nnx, self.theirs)]
        sizes = {n for count in counts for _, n in count}
        self._split = {
            n for n in sizes
            if self.roles and all(counts[0][r, n] == counts[1][r, n] for r in _KINDS)
        }  # fmt: skip
        odd = {
            n
            for n in sizes
            if sum(counts[0][r, n] for r in _KINDS) != sum(counts[1][r, n] for r in _KINDS)
        }
        self._zero = odd if self.without else set()
        self._thin = {
            self._key(role_of(p), math.prod(s) // r.count)
            for leaves, readings in ((self.linen, self.ours), (self.nnx, self.theirs))
            for p, s in leaves.items()
            for r in readings[p]
            if _thin(s, r.count)
        }
        self._vectors: dict[Key, Array] = {}
        self._link()

    def signature(self) -> object:
        """Equal for classes with the same numbers in all leaves."""
        return tuple(sorted(self._split)), tuple(sorted(self._zero))

    @staticmethod
    def _counted(leaves: Leaves, readings: Mapping[Path, Sequence[Reading]]) -> Counter[Key]:
        count: Counter[Key] = Counter()
        for path, shape in leaves.items():
            first = readings[path][0]
            count[role_of(path), math.prod(shape) // first.count] += first.count
        return count

    def _key(self, role: str, size: int) -> Key:
        if size in self._split or (size in self._zero and role == "bias"):
            return role, size
        return _ANY, size

    def styled(self, role: str, size: int, noise: Array, *, zero: bool = True) -> Array:
        """Random numbers as they suit a class: neither dead nor exploding signals.

        Args:
            role: of the leaf.
            size: of the piece.
            noise: standard normal numbers.
            zero: heed that some biases are to be zero.
        """
        key = self._key(role, size)
        kind = key[0]
        if zero and size in self._zero and kind == "bias":
            return np.zeros(size)
        soft = np.tanh(noise)
        if kind in {"bias", "mean"}:
            return 0.4 * soft
        if kind in ("scale", "var") or (key in self._thin and kind == _ANY):
            return 1.0 + 0.4 * soft
        if key in self._thin:
            return 0.7 + 0.5 * soft
        return np.asarray(1.2 * float(max(size, 1)) ** -0.25 * noise)

    def vector(self, path: Path, size: int) -> Array:
        """The common numbers of the class that a piece of a leaf is in."""
        role = role_of(path)
        key = self._key(role, size)
        if key not in self._vectors:
            noise = self.rng(f"class {key[0]}", size)
            self._vectors[key] = self.styled(role, size, noise)
        return self._vectors[key]

    def _link(self) -> None:
        """Make elements equal that different readings of one leaf exchange."""
        leaves = [(p, s, rs[p]) for side, rs in ((self.linen, self.ours), (self.nnx, self.theirs))
                  for p, s in side.items() if len(rs[p]) > 1]  # fmt: skip
        seen = set()
        todo = []
        for path, shape, readings in leaves:
            what = (role_of(path), shape, tuple(readings))
            if what not in seen:
                seen.add(what)
                todo.append((path, shape, readings))
        keys = sorted({self._key(role_of(p), math.prod(s) // r.count)
                       for p, s, rs in todo for r in rs}, key=lambda k: (k[1], k[0]))  # fmt: skip
        total = sum(n for _, n in keys)
        if not keys or total > _MOST_ELEMENTS:
            return
        starts = dict(zip(keys, np.cumsum([0, *(n for _, n in keys)]), strict=False))
        edges: list[tuple[Array, Array]] = []
        for path, shape, readings in todo:
            size = math.prod(shape)
            places = []
            for r in readings:
                n = size // r.count
                start = starts[self._key(role_of(path), n)]
                places.append(r.built([np.arange(start, start + n)] * r.count, shape).reshape(-1))
            edges += [(places[0], other) for other in places[1:]]
        rows = np.concatenate([a for a, _ in edges])
        columns = np.concatenate([b for _, b in edges])
        labels = _components(rows, columns, total)
        every = np.concatenate([self._vector_of(key) for key in keys])
        every = every[labels]
        for key, start in starts.items():
            self._vectors[key] = every[start : start + key[1]]

    def _vector_of(self, key: Key) -> Array:
        role, size = key
        noise = self.rng(f"class {role}", size)
        return self.styled("other" if role == _ANY else role, size, noise)


_KINDS = ("bias", "scale", "mean", "var", "other")


def _components(rows: Array, columns: Array, total: int) -> Array:
    """The smallest number that each of the numbers below ``total`` hangs together with."""
    labels = np.arange(total)
    while True:
        least = np.minimum(labels[rows], labels[columns])
        new = labels.copy()
        np.minimum.at(new, rows, least)
        np.minimum.at(new, columns, least)
        new = new[new]
        if np.array_equal(new, labels):
            return labels
        labels = new


def _thin(shape: tuple[int, ...], count: int) -> bool:
    """Whether a leaf or a piece of it may be a vector."""
    return math.prod(shape) // count in (*shape, 1)
