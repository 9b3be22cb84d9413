"""Rung d: plain Orbax restores the output into an abstract target.

The only question here is whether somebody who has nothing of ours gets the right bits. So the
restore is the one of the Orbax guide, into ``jax.ShapeDtypeStruct`` leaves, one item at a time. Of
an item that is large, some arrays at a time, with Orbax's placeholders for the others.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
import orbax.checkpoint as ocp

from bridge._verdict import Difference
from bridge._verify_values import misfit
from bridge.apply import JSON_TYPE, slot_dtype
from bridge.target import Empty, Slot, SlotPath, SlotRef, Target
from legacy import Checkpoint

__all__ = ["Restorer"]

Tree: TypeAlias = dict[str, Any]

_EMPTY: Mapping[str, Any] = {"None": None, "Dict": {}, "List": [], "Tuple": ()}


class Restorer:
    """Restores slots of an output, some at a time, as anybody would.

    Args:
        output: the written step.
        places: item and path on disk of each slot.
        target: the slots.
    """

    def __init__(
        self, output: Checkpoint, places: Mapping[SlotRef, tuple[str, SlotPath]], target: Target
    ) -> None:
        self._output = output
        self._slots = {s.ref: s for s in target.slots if s.variable_type != JSON_TYPE}
        self._inside: dict[str, dict[SlotRef, SlotPath]] = {n: {} for n in output.tree_items}
        for ref in self._slots:
            item, path = places[ref]
            if item in self._inside:
                self._inside[item][ref] = path
        self._empties = target.empties
        self._seen: set[SlotRef] = set()
        self._failed: set[str] = set()

    def __call__(
        self, refs: Sequence[SlotRef]
    ) -> tuple[dict[SlotRef, np.ndarray[Any, Any]], list[Difference]]:
        """Restore slots.

        Args:
            refs: which; those that are in no tree item are left out.

        Returns:
            Their values, and the items that Orbax cannot restore, each named once.
        """
        found: dict[SlotRef, np.ndarray[Any, Any]] = {}
        problems: list[Difference] = []
        for item, inside in self._inside.items():
            wanted = [ref for ref in refs if ref in inside]
            if wanted and item not in self._failed:
                problems += self._restore(item, wanted, found)
        return found, problems

    def rest(self) -> list[Difference]:
        """Restore what was not asked for: items without slots, and slots that nothing fills."""
        problems: list[Difference] = []
        for item, inside in self._inside.items():
            left = [ref for ref in inside if ref not in self._seen]
            if left or not inside:
                found: dict[SlotRef, np.ndarray[Any, Any]] = {}
                problems += self._restore(item, left, found)
                wrong = [misfit(self._slots[ref], value) for ref, value in found.items()]
                problems += [difference for difference in wrong if difference is not None]
        return problems

    def _restore(
        self,
        item: str,
        wanted: Collection[SlotRef],
        found: dict[SlotRef, np.ndarray[Any, Any]],
    ) -> list[Difference]:
        self._seen.update(wanted)
        said = ""
        try:
            restored = _restore(self._output, item, self._tree(item, set(wanted)))
        except Exception as error:  # noqa: BLE001 - whatever Orbax raises is the finding
            said = f"{type(error).__name__}: {error}"
        if said:
            self._failed.add(item)
            _forget_what_was_running()
            return [Difference("d", f"item {item}: Orbax cannot restore it: {said}")]
        found |= {ref: _host(_get(restored, self._inside[item][ref])) for ref in wanted}
        return []

    def _tree(self, item: str, wanted: set[SlotRef]) -> Tree:
        tree: Tree = {}
        sequences: set[SlotPath] = set()
        for ref, path in self._inside[item].items():
            slot = self._slots[ref]
            _put(tree, path, _abstract(slot) if ref in wanted else ocp.PLACEHOLDER)
            sequences |= _sequences(path, slot)
        for empty in self._empties:
            if empty.item != item and empty.item in self._output.items:
                continue
            path = empty.disk_path if empty.item == item else (empty.item, *empty.disk_path)
            _put(tree, path, _EMPTY.get(empty.value_type))
            sequences |= _sequences(path, empty)
        found: Tree = _with_lists(tree, (), sequences)
        return found


def _forget_what_was_running() -> None:
    """Collect the other reads of a restore that failed.

    Orbax leaves their coroutines to the collector, and each then complains on standard error, at
    any time, of being interrupted.
    """
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        gc.collect()
    finally:
        sys.unraisablehook = hook


def _restore(output: Checkpoint, item: str, tree: Tree) -> Tree:
    # Orbax warns about shardings that an abstract target on one device does not need
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    is_part = any(leaf is ocp.PLACEHOLDER for leaf in jax.tree.leaves(tree))
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            # what StandardRestore does with its tree, which takes no placeholders
            how = (
                ocp.args.PyTreeRestore(tree, ocp.checkpoint_utils.construct_restore_args(tree))
                if is_part
                else ocp.args.StandardRestore(tree)
            )
            restored: Tree = reader.restore(output.path, ocp.args.Composite(**{item: how}))[item]
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
