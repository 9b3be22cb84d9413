"""The containers that Orbax keeps when it is asked for rich types (opt-in, from 0.10).

Without them, ``_METADATA`` tells a sequence from a dict and no more. With them it has one more
key, a JSON text that nests as the tree does and names tuples and the classes of namedtuples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from legacy.errors import DamagedCheckpoint
from legacy.leaves import LeafPath, Node
from legacy.orbax_documents import MAX_DEPTH, expect, parse_json

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["VALUE_TREE", "rich_nodes"]

VALUE_TREE: Final = "value_metadata_tree"

_CATEGORY: Final = "category"
_CLASS: Final = "clazz"
_ENTRIES: Final = "entries"
_NAMEDTUPLE: Final = "namedtuple"
_CUSTOM: Final = "custom"
_TUPLE: Final = "tuple"


def rich_nodes(text: str, file: Path) -> dict[LeafPath, Node]:
    """The containers that the text names; plain dicts, and what is no container, get no entry.

    Args:
        text: the value of ``value_metadata_tree``.
        file: the document that holds it, for messages.

    Returns:
        What the nodes of the tree were, empty ones included.

    Raises:
        DamagedCheckpoint: it is no JSON, or nests in a way that Orbax never wrote.

    Source: ``orbax/checkpoint/_src/metadata/tree_rich_types.py`` (0.12.8).

    >>> from pathlib import Path
    >>> leaf = '{"category": "custom", "clazz": "ValueMetadataEntry", "data": {}}'
    >>> text = '{"a": {"category": "custom", "clazz": "tuple", "entries": [%s]}}' % leaf
    >>> rich_nodes(text, Path("_METADATA"))
    {('a',): Node(container='tuple', name=None)}
    """
    nodes: dict[LeafPath, Node] = {}
    _walk((), parse_json(text.encode(), f"{file}: {VALUE_TREE}", file), file, nodes)
    return nodes


def _walk(path: LeafPath, value: Any, file: Path, nodes: dict[LeafPath, Node]) -> None:
    if len(path) > MAX_DEPTH:
        raise DamagedCheckpoint(f"{file}: {VALUE_TREE} nests over {MAX_DEPTH} deep.", path=file)
    if isinstance(value, list):
        nodes[path] = Node("list")
        children = {str(n): child for n, child in enumerate(value)}
    else:
        # a dict of the user's may have the key "category", but never with a text as its value
        value = expect(value, dict, file, VALUE_TREE)
        category = value.get(_CATEGORY)
        kind = value.get(_CLASS)
        if category == _NAMEDTUPLE:
            nodes[path] = Node(_NAMEDTUPLE, expect(kind, str, file, f"{VALUE_TREE}.{_CLASS}"))
            children = _fields(value, file)
        elif category == _CUSTOM and kind == _TUPLE:
            nodes[path] = Node(_TUPLE)
            entries = expect(value.get(_ENTRIES), list, file, f"{VALUE_TREE}.{_ENTRIES}")
            children = {str(n): child for n, child in enumerate(entries)}
        else:
            children = {} if category == _CUSTOM else value
    for name, child in children.items():
        _walk((*path, name), child, file, nodes)


def _fields(value: dict[str, Any], file: Path) -> dict[str, Any]:
    entries = expect(value.get(_ENTRIES), list, file, f"{VALUE_TREE}.{_ENTRIES}")
    rows = [expect(entry, dict, file, f"{VALUE_TREE}.{_ENTRIES}[]") for entry in entries]
    return {
        expect(row.get("key"), str, file, f"{VALUE_TREE}.key"): row.get("value") for row in rows
    }
