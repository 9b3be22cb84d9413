"""Arrays of an attention that have axes for heads, and how they look without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from bridge.transforms import Reshape, Spec, Transform, Transpose, inverse_all

__all__ = ["RANK", "Heads", "heads_of"]

RANK = 3
"""Of a kernel with heads."""

# where the two axes of the heads begin, and the rank
_PLACES: Mapping[tuple[str, bool], tuple[int, int]] = {
    ("kernel", False): (1, RANK),
    ("kernel", True): (0, RANK),
    ("bias", False): (0, RANK - 1),
}


@dataclass(frozen=True, slots=True)
class Heads:
    """How one array with heads becomes one without.

    Attributes:
        axis: that counts layers, from the front; -1 for none.
        stack: how many layers.
        heads: number and depth of heads; empty for an array that has none.
        shape: of the result.
        made: the transforms that make it.
    """

    axis: int
    stack: int
    heads: tuple[int, ...]
    shape: tuple[int, ...]
    made: tuple[Transform, ...] = ()

    def undone(self, shape: tuple[int, ...]) -> tuple[Transform, ...]:
        """The transforms that make an array of a shape with heads again."""
        return inverse_all(self.made, [Spec(shape, "float32")])


def heads_of(shape: tuple[int, ...], name: str, role: str, axis: int | None) -> Heads | None:
    """Read one array as part of an attention.

    Args:
        shape: of the array.
        name: ``kernel`` or ``bias``.
        role: ``query``, ``key``, ``value`` or ``out``.
        axis: that counts layers; None for an attention that is not scanned.

    Returns:
        The reading; None where the array does not fit one.

    >>> heads_of((8, 2, 4), "kernel", "query", None).shape
    (8, 8)
    """
    rank = len(shape)
    if axis is not None and not -rank <= axis < rank:
        return None
    at = -1 if axis is None else axis % rank
    stack = 1 if axis is None else shape[axis]
    inner = [size for n, size in enumerate(shape) if n != at]
    place = _PLACES.get((name, role == "out"))
    if place is None:  # the bias of the output has no heads
        return Heads(at, stack, (), shape) if (name, len(inner)) == ("bias", 1) else None
    first, wanted = place
    if len(inner) != wanted:
        return None
    heads = tuple(inner[first : first + 2])
    flat = (*inner[:first], prod(heads), *inner[first + 2 :])
    if axis is None:
        return Heads(at, stack, heads, flat, (Reshape(flat),))
    wide = (stack, *flat)
    back = list(range(1, len(wide)))
    back.insert(axis % len(wide), 0)
    made: tuple[Transform, ...] = (Reshape(wide),)
    if at:
        to_front = (at, *(n for n in range(rank) if n != at))
        made = (Transpose(to_front), *made, Transpose(tuple(back)))
    return Heads(at, stack, heads, tuple(wide[n] for n in back), made)
