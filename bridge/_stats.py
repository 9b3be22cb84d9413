"""Numbers about single leaves, for a look at what a checkpoint holds."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bridge._bits import blocks, show_value
from bridge.errors import BridgeError
from legacy import Checkpoint, format_path, parse_path
from legacy.errors import LegacyError
from legacy.leaves import ARRAY_KINDS, Leaf, LeafPath

__all__ = ["Look", "Statistics", "find_leaves", "look", "statistics"]

FIRST = 6
BINS = 16
BLOCK = 16 << 20
"""Bytes read at a time; a histogram is made of arrays that are not larger."""

_NEAR = 5


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the values of an array are like.

    Attributes:
        size: elements.
        finite: elements that are neither NaN nor infinite.
        zeros: elements that are zero.
        minimum: of the finite elements; None when there are none (or they are complex).
        maximum: likewise.
        mean: likewise; of numbers too large to be summed up None, too.
        std: likewise, of the whole population.
        first: the first elements in C order, as text.
        nans: elements that are NaN.
        norm: the square root of the sum of squares of the finite elements, complex ones included.
        histogram: how many finite elements lie in each of equal parts of the range from minimum
            to maximum; empty for large arrays, and where there is no range.
    """

    size: int
    finite: int
    zeros: int
    minimum: float | int | None
    maximum: float | int | None
    mean: float | None
    std: float | None
    first: tuple[str, ...]
    nans: int = 0
    norm: float | None = None
    histogram: tuple[int, ...] = ()

    @property
    def infinite(self) -> int:
        """Elements that are infinite."""
        return self.size - self.finite - self.nans

    def to_json(self) -> Mapping[str, Any]:
        """Plain JSON values."""
        return {
            "size": self.size,
            "finite": self.finite,
            "nans": self.nans,
            "infinite": self.infinite,
            "zeros": self.zeros,
            "min": self.minimum,
            "max": self.maximum,
            "mean": self.mean,
            "std": self.std,
            "norm": self.norm,
            "first": list(self.first),
            "histogram": list(self.histogram),
        }


@dataclass(frozen=True, slots=True)
class Look:
    """A leaf and what is in it.

    Attributes:
        path: of the leaf, below its item's name where that was asked for.
        leaf: the leaf.
        found: statistics of an array; the value of anything else, as text.
        problem: why it cannot be read; None when it can.
        value: the value of a leaf that is no array, as JSON has it.
    """

    path: LeafPath
    leaf: Leaf
    found: Statistics | str = ""
    problem: str | None = None
    value: Any = None


def find_leaves(checkpoint: Checkpoint, text: str) -> dict[LeafPath, Leaf]:
    """The leaf of a path as it is printed, or all leaves below it.

    Leaves of JSON items, and of all items if asked for, are below the item's name.

    Raises:
        BridgeError: there is none; the message names the nearest.
        LegacyError: the text is no path.
    """
    path = _parse(text)
    tables: list[tuple[Mapping[LeafPath, Leaf], LeafPath]] = [(checkpoint.leaves, path)]
    if path:
        tables.append((checkpoint.items.get(path[0], {}), path[1:]))
    for table, rest in tables:
        if rest in table:
            return {path: table[rest]}
        found = {p: leaf for p, leaf in table.items() if p[: len(rest)] == rest}
        if found:
            return {path[: len(path) - len(rest)] + p: leaf for p, leaf in found.items()}
    # a shell takes the quotes of "a/b"; what can mean one leaf only is that leaf
    plain = [p for p in checkpoint.leaves if "/".join(p) == text]
    if len(plain) == 1:
        return {plain[0]: checkpoint.leaves[plain[0]]}
    near = _nearest(path, checkpoint)
    raise BridgeError(
        f"{checkpoint.path} has no leaf {text}"
        + (f"; near it: {', '.join(near)}." if near else "; `linen2nnx inspect` lists them.")
    )


def _parse(text: str) -> LeafPath:
    return parse_path(text if text.strip("/") == "" else text.rstrip("/"))


def _nearest(path: LeafPath, checkpoint: Checkpoint) -> list[str]:
    """Leaves and subtrees whose names are near, level by level, so that many leaves cost little."""
    every = [*checkpoint.leaves]
    every += [(n, *p) for n, t in checkpoint.items.items() if t.json_file is not None for p in t]
    ends = [p for p in every if p[-len(path) :] == path] if path else []
    if not ends:
        level: list[LeafPath] = [()]
        for n, part in enumerate(path):
            names: dict[str, None] = dict.fromkeys(p[n] for p in every if len(p) > n)
            alike = [part] if part in names else _alike(part, names)
            every = [p for p in every if len(p) > n and p[n] in alike]
            if not every:
                break
            level = list(dict.fromkeys(p[: n + 1] for p in every))
        ends = [p for p in level if p]
    last = path[-1] if path else ""
    ends.sort(key=lambda p: -difflib.SequenceMatcher(None, p[-1], last).ratio())
    return [format_path(p) for p in ends[:_NEAR]]


def _alike(part: str, names: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(part, list(names), n=_NEAR, cutoff=0.5)


def look(path: LeafPath, leaf: Leaf) -> Look:
    """Read a leaf and sum it up; one that cannot be read says why.

    Args:
        path: what to call it.
        leaf: any leaf.
    """
    try:
        if leaf.kind in ARRAY_KINDS:
            return Look(path, leaf, statistics(leaf))
        value = None if leaf.kind in ("none", "empty") else leaf.read()
    except LegacyError as error:
        return Look(path, leaf, problem=str(error))
    plain = value if isinstance(value, bool | int | float | str) or value is None else repr(value)
    return Look(path, leaf, _text(leaf, value), value=plain)


def statistics(leaf: Leaf) -> Statistics | str:
    """Read a leaf, a block at a time, and sum it up.

    Args:
        leaf: any leaf.

    Returns:
        Statistics of arrays and scalars; the value as text for everything else.

    Raises:
        LegacyError: it cannot be read.

    >>> statistics(Leaf(("a",), "number", reader=lambda _: 3))
    '3'
    """
    if leaf.kind not in ARRAY_KINDS:
        return _text(leaf, None if leaf.kind in ("none", "empty") else leaf.read())
    total = _Sum(math.prod(leaf.shape))
    whole = leaf.nbytes <= BLOCK
    for block in blocks(leaf, limit=BLOCK):
        total.add(np.asarray(leaf.read(block)).reshape(-1), whole=whole)
    return total.statistics()


def _text(leaf: Leaf, value: Any) -> str:
    return leaf.kind if leaf.kind in ("none", "empty") else show_value(value)


@dataclass(slots=True)
class _Sum:
    """What is known of the blocks so far."""

    size: int
    finite: int = 0
    zeros: int = 0
    nans: int = 0
    low: Any = None
    high: Any = None
    mean: float = 0.0
    spread: float = 0.0
    squares: float = 0.0
    first: tuple[str, ...] = ()
    histogram: tuple[int, ...] = field(default=())

    def add(self, values: np.ndarray[Any, Any], *, whole: bool) -> None:
        if not self.first:
            self.first = tuple(str(v) for v in values[:FIRST])
        if values.dtype.kind == "c":
            self._add_complex(values)
            return
        integral = values.dtype.kind in "biu"
        wide = values.astype(np.float64)
        self.zeros += int((values == 0 if integral else wide == 0).sum())
        if not integral:
            self.nans += int(np.isnan(wide).sum())
            wide = wide[np.isfinite(wide)]
        if not len(wide):
            return
        # integers beyond 2**53 have no double of their own
        exact: Any = values if integral else wide
        low, high = exact.min().item(), exact.max().item()
        self.low = low if self.low is None else min(self.low, low)
        self.high = high if self.high is None else max(self.high, high)
        before, self.finite = self.finite, self.finite + len(wide)
        with np.errstate(over="ignore", invalid="ignore"):
            # Chan et al.: means of parts together, without the sum of squares
            apart = float(wide.mean()) - self.mean
            spread = float(wide.var()) * len(wide)
            self.spread += spread + apart**2 * before * len(wide) / self.finite
            self.mean += apart * len(wide) / self.finite
            self.squares += float(np.dot(wide, wide))
            ends = float(low), float(high)
            if whole and ends[1] - ends[0] not in (0.0, math.inf):
                self.histogram = tuple(np.histogram(wide, BINS, ends)[0].tolist())

    def _add_complex(self, values: np.ndarray[Any, Any]) -> None:
        self.zeros += int((values == 0).sum())
        self.nans += int(np.isnan(values).sum())
        finite = values[np.isfinite(values)].astype(np.complex128)
        self.finite += len(finite)
        with np.errstate(over="ignore"):
            self.squares += float((np.abs(finite) ** 2).sum())

    def statistics(self) -> Statistics:
        real = self.low is not None
        return Statistics(
            self.size,
            self.finite,
            self.zeros,
            self.low,
            self.high,
            _or_none(self.mean) if real else None,
            _or_none(math.sqrt(self.spread / self.finite)) if real else None,
            self.first,
            self.nans,
            _or_none(math.sqrt(self.squares)) if self.finite else None,
            self.histogram,
        )


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
