"""The JSON items of a step: values without a place in a tree, and what the source had as JSON."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge import json_item
from bridge import layout as names
from bridge.errors import BridgeError
from bridge.target import SlotRef
from legacy import Checkpoint, Leaf

__all__ = ["JsonItems", "json_items"]

_SOURCE = "source_"


@dataclass(frozen=True, slots=True)
class JsonItems:
    """What to write.

    Attributes:
        files: for each item the name of its file, and its bytes or the source's file.
        inline: the document that goes to ``custom_metadata`` (single layout), if any.
    """

    files: dict[str, tuple[str, bytes | Path]]
    inline: Any = None


def json_items(
    pairs: Iterable[tuple[SlotRef, Leaf]],
    checkpoint: Checkpoint,
    taken: Sequence[str],
    *,
    single: bool,
) -> JsonItems:
    """Make the documents of all JSON items.

    Args:
        pairs: slots of JSON items and the leaves that fill them.
        checkpoint: the source; its own JSON items are carried across byte for byte.
        taken: names of tree items.
        single: put our document into ``custom_metadata`` instead of an item.

    Returns:
        What to write.

    Raises:
        BridgeError: a value has no form in JSON, an item has arrays and JSON values, or two JSON
            items of the source end up with one name.
    """
    by_item: dict[str, list[tuple[SlotRef, Leaf]]] = defaultdict(list)
    for ref, leaf in pairs:
        by_item[ref.item].append((ref, leaf))
    documents = {
        item: json_item.document(rows, checkpoint.leaves) for item, rows in by_item.items()
    }
    files: dict[str, tuple[str, bytes | Path]] = {}
    inline = None
    if single and documents:
        inline = documents.get(names.METADATA_ITEM) if len(documents) == 1 else documents
        inline = documents if inline is None else inline
    elif not single:
        for item, document in documents.items():
            if item in taken:
                raise BridgeError(f"item {item!r} has arrays and JSON values; name another item.")
            files[item] = (names.JSON_FILE, json.dumps(document, allow_nan=False).encode())
    for item, table in checkpoint.items.items():
        if table.json_file is None:
            continue
        name = item if item not in files and item not in taken else _SOURCE + item
        if name in files or name in taken:
            raise BridgeError(
                f"the JSON item {item!r} of the source has no free name in the output: {item!r} "
                f"and {name!r} are taken. Choose other item names."
            )
        file = names.METRICS_ITEM if name == names.METRICS_ITEM else names.JSON_FILE
        files[name] = (file, table.json_file)
    return JsonItems(files, inline)
