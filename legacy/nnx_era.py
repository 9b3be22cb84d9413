"""Tells an NNX state from a Linen tree, by the names that its leaves end in.

A ``nnx.State`` goes to Orbax as a tree whose leaves are Variables, and jax flattens a Variable into
one child. What that child is called is all that is left of it on disk:

========================  ================  =====================================================
flax                      last component    source
========================  ================  =====================================================
0.8.0, 0.8.1              ``value``         ``flax/experimental/nnx/nnx/variables.py``
0.8.2 - 0.8.5             ``raw_value``     the same, then ``flax/nnx/nnx/variables.py``
0.9.0 - 0.12              ``value``         ``flax/nnx/variablelib.py``
any, as a pure dict       none              ``State.to_pure_dict``, ``nnx.to_pure_dict``
========================  ================  =====================================================

(read in the releases, and seen in checkpoints of 0.8.1, 0.8.4, 0.8.5, 0.9.0, 0.10.2 and later).
Inside of ``opt_state`` of 0.8 the counts are plain arrays without a suffix. Random streams are
``<module>/rngs/<stream>/key`` and ``.../count``.

Linen trees can end in ``value``, too: ``nn.Partitioned`` boxes do, and so does a parameter of that
name. So the suffix alone is no proof: all leaves must have it, none may lie in a module that Linen
named, and only what Linen never boxes (means and variances, counts, keys, the step) decides.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from legacy.leaves import format_path

if TYPE_CHECKING:
    from collections.abc import Iterable

    from legacy.leaves import LeafPath, LeafTable

__all__ = ["nnx_era"]

_VALUE: Final = "value"
_RAW_VALUE: Final = "raw_value"
_OPT_STATE: Final = "opt_state"
_RNGS: Final = "rngs"
_STREAM: Final = frozenset({"key", "count"})
_HOLLOW: Final = ("none", "empty")
_BOXES: Final = "boxes"
_ERAS: Final = {
    _RAW_VALUE: "an NNX state of flax 0.8.2-0.8.5",
    _VALUE: "an NNX state of flax 0.8.0-0.8.1 or 0.9 and newer",
    _BOXES: (
        "an NNX state of flax 0.8.0-0.8.1 or 0.9 and newer, or Linen parameters that are all in "
        "boxes (which, is not on disk)"
    ),
    _RNGS: "the pure dict of an NNX state",
}
_NEVER_BOXED: Final = frozenset({"mean", "var", "count", "key", "step"})
_COLLECTIONS: Final = frozenset({"params", "batch_stats", "cache", "intermediates"})
_COMPACT_NAME: Final = re.compile(r"[A-Z][A-Za-z0-9]*_[0-9]+")


def nnx_era(table: LeafTable) -> tuple[str, str] | None:
    """Say that a tree, or one of its top-level entries, is an NNX state, where that can be told.

    Args:
        table: the leaves of a tree.

    Returns:
        What it is, with the releases, and the fact that says so; None for everything else, all
        trees of Linen included.

    >>> from legacy.leaves import Leaf, LeafTable
    >>> nnx_era(LeafTable([Leaf(("linear", "kernel", "raw_value"), "array")]))[0]
    'an NNX state of flax 0.8.2-0.8.5'
    >>> nnx_era(LeafTable([Leaf(("params", "Dense_0", "kernel", "value"), "array")]))
    """
    paths = [path for path, leaf in table.items() if leaf.kind not in _HOLLOW]
    parts: dict[LeafPath, list[LeafPath]] = {(): paths}
    tops = {path[0] for path in paths if path}
    if not _COLLECTIONS & tops:  # else it is a tree of Linen, or a TrainState
        for path in filter(None, tuple(paths)):
            parts.setdefault(path[:1], []).append(path[1:])
    for where, inside in parts.items():
        mark = _mark(inside)
        if mark is not None and not (where and mark == _BOXES):
            return _ERAS[mark], _fact(mark, where, inside)
    return None


def _mark(paths: list[LeafPath]) -> str | None:
    """What tells an NNX state; None where nothing does, or where it is of Linen."""
    if _has_suffix(paths, _RAW_VALUE):
        return _RAW_VALUE
    if _has_suffix(paths, _VALUE):
        return _value_or_boxes(paths)
    if any(len(p) > 2 and p[-3] == _RNGS and p[-1] in _STREAM for p in paths):  # noqa: PLR2004
        return _RNGS
    return None


def _has_suffix(paths: list[LeafPath], suffix: str) -> bool:
    """Whether all leaves have it, but for those of an optimizer, which 0.8 did not wrap."""
    asked = [path for path in paths if _OPT_STATE not in path]
    return bool(asked) and all(len(path) > 1 and path[-1] == suffix for path in asked)


def _value_or_boxes(paths: list[LeafPath]) -> str | None:
    if any(_COMPACT_NAME.fullmatch(part) for path in paths for part in path):
        return None
    if any(path[-2] in _NEVER_BOXED for path in paths if path[-1] == _VALUE):
        return _VALUE
    return None if any(path[0] in _COLLECTIONS for path in paths) else _BOXES


def _fact(mark: str, where: LeafPath, paths: Iterable[LeafPath]) -> str:
    place = f" below {format_path(where)}" if where else ""
    if mark == _RNGS:
        example = next(p for p in paths if len(p) > 2 and p[-3] == _RNGS)  # noqa: PLR2004
        return f"random streams as NNX keeps them{place}, such as {format_path(where + example)}"
    suffix = _RAW_VALUE if mark == _RAW_VALUE else _VALUE
    example = next(p for p in paths if p[-1] == suffix)
    return f"all leaves{place} end in {suffix}, such as {format_path(where + example)}"
