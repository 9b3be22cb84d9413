"""Transforms: small frozen operations on arrays, each with an inverse or a declared loss.

They are what rules and plans are made of. This module has the whole list, reads them from JSON
and TOML, and runs several in order; the operations themselves live in ``transforms_*``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

from bridge.errors import TransformError
from bridge.transforms_base import Array, Copy, Each, Spec, Transform
from bridge.transforms_blocks import Blocks
from bridge.transforms_cast import Cast
from bridge.transforms_keys import StreamKey
from bridge.transforms_parts import Join, Split, Stack, Unstack
from bridge.transforms_shape import Pad, Permute, Reshape, Slice, Transpose
from bridge.transforms_values import Function, Scale
from bridge.transforms_zero import Drop, DropZero

__all__ = [
    "TRANSFORMS",
    "Array",
    "Blocks",
    "Cast",
    "Copy",
    "Drop",
    "DropZero",
    "Each",
    "Function",
    "Join",
    "Pad",
    "Permute",
    "Reshape",
    "Scale",
    "Slice",
    "Spec",
    "Split",
    "Stack",
    "StreamKey",
    "Transform",
    "Transpose",
    "Unstack",
    "apply_all",
    "describe_all",
    "infer_all",
    "inverse_all",
    "moments_all",
    "transform_from_json",
]

TRANSFORMS: Mapping[str, type[Transform]] = {
    kind.op: kind
    for kind in (
        Transpose,
        Reshape,
        Stack,
        Unstack,
        Split,
        Join,
        Slice,
        Pad,
        Permute,
        Blocks,
        Scale,
        Cast,
        Function,
        Each,
        Copy,
        DropZero,
        Drop,
        StreamKey,
    )
}
"""Every operation by the name it has in JSON and TOML."""

MAX_NESTING = 8
"""How deep ``each`` may lie in ``each`` in a stored plan."""


def transform_from_json(data: Mapping[str, Any]) -> Transform:
    """Read a transform from JSON or TOML values.

    Args:
        data: ``{"op": ..., field: value, ...}``.

    Raises:
        TransformError: an unknown op, or fields that are unknown, missing or of a wrong type.

    >>> transform_from_json({"op": "transpose", "axes": [1, 0]})
    Transpose(axes=(1, 0))
    """
    return _read(data, MAX_NESTING)


def _read(data: Any, depth: int) -> Transform:
    if not isinstance(data, Mapping) or not isinstance(data.get("op"), str):
        raise TransformError(
            f"{data!r} is no transform; write one as {{op = 'transpose', axes = [1, 0]}}."
        )
    kind = TRANSFORMS.get(data["op"])
    if kind is None:
        raise TransformError(
            f"unknown transform {data['op']!r}{_meant(data['op'], TRANSFORMS)}. "
            f"There are: {', '.join(TRANSFORMS)}."
        )
    # fields that take no part in comparison hold live objects, which no file can name
    known = {f.name: f for f in fields(kind) if f.compare}  # type: ignore[arg-type]
    given = {str(k): v for k, v in data.items() if k != "op"}
    for name in given:
        if name not in known:
            raise TransformError(
                f"transform {kind.op!r} has no field {name!r}{_meant(name, known)}. "
                f"It has: {', '.join(known) or 'none'}."
            )
    missing = [n for n, f in known.items() if f.default is MISSING and n not in given]
    if missing:
        raise TransformError(f"transform {kind.op!r} needs {', '.join(missing)}; got {data!r}.")
    if kind is Each:
        given["transforms"] = _nested(given["transforms"], depth)
    return kind(**given)


def _nested(value: Any, depth: int) -> tuple[Transform, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or depth == 0:
        raise TransformError(
            f"transform 'each' takes a list of transforms, at most {MAX_NESTING} deep."
        )
    return tuple(_read(v, depth - 1) for v in value)


def _meant(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def apply_all(transforms: Iterable[Transform], arrays: Sequence[Array]) -> tuple[Array, ...]:
    """Apply several transforms in order.

    >>> import numpy as np
    >>> apply_all([Stack(0), Reshape((-1,))], [np.zeros(2), np.ones(2)])
    (array([0., 0., 1., 1.]),)
    """
    now = tuple(arrays)
    del arrays
    for transform in transforms:
        now = transform.apply(now)
    return now


def infer_all(transforms: Iterable[Transform], specs: Sequence[Spec]) -> tuple[Spec, ...]:
    """What comes out of several transforms in order.

    Raises:
        TransformError: one of them does not fit what the one before gives.

    >>> infer_all([Stack(0), Reshape((-1,))], [Spec((2,), "float32")] * 2)
    (Spec(shape=(4,), dtype='float32'),)
    """
    now = tuple(specs)
    for transform in transforms:
        now = transform.infer(now)
    return now


def inverse_all(transforms: Iterable[Transform], specs: Sequence[Spec]) -> tuple[Transform, ...]:
    """The transforms that undo several, in the order in which they are to be applied.

    Args:
        transforms: as they were applied.
        specs: of the arrays that went into the first.

    Raises:
        TransformError: one does not fit or loses something.

    >>> inverse_all([Stack(0), Reshape((-1,))], [Spec((2,), "float32")] * 2)
    (Reshape(shape=(2, 2)), Unstack(axis=0))
    """
    undo = []
    now = tuple(specs)
    for transform in transforms:
        undo.append(transform.inverse(now))
        now = transform.infer(now)
    return tuple(reversed(undo))


def moments_all(transforms: Iterable[Transform], order: int) -> tuple[Transform, ...]:
    """What several transforms do to a moment (:meth:`Transform.for_moment`), without plain copies.

    >>> moments_all([Transpose((1, 0)), Cast("bfloat16")], 1)
    (Transpose(axes=(1, 0)),)
    """
    changed = (t.for_moment(order) for t in transforms)
    return tuple(t for t in changed if not isinstance(t, Copy))


def describe_all(transforms: Iterable[Transform]) -> str:
    """Several transforms as text; empty when there are none.

    >>> describe_all([Transpose((1, 0)), Scale(2)])
    'transpose(1,0) → scale(2.0)'
    """
    return " → ".join(t.describe() for t in transforms)
