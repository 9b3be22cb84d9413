"""Puts values where they will live, without sharing memory with the source.

On CPU ``jax.device_put`` takes over an aligned numpy buffer instead of copying it, whatever
``may_alias`` says (measured with jax 0.8.2 to 0.12.0). For a view of a mapped checkpoint file this
would tie the model to the file: overwrite the one and the other changes. So a leaf is read into
memory of its own, which is aligned, and which the array takes over: there is no second copy.

Reading is one thing (:func:`fetch`, in any thread) and placing another (:func:`put`, in the thread
of the caller, whose default device and precision JAX keeps by thread).
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from bridge._bits import blocks
from bridge.errors import BridgeError
from bridge.target import Slot
from legacy import Leaf

__all__ = ["Fetched", "fetch", "put"]

Bounds: TypeAlias = tuple[tuple[int, int, int], ...]

_ALIGNMENT = 64
"""Bytes; XLA takes over CPU buffers that are aligned to it."""

_LARGE = 1 << 20


@dataclass(frozen=True, slots=True)
class Fetched:
    """What the devices here need of an array, in memory that nobody else holds.

    Attributes:
        dtype: of the array.
        blocks: by where they begin and end; a block that is the whole array has its bounds, too.
    """

    dtype: np.dtype[Any]
    blocks: Mapping[Bounds, np.ndarray[Any, Any]]


def fetch(leaf: Leaf, slot: Slot, sharding: Any) -> Fetched:
    """Read what the devices here need of a leaf.

    Args:
        leaf: has exactly the slot's shape and dtype.
        slot: what it will be.
        sharding: where it goes; None for the default device.

    Returns:
        The blocks, each read once and only once.

    Raises:
        BridgeError: the sharding does not fit the shape.
        LegacyError: the leaf cannot be read.
    """
    whole = _whole(slot.shape)
    if sharding is None or _foreign(leaf.dtype):
        wanted = {whole}
    else:
        wanted = set(_bounds(slot, sharding).values())
    if leaf.chunks == leaf.shape and wanted != {whole}:
        # a single chunk would be decoded again for each block
        array = leaf.read()
        found = {key: _own(array[_index(key)]) for key in wanted}
    else:
        found = {key: _read(leaf, None if key == whole else key) for key in wanted}
    return Fetched(np.dtype(leaf.dtype), found)


def put(source: Fetched | Any, slot: Slot, sharding: Any) -> Any:
    """Make the live array of a slot.

    Args:
        source: what :func:`fetch` gave for it, which nobody may use any more; or the whole value.
        slot: what it must be.
        sharding: where it goes; None for the default device, uncommitted.

    Returns:
        A ``jax.Array`` (a typed key when the slot is one). A numpy array for dtypes that JAX does
        not hold in its current mode (float64 without ``jax_enable_x64``).

    Raises:
        BridgeError: the value has another shape or dtype than the slot, or the sharding does not
            fit the shape.
    """
    if not isinstance(source, Fetched):
        _check(source, slot)
    if slot.key_impl is not None:
        return _key(np.asarray(source), slot, sharding)
    whole = _whole(slot.shape)
    if _foreign(source.dtype):
        return source.blocks[whole] if isinstance(source, Fetched) else np.array(source)
    if sharding is None:
        if isinstance(source, Fetched):
            return jax.device_put(source.blocks[whole])
        return jax.device_put(_for_device(source, jax.devices()[0]))
    return _sharded(source, slot, sharding)


def _whole(shape: tuple[int, ...]) -> Bounds:
    return tuple((0, n, 1) for n in shape)


def _index(bounds: Bounds) -> tuple[slice, ...]:
    return tuple(slice(*b) for b in bounds)


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


def _bounds(slot: Slot, sharding: Any) -> dict[Any, Bounds]:
    try:
        indices = sharding.addressable_devices_indices_map(slot.shape)
    except ValueError as error:
        raise BridgeError(
            f"slot {slot.ref} of shape {slot.shape} cannot be placed on {sharding}: {error}"
        ) from error
    return {
        device: tuple(s.indices(n) for s, n in zip(index, slot.shape, strict=True))
        for device, index in indices.items()
    }


def _sharded(source: Fetched | Any, slot: Slot, sharding: Any) -> Any:
    bounds = _bounds(slot, sharding)
    left = Counter(bounds.values())
    pieces = []
    for device, key in bounds.items():
        left[key] -= 1
        if not isinstance(source, Fetched):
            block = _for_device(np.asarray(source)[_index(key)], device)
        elif left[key]:  # two devices never share memory: one of them may be donated
            block = _for_device(source.blocks[key], device)
        else:
            block = source.blocks[key]
        pieces.append(jax.device_put(block, device))
    return jax.make_array_from_single_device_arrays(slot.shape, sharding, pieces)


def _read(leaf: Leaf, bounds: Bounds | None) -> np.ndarray[Any, Any]:
    """A block of a leaf (None: all of it, some bytes at a time) in memory of its own."""
    shape = leaf.shape if bounds is None else tuple(stop - start for start, stop, _ in bounds)
    own = _buffer(shape, np.dtype(leaf.dtype))
    for index in blocks(leaf) if bounds is None else (_index(bounds),):
        part = own if bounds is not None or index is None else own[index]
        got = leaf.read(index, out=part)
        if got is not part:
            np.copyto(part, got, casting="no")
    return own


def _for_device(value: Any, device: jax.Device) -> np.ndarray[Any, Any]:
    """The value in memory that nobody else holds; on other devices the transfer copies it."""
    return np.asarray(value) if device.platform != "cpu" else _own(value)


def _own(value: Any) -> np.ndarray[Any, Any]:
    array = np.asarray(value)
    own = _buffer(array.shape, array.dtype)
    np.copyto(own, array)
    return own


def _buffer(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    nbytes = dtype.itemsize
    for n in shape:
        nbytes *= n
    if nbytes < _LARGE:
        buffer: Any = np.empty(nbytes + _ALIGNMENT, np.uint8)
        start = -buffer.ctypes.data % _ALIGNMENT
    else:
        # pages of its own: among the chunks that are decoded meanwhile, malloc would leave holes
        buffer, start = mmap.mmap(-1, nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), 0
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel without them
                buffer.madvise(mmap.MADV_HUGEPAGE)
    own: np.ndarray[Any, Any] = np.ndarray(shape, dtype, buffer, start)
    return own
