"""What is wrong with leaves that no rule can map: layers that NNX does not have.

These would be left over anyway. Said here they are one problem for a layer, with its reason, in
place of one problem for each leaf that only says that it has no slot.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from bridge.views import Leaf, modules, parts_of
from legacy import format_path

__all__ = ["Note", "notes"]

_CLASSES = re.compile(r"(ConvLocal|MGUCell|ConvLSTMCell)(?:_\d+)?", re.ASCII)
_MGU = frozenset({"if", "in", "hf", "hn"})
_CONV_LSTM = frozenset({"ih", "hh"})
_FP8 = "_overwrite_with_gradient"
_NORM = frozenset({"scale", "bias", "mean", "var"})
_DO = (
    "Rewrite it by hand with the same leaves, which then map by their names, or take "
    "nnx.bridge.ToNNX(linen_module) as the model"
)


@dataclass(frozen=True, slots=True)
class Note:
    """A problem of a whole layer.

    Attributes:
        message: what it is.
        leaves: of the checkpoint.
    """

    message: str
    leaves: tuple[Leaf, ...]


def notes(left: Sequence[Leaf], right: Sequence[Leaf]) -> Iterator[Note]:
    """Layers among what is left that have no counterpart in NNX.

    Args:
        left: open sources.
        right: open slots.

    Yields:
        Each such layer; no leaf twice.
    """
    done: set[int] = set()
    # the innermost module says best what it is
    for path, inside in sorted(modules(left).items(), key=lambda item: -len(item[0])):
        leaves = tuple(leaf for leaf in inside.values() if id(leaf) not in done)
        message = _message(leaves, path, {rel[1] for rel in inside}, right)
        if leaves and message:
            done |= set(map(id, leaves))
            yield Note(f"{_named(leaves)}: {message}", leaves)


def _named(leaves: Sequence[Leaf]) -> str:
    first = parts_of(leaves[0].key)[0]
    shown = format_path(first) if isinstance(first, tuple) else str(first)
    return shown + (f" and {len(leaves) - 1} more" if len(leaves) > 1 else "")


def _message(
    leaves: Sequence[Leaf], path: tuple[str, ...], children: set[str], right: Sequence[Leaf]
) -> str:
    if any(leaf.collection == _FP8 for leaf in leaves):
        return f"scales of fp8 products (collection {_FP8}) have no place in NNX layers. {_DO}"
    own = [p for p in leaves[0].plain if _CLASSES.fullmatch(p)] if leaves else []
    if own and path and path[-1] in (own[-1].rpartition("_")[2], own[-1]):
        found = _CLASSES.fullmatch(own[-1])
        assert found is not None  # noqa: S101 - just looked at
        return f"Linen's {found[1]} has no class in NNX. {_DO}"
    for name, gates in (("MGUCell", _MGU), ("ConvLSTMCell", _CONV_LSTM)):
        if children == gates:
            return f"this is a Linen {name}, which has no class in NNX. {_DO}"
    if children and children <= _NORM and _wide_norm(leaves, right):
        shape = list(leaves[0].shape)
        return (
            f"a normalisation over several axes (shape {shape}), and those of NNX have one axis of "
            f"features. {_DO}"
        )
    return ""


def _wide_norm(leaves: Sequence[Leaf], right: Sequence[Leaf]) -> bool:
    """Whether the model has too few norms of the last axis for these to be a stack of them."""
    if not leaves or any(len(leaf.shape) < 2 for leaf in leaves):  # noqa: PLR2004 - two axes
        return False
    for leaf in leaves:
        like = [s for s in right if (s.name, s.shape) == (leaf.name, leaf.shape[-1:])]
        if not like or len(like) >= prod(leaf.shape[:-1]):
            return False
    return True
