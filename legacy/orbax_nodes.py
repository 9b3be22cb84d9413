"""All entries of an OCDBT database at once, as its B-tree holds them.

TensorStore goes through a whole node for each key that is read, and Orbax writes nodes of up to
100 MB: of 200,000 keys a single one costs a millisecond. A dump of the node gives all of them in
less than a second, small values included. A node leaves out what all of its keys begin with; the
node above it has that.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from legacy.tensorstore_json import dumped

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["dump_entries"]


def dump_entries(base: Any) -> Iterator[tuple[str, dict[bytes, Mapping[str, Any]]]]:
    """Dump the newest version of a database, node by node, in the order of the keys.

    Args:
        base: the ``tensorstore.KvStore`` of the folder with ``manifest.ocdbt``.

    Yields:
        For each node where it lies, and its entries by whole key: each has an ``inline_value`` or
        an ``indirect_value`` (where that lies). Nodes without keys of their own have no entries.

    Raises:
        KeyError, TypeError, ValueError, OSError: the database is damaged (keys that are not where
            a search would look for them among it), or TensorStore dumps it in another form.
            Listing and reading key by key, which checks everything, says what is wrong.
    """
    root = dumped(base)["versions"][-1]["root"]
    waiting: list[tuple[str, bytes, bytes, int | None]] = []
    if "location" in root:
        waiting.append((root["location"], b"", b"", None))
    last, left = b"", root["statistics"]["num_keys"] if waiting else 0
    while waiting:
        location, low, prefix, height = waiting.pop()
        node = dumped(base, location)
        if height is not None and node["height"] != height:
            raise ValueError(f"{location}: height {node['height']} below a node of {height + 1}")
        keys = [prefix + entry["key"] for entry in node["entries"]]
        if last >= low > b"" or low > keys[0] or any(a >= b for a, b in pairwise(keys)):
            raise ValueError(f"{location}: keys are not in order")
        entries = zip(keys, node["entries"], strict=True)
        if not node["height"]:
            last, left = keys[-1], left - len(keys)
            yield location, dict(entries)
            continue
        yield location, {}
        below = [
            (entry["location"], key, prefix + entry["subtree_common_prefix"], node["height"] - 1)
            for key, entry in entries
        ]
        waiting += reversed(below)
    if left:
        raise ValueError(f"the manifest counts {left} keys more than its nodes have")
