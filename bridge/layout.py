"""The names and documents of a StandardSave checkpoint, as today's Orbax writes them.

Facts, seen in what orbax-checkpoint 0.12.8 writes (``tests/bridge/test_repack.py`` compares every
document with its own):

- ``_METADATA`` and ``array_metadatas/process_0`` are in the order of the flattened state: keys
  sorted, sequence indices as numbers. All keys of an ``nnx.State`` have ``key_type`` 2, also the
  indices of an ``nnx.List``; only indices inside a Variable's value (sown tuples, sm3's lists)
  have ``key_type`` 1, and Orbax refuses a target with a list there when it is not so.
- ``write_shape`` and entries in ``array_metadatas`` and ``_sharding`` exist for ``jax.Array``
  only, and every slot is written as one.
- ``MaskedNode`` and other empty nodes have an entry with ``value_type`` ``None`` and
  ``skip_deserialize``, and no array.
- ``_sharding`` is written by TensorStore's json driver: compact, sorted by the base64 keys. The
  values are JSON texts. ``cpu:0`` is what one CPU process writes; it is only read when a restore
  names no sharding.
- Key data of typed PRNG keys are plain uint32 arrays of shape ``(..., 2 or 4)``; the algorithm is
  in ``array_metadatas`` and nowhere else.
- The name of an array is its path joined by dots, with nothing escaped.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bridge.target import SlotPath
from legacy.orbax_metadata import ARRAY_METADATAS, CUSTOM_METADATA, SHARDING, TREE_METADATA
from legacy.orbax_metadata import STEP_METADATA as CHECKPOINT_METADATA
from legacy.orbax_stores import MANIFEST
from legacy.orbax_zarr import ZARR2_METADATA as ZARRAY
from legacy.unfinished import COMMIT_SUCCESS

__all__ = [
    "ARRAY_METADATAS",
    "CHECKPOINT_METADATA",
    "COMMIT_SUCCESS",
    "CUSTOM_METADATA",
    "DEFAULT_ITEM",
    "JSON_FILE",
    "MANIFEST",
    "METADATA_ITEM",
    "METRICS_ITEM",
    "PROCESS_0",
    "SHARDING",
    "TEMPORARY_SUFFIX",
    "TREE_METADATA",
    "ZARRAY",
    "ArrayEntry",
    "EmptyEntry",
    "array_metadatas",
    "checkpoint_metadata",
    "commit_text",
    "param_name",
    "sharding",
    "tree_metadata",
    "with_custom_metadata",
    "zarr_metadata",
]

PROCESS_0: Final = "process_0"
DEFAULT_ITEM: Final = "default"
METADATA_ITEM: Final = "metadata"
METRICS_ITEM: Final = "metrics"
JSON_FILE: Final = "metadata"
"""The file of a JsonSave item; only that of ``metrics`` is called like its item."""
TEMPORARY_SUFFIX: Final = ".orbax-checkpoint-tmp"

STANDARD_HANDLER: Final = (
    "orbax.checkpoint._src.handlers.standard_checkpoint_handler.StandardCheckpointHandler"
)
JSON_HANDLER: Final = "orbax.checkpoint._src.handlers.json_checkpoint_handler.JsonCheckpointHandler"
OCDBT_CONFIG: Final[Mapping[str, Any]] = {
    "max_inline_value_bytes": 1024,
    "max_decoded_node_bytes": 100_000_000,
    "manifest_kind": "single",
}
TARGET_DATA_FILE_SIZE: Final = 2**31
_SEQUENCE_KEY: Final = 1
_DICT_KEY: Final = 2
_DEVICE: Final = json.dumps({"sharding_type": "SingleDeviceSharding", "device_str": "cpu:0"})


@dataclass(frozen=True, slots=True)
class ArrayEntry:
    """One array of an item: its path on disk, shape, chunk shape, and PRNG algorithm if a key.

    ``sequence_at`` are the positions in the path that are indices of a tuple or list.
    """

    path: SlotPath
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    key_impl: str | None = None
    sequence_at: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class EmptyEntry:
    """One entry without an array."""

    path: SlotPath
    value_type: str = "None"
    sequence_at: tuple[int, ...] = ()


def param_name(path: SlotPath) -> str:
    """The name of an array inside its item.

    >>> param_name(("layers", "0", "kernel", "value"))
    'layers.0.kernel.value'
    """
    return ".".join(path)


def _order(entry: ArrayEntry | EmptyEntry) -> tuple[tuple[int, int, str], ...]:
    return tuple((0, int(p), "") if p.isascii() and p.isdigit() else (1, 0, p) for p in entry.path)


def tree_metadata(arrays: Iterable[ArrayEntry], empties: Iterable[EmptyEntry] = ()) -> str:
    """The document ``_METADATA`` of a tree item.

    Args:
        arrays: its arrays, in any order.
        empties: its entries without arrays.

    Returns:
        The text of the file.
    """
    entries: list[ArrayEntry | EmptyEntry] = [*arrays, *empties]
    tree = {
        str(entry.path): {
            "key_metadata": [
                {"key": key, "key_type": _SEQUENCE_KEY if n in entry.sequence_at else _DICT_KEY}
                for n, key in enumerate(entry.path)
            ],
            "value_metadata": _value_metadata(entry),
        }
        for entry in sorted(entries, key=_order)
    }
    return json.dumps(
        {
            "tree_metadata": tree,
            "use_ocdbt": True,
            "use_zarr3": False,
            "store_array_data_equal_to_fill_value": True,
            CUSTOM_METADATA: None,
        }
    )


def _value_metadata(entry: ArrayEntry | EmptyEntry) -> dict[str, Any]:
    if isinstance(entry, EmptyEntry):
        return {"value_type": entry.value_type, "skip_deserialize": True}
    return {
        "value_type": "jax.Array",
        "skip_deserialize": False,
        "write_shape": list(entry.shape),
    }


def sharding(arrays: Iterable[ArrayEntry]) -> str:
    """The document ``_sharding`` of a tree item.

    Args:
        arrays: its arrays, in any order.

    Returns:
        The text of the file.

    >>> sharding([ArrayEntry(("w",), (), ())])[:8]
    '{"dw==":'
    """
    names = (base64.urlsafe_b64encode(param_name(a.path).encode()).decode() for a in arrays)
    return json.dumps(dict.fromkeys(sorted(names), _DEVICE), separators=(",", ":"))


def array_metadatas(arrays: Iterable[ArrayEntry]) -> str:
    """The document ``array_metadatas/process_0`` of a tree item.

    Args:
        arrays: its arrays, in any order.

    Returns:
        The text of the file.
    """
    rows = [
        {
            "array_metadata": {
                "param_name": param_name(entry.path),
                "write_shape": list(entry.shape),
                "chunk_shape": list(entry.chunks),
                "ext_metadata": (
                    None if entry.key_impl is None else {"random_key_impl": entry.key_impl}
                ),
            }
        }
        for entry in sorted(arrays, key=_order)
    ]
    return json.dumps({ARRAY_METADATAS: rows})


def checkpoint_metadata(
    items: Mapping[str, bool],
    custom_metadata: Mapping[str, Any],
    times: tuple[int, int],
) -> str:
    """The document ``_CHECKPOINT_METADATA`` of a step.

    Args:
        items: each item's name, and whether it is a JSON item.
        custom_metadata: plain JSON values.
        times: when writing began and ended, in nanoseconds since the epoch.

    Returns:
        The text of the file.
    """
    return json.dumps(
        {
            "item_handlers": {
                name: JSON_HANDLER if is_json else STANDARD_HANDLER
                for name, is_json in sorted(items.items())
            },
            "metrics": {},
            "performance_metrics": {},
            "init_timestamp_nsecs": times[0],
            "commit_timestamp_nsecs": times[1],
            CUSTOM_METADATA: dict(custom_metadata),
        }
    )


def with_custom_metadata(document: str, custom_metadata: Mapping[str, Any]) -> str:
    """The same ``_CHECKPOINT_METADATA`` with more custom metadata.

    Args:
        document: the text of the file.
        custom_metadata: keys to add; they replace keys of the same name.

    Returns:
        The new text.
    """
    data = json.loads(document)
    data[CUSTOM_METADATA] = data[CUSTOM_METADATA] | dict(custom_metadata)
    return json.dumps(data)


def commit_text(folder: object) -> str:
    """The text of ``commit_success.txt``."""
    return f"Checkpoint commit was successful to {folder}"


def zarr_metadata(
    shape: Sequence[int], chunks: Sequence[int], level: int | None = 1
) -> dict[str, Any]:
    """What TensorStore is told when it creates an array: zarr 2, zstd level 1, like Orbax.

    Args:
        shape: of the array.
        chunks: shape of a chunk.
        level: of zstd; None for no compression.
    """
    return {
        "shape": list(shape),
        "chunks": list(chunks),
        "compressor": None if level is None else {"id": "zstd", "level": level},
    }
