"""Recurrent cells: Linen has a matrix for each gate, NNX one for all gates of an input.

LAYERS.md measured the orders in which NNX joins them: input, forget, cell, output for the LSTM
and reset, update, new for the GRU. Linen's ``LSTMCell`` and ``OptimizedLSTMCell`` have the same
leaves, and so has ``nnx.LSTMCell``, so a cell is joined only where the model has joined cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bridge.transforms import DropZero, Join, Split
from bridge.views import Leaf, Sides, Swaps, modules, show
from legacy import LeafPath

__all__ = ["GRU_BIAS", "gru_fuse", "lstm_fuse", "simple_cell"]

GRU_BIAS: LeafPath = ("hn", "bias")
"""The leaf of Linen's GRU that NNX has no place for."""

_P = "params"


@dataclass(frozen=True, slots=True)
class _Joined:
    """A leaf of a fused cell, and the leaves that it joins in their order."""

    name: LeafPath
    parts: tuple[LeafPath, ...]


def _of(name: str, leaf: str, *gates: str) -> _Joined:
    return _Joined((name, leaf), tuple((gate, leaf) for gate in gates))


_LSTM = (
    _of("dense_i", "kernel", "ii", "if", "ig", "io"),
    _of("dense_h", "kernel", "hi", "hf", "hg", "ho"),
    _of("dense_h", "bias", "hi", "hf", "hg", "ho"),
)
_GRU = (
    _of("dense_i", "kernel", "ir", "iz", "in"),
    _of("dense_i", "bias", "ir", "iz", "in"),
    _of("dense_h", "kernel", "hr", "hz", "hn"),
)
_SIMPLE = (
    _of("dense_i", "kernel", "i"),
    _of("dense_i", "bias", "i"),
    _of("dense_h", "kernel", "h"),
)


def _cells(
    leaves: Sequence[Leaf], wanted: Sequence[LeafPath], optional: Sequence[LeafPath] = ()
) -> dict[LeafPath, dict[LeafPath, Leaf]]:
    """Modules that hold these leaves and nothing else."""
    names = {(_P, *p) for p in wanted}
    more = {(_P, *p) for p in optional}
    return {
        path: {rel[1:]: leaf for rel, leaf in inside.items()}
        for path, inside in modules(leaves).items()
        if names <= inside.keys() <= names | more
    }


def _fused(leaves: Sequence[Leaf], kind: Sequence[_Joined]) -> dict[LeafPath, dict[LeafPath, Leaf]]:
    """Cells of NNX; how wide they are tells one kind from another."""
    gates = len(kind[0].parts)
    return {
        path: cell
        for path, cell in _cells(leaves, [j.name for j in kind]).items()
        if _wide(cell["dense_h", "kernel"].shape, gates)
    }


def _wide(shape: Sequence[int], gates: int) -> bool:
    return len(shape) > 1 and shape[-1] == gates * shape[-2]


def _alike(leaves: Sequence[Leaf]) -> bool:
    return len({(leaf.shape, leaf.dtype) for leaf in leaves}) == 1


def _join(
    path: LeafPath, cell: Mapping[LeafPath, Leaf], joined: _Joined, code: str, *, split: bool
) -> tuple[list[Leaf], Leaf | None]:
    """The gates of one joined leaf, and the view of them; None when they do not fit."""
    parts = [cell[p] for p in joined.parts]
    shape = parts[0].shape
    if not shape or not _alike(parts):
        return parts, None
    wide = (*shape[:-1], shape[-1] * len(parts))
    made = (Split(-1, (shape[-1],) * len(parts)),) if split else (Join(-1),)
    return parts, show(parts, (*path, *joined.name), wide, code, made)


def _views(
    leaves: tuple[Leaf, ...],
    cells: Mapping[LeafPath, Mapping[LeafPath, Leaf]],
    kind: Sequence[_Joined],
    code: str,
    *,
    split: bool = False,
) -> tuple[Leaf, ...]:
    swaps = Swaps(leaves)
    for path, cell in cells.items():
        found = [_join(path, cell, joined, code, split=split) for joined in kind]
        views = [view for _, view in found if view is not None]
        if len(views) == len(kind):
            swaps.swap([leaf for parts, _ in found for leaf in parts], views)
    return swaps.leaves


def lstm_fuse(sides: Sides) -> Sides:
    """Gates of an LSTM are seen as NNX joins them, where one of the two sides has joined ones."""
    names = [p for joined in _LSTM for p in joined.parts]
    ours, theirs = _cells(sides.left, names), _cells(sides.right, names)
    joined_here, joined_there = _fused(sides.left, _LSTM), _fused(sides.right, _LSTM)
    if not (ours and joined_there) and not (joined_here and theirs):
        return sides
    code = "lstm-fuse" if ours and joined_there else "lstm-split"
    return Sides(
        _views(sides.left, ours, _LSTM, code),
        _views(sides.right, theirs, _LSTM, code, split=True),
    )


def gru_fuse(sides: Sides) -> Sides:
    """Gates of a GRU are seen as NNX joins them; the bias it lacks must be zero or ignored."""
    names = [p for joined in _GRU for p in joined.parts]
    ours = _cells(sides.left, names, [GRU_BIAS])
    if not ours or not _fused(sides.right, _GRU) or _cells(sides.right, names, [GRU_BIAS]):
        return sides
    fused = _views(sides.left, ours, _GRU, "gru-fuse")
    left = Swaps(fused)
    named = {leaf.normal: leaf for leaf in reversed(fused)}
    for path, cell in ours.items():
        extra = cell.get(GRU_BIAS)
        name = (*path, "dense_i", "bias")
        parts = [cell[p] for p in _GRU[1].parts]
        if extra is None or not _alike([*parts, extra]):
            continue
        view = named.get(name)
        if view is not None:
            made = (DropZero(), Join(-1))
            wider = show([*parts, extra], name, view.shape, "gru-fuse", made)
            if wider is not None:
                left.swap([view, extra], [wider])
    return Sides(left.leaves, sides.right)


def simple_cell(sides: Sides) -> Sides:
    """``i`` and ``h`` of Linen's ``SimpleCell`` are ``dense_i`` and ``dense_h``."""
    ours = _cells(sides.left, [p for joined in _SIMPLE for p in joined.parts])
    if not ours or not _fused(sides.right, _SIMPLE):
        return sides
    left = Swaps(sides.left)
    for path, cell in ours.items():
        views = [
            show([cell[j.parts[0]]], (*path, *j.name), cell[j.parts[0]].shape, "simple-cell")
            for j in _SIMPLE
        ]
        left.swap(cell.values(), [v for v in views if v is not None])
    return Sides(left.leaves, sides.right)
