"""All entries of an OCDBT database at once, as its B-tree holds them.

TensorStore goes through a whole node for each key that is read, and Orbax writes nodes of up to
100 MB: of 200,000 keys a single one costs a millisecond. A dump of the node gives all of them in
less than a second, small values included. A node leaves out what all of its keys begin with; the
node above it has that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["dump_entries"]


def dump_entries(base: Any) -> Iterator[tuple[str, dict[bytes, Mapping[str, Any]]]]:
    """Dump the newest version of a database, node by node.

    Args:
        base: the ``tensorstore.KvStore`` of the folder with ``manifest.ocdbt``.

    Yields:
        For each node where it lies, and its entries by whole key: each has an ``inline_value`` or
        an ``indirect_value`` (where that lies). Nodes without keys of their own have no entries.

    Raises:
        KeyError, TypeError, ValueError, OSError: the database is damaged, or TensorStore dumps it
            in another form. Reading key by key, which checks everything, says what is wrong.
    """
    import tensorstore as ts  # noqa: PLC0415 - slow to import; `inspect --help` is quick

    dump = ts.ocdbt.dump
    root = dump(base).result()["versions"][-1]["root"].get("location")
    waiting: list[tuple[str, bytes, int | None]] = []
    waiting += [] if root is None else [(root, b"", None)]
    while waiting:
        location, prefix, height = waiting.pop()
        node = dump(base, location).result()
        if height is not None and node["height"] != height:
            raise ValueError(f"{location}: height {node['height']} below a node of {height + 1}")
        entries = node["entries"]
        if not node["height"]:
            yield location, {prefix + entry["key"]: entry for entry in entries}
            continue
        yield location, {}
        waiting += [
            (entry["location"], prefix + entry["subtree_common_prefix"], node["height"] - 1)
            for entry in entries
        ]
