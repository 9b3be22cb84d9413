"""Opens the folders that Orbax wrote, from the first release to today's.

A *tree folder* holds one tree of arrays, a *step folder* the items of one step: trees, JSON
documents, random keys. What the tree is comes from ``_METADATA``, else from the msgpack file
``checkpoint``, else from the names of the arrays; where the arrays are is asked leaf by leaf.

What no Orbax release keeps, and so no reader can know: a list is written as a tuple is; a Python
number as a numpy scalar is (kind ``scalar``; without ``_METADATA`` a 0-d array); ``EmptyState``
as None is; and of ``'a.b'`` beside ``{'a': {'b': ...}}`` only one value survives, since both have
one storage name. The last is refused when such a leaf is read.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from legacy.checkpoint import DEFAULT_ITEM, Format
from legacy.errors import DamagedCheckpoint, LegacyError, NotACheckpoint, UnsupportedCheckpoint
from legacy.leaves import LeafTable, unreadable
from legacy.nnx_era import nnx_era
from legacy.orbax_documents import (
    cannot_look,
    entries_of,
    entry_kind,
    is_folder,
    leads_out,
    list_folder,
    out_of_checkpoint,
    refuse_links,
)
from legacy.orbax_eras import UNKNOWN
from legacy.orbax_items import json_file_of, open_json, random_key, random_key_folder
from legacy.orbax_metadata import (
    AGGREGATE,
    STEP_METADATA,
    TREE_METADATA,
    V1_MARKER,
    StepMetadata,
    read_step_metadata,
)
from legacy.orbax_stores import has_manifest, process_databases
from legacy.orbax_tree import OpenedTree, read_tree
from legacy.orbax_zarr import ZARR2_METADATA, ZARR3_METADATA

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

__all__ = ["holds_items", "is_step_folder", "is_tree_folder", "open_items", "open_tree"]

TEMPORARY: Final = ".orbax-checkpoint-tmp"
DESCRIPTOR: Final = "descriptor"
ORBAX: Final = "orbax"
ORBAX_V1: Final = "orbax-v1"

_MSGPACK_CONTAINER: Final = 0x80
_STEP_NAME: Final = re.compile(r"(?:.*[_-])?\d+(?:\.\d+)?")
_V1_HANDLERS: Final = ".v1."
_LAYOUTS: Final = ("zarr", "ocdbt", "zarr3", "aggregate")
_SHOWN: Final = 5


def open_tree(folder: Path) -> tuple[LeafTable, Format]:
    """Open one Orbax tree folder: a single save, or one item of a step.

    Args:
        folder: the folder with ``_METADATA``, ``checkpoint``, ``manifest.ocdbt`` or one folder
            for each parameter.

    Returns:
        Its leaves, none of them read, and which release wrote it, how.

    Raises:
        CannotLook: a file or folder cannot be read.
        NotACheckpoint: there is neither an index nor an array.
        DamagedCheckpoint: documents are broken or contradict each other or the arrays.
        UnsupportedCheckpoint: parts that the index names are not on disk.

    >>> import json, tempfile
    >>> from pathlib import Path
    >>> folder = Path(tempfile.mkdtemp())
    >>> entry = {"key_metadata": [{"key": "a", "key_type": 2}],
    ...          "value_metadata": {"value_type": "None", "skip_deserialize": True}}
    >>> _ = (folder / "_METADATA").write_text(json.dumps({"tree_metadata": {"('a',)": entry}}))
    >>> table, found = open_tree(folder)
    >>> table["a",].kind, found.era
    ('none', 'orbax 0.3-0.4 (2023)')
    """
    tree = read_tree(folder)
    return tree.table, _format([tree], folder, (), read_step_metadata(folder))


def open_items(folder: Path) -> tuple[Mapping[str, LeafTable], Format, Mapping[str, Any]]:
    """Open all items of a step folder; a tree folder is its own and only item.

    Args:
        folder: a step of a ``CheckpointManager``, a save of Orbax v1, or a tree folder.

    Returns:
        Tables by item name (one named ``default`` for a tree folder), the format, and the custom
        metadata of the save.

    Raises:
        CannotLook: a file or folder cannot be read.
        NotACheckpoint: the folder holds no item.
        DamagedCheckpoint: as :func:`open_tree`; or the only trees that the step lists are gone.
        UnsupportedCheckpoint: as :func:`open_tree`; or an item is of no kind that is known.

    An item that cannot be opened, beside a tree that can, is a table of one ``unreadable`` leaf
    with the path ``()``, and so is a folder of no known kind (what a handler of the user's wrote);
    only ``descriptor``, hidden folders and those that ``_CHECKPOINT_METADATA`` does not list and
    nobody can read are passed over, and the evidence of the format says so.

    >>> import tempfile
    >>> from pathlib import Path
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "config").mkdir()
    >>> _ = (folder / "config" / "metadata").write_text('{"depth": 2}')
    >>> items, found, custom = open_items(folder)
    >>> items["config"]["depth",].read()
    2
    """
    if is_tree_folder(folder):
        tree = read_tree(folder)
        step = read_step_metadata(folder)
        custom = (step.custom if step else None) or tree.custom
        return {DEFAULT_ITEM: tree.table}, _format([tree], folder, (), step), custom
    refuse_links(folder)
    step = read_step_metadata(folder)
    tables: dict[str, LeafTable] = {}
    trees: list[OpenedTree] = []
    evidence: list[str] = []
    listed = dict(step.items) if step is not None and step.items is not None else None
    broken: dict[str, LegacyError] = {}
    for name in _item_names(folder):
        try:
            opened = _open_item(folder / name)
        except LegacyError as error:
            broken[name] = error
            continue
        if opened is not None:
            tables[name], tree_of_item = opened
            trees += [tree_of_item] if tree_of_item else []
        elif listed is None or name in listed:
            broken[name] = _unknown_item(folder / name)
        else:
            evidence.append(f"{name}/ is no item that {STEP_METADATA} lists; passed over")
    if broken and not trees:
        raise next(iter(broken.values()))
    # one damaged item does not stop the others: it is one leaf that cannot be read
    tables |= {name: _unreadable_item(folder / name, error) for name, error in broken.items()}
    evidence += [f"item {name} cannot be read" for name in broken]
    evidence += _missing_items(folder, listed, tables, trees)
    if not tables:
        raise NotACheckpoint(
            f"{folder}: no item of an Orbax step is in this folder (no tree, no JSON, no key).",
            path=folder,
        )
    custom = step.custom if step is not None else {}
    return tables, _format(trees, folder, evidence, step), custom


def is_tree_folder(folder: Path) -> bool:
    """Whether a folder is one Orbax tree, by the files that mark one; nothing is parsed.

    Args:
        folder: any path.

    Returns:
        True for a folder with ``_METADATA``, an OCDBT manifest, a msgpack file ``checkpoint``,
        or folders that are zarr arrays.

    Raises:
        CannotLook: it cannot be told, since something may not be read.

    >>> import tempfile
    >>> from pathlib import Path
    >>> is_tree_folder(Path(tempfile.mkdtemp()))
    False
    """
    base = str(folder)  # joining paths costs more than looking
    if entry_kind(base) != "folder":
        return False
    if entry_kind(f"{base}/{TREE_METADATA}") == "file" or has_manifest(base):
        return True
    if entry_kind(f"{base}/{AGGREGATE}") == "file" and _is_msgpack(folder / AGGREGATE):
        return True
    places = [entry.path for entry in entries_of(folder) if is_folder(entry)]
    return bool(process_databases(folder)) or any(
        entry_kind(f"{place}/{file}") == "file"
        for place in places
        for file in (ZARR2_METADATA, ZARR3_METADATA)
    )


def is_step_folder(folder: Path) -> bool:
    """Whether a folder holds the items of one step; nothing is parsed.

    Args:
        folder: any path.

    Returns:
        True for a folder with ``_CHECKPOINT_METADATA`` or the mark of Orbax v1, or with sub-folders
        that are items. A folder whose sub-folders are all named like steps is a run instead.

    Raises:
        CannotLook: it cannot be told, since something may not be read.

    >>> import tempfile
    >>> from pathlib import Path
    >>> is_step_folder(Path(tempfile.mkdtemp()))
    False
    """
    return entry_kind(folder) == "folder" and not is_tree_folder(folder) and holds_items(folder)


def holds_items(folder: Path) -> bool:
    """As :func:`is_step_folder`, of a folder that is known to be no tree.

    >>> from pathlib import Path
    >>> holds_items(Path("/nowhere/at/all"))
    False
    """
    if any(entry_kind(f"{folder}/{name}") == "file" for name in (STEP_METADATA, V1_MARKER)):
        return True
    return any(
        _is_item(folder / name) for name in _item_names(folder) if not _STEP_NAME.fullmatch(name)
    )


def _is_msgpack(file: Path) -> bool:
    # TensorFlow, too, writes a file of this name: text, which starts below 0x80
    try:
        with file.open("rb") as stream:
            first = stream.read(1)
    except OSError as error:
        cannot_look(file, error)
    return not first or first[0] >= _MSGPACK_CONTAINER


def _item_names(folder: Path) -> list[str]:
    return [
        entry.name
        for entry in entries_of(folder)
        if not entry.name.startswith(".")
        and entry.name != DESCRIPTOR
        and TEMPORARY not in entry.name
        and is_folder(entry)
    ]


def _is_item(place: Path) -> bool:
    return (
        is_tree_folder(place)
        or json_file_of(place) is not None
        or random_key_folder(place) is not None
    )


def _open_item(place: Path) -> tuple[LeafTable, OpenedTree | None] | None:
    try:
        if (real := leads_out(place, place.parent)) is not None:
            raise out_of_checkpoint(place, real)
        if is_tree_folder(place):
            tree = read_tree(place)
            return tree.table, tree
        refuse_links(place)
        key = random_key_folder(place)
        if key is not None:
            inside, is_jax = key
            tree = read_tree(inside)
            return random_key(inside, tree.table) if is_jax else tree.table, tree
        file = json_file_of(place)
    except LegacyError as error:
        error.message = f"item {place.name}: {error.message}"
        raise
    return None if file is None else (open_json(file), None)


def _unreadable_item(place: Path, error: LegacyError) -> LeafTable:
    try:
        document = None if is_tree_folder(place) else json_file_of(place)
    except LegacyError:  # what cannot be looked into can be a tree
        document = None
    return LeafTable([unreadable((), error)], json_file=document)


def _unknown_item(place: Path) -> UnsupportedCheckpoint:
    inside = ", ".join(list_folder(place)[:_SHOWN]) or "nothing"
    return UnsupportedCheckpoint(
        f"item {place.name}: {place} is no tree, no JSON document and no random key (inside: "
        f"{inside}). The handler that wrote it reads it (a protocol buffer, an iterator, a handler "
        "of your own); move it out of a copy of the step if you do not need it.",
        path=place,
    )


def _missing_items(
    folder: Path,
    listed: Mapping[str, str] | None,
    tables: Mapping[str, LeafTable],
    trees: list[OpenedTree],
) -> list[str]:
    """Items that the step lists and that are gone; when no tree is left, that is damage."""
    gone = [name for name in listed or () if name not in tables and name != DESCRIPTOR]
    if gone and not trees:
        raise DamagedCheckpoint(
            f"{folder}: {STEP_METADATA} lists the items {', '.join(gone)}, of which there is no "
            "folder, and no other tree is here. Copy the step again.",
            path=folder,
            problems=[f"item {name} has no folder" for name in gone],
        )
    return [f"item {name} is listed in {STEP_METADATA} and has no folder" for name in gone]


def _era_of(trees: list[OpenedTree]) -> str:
    """What the tree that knows most says: one release wrote all of them."""
    if not trees:
        return "an unknown release of orbax (no tree is here)"
    return min(trees, key=lambda tree: (tree.era.startswith(UNKNOWN), not tree.has_types)).era


def _format(
    trees: list[OpenedTree], folder: Path, evidence: Iterable[str], step: StepMetadata | None
) -> Format:
    is_v1 = entry_kind(folder / V1_MARKER) is not None
    marks = [f"the file {V1_MARKER}"] if is_v1 else []
    if not is_v1 and step is not None and step.items:
        is_v1 = any(_V1_HANDLERS in handler for handler in step.items.values())
        marks = ["handlers of Orbax v1"] if is_v1 else []
    found = [fact for tree in trees for fact in tree.evidence]
    nnx = next(filter(None, (nnx_era(tree.table) for tree in trees)), None)
    found += nnx[1:] if nnx else ()
    layout = {part for tree in trees for part in tree.layout}
    return Format(
        ORBAX_V1 if is_v1 else ORBAX,
        "+".join(sorted(layout, key=_LAYOUTS.index)) or "json",
        _era_of(trees) + (f", {nnx[0]}" if nnx else ""),
        tuple(dict.fromkeys([*marks, *found, *evidence])),
    )
