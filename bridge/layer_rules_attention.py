"""Attention: the four projections by the names that people give them, and heads in one axis.

Linen's attention has kernels ``(in, heads, depth)`` and ``(heads, depth, out)``; who writes
attention with plain linear layers has ``(in, heads * depth)``, in the same order of numbers.
Which projection is which is only ever told by names: all four of a module must be there, each
under a name that this page knows, on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

from bridge.layer_rules_heads import RANK, Heads, heads_of
from bridge.target import SlotRef
from bridge.transforms import Stack
from bridge.views import Leaf, Sides, Swaps, modules, parts_of, show
from legacy import LeafPath

__all__ = ["ROLES", "attention_names", "attention_qkv", "attention_reshape", "unsure_qkv"]

ROLES: Mapping[str, tuple[str, ...]] = {
    "query": ("query", "q", "wq", "q_proj", "proj_q", "query_proj", "to_q", "q_linear",
              "query_dense", "q_dense", "linear_q"),
    "key": ("key", "k", "wk", "k_proj", "proj_k", "key_proj", "to_k", "k_linear",
            "key_dense", "k_dense", "linear_k"),
    "value": ("value", "v", "wv", "v_proj", "proj_v", "value_proj", "to_v", "v_linear",
              "value_dense", "v_dense", "linear_v"),
    "out": ("out", "o", "wo", "o_proj", "out_proj", "proj_out", "proj", "to_out", "o_linear",
            "c_proj", "out_dense", "output", "attn_out", "dense_out", "linear_o", "out_linear",
            "output_proj", "proj_o"),
}  # fmt: skip
"""What people call the projections of attention."""

_ROLE_OF = {name: role for role, names in ROLES.items() for name in names}
_QKV = ("qkv", "to_qkv", "qkv_proj", "in_qkv", "query_key_value", "wqkv", "proj_qkv")
_QKV_ROLES = ("query", "key", "value")
_MATRIX = 2
_P = "params"


def _children(inside: Mapping[LeafPath, Leaf]) -> dict[str, dict[str, Leaf]]:
    """The layers directly in a module, by their names."""
    found: dict[str, dict[str, Leaf]] = {}
    for rel, leaf in inside.items():
        if len(rel) == 3 and rel[0] == _P:  # noqa: PLR2004 - collection, layer, leaf
            found.setdefault(rel[1], {})[rel[2]] = leaf
    return found


def _attentions(leaves: Sequence[Leaf]) -> dict[LeafPath, dict[str, tuple[str, dict[str, Leaf]]]]:
    """Modules with all four projections and no other layer: name and leaves by role.

    In a block that holds its MLP, too, ``out`` may be the output of either.
    """
    found = {}
    for path, inside in modules(leaves).items():
        roles: dict[str, tuple[str, dict[str, Leaf]]] = {}
        layers = {n: layer for n, layer in _children(inside).items() if "kernel" in layer}
        for name, layer in layers.items():
            roles[_ROLE_OF.get(name, name)] = (name, layer)
        if roles.keys() == ROLES.keys() and len(layers) == len(ROLES):
            found[path] = roles
    return found


def attention_names(sides: Sides) -> Sides:
    """The four projections are seen under Linen's names."""
    ours, theirs = _attentions(sides.left), _attentions(sides.right)
    if not ours or not theirs:
        return sides
    return Sides(_renamed(sides.left, ours), _renamed(sides.right, theirs))


def _renamed(
    leaves: tuple[Leaf, ...], found: Mapping[LeafPath, Mapping[str, tuple[str, dict[str, Leaf]]]]
) -> tuple[Leaf, ...]:
    swaps = Swaps(leaves)
    for path, roles in found.items():
        for role, (name, layer) in roles.items():
            for leaf in layer.values() if name != role else ():
                view = show([leaf], (*path, role, leaf.name), leaf.shape, "attention-names")
                swaps.swap([leaf], [view] if view else [leaf])
    return swaps.leaves


def attention_reshape(sides: Sides) -> Sides:
    """Heads are seen in one axis on the side that has axes for them, if the other has none."""
    ours, theirs = _attentions(sides.left), _attentions(sides.right)
    if not ours or not theirs:
        return sides
    left = [view for path, roles in ours.items() for view in _flattened(path, roles)]
    right = [view for path, roles in theirs.items() for view in _flattened(path, roles)]
    if left and not right:
        return Sides(_shown(sides.left, left), sides.right)
    if right and not left:
        return Sides(sides.left, _shown(sides.right, right))
    return sides


def _shown(leaves: tuple[Leaf, ...], views: Sequence[tuple[Leaf, Leaf]]) -> tuple[Leaf, ...]:
    swaps = Swaps(leaves)
    swaps.swap([leaf for leaf, _ in views], [view for _, view in views])
    return swaps.leaves


def _flattened(
    path: LeafPath, roles: Mapping[str, tuple[str, dict[str, Leaf]]]
) -> list[tuple[Leaf, Leaf]]:
    """Each leaf of an attention that has heads, with its view; none when that is not certain.

    A scanned attention has one axis more, and only one axis may be it.
    """
    leaves = [
        (role, name, leaf) for role, (name, layer) in roles.items() for leaf in layer.values()
    ]
    rank = len(roles["query"][1]["kernel"].shape)
    ways: dict[tuple[int, ...], list[Heads]] = {}
    for axis in (None,) if rank == RANK else (*range(rank), *range(-1, -rank, -1)):
        read = [heads_of(leaf.shape, leaf.name, role, axis) for role, _, leaf in leaves]
        sure = [one for one in read if one is not None]
        if len(sure) == len(read) and _agree(list(zip(leaves, sure, strict=True))):
            ways.setdefault(tuple(one.axis for one in sure), sure)
    if len(ways) != 1:
        return []
    (way,) = ways.values()
    found = []
    for (_, name, leaf), one in zip(leaves, way, strict=True):
        if one.heads:
            made = (
                one.undone(leaf.shape) if isinstance(parts_of(leaf.key)[0], SlotRef) else one.made
            )
            view = show([leaf], (*path, name, leaf.name), one.shape, "attention-reshape", made)
            if view is None:
                return []
            found.append((leaf, view))
    return found


def _agree(read: Sequence[tuple[tuple[str, str, Leaf], Heads]]) -> bool:
    """Whether all projections have heads that fit together: keys and values may have fewer."""
    heads: dict[str, set[tuple[int, ...]]] = {role: set() for role in ROLES}
    for (role, _, _), one in read:
        heads[role] |= {one.heads} - {()}
    if any(len(found) != 1 for found in heads.values()) or len({o.stack for _, o in read}) != 1:
        return False
    (query,), (key,), (value,), (out,) = (heads[role] for role in ("query", "key", "value", "out"))
    return query == out and key == value and query[1] == key[1] and query[0] % key[0] == 0


def attention_qkv(sides: Sides) -> Sides:
    """Three projections are seen as the one that a name and an axis of three say they are.

    A kernel ``qkv (in, 3, heads, depth)`` names its order and has an axis for it. In
    ``(in, 3 * heads * depth)`` heads may be outside or inside, which no shape tells.
    """
    slots = {
        path: layers
        for path, inside in modules(sides.right).items()
        for layers in [_children(inside)]
        if sum(name in _QKV for name in layers) == 1
    }
    left = Swaps(sides.left)
    axes = {
        axis
        for layers in slots.values()
        for name, layer in layers.items()
        if name in _QKV and "kernel" in layer
        for axis in _threes(layer["kernel"].shape)
    }
    names = {n for layers in slots.values() for n in layers if n in _QKV}
    if len(axes) != 1 or len(names) != 1:
        return sides
    (axis,), (name,) = axes, names
    for path, inside in modules(sides.left).items():
        layers = _children(inside)
        parts = [layers.get(role, {}) for role in _QKV_ROLES]
        if not all(parts) or len({frozenset(p) for p in parts}) > 1:
            continue
        for leaf_name in parts[0]:
            three = [p[leaf_name] for p in parts]
            at = axis if leaf_name == "kernel" else 0
            shape = three[0].shape
            if len({leaf.shape for leaf in three}) > 1 or at > len(shape):
                continue
            wide = (*shape[:at], len(three), *shape[at:])
            view = show(three, (*path, name, leaf_name), wide, "attention-qkv", (Stack(at),))
            if view is not None:
                left.swap(three, [view])
    return Sides(left.leaves, sides.right)


def unsure_qkv(sides: Sides) -> Iterator[str]:
    """Kernels of the model that hold three projections in an order that no shape tells.

    Args:
        sides: what is left.

    Yields:
        A sentence for each.
    """
    ours = [_children(inside) for inside in modules(sides.left).values()]
    sizes = {
        sum(prod(layers[role]["kernel"].shape) for role in _QKV_ROLES)
        for layers in ours
        if all("kernel" in layers.get(role, {}) for role in _QKV_ROLES)
    }
    for leaf in sides.right:
        named = leaf.name == "kernel" and leaf.module and leaf.module[-1] in _QKV
        if named and prod(leaf.shape) in sizes:
            yield (
                f"{'/'.join(leaf.path)} {list(leaf.shape)} holds queries, keys and values: one "
                "after the other, or in turns by head? Say so by a rule that joins or stacks the "
                "three, in the order in which the model takes them apart"
            )


def _threes(shape: Sequence[int]) -> list[int]:
    """Axes before the heads that may count query, key and value."""
    found = [n for n, size in enumerate(shape[:-_MATRIX]) if size == len(_QKV_ROLES)]
    return found if len(shape) > RANK else []
