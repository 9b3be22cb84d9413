"""The items of a step that are no trees of arrays: JSON documents and random keys.

Orbax's ``JsonCheckpointHandler`` writes one JSON file into the folder of its item, and
``JaxRandomKeyCheckpointHandler`` a tree folder with one array called ``checkpoint`` beside a
JSON document that says whether the key was typed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from legacy.errors import DamagedCheckpoint, LegacyError
from legacy.leaves import Index, Kind, Leaf, LeafPath, LeafTable, Node
from legacy.orbax_documents import (
    MAX_DEPTH,
    entries_of,
    entry_kind,
    expect,
    is_folder,
    read_json,
)

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["json_file_of", "open_json", "random_key", "random_key_folder"]

JSON_FILES: Final = ("metadata", "metrics", "data.json")
"""Names of the file of a JSON item: of JsonCheckpointHandler, of metrics, of Orbax v1."""
JAX_KEY: Final = "jax_random_key"
NUMPY_KEY: Final = "np_random_key"
KEY_DOCUMENT: Final = "_metadata"
TYPED: Final = "typed"
"""What the document of a key of jax says; that of a key of numpy says ``legacy``."""
KEY_ARRAY: LeafPath = ("checkpoint",)

_LEGACY: Final = "legacy"
_IMPLS: Final = {2: "threefry2x32", 4: "rbg"}
_ASSUMED: Final = (
    "the algorithm of this key is not on disk; it is taken from the number of its words"
)


def json_file_of(folder: Path) -> Path | None:
    """The JSON file of an item folder; None where the item is none of JSON.

    Raises:
        CannotLook: the folder cannot be looked into.
    """
    return next((folder / n for n in JSON_FILES if entry_kind(f"{folder}/{n}") == "file"), None)


def random_key_folder(item: Path) -> tuple[Path, bool] | None:
    """The tree folder inside an item that holds a random key, and whether it is a key of jax.

    Raises:
        CannotLook: the folder cannot be looked into.
    """
    for name in (JAX_KEY, NUMPY_KEY):
        if entry_kind(f"{item}/{name}") == "folder":
            return item / name, name == JAX_KEY
    # the handlers take another name for the folder; then only the two folders tell what it is
    folders = [entry.name for entry in entries_of(item) if is_folder(entry)]
    if len(folders) == 2 and folders[1] == f"{folders[0]}{KEY_DOCUMENT}":  # noqa: PLR2004
        says = _says(item / folders[1] / JSON_FILES[0])
        if says in (TYPED, _LEGACY):
            return item / folders[0], says == TYPED
    return None


def _says(file: Path) -> str | None:
    """The only key of a JSON object, when its value is true or false."""
    try:
        document = read_json(file)
    except LegacyError:
        return None
    if not isinstance(document, dict) or len(document) != 1:
        return None
    return next((key for key, value in document.items() if isinstance(value, bool)), None)


def open_json(file: Path) -> LeafTable:
    """Read a JSON item: each value is a leaf; a list has the keys ``0``, ``1``, ...

    Args:
        file: the JSON file.

    Returns:
        A table whose ``json_file`` is the file.

    Raises:
        CannotLook: the file cannot be read.
        DamagedCheckpoint: it is no JSON, or nested too deeply.

    >>> import tempfile
    >>> from pathlib import Path
    >>> file = Path(tempfile.mkdtemp()) / "metadata"
    >>> _ = file.write_text('{"lr": 0.1, "sizes": [8, 16]}')
    >>> table = open_json(file)
    >>> [(path, leaf.read()) for path, leaf in table.items()]
    [(('lr',), 0.1), (('sizes', '0'), 8), (('sizes', '1'), 16)]
    """
    leaves: list[Leaf] = []
    nodes: dict[LeafPath, Node] = {}
    _walk((), read_json(file), file, leaves, nodes)
    return LeafTable(leaves, nodes, json_file=file)


def _walk(
    path: LeafPath, value: Any, file: Path, leaves: list[Leaf], nodes: dict[LeafPath, Node]
) -> None:
    if len(path) > MAX_DEPTH:
        raise DamagedCheckpoint(f"{file}: JSON nested over {MAX_DEPTH} deep.", path=file)
    if isinstance(value, list) and value:
        nodes[path] = Node("list")
        value = {str(n): child for n, child in enumerate(value)}
    if isinstance(value, dict) and value:
        for name, child in value.items():
            _walk((*path, name), child, file, leaves, nodes)
    else:
        leaves.append(_json_leaf(path, value))


def _json_leaf(path: LeafPath, value: Any) -> Leaf:
    if value is None:
        return Leaf(path, "none")
    if isinstance(value, dict | list):
        return Leaf(path, "empty", container=type(value).__name__)
    kind: Kind = "str" if isinstance(value, str) else "number"
    nbytes = len(value.encode(errors="replace")) if isinstance(value, str) else 8
    if isinstance(value, bool):
        kind, nbytes = "bool", 1
    return Leaf(path, kind, nbytes=nbytes, reader=Constant(value))


@dataclass(frozen=True, slots=True)
class Constant:
    """A reader of a value that is known already."""

    value: Any

    def __call__(self, _: Index | None) -> Any:
        """Return the value."""
        return self.value


def random_key(folder: Path, table: LeafTable) -> LeafTable:
    """The one leaf of a ``JaxRandomKey`` item.

    Args:
        folder: its tree folder, beside which lies the document of the key.
        table: the tree folder, opened.

    Returns:
        A table of one leaf at ``()``: a ``key`` if it was typed, else an array.

    Raises:
        DamagedCheckpoint: the documents do not describe a random key.
    """
    item = folder.parent
    file = item / f"{folder.name}{KEY_DOCUMENT}" / JSON_FILES[0]
    document = expect(read_json(file), dict, file, "(whole document)")
    typed = expect(document.get(TYPED), bool, file, TYPED)
    leaf = table.get(KEY_ARRAY)
    if leaf is None or len(table) != 1 or leaf.kind not in ("array", "key"):
        raise DamagedCheckpoint(
            f"{folder}: expected one array called {KEY_ARRAY[0]!r}, found "
            f"{[list(path) for path in table]}. Take another step or a backup.",
            path=item,
        )
    return LeafTable([_key_leaf(leaf, typed=typed, item=item)])


def _key_leaf(leaf: Leaf, *, typed: bool, item: Path) -> Leaf:
    if not typed or leaf.kind == "key":
        return replace(leaf, path=())
    impl = _IMPLS.get(leaf.shape[-1]) if leaf.shape else None
    if impl is None or leaf.dtype != np.uint32:
        raise DamagedCheckpoint(
            f"{item}: a typed key has shape {leaf.shape} and dtype {leaf.dtype}; expected uint32 "
            "and 2 or 4 words. Take another step or a backup.",
            path=item,
        )
    return replace(leaf, path=(), kind="key", key_impl=impl, notes=(*leaf.notes, _ASSUMED))
