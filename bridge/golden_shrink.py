"""A small checkpoint of the structure of a large one: real values, small shapes.

The small model says the sizes. A leaf that goes into one slot as it is gets the slot's shape; for
all others each size becomes what it became everywhere else. Whether that is right needs no
argument: the small checkpoint must have the same plan as the large one, or no golden is made. It
is a msgpack file whatever the source was, so it guards where leaves go, not how a format is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import gt
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

import legacy
from bridge._plan import Plan
from bridge.golden import GoldenError
from bridge.target import SlotRef
from legacy import Checkpoint, Leaf, LeafPath, format_path

__all__ = ["shrunken"]

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
"""The extension types of flax.serialization."""


def shrunken(checkpoint: Checkpoint, plan: Plan, model: Any, tx: Any, folder: Path) -> Checkpoint:
    """Write a smaller checkpoint.

    Args:
        checkpoint: the large one.
        plan: its plan.
        model: the small model.
        tx: its optimizer.
        folder: where to write it.

    Raises:
        GoldenError: the sizes of a leaf cannot be told, or a value has no form in msgpack.
    """
    from bridge._describe import describe  # noqa: PLC0415 - loads jax

    small = {s.ref: s.shape for s in describe(model, tx).slots}
    sizes = _Sizes(checkpoint, plan, small)
    tree: dict[str, Any] = {}
    for path, leaf in checkpoint.leaves.items():
        at = tree
        for part in path[:-1]:
            at = at.setdefault(part, {})
        at[path[-1]] = _cut(leaf, sizes.of(path, leaf))
    folder.mkdir()
    step = "" if checkpoint.step is None else f"_{checkpoint.step}"
    file = folder / f"checkpoint{step}"
    file.write_bytes(_packed(tree))
    written = legacy.open(file)
    for path, leaf in checkpoint.leaves.items():
        found = written.leaves.get(path)
        if found is None or (found.kind, found.dtype) != (leaf.kind, leaf.dtype):
            now = "nothing" if found is None else f"{found.kind} {found.dtype}"
            raise GoldenError(
                f"leaf {format_path(path)} is {leaf.kind} {leaf.dtype or ''} and would become "
                f"{now} in a msgpack file, so the source cannot be shrunken. Leave --small-model "
                "away: then the golden keeps digests only."
            )
    return written


class _Sizes:
    """What each size of the large model is in the small one."""

    def __init__(
        self, checkpoint: Checkpoint, plan: Plan, small: Mapping[SlotRef, tuple[int, ...]]
    ) -> None:
        self._direct: dict[LeafPath, tuple[int, ...]] = {}
        self._became: dict[int, set[int]] = {}
        large = {s.ref: s.shape for s in plan.target.slots}
        for step in plan.steps:
            refs = [r for r in step.slots if r in small]
            for ref in refs:
                self._learn(large[ref], small[ref])
            if len(step.sources) == len(refs) == 1 and not step.transforms:
                self._direct[step.sources[0]] = small[refs[0]]
        for path, shape in self._direct.items():
            self._learn(checkpoint.leaves[path].shape, shape)

    def _learn(self, large: tuple[int, ...], small: tuple[int, ...]) -> None:
        if len(large) == len(small):
            for a, b in zip(large, small, strict=True):
                self._became.setdefault(a, set()).add(b)

    def of(self, path: LeafPath, leaf: Leaf) -> tuple[int, ...]:
        """The small shape of a leaf."""
        found = self._direct.get(path) or tuple(self._size(path, n) for n in leaf.shape)
        if len(found) != len(leaf.shape) or any(map(gt, found, leaf.shape)):
            raise GoldenError(
                f"leaf {format_path(path)} has shape {leaf.shape}, and {found} by the small model, "
                "which is no part of it. Give a small model that is smaller in every size."
            )
        return found

    def _size(self, path: LeafPath, n: int) -> int:
        became = self._became.get(n, {n})
        if len(became) > 1:
            told = " and ".join(str(b) for b in sorted(became))
            raise GoldenError(
                f"leaf {format_path(path)}: its size {n} is {told} in the small model, depending "
                "on the layer. Choose small sizes that differ where the large ones do."
            )
        return next(iter(became))


def _cut(leaf: Leaf, shape: tuple[int, ...]) -> Any:
    if leaf.kind == "none":
        return None
    if leaf.kind == "empty":
        return {}
    if leaf.kind == "key":
        raise GoldenError(
            f"leaf {format_path(leaf.path)} is a typed PRNG key, which msgpack files cannot hold, "
            "so the source cannot be shrunken. Leave --small-model away."
        )
    if leaf.kind != "array":
        return leaf.read()
    return np.array(leaf.read(tuple(slice(0, n) for n in shape) if shape else None))


def _packed(tree: Any) -> bytes:
    """As ``flax.serialization.msgpack_serialize``, which needs jax."""
    packed: bytes = msgpack.packb(tree, default=_extension, strict_types=True)
    return packed


def _extension(value: Any) -> msgpack.ExtType:
    if isinstance(value, np.ndarray):
        return msgpack.ExtType(_ARRAY, _array(value))
    if isinstance(value, np.generic):
        return msgpack.ExtType(_SCALAR, _array(np.asarray(value)))
    if isinstance(value, complex):
        return msgpack.ExtType(_COMPLEX, msgpack.packb((value.real, value.imag)))
    raise GoldenError(f"a {type(value).__name__} has no form in a msgpack file.")


def _array(value: np.ndarray[Any, Any]) -> bytes:
    packed: bytes = msgpack.packb((value.shape, value.dtype.name, value.tobytes()))
    return packed
