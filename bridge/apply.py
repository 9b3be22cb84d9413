"""Carry out the steps of a plan on arrays in memory.

Both writers and the verifier compute values here and nowhere else, so that what is written and
what is checked are one thing. Nothing is cast or reshaped on the way: a result that does not have
exactly the shape and dtype of its slot is an error.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from bridge._per_plan import slots_of
from bridge._plan import Initialised, Plan, Step
from bridge.errors import BridgeError, TransformError
from bridge.target import Slot, SlotRef
from bridge.transforms_base import Spec
from legacy import Leaf, LeafTable, format_path

__all__ = ["JSON_TYPE", "initial_value", "slot_dtype", "step_values", "values"]

JSON_TYPE = "Json"
"""``Slot.variable_type`` of values that go to a JSON item, as they are."""

_RNG = "rng:"
_COUNT = "RngCount"


def slot_dtype(slot: Slot) -> np.dtype[Any]:
    """The numpy dtype of a slot, extension types included.

    Args:
        slot: any slot of arrays.

    Returns:
        The dtype that ``slot.dtype`` names.

    Raises:
        BridgeError: there is no dtype of that name.

    >>> slot_dtype(Slot("model", ("w",), ("w", "value"), "Param", "params", (), "bfloat16"))
    dtype(bfloat16)
    """
    try:
        return np.dtype(getattr(ml_dtypes, slot.dtype, slot.dtype))
    except TypeError as error:
        raise BridgeError(
            f"slot {slot.ref} has the dtype {slot.dtype!r}, which numpy and ml_dtypes do not "
            "know. Correct the target spec."
        ) from error


def step_values(
    step: Step, leaves: LeafTable, slots: Mapping[SlotRef, Slot]
) -> tuple[np.ndarray[Any, Any], ...]:
    """Read the sources of one step and compute the values of its slots.

    Args:
        step: one step of a plan.
        leaves: the leaves of the checkpoint (``Checkpoint.leaves``).
        slots: the slots of the plan's target by name.

    Returns:
        One value for each slot, in order; arrays may be read-only views of the source file. A
        slot of a JSON item gets the Python value itself.

    Raises:
        BridgeError: a source or slot is not there, the transforms give another number of values
            than there are slots, or a value has another shape or dtype than its slot.
        LegacyError: the source cannot be read.
    """
    found = [_leaf(path, leaves) for path in step.sources]
    wanted = [_slot(ref, slots) for ref in step.slots]
    if any(slot.variable_type == JSON_TYPE for slot in wanted):
        return _plain(step, found, wanted)
    room = _room(step, found)
    arrays = tuple(
        np.asarray(leaf.read(out=memory)) for leaf, memory in zip(found, room, strict=True)
    )
    del room
    if not step.transforms and len(arrays) == len(wanted):
        arrays = tuple(
            _exact(value, leaf, slot)
            for value, leaf, slot in zip(arrays, found, wanted, strict=True)
        )
    for transform in step.transforms:
        arrays = tuple(transform.apply(arrays))
    if len(arrays) != len(wanted):
        raise BridgeError(
            f"{_sources(step)} gives {len(arrays)} arrays for {len(wanted)} slots "
            f"({', '.join(str(slot.ref) for slot in wanted)}). Make the plan again."
        )
    for value, slot in zip(arrays, wanted, strict=True):
        _check(value, slot, _sources(step))
    return arrays


def initial_value(init: Initialised, slot: Slot) -> np.ndarray[Any, Any]:
    """The value of a slot that no source feeds.

    Args:
        init: says how (see :class:`bridge.Plan`); ``rng:<seed>`` gives key data that differ from
            slot to slot, because they are digests of the seed, the item and the path.
        slot: the slot that it names.

    Returns:
        A new array of the slot's shape and dtype.

    Raises:
        BridgeError: ``init.how`` is not understood, or its value does not fit the slot.

    >>> slot = Slot("model", ("count",), ("count", "value"), "RngCount", "rngs", (), "uint32")
    >>> initial_value(Initialised(slot.ref, "rng", "rng:3"), slot)
    array(0, dtype=uint32)
    """
    dtype = slot_dtype(slot)
    if init.how == "constant":
        return _constant(init, slot, dtype)
    if init.how in ("zeros", "ones"):
        return np.full(slot.shape, init.how == "ones", dtype)
    if init.how.startswith(_RNG):
        return _stream(init, slot, dtype)
    if ":" in init.how:
        return _called(init, slot, dtype)
    try:
        number = json.loads(init.how)
    except ValueError:
        number = None
    if isinstance(number, (int, float)):
        return _filled(number, init, slot, dtype)
    raise BridgeError(
        f"slot {slot.ref}: {init.rule} says to initialise it with {init.how!r}; expected zeros, "
        "ones, a number, rng:<seed> or package.module:function."
    )


def values(plan: Plan, leaves: LeafTable) -> Iterator[tuple[Slot, Any]]:
    """All slots of a plan with their values, one step at a time.

    Args:
        plan: a plan without problems.
        leaves: the leaves of the checkpoint.

    Yields:
        Each slot with its value; a caller that drops the value releases it before the next.

    Raises:
        BridgeError: see :func:`step_values`.
    """
    slots = slots_of(plan)
    for step in plan.steps:
        results = step_values(step, leaves, slots)
        yield from zip((slots[ref] for ref in step.slots), results, strict=True)
        del results
    for init in plan.initialised:
        slot = _slot(init.slot, slots)
        yield slot, initial_value(init, slot)


def _room(step: Step, found: list[Leaf]) -> Sequence[np.ndarray[Any, Any] | None]:
    """Memory for the sources, where the transform can spare itself a copy of them."""
    alone: list[None] = [None] * len(found)
    if not step.transforms or any(leaf.kind != "array" or not leaf.nbytes for leaf in found):
        return alone
    try:
        specs = [Spec(leaf.shape, "" if leaf.dtype is None else leaf.dtype.name) for leaf in found]
        return step.transforms[0].room(specs) or alone
    except TransformError:
        return alone  # applying it says what does not fit


def _leaf(path: tuple[str, ...], leaves: LeafTable) -> Leaf:
    if path not in leaves:
        raise BridgeError(
            f"the plan takes {format_path(path)} from the source, which has no such leaf. "
            "Make the plan again for this checkpoint."
        )
    return leaves[path]


def _slot(ref: SlotRef, slots: Mapping[SlotRef, Slot]) -> Slot:
    if ref not in slots:
        raise BridgeError(f"the plan fills slot {ref}, which its target does not have.")
    return slots[ref]


def _sources(step: Step) -> str:
    return " + ".join(format_path(path) for path in step.sources)


def _plain(step: Step, found: list[Leaf], wanted: list[Slot]) -> tuple[Any, ...]:
    if step.transforms or len(found) != len(wanted):
        raise BridgeError(
            f"{_sources(step)} goes to a JSON item, where only plain copies are possible."
        )
    return tuple(leaf.read() for leaf in found)


def _exact(value: np.ndarray[Any, Any], leaf: Leaf, slot: Slot) -> np.ndarray[Any, Any]:
    """Give a Python number, which has no dtype, that of its slot when its value stays the same."""
    dtype = slot_dtype(slot)
    if leaf.kind != "number" or (value.dtype.kind == "c") != (dtype.kind == "c"):
        return value
    try:
        with np.errstate(all="ignore"):
            cast = value.astype(dtype)
            same = np.array_equal(cast.astype(value.dtype), value, equal_nan=dtype.kind in "fc")
    except OverflowError:
        return value
    return cast if same else value


def _check(value: Any, slot: Slot, source: str) -> None:
    if value.shape != slot.shape or value.dtype != slot_dtype(slot):
        raise BridgeError(
            f"{source} gives shape {value.shape} dtype {value.dtype}; slot {slot.ref} wants shape "
            f"{slot.shape} dtype {slot.dtype}. Name a transform (or `cast`) in a rule."
        )


def _constant(init: Initialised, slot: Slot, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """The value that the model's code gave the slot when the target was described."""
    if slot.constant is None:
        raise BridgeError(
            f"slot {slot.ref}: {init.rule} says to leave it as the model makes it, and the target "
            "does not hold its value. Make the plan again from the model."
        )
    try:
        data = zlib.decompress(base64.b64decode(slot.constant, validate=True))
        return np.frombuffer(data, dtype).reshape(slot.shape).copy()
    except (ValueError, zlib.error) as error:
        raise BridgeError(f"slot {slot.ref}: its stored constant is damaged: {error}") from error


def _stream(init: Initialised, slot: Slot, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    if slot.variable_type == _COUNT:
        return np.zeros(slot.shape, dtype)
    if dtype != np.uint32:
        raise BridgeError(
            f"slot {slot.ref} has dtype {slot.dtype}; {init.how} makes uint32 PRNG key data. "
            "Use zeros or a number."
        )
    text = json.dumps([init.how.removeprefix(_RNG), slot.item, list(slot.path)]).encode()
    need = int(np.prod(slot.shape, dtype=np.int64))
    data = b"".join(
        hashlib.sha256(b"%d:%s" % (n, text)).digest() for n in range(-(-need * 4 // 32))
    )
    return np.frombuffer(data[: need * 4], "<u4").astype(np.uint32).reshape(slot.shape)


def _filled(
    number: float, init: Initialised, slot: Slot, dtype: np.dtype[Any]
) -> np.ndarray[Any, Any]:
    try:
        with np.errstate(all="ignore"):
            cast = np.asarray(number).astype(dtype)
    except OverflowError:
        cast = None
    if cast is None or (dtype.kind in "iub" and cast != number):
        raise BridgeError(
            f"slot {slot.ref}: {init.how} is no value of its dtype {slot.dtype}; "
            f"correct {init.rule}."
        )
    return np.full(slot.shape, cast, dtype)


def _called(init: Initialised, slot: Slot, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    module, _, name = init.how.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise BridgeError(
            f"slot {slot.ref}: cannot load {init.how!r} ({error}). Correct {init.rule}, or put "
            "the module on PYTHONPATH."
        ) from error
    try:
        value = np.asarray(function(slot.shape, dtype, slot.path))
    except Exception as error:
        raise BridgeError(f"slot {slot.ref}: {init.how} failed: {error!r}") from error
    _check(value, slot, init.how)
    return value
