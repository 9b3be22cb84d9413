"""Rung d: plain Orbax restores the output into an abstract target.

The only question here is whether somebody who has nothing of ours gets the right bits. So the
restore is the one of the Orbax guide, into ``jax.ShapeDtypeStruct`` leaves, one item at a time.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np
import orbax.checkpoint as ocp

from bridge._bits import host_bytes
from bridge._verdict import Difference
from bridge.apply import JSON_TYPE, slot_dtype
from bridge.target import Empty, Slot, SlotPath, SlotRef, Target
from legacy import Checkpoint

__all__ = ["restored_differences"]

Tree: TypeAlias = dict[str, Any]

_EMPTY: Mapping[str, Any] = {"None": None, "Dict": {}, "List": [], "Tuple": ()}


def restored_differences(
    output: Checkpoint,
    places: Mapping[SlotRef, tuple[str, SlotPath]],
    target: Target,
    digests: Mapping[SlotRef, str],
) -> Iterator[Difference]:
    """Restore every tree item and compare its bits.

    Args:
        output: the written step.
        places: item and path on disk of each slot.
        target: the slots.
        digests: SHA-256 of the value that each slot should hold.

    Yields:
        Every difference.
    """
    slots = {s.ref: s for s in target.slots if s.variable_type != JSON_TYPE}
    for item in output.tree_items:
        inside = {ref: places[ref][1] for ref in slots if places[ref][0] == item}
        tree: Tree = {}
        sequences: set[SlotPath] = set()
        for ref, path in inside.items():
            _put(tree, path, _abstract(slots[ref]))
            sequences |= _sequences(path, slots[ref])
        for empty in target.empties:
            if empty.item != item and empty.item in output.items:
                continue
            path = empty.disk_path if empty.item == item else (empty.item, *empty.disk_path)
            _put(tree, path, _EMPTY.get(empty.value_type))
            sequences |= _sequences(path, empty)
        tree = _with_lists(tree, (), sequences)
        try:
            restored = _restore(output, item, tree)
        except Exception as error:  # noqa: BLE001 - whatever Orbax raises is the finding
            said = f"{type(error).__name__}: {error}"
            yield Difference("d", f"item {item}: Orbax cannot restore it: {said}")
            continue
        for ref, path in inside.items():
            value = _host(_get(restored, path))
            yield from _compare(slots[ref], value, digests.get(ref))


def _restore(output: Checkpoint, item: str, tree: Tree) -> Tree:
    # Orbax warns about shardings that an abstract target on one device does not need
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            args = ocp.args.Composite(**{item: ocp.args.StandardRestore(tree)})
            restored: Tree = reader.restore(output.path, args=args)[item]
            return restored
    finally:
        logger.setLevel(level)


def _abstract(slot: Slot) -> Any:
    dtype = slot_dtype(slot)
    if dtype.itemsize == 8 and dtype.kind in "iuf" or dtype.itemsize == 16:  # noqa: RUF021, PLR2004
        # jax without x64 would make 32 bits of it; the pages of this template are never touched
        return np.empty(slot.shape, dtype)
    device = jax.devices("cpu")[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    if slot.key_impl is None:
        return jax.ShapeDtypeStruct(slot.shape, dtype, sharding=sharding)
    key = jax.eval_shape(lambda: jax.random.key(0, impl=slot.key_impl))
    return jax.ShapeDtypeStruct(slot.shape[:-1], key.dtype, sharding=sharding)


def _host(value: Any) -> np.ndarray[Any, Any]:
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    return np.asarray(value)


def _compare(slot: Slot, value: np.ndarray[Any, Any], digest: str | None) -> Iterator[Difference]:
    if value.shape != slot.shape or value.dtype != slot_dtype(slot):
        got, want = f"{value.dtype.name} {value.shape}", f"{slot.dtype} {slot.shape}"
        message = f"slot {slot.ref}: the plan says {want}, Orbax restores {got}."
        yield Difference("d", message, slot.ref)
    elif digest is not None and hashlib.sha256(host_bytes(value)).hexdigest() != digest:
        message = f"slot {slot.ref}: what Orbax restores has other bits than the source gives."
        yield Difference("d", message, slot.ref)


def _sequences(path: SlotPath, place: Slot | Empty) -> set[SlotPath]:
    """The nodes above a place that are tuples or lists in the target."""
    shift = len(path) - len(place.disk_path)
    return {path[: n + shift] for n in place.sequence_at}


def _with_lists(node: Any, path: SlotPath, sequences: set[SlotPath]) -> Any:
    if not isinstance(node, dict):
        return node
    below = {key: _with_lists(value, (*path, key), sequences) for key, value in node.items()}
    return [below[str(n)] for n in range(len(below))] if path in sequences else below


def _put(tree: Tree, path: SlotPath, value: Any) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = value


def _get(tree: Tree, path: SlotPath) -> Any:
    node: Any = tree
    for part in path:
        node = node[int(part)] if isinstance(node, list | tuple) else node[part]
    return node
