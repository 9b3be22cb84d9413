"""Second moments that are kept by axis: how they follow a parameter whose axes move.

Adafactor keeps, of a large matrix, the means along its two largest axes (``v_row``, ``v_col``);
SM3 keeps one vector for each axis. Which axis is which is told by sizes and positions, so a
transform of the parameter can exchange the two, or change what they are. Here axes have names,
and transforms are followed by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bridge.errors import TransformError
from bridge.transforms import Cast, Copy, Scale, Stack, Transform, Transpose, Unstack

__all__ = ["FACTORED", "Axes", "factored_way", "per_axis_way"]

FACTORED = ("v_row", "v_col", "v")
"""The fields of ``optax.FactoredState``."""

Shape = tuple[int, ...]
_LAYERS = -1
"""The name of the axis along which several parameters are stacked."""


@dataclass(frozen=True, slots=True)
class Axes:
    """Where the axes of a parameter go.

    Attributes:
        new: the names of the axes afterwards: their old positions, or -1 for a new one of layers;
            None when something else than the order of axes changes.
        sizes: the size of each named axis.
        odd: the transform that does it, in words.
    """

    new: tuple[int, ...] | None
    sizes: Mapping[int, int]
    odd: str = ""

    @classmethod
    def of(cls, shapes: Sequence[Shape], transforms: Sequence[Transform]) -> Axes:
        """Follow the axes of parameters of these shapes through transforms."""
        sizes = dict(enumerate(shapes[0]))
        if len(shapes) > 1:
            sizes[_LAYERS] = len(shapes)
        names: tuple[int, ...] | None = tuple(range(len(shapes[0])))
        for t in transforms:
            names = _after(names, t)
            if names is None:
                return cls(None, sizes, t.describe())
        return cls(names, sizes)


def _after(names: tuple[int, ...] | None, t: Transform) -> tuple[int, ...] | None:
    if names is None:
        return None
    match t:
        case Copy() | Cast() | Scale():
            return names
        case Transpose() if len(t.axes) == len(names):
            return tuple(names[a] for a in t.axes)
        case Stack():
            at = t.axis % (len(names) + 1)
            return (*names[:at], _LAYERS, *names[at:])
        case Unstack() if names:
            at = t.axis % len(names)
            return names[:at] + names[at + 1 :]
    return None


def _without(names: tuple[int, ...], t: Transform, gone: int) -> Transform:
    """A transform, as it acts on an array that lacks one of the axes."""
    match t:
        case Transpose():
            left = [n for n in names if n != gone]
            return Transpose(tuple(left.index(names[a]) for a in t.axes if names[a] != gone))
        case Stack():
            at = t.axis % (len(names) + 1)
            return Stack(sum(n != gone for n in names[:at]))
        case Unstack():
            at = t.axis % len(names)
            return Unstack(sum(n != gone for n in names[:at]))
    return t


def largest(shape: Shape) -> tuple[int, int]:
    """The second largest and the largest axis, ties as Adafactor breaks them.

    >>> largest((3, 4)), largest((4, 3)), largest((5, 5))
    ((0, 1), (1, 0), (0, 1))
    """
    order = np.argsort(shape)
    return int(order[-2]), int(order[-1])


def factored_way(
    field: str,
    shapes: Sequence[Shape],
    kept: Mapping[str, Sequence[Shape]],
    axes: Axes,
    transforms: Sequence[Transform],
) -> tuple[str, tuple[Transform, ...]]:
    """Which field of Adafactor's feeds one, and how.

    Args:
        field: ``v_row``, ``v_col`` or ``v``.
        shapes: of the parameters of a step.
        kept: of the arrays of each field.
        axes: where the axes of the parameters go.
        transforms: of the step.

    Returns:
        The field to take, and the transforms; an empty field for placeholders, which are zeros.

    Raises:
        TransformError: what is kept does not determine what would be kept.
    """
    states = {
        _state(shape, row, col, v)
        for shape, row, col, v in zip(shapes, kept["v_row"], kept["v_col"], kept["v"], strict=True)
    }
    if states == {"whole"}:
        return ("v", tuple(transforms)) if field == "v" else ("", ())
    if states != {"factored"}:
        raise TransformError("its arrays are not what Adafactor keeps of such parameters")
    if axes.new is None:
        raise TransformError(
            f"Adafactor keeps means along its axes, which {axes.odd} does not keep apart"
        )
    if field == "v":
        return "", ()
    d1, d0 = largest(shapes[0])
    n1, n0 = (axes.new[n] for n in largest(tuple(axes.sizes[n] for n in axes.new)))
    if {n1, n0} != {d1, d0}:
        raise TransformError(
            "Adafactor keeps means along the two largest axes, and after "
            f"{' '.join(t.describe() for t in transforms)} these are others"
        )
    gone_now = n0 if field == "v_row" else n1
    source = "v_row" if gone_now == d0 else "v_col"
    names: tuple[int, ...] | None = tuple(range(len(shapes[0])))
    found = []
    for t in transforms:
        assert names is not None  # noqa: S101 - axes.new is not None either
        found.append(_without(names, t, gone_now))
        names = _after(names, t)
    return source, tuple(t for t in found if not _idle(t))


def _idle(t: Transform) -> bool:
    return isinstance(t, Transpose) and list(t.axes) == sorted(t.axes)


def _state(shape: Shape, row: Shape, col: Shape, v: Shape) -> str:
    if v == shape and row == col == (1,):
        return "whole"
    if len(shape) < 2 or v != (1,):  # noqa: PLR2004 - a matrix
        return "odd"
    d1, d0 = largest(shape)
    same = row == _drop(shape, d0) and col == _drop(shape, d1)
    return "factored" if same else "odd"


def _drop(shape: Shape, axis: int) -> Shape:
    return shape[:axis] + shape[axis + 1 :]


def per_axis_way(axes: Axes, position: int, rank: int) -> int:
    """Which of SM3's vectors becomes the one of a position.

    Raises:
        TransformError: a transform does more than reorder the axes.
    """
    if axes.new is None or sorted(axes.new) != list(range(rank)) or position >= rank:
        raise TransformError("SM3 keeps one vector for each axis, and only their order may change")
    return axes.new[position]
