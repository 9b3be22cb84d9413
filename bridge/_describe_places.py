"""Where the arrays of an nnx state are, as Orbax walks it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from bridge.errors import TargetError
from bridge.target import SlotPath

__all__ = ["EPHEMERAL_TYPES", "Place", "places"]

EPHEMERAL_TYPES = (nnx.RngState, nnx.Cache, nnx.Intermediate, nnx.Perturbation)
"""Variable classes whose values no checkpoint owes us."""


@dataclass(frozen=True, slots=True)
class Place:
    """One leaf of a saved state, whatever it holds.

    Attributes:
        path: as :attr:`~bridge.target.Slot.path`.
        disk_path: as :attr:`~bridge.target.Slot.disk_path`.
        kind: the Variable class; None for an array that is in no Variable.
        value: the leaf; a container without leaves when ``empty``.
        empty: whether ``value`` holds no leaf.
        sequence_at: as :attr:`~bridge.target.Slot.sequence_at`.
        stream: as :attr:`~bridge.target.Slot.stream`.
    """

    path: SlotPath
    disk_path: SlotPath
    kind: type[Any] | None
    value: Any
    empty: bool
    sequence_at: tuple[int, ...] = ()
    stream: str | None = None


def places(value: Any) -> Iterator[Place]:
    """Walk a module, optimizer or state as Orbax walks its ``nnx.state``.

    Args:
        value: an nnx object or state; leaves may be of any type.

    Yields:
        Its leaves and empty containers, in the order of the saved tree.

    >>> [(p.path, p.disk_path) for p in places(nnx.State({"a": nnx.Param((1, 2))}))]
    [(('a', '0'), ('a', 'value', '0')), (('a', '1'), ('a', 'value', '1'))]
    """
    state = value if isinstance(value, nnx.State) else nnx.state(value)
    for outer, node, numbered in _flatten(state, stop=nnx.Variable):
        if not isinstance(node, nnx.Variable):
            yield Place(outer, outer, None, node, _is_empty(node), numbered)
            continue
        for inner, leaf, below in _flatten(node):
            at = (*numbered, *(len(outer) + n for n in below))
            # the first entry is the Variable's own 'value'; one further down is the user's
            path = outer + inner
            tag = node.get_metadata().get("tag") if isinstance(node, nnx.RngKey) else None
            yield Place(outer + inner[1:], path, type(node), leaf, _is_empty(leaf), at, tag)


def _flatten(
    tree: Any, stop: type[Any] | tuple[()] = ()
) -> Iterator[tuple[SlotPath, Any, tuple[int, ...]]]:
    """Paths, leaves, and which components of the path are indices of a tuple or list."""
    found, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda x: isinstance(x, stop) or _is_empty(x)
    )
    for path, leaf in found:
        numbered = tuple(n for n, key in enumerate(path) if hasattr(key, "idx"))
        yield tuple(_name(key) for key in path), leaf, numbered


def _is_empty(x: Any) -> bool:
    return not jax.tree_util.all_leaves([x]) and not jax.tree.leaves(
        x, is_leaf=lambda y: y is not x
    )


def _name(key: Any) -> str:
    # as orbax.checkpoint._src.tree.utils.str_keypath
    for attribute in ("idx", "key", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    raise TargetError(f"the state has a tree key {key!r} of a type that Orbax does not save.")
