"""Puts values where they will live, without sharing memory with the source.

On CPU ``jax.device_put`` takes over an aligned numpy buffer instead of copying it, whatever
``may_alias`` says (measured with jax 0.8.2 to 0.12.0). For a view of a mapped checkpoint file this
would tie the model to the file: overwrite the one and the other changes.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from bridge.errors import BridgeError
from bridge.target import Slot
from legacy import Leaf

__all__ = ["put"]

Bounds: TypeAlias = tuple[tuple[int, int, int], ...]

_ALIGNMENT = 64
"""Bytes; XLA takes over CPU buffers that are aligned to it."""


def put(source: Leaf | Any, slot: Slot, sharding: Any) -> Any:
    """Make the live array of a slot.

    Args:
        source: a leaf that has exactly the slot's shape and dtype, of which only the blocks are
            read that a device here needs; or the whole value.
        slot: what it must be.
        sharding: where it goes; None for the default device, uncommitted.

    Returns:
        A ``jax.Array`` (a typed key when the slot is one). A numpy array for dtypes that JAX does
        not hold in its current mode (float64 without ``jax_enable_x64``).

    Raises:
        BridgeError: the value has another shape or dtype than the slot, or the sharding does not
            fit the shape.
        LegacyError: the leaf cannot be read.
    """
    if not isinstance(source, Leaf):
        _check(source, slot)
    if slot.key_impl is not None:
        return _key(np.asarray(source), slot, sharding)
    if _foreign(source.dtype):
        return np.array(source.read() if isinstance(source, Leaf) else source)
    if sharding is None:
        value = source.read() if isinstance(source, Leaf) else source
        return jax.device_put(_own(value, jax.devices()[0]))
    return _sharded(source, slot, sharding)


def _check(value: Any, slot: Slot) -> None:
    if tuple(value.shape) != slot.shape or value.dtype.name != slot.dtype:
        raise BridgeError(
            f"slot {slot.ref} wants shape {slot.shape} dtype {slot.dtype}; its value has shape "
            f"{tuple(value.shape)} dtype {value.dtype.name}. Make the plan again."
        )


def _foreign(dtype: Any) -> bool:
    return bool(jax.dtypes.canonicalize_dtype(dtype) != dtype)


def _key(data: np.ndarray[Any, Any], slot: Slot, sharding: Any) -> Any:
    key = jax.random.wrap_key_data(jnp.array(data), impl=slot.key_impl)
    return key if sharding is None else jax.device_put(key, sharding)


def _sharded(source: Leaf | Any, slot: Slot, sharding: Any) -> Any:
    try:
        indices = sharding.addressable_devices_indices_map(slot.shape)
    except ValueError as error:
        raise BridgeError(
            f"slot {slot.ref} of shape {slot.shape} cannot be placed on {sharding}: {error}"
        ) from error
    bounds = {
        device: tuple(s.indices(n) for s, n in zip(index, slot.shape, strict=True))
        for device, index in indices.items()
    }
    left = Counter(bounds.values())
    blocks: dict[Bounds, Any] = {}
    pieces = []
    for device, key in bounds.items():
        # replicas read a block once; the last one releases it
        if key not in blocks:
            blocks[key] = _block(source, key)
        pieces.append(jax.device_put(_own(blocks[key], device), device))
        left[key] -= 1
        if not left[key]:
            del blocks[key]
    return jax.make_array_from_single_device_arrays(slot.shape, sharding, pieces)


def _block(source: Leaf | Any, bounds: Bounds) -> Any:
    index = tuple(slice(*b) for b in bounds)
    if not isinstance(source, Leaf):
        return np.asarray(source)[index]
    whole = bounds == tuple((0, n, 1) for n in source.shape)
    return source.read(None if whole else index)


def _own(value: Any, device: jax.Device) -> np.ndarray[Any, Any]:
    """The value in memory that nobody else holds; on other devices the transfer copies it."""
    if device.platform != "cpu":
        return np.asarray(value)
    array = np.asarray(value)
    buffer = np.empty(array.nbytes + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    own: np.ndarray[Any, Any] = np.ndarray(array.shape, array.dtype, buffer, start)
    np.copyto(own, array)
    return own
