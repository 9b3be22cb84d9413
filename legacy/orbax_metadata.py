"""The documents that Orbax writes beside the arrays: their file names, their keys, their types.

Every release since 0.3 describes a tree in JSON, each with a few keys more than the one before.
The documents are read here into plain values. Facts are from orbax-checkpoint's
``_src/metadata/`` (0.12.8) and from checkpoints of the releases themselves (FORMATS.md).
"""

from __future__ import annotations

import ast
import copy
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from legacy.errors import DamagedCheckpoint
from legacy.leaves import LeafPath, Node, format_path
from legacy.orbax_documents import (
    MAX_DEPTH,
    Remembered,
    count_keys,
    entry_kind,
    expect,
    list_folder,
    optional,
    parse_json,
    read_document,
    read_json,
    refuse_links,
    short,
)
from legacy.orbax_rich import VALUE_TREE, rich_nodes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = [
    "StepMetadata",
    "TreeEntry",
    "TreeMetadata",
    "random_key_impls",
    "read_step_metadata",
    "read_strings",
    "read_tree_metadata",
]

TREE_METADATA: Final = "_METADATA"
"""JSON index of a tree: paths and value types (opt-in from 0.3.2, always from 0.5)."""
AGGREGATE: Final = "checkpoint"
"""msgpack index of a tree, with the values that got no array of their own (0.0 to 0.5.15)."""
STEP_METADATA: Final = "_CHECKPOINT_METADATA"
"""JSON about a whole save: handlers of its items, custom metadata (from 0.5.11)."""
SHARDING: Final = "_sharding"
"""Which devices held the arrays. Information only: no reader needs it."""
STRINGS: Final = "_strings.json"
"""Values of string leaves, by storage name (from 0.3)."""
ARRAY_METADATAS: Final = "array_metadatas"
"""Folder of ``process_<n>`` files; the only place that names the algorithm of a typed key."""
V1_MARKER: Final = "orbax.checkpoint"
"""Empty file that marks a save of Orbax v1 (from 0.11.19)."""
PLACEHOLDER: Final = "PLACEHOLDER://"
"""Starts a string in the aggregate file that stands for a stored array."""

DOCUMENTS: Final = frozenset(
    {TREE_METADATA, STEP_METADATA, SHARDING, STRINGS, ARRAY_METADATAS, V1_MARKER}
)
"""Names beside the arrays that are no arrays, and no index of another name."""

TREE_KEY: Final = "tree_metadata"
KEY_METADATA: Final = "key_metadata"
VALUE_METADATA: Final = "value_metadata"
KEY: Final = "key"
KEY_TYPE: Final = "key_type"
VALUE_TYPE: Final = "value_type"
USE_ZARR3: Final = "use_zarr3"
USE_OCDBT: Final = "use_ocdbt"
STORES_FILL_VALUE: Final = "store_array_data_equal_to_fill_value"
CUSTOM_METADATA: Final = "custom_metadata"
ITEM_HANDLERS: Final = "item_handlers"
PARAM_NAME: Final = "param_name"
EXT_METADATA: Final = "ext_metadata"
ARRAY_METADATA: Final = "array_metadata"
KEY_IMPL: Final = "random_key_impl"

_ARRAY_KEYS: Final = frozenset({PARAM_NAME, EXT_METADATA, "write_shape", "chunk_shape"})

SEQUENCE_KEY: Final = 1
DICT_KEY: Final = 2
_DICT: Final = [DICT_KEY]
_OBJECT: Final = frozenset({dict})
_STR: Final = frozenset({str})
_INT: Final = frozenset({int})
ARRAY_TYPE: Final = "jax.Array"
STRING_TYPE: Final = "string"
SCALAR_TYPE: Final = "scalar"
NONE_TYPE: Final = "None"
EMPTY_TYPES: Final = MappingProxyType(
    {"Dict": "dict", "List": "list", "Tuple": "tuple", "NamedTuple": "namedtuple"}
)


class TreeEntry(NamedTuple):
    """One leaf of ``_METADATA``: where it is, and the name of the type that was saved."""

    path: LeafPath
    value_type: str


class TreeMetadata(NamedTuple):
    """What ``_METADATA`` says of a tree.

    Attributes:
        file: the document.
        entries: its leaves, empty values included.
        nodes: the sequences among its inner nodes (list and tuple are written alike); with rich
            types the tuples and namedtuples, too.
        keys: the keys of the document, which tell the release that wrote it.
        zarr3: whether the arrays are zarr3.
        stores_fill_value: whether chunks equal to the fill value were stored, too; so a missing
            chunk is damage.
        custom: the user's metadata.
    """

    file: Path
    entries: tuple[TreeEntry, ...]
    nodes: Mapping[LeafPath, Node]
    keys: frozenset[str]
    zarr3: bool
    stores_fill_value: bool
    custom: Mapping[str, Any]


class StepMetadata(NamedTuple):
    """What ``_CHECKPOINT_METADATA`` says: handler names by item (None: one tree), and custom."""

    items: Mapping[str, str] | None
    custom: Mapping[str, Any]


def read_tree_metadata(folder: Path) -> TreeMetadata | None:
    """Read ``_METADATA`` of a tree folder.

    Args:
        folder: the folder of one tree.

    Returns:
        Its content, or None where there is no such file.

    Raises:
        CannotLook: the file cannot be read.
        DamagedCheckpoint: it is no JSON, or a field has a wrong type; the message names it.

    Source: ``orbax/checkpoint/_src/metadata/tree.py``. The keys of ``tree_metadata`` are
    ``str(tuple)``; ``key_metadata`` has the same path without quoting, and must agree.
    """
    file = folder / TREE_METADATA
    raw = read_document(file)
    if raw is None and entry_kind(file) is None:
        return None
    found = _tree_of(b"null" if raw is None else raw, file)
    custom = copy.deepcopy(found.custom) if found.custom else {}  # it is handed to the user
    return found._replace(file=file, custom=custom)


def _parsed_tree(raw: bytes, file: Path) -> TreeMetadata:
    document = expect(parse_json(raw, str(file), file, _keys_in), dict, file, "(whole document)")
    rows = expect(document.get(TREE_KEY), dict, file, TREE_KEY)
    types: dict[LeafPath, int] = {}
    above: dict[LeafPath, list[int]] = {}
    entries = [_entry(label, row, file, types, above) for label, row in rows.items()]
    nodes = {path: Node("list") for path, kind in types.items() if kind == SEQUENCE_KEY}
    rich = optional(document, VALUE_TREE, str, file)
    nodes |= {} if rich is None else rich_nodes(rich, file)
    return TreeMetadata(
        file=file,
        entries=tuple(entries),
        nodes=MappingProxyType(nodes),
        keys=frozenset(document),
        zarr3=bool(optional(document, USE_ZARR3, bool, file)),
        stores_fill_value=bool(optional(document, STORES_FILL_VALUE, bool, file)),
        custom=optional(document, CUSTOM_METADATA, dict, file) or {},
    )


_tree_of: Final = Remembered(_parsed_tree, 4)


def _keys_in(document: Any) -> int:
    """The keys of a document as Orbax writes it; fewer than there are, of any other."""
    if type(document) is not dict or type(rows := document.get(TREE_KEY)) is not dict:
        return 0
    found = len(document) + len(rows)
    for row in rows.values():
        if type(row) is not dict or type(keys := row.get(KEY_METADATA)) is not list:
            return 0
        value = row.get(VALUE_METADATA)
        if type(value) is not dict or not _OBJECT.issuperset(map(type, keys)):
            return 0
        found += len(row) + len(value) + sum(map(len, keys))
    custom = document.get(CUSTOM_METADATA)
    return found if type(custom) is not dict else found + count_keys(custom)


def _entry(
    label: str,
    row: Any,
    file: Path,
    types: dict[LeafPath, int],
    above: dict[LeafPath, list[int]],
) -> TreeEntry:
    """One entry, checked; ten thousand of them are usual, so a good one is passed quickly."""
    try:
        keys = row[KEY_METADATA]
        path: LeafPath = tuple([key[KEY] for key in keys])
        inside = path[:-1]
        kinds = [key[KEY_TYPE] for key in keys]
        entry = TreeEntry(path, row[VALUE_METADATA][VALUE_TYPE])
    except (LookupError, TypeError):
        _explain(label, row, file)
    plain = _STR.issuperset(map(type, path)) and _INT.issuperset(map(type, kinds))
    if not plain or type(entry.value_type) is not str or len(path) > MAX_DEPTH:
        _explain(label, row, file)
    if label != str(path) and _parsed(label) not in (None, path):
        raise DamagedCheckpoint(
            f"{file}: the entry {short(label)} is of the leaf {format_path(path)} by its "
            f"{KEY_METADATA}. The document contradicts itself; take another step or a backup.",
            path=file,
        )
    if kinds[-1:] == _DICT and above.get(inside) == kinds:
        return entry  # a neighbour of the same types: nothing new is said of what is above
    above[inside] = kinds
    for n, kind in enumerate(kinds):
        if types.setdefault(path[:n], kind) != kind or kind != DICT_KEY:
            _note_type(path[:n], path[n], kind, file, types)
    return entry


def _parsed(label: str) -> LeafPath | None:
    """The path that a label says; None where it is no tuple."""
    try:
        value = ast.literal_eval(label)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return tuple(map(str, value)) if isinstance(value, tuple) else None


def _explain(label: str, row: Any, file: Path) -> NoReturn:
    """Say which field of an entry is of a wrong type."""
    field = f"{TREE_KEY}[{short(label)}]"
    expect(row, dict, file, field)
    keys = expect(row.get(KEY_METADATA), list, file, f"{field}.{KEY_METADATA}")
    for n, key in enumerate(keys):
        where = f"{field}.{KEY_METADATA}[{n}]"
        expect(key, dict, file, where)
        expect(key.get(KEY), str, file, f"{where}.{KEY}")
        expect(key.get(KEY_TYPE), int, file, f"{where}.{KEY_TYPE}")
    value = expect(row.get(VALUE_METADATA), dict, file, f"{field}.{VALUE_METADATA}")
    expect(value.get(VALUE_TYPE), str, file, f"{field}.{VALUE_METADATA}.{VALUE_TYPE}")
    raise DamagedCheckpoint(
        f"{file}: {field} is nested {len(keys)} deep; no checkpoint is (limit {MAX_DEPTH}).",
        path=file,
    )


def _note_type(
    path: LeafPath, name: str, kind: int, file: Path, types: dict[LeafPath, int]
) -> None:
    if kind not in (SEQUENCE_KEY, DICT_KEY):
        raise DamagedCheckpoint(
            f"{file}: {format_path((*path, name))} has {KEY_TYPE} {kind}; known are "
            f"{SEQUENCE_KEY} (sequence) and {DICT_KEY} (dict).",
            path=file,
        )
    if types.setdefault(path, kind) != kind:
        raise DamagedCheckpoint(
            f"{file}: {format_path(path)} is a sequence by one of its children and a dict by "
            "another. The document contradicts itself; take another step or a backup.",
            path=file,
        )
    if kind == SEQUENCE_KEY and not (name.isascii() and name.isdigit()):
        raise DamagedCheckpoint(
            f"{file}: {format_path((*path, name))} should be an index of a sequence, a number.",
            path=file,
        )


def read_step_metadata(folder: Path) -> StepMetadata | None:
    """Read ``_CHECKPOINT_METADATA`` of a step folder (or of a tree saved by itself).

    Returns:
        Its content, or None where there is no such file.

    Raises:
        CannotLook: the file cannot be read.
        DamagedCheckpoint: it is no JSON, or a field has a wrong type.

    Source: ``orbax/checkpoint/_src/metadata/step_metadata_serialization.py``; ``item_handlers``
    is one name for a tree saved by itself, else a mapping from item to name.
    """
    file = folder / STEP_METADATA
    document = read_json(file)
    if document is None and entry_kind(file) is None:
        return None
    expect(document, dict, file, "(whole document)")
    handlers = document.get(ITEM_HANDLERS)
    if handlers is not None and not isinstance(handlers, str):
        expect(handlers, dict, file, ITEM_HANDLERS)
        handlers = {
            name: "" if h is None else expect(h, str, file, f"{ITEM_HANDLERS}.{name}")
            for name, h in handlers.items()
        }
    return StepMetadata(
        items=handlers if isinstance(handlers, dict) else None,
        custom=optional(document, CUSTOM_METADATA, dict, file) or {},
    )


def read_strings(file: Path) -> dict[str, str]:
    """Read a ``_strings.json``: values of string leaves by storage name; empty if there is none.

    Raises:
        CannotLook: the file cannot be read.
        DamagedCheckpoint: it is no JSON object of strings.
    """
    document = read_json(file)
    if document is None and entry_kind(file) is None:
        return {}
    expect(document, dict, file, "(whole document)")
    return {name: expect(value, str, file, name) for name, value in document.items()}


def random_key_impls(folder: Path) -> dict[str, str | None] | None:
    """The algorithms of typed PRNG keys, by storage name.

    Args:
        folder: the folder of one tree.

    Returns:
        Names such as ``threefry2x32``, and None for an array that is no key; nothing at all where
        no process left such a file.

    Raises:
        CannotLook: a file cannot be read.
        DamagedCheckpoint: a document is broken, or two processes name two algorithms.

    Source: ``orbax/checkpoint/_src/metadata/array_metadata_store.py`` (from 0.11); nothing else
    on disk tells a typed key from an array of uint32.
    """
    inside = folder / ARRAY_METADATAS
    if entry_kind(inside) is None:
        return None
    refuse_links(inside)
    files = [inside / name for name in list_folder(inside)]
    files = [file for file in files if entry_kind(file) == "file"]
    if not files:
        return None  # lost, and with them what told a key from numbers
    found: dict[str, str | None] = {}
    for file in files:
        raw = read_document(file)
        for param, impl in _impls_of(b"null" if raw is None else raw, file):
            if found.setdefault(param, impl) != impl:
                raise DamagedCheckpoint(
                    f"{file}: {param} is a PRNG key of {impl}, and of {found[param]} in another "
                    "place.",
                    path=file,
                )
    return found


def _parsed_impls(raw: bytes, file: Path) -> tuple[tuple[str, str | None], ...]:
    document = expect(parse_json(raw, str(file), file), dict, file, "(whole document)")
    rows = expect(document.get(ARRAY_METADATAS), list, file, ARRAY_METADATAS)
    return tuple(_impl(expect(row, dict, file, f"{ARRAY_METADATAS}[]"), file) for row in rows)


_impls_of: Final = Remembered(_parsed_impls, 4)


def _impl(row: Mapping[str, Any], file: Path) -> tuple[str, str | None]:
    inner = expect(row.get(ARRAY_METADATA), dict, file, ARRAY_METADATA)
    param = expect(inner.get(PARAM_NAME), str, file, PARAM_NAME)
    extra = optional(inner, EXT_METADATA, dict, file) or {}
    impl = optional(extra, KEY_IMPL, str, file)
    strange = [*(inner.keys() - _ARRAY_KEYS), *(extra.keys() - {KEY_IMPL})]
    if strange and impl is None:
        raise DamagedCheckpoint(
            f"{file}: {param} has the unknown field {short(min(strange))} and no {KEY_IMPL}, so "
            "whether it is a PRNG key is not known. The document is damaged, or newer than this "
            "release.",
            path=file,
        )
    return param, impl
