"""Numbers about one leaf, for a look at what a checkpoint holds."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bridge._bits import blocks, show_value
from bridge.errors import BridgeError
from legacy import Checkpoint, format_path, parse_path
from legacy.leaves import ARRAY_KINDS, Leaf

__all__ = ["Statistics", "find_leaf", "statistics"]

FIRST = 6


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the values of an array are like.

    Attributes:
        size: elements.
        finite: elements that are neither NaN nor infinite.
        zeros: elements that are zero.
        minimum: of the finite elements; None when there are none (or they are complex).
        maximum: likewise.
        mean: likewise.
        std: likewise, of the whole population.
        first: the first elements in C order, as text.
    """

    size: int
    finite: int
    zeros: int
    minimum: float | None
    maximum: float | None
    mean: float | None
    std: float | None
    first: tuple[str, ...]

    def to_json(self) -> Mapping[str, Any]:
        """Plain JSON values."""
        return {
            "size": self.size,
            "finite": self.finite,
            "zeros": self.zeros,
            "min": self.minimum,
            "max": self.maximum,
            "mean": self.mean,
            "std": self.std,
            "first": list(self.first),
        }


def find_leaf(checkpoint: Checkpoint, text: str) -> Leaf:
    """The leaf of a path as it is printed; leaves of JSON items are below the item's name.

    Raises:
        BridgeError: there is none; the message names the nearest.
        LegacyError: the text is no path.
    """
    path = parse_path(text)
    if path in checkpoint.leaves:
        return checkpoint.leaves[path]
    if path and path[1:] in checkpoint.items.get(path[0], {}):
        return checkpoint.items[path[0]][path[1:]]
    names = [format_path(p) for p in checkpoint.leaves]
    near = difflib.get_close_matches(text, names, n=3, cutoff=0.4)
    raise BridgeError(
        f"{checkpoint.path} has no leaf {text}"
        + (f"; near it: {', '.join(near)}." if near else ".")
    )


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
        return leaf.kind if leaf.kind in ("none", "empty") else show_value(leaf.read())
    size = math.prod(leaf.shape)
    finite = zeros = 0
    low, high, mean, spread = math.inf, -math.inf, 0.0, 0.0
    first: tuple[str, ...] = ()
    real = leaf.dtype is not None and leaf.dtype.kind != "c"
    for block in blocks(leaf):
        values = np.asarray(leaf.read(block)).reshape(-1)
        if not first:
            first = tuple(str(v) for v in values[:FIRST])
        wide: np.ndarray[Any, Any] = values.astype(np.float64 if real else np.complex128)
        zeros += int((wide == 0).sum())
        wide = wide[np.isfinite(wide)]
        before, finite = finite, finite + len(wide)
        if real and len(wide):
            low, high = min(low, float(wide.min())), max(high, float(wide.max()))
            # Chan et al.: means of parts together, without the sum of squares
            apart = float(wide.mean()) - mean
            spread += float(wide.var()) * len(wide) + apart**2 * before * len(wide) / finite
            mean += apart * len(wide) / finite
    if not real or not finite:
        return Statistics(size, finite, zeros, None, None, None, None, first)
    return Statistics(size, finite, zeros, low, high, mean, math.sqrt(spread / finite), first)
