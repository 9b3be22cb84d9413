"""Checkpoints of ``flax.training.checkpoints`` and ``flax.serialization.to_bytes``.

One msgpack value holds the whole state. The encoding changed over the years, and the file does
not name its writer, so what is read is what the bytes say:

- An array is Ext 1, a complex number Ext 2, a numpy scalar Ext 3. The dtype is a code (``<f4``)
  up to flax 0.2.2, a name (``float32``) from 0.3.0 on. The name has no byte order: an array that
  was big-endian in memory was written so and cannot be told from others. No reader can know.
- Arrays over 2**30 bytes are cut into chunks (a dict that says so): one leaf here.
- A namedtuple is ``{'name', 'fields', 'values'}`` up to flax 0.3.4, and a dict of its fields from
  0.3.5 on. Of the old kind the class name is kept, as a :class:`~legacy.leaves.Node`.
- Lists and tuples are dicts with the keys ``'0'``, ``'1'``, ...; nothing tells them from such a
  dict, so nothing is claimed. ``()``, ``[]`` and optax's ``EmptyState`` are all ``{}``.
- Arrays of several processes lie in a folder beside the file, see :mod:`legacy.flax_gda`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from legacy.checkpoint import Format
from legacy.errors import DamagedCheckpoint, LegacyError, NotACheckpoint, UnsupportedCheckpoint
from legacy.flax_gda import SideFolder, is_gda_placeholder
from legacy.leaves import Leaf, LeafPath, LeafTable, Node, error_of, format_path, unreadable
from legacy.msgpack_index import ArrayAt, TupleAt, UnreadableAt, map_file, scan
from legacy.msgpack_leaves import Place, chunked_leaf, debris, is_chunked, plain_leaf

__all__ = ["index_msgpack", "open_msgpack"]

_HOLLOW: Final = ("none", "empty", "unreadable")
_NAMEDTUPLE_KEYS: Final = frozenset({"name", "fields", "values"})
_ORBAX_PLACEHOLDER: Final = "PLACEHOLDER://"
_ORBAX_MARKS: Final = ("manifest.ocdbt", "_METADATA")
_ORBAX_NOTE: Final = (
    "looks like Orbax's mark for an array stored elsewhere; no such store is beside this file"
)
_EMPTY_NOTE: Final = "flax writes {}, (), [] and optax's EmptyState alike"

_OLD_NAMEDTUPLES: Final = "namedtuples are stored as name, fields and values"
_SCALARS: Final = "numpy scalars have an extension type of their own"
_CHUNKS: Final = "arrays are cut into chunks"
_LISTS: Final = "lists are stored as lists, which to_bytes never does"
_TUPLES: Final = "tuples are stored as Orbax stores them"
_GDA: Final = "arrays of several processes lie in a _gda folder"


def open_msgpack(file: Path) -> tuple[LeafTable, Format]:
    """Open a msgpack checkpoint of any flax release without reading an array.

    Args:
        file: the file (``checkpoint_1000``, ``model.msgpack``, ...). A ``<file>_gda`` folder
            beside it is found by itself.

    Returns:
        The leaves, and which writer the bytes speak of.

    Raises:
        CheckpointNotFound: there is no such file.
        CannotLook: the file may not be read.
        NotACheckpoint: an empty file, a folder, or a value that is no tree and no array.
        DamagedCheckpoint: truncated or contradictory bytes.
        UnsupportedCheckpoint: a checkpoint of T5X, whose arrays lie elsewhere; or not one leaf
            can be read. While some can, the others are ``unreadable`` leaves.

    >>> import msgpack, tempfile
    >>> file = Path(tempfile.mkdtemp()) / "checkpoint_3"
    >>> _ = file.write_bytes(msgpack.packb({"step": 3, "config": {"name": "cnn"}}))
    >>> table, kind = open_msgpack(file)
    >>> list(table), table["step",].read(), kind.name
    ([('config', 'name'), ('step',)], 3, 'flax-msgpack')
    """
    found = _index(file, flax=True)
    texts = [(leaf.path, leaf.read()) for leaf in found.leaves if leaf.kind == "str"]
    beside = SideFolder(file, [(path, text) for path, text in texts if is_gda_placeholder(text)])
    leaves = [_in_flax(file, leaf, found, beside) for leaf in found.leaves]
    _raise_all(file, found.problems)
    _raise_lost(file, leaves)
    return LeafTable(leaves, found.nodes), _describe(found)


def index_msgpack(file: Path) -> tuple[list[Leaf], dict[LeafPath, Node]]:
    """Index the msgpack file of an Orbax tree (``checkpoint``), which is no flax checkpoint.

    Lists and tuples are known here and get a node. Placeholders stay ``str`` leaves.

    Args:
        file: the file.

    Returns:
        The leaves in file order, and what inner nodes were (plain dicts have no entry).

    Raises:
        LegacyError: as :func:`open_msgpack`.

    >>> import msgpack, tempfile
    >>> file = Path(tempfile.mkdtemp()) / "checkpoint"
    >>> _ = file.write_bytes(msgpack.packb({"mu": ["PLACEHOLDER://mu.0"]}))
    >>> leaves, nodes = index_msgpack(file)
    >>> leaves[0].path, leaves[0].read(), nodes
    (('mu', '0'), 'PLACEHOLDER://mu.0', {('mu',): Node(container='list', name=None)})
    """
    found = _index(file, flax=False)
    _raise_all(file, found.problems)
    return found.leaves, found.nodes


@dataclass(slots=True)
class _Found:
    """What one walk over a file collects; the facts are for :class:`Format`."""

    leaves: list[Leaf] = field(default_factory=list)
    nodes: dict[LeafPath, Node] = field(default_factory=dict)
    problems: list[LegacyError] = field(default_factory=list)
    codes: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    facts: dict[str, LeafPath] = field(default_factory=dict)

    def saw(self, value: Any, path: LeafPath) -> None:
        if isinstance(value, ArrayAt):
            (self.codes if value.dtype.is_code else self.names).add(value.dtype.spelling)
            if value.scalar:
                self.facts.setdefault(_SCALARS, path)


def _index(file: Path, *, flax: bool) -> _Found:
    buffer = map_file(file)
    root = scan(buffer, file)
    if isinstance(root, UnreadableAt):
        raise root.error
    if not isinstance(root, dict | list | ArrayAt):
        raise NotACheckpoint(
            f"{file} holds a single {type(root).__name__}, no tree and no array, so it is no "
            "checkpoint of flax. If it should be one, it was overwritten; take a backup.",
            path=file,
        )
    found = _Found()
    place = Place(file, buffer)
    waiting: list[tuple[LeafPath, Any]] = [((), root)]
    while waiting:  # no recursion: the file says how deep it goes
        path, value = waiting.pop()
        if isinstance(value, dict | list):
            children = _children(path, value, found, place, flax=flax)
            waiting.extend([((*path, name), child) for name, child in reversed(children)])
        else:
            found.saw(value, path)
            is_lost = isinstance(value, UnreadableAt)
            leaf = unreadable(path, value.error) if is_lost else plain_leaf(path, value, place)
            found.leaves.append(leaf)
    return found


_Children = list[tuple[str, Any]]


def _children(
    path: LeafPath, value: dict[str, Any] | list[Any], found: _Found, place: Place, *, flax: bool
) -> _Children:
    """The children of a container; none of one that turns out to be a leaf."""
    if (was := debris(value)) is not None:
        said = f"{place.file}: leaf {format_path(path)}: {was}. Take another step or a backup."
        damage = DamagedCheckpoint(said, path=place.file, leaf=path)
        found.leaves.append(unreadable(path, damage))
        return []
    if isinstance(value, list):
        kind, fact = ("tuple", _TUPLES) if isinstance(value, TupleAt) else ("list", _LISTS)
        found.facts.setdefault(fact, path)
        return _container(path, [(str(n), v) for n, v in enumerate(value)], Node(kind), found)
    if is_chunked(value):
        leaf = chunked_leaf(path, value, place)
        found.leaves.append(leaf)
        found.facts.setdefault(_CHUNKS, path)
        for chunk in value["chunks"].values() if leaf.kind != "unreadable" else ():
            found.saw(chunk, path)
        return []
    if _is_tensorstore_spec(value):
        found.problems.append(_elsewhere(place.file, path, value))
        return []
    fields = _old_namedtuple(value) if flax else None
    if fields is None:
        return _container(path, list(value.items()), None, found)
    found.facts.setdefault(_OLD_NAMEDTUPLES, path)
    return _container(path, fields, Node("namedtuple", value["name"]), found)


def _container(path: LeafPath, children: _Children, node: Node | None, found: _Found) -> _Children:
    if not children:
        container = "dict" if node is None else node.name or node.container
        found.leaves.append(Leaf(path, "empty", container=container))
    elif node is not None:
        found.nodes[path] = node
    return children


def _old_namedtuple(value: dict[str, Any]) -> _Children | None:
    """Field names and values of a namedtuple of flax <= 0.3.4; None for any other dict."""
    if value.keys() != _NAMEDTUPLE_KEYS:
        return None
    name, fields, values = value["name"], value["fields"], value["values"]
    if not isinstance(fields, dict) or not isinstance(values, dict):
        return None
    numbers = {str(n) for n in range(len(fields))}
    if fields.keys() != numbers or values.keys() != numbers:
        return None
    names = list(fields.values())
    if not all(isinstance(n, str) and n.isidentifier() for n in [name, *names]):
        return None
    if len(set(names)) != len(names):
        return None
    return [(field_name, values[n]) for n, field_name in fields.items()]


def _is_tensorstore_spec(value: dict[str, Any]) -> bool:
    """Whether a dict is what T5X writes for an array that lies in a folder of its own."""
    kvstore = value.get("kvstore")
    return isinstance(value.get("driver"), str) and (
        isinstance(kvstore, str) or (isinstance(kvstore, dict) and "driver" in kvstore)
    )


def _elsewhere(file: Path, path: LeafPath, spec: dict[str, Any]) -> UnsupportedCheckpoint:
    kvstore = spec["kvstore"]
    place = kvstore.get("path", kvstore) if isinstance(kvstore, dict) else kvstore
    return UnsupportedCheckpoint(
        f"{file}: leaf {format_path(path)}: not an array but a TensorStore spec (driver "
        f"{spec['driver']!r}, {place!r}): a T5X checkpoint, which keeps its arrays in folders "
        "beside this file. Load it once with t5x.checkpoints.load_t5x_checkpoint and write the "
        "result with flax.serialization.to_bytes.",
        path=file,
        leaf=path,
    )


def _in_flax(file: Path, leaf: Leaf, found: _Found, beside: SideFolder) -> Leaf:
    """What a leaf means in a file of flax: placeholders and empty containers."""
    if leaf.kind == "empty" and leaf.container == "dict":
        return replace(leaf, notes=(_EMPTY_NOTE,))
    if leaf.kind != "str":
        return leaf
    text = leaf.read()
    if is_gda_placeholder(text):
        found.facts.setdefault(_GDA, leaf.path)
        try:
            return beside.leaf(leaf.path, text)
        except LegacyError as error:
            return unreadable(leaf.path, error)
    elif text.startswith(_ORBAX_PLACEHOLDER):
        name = text.removeprefix(_ORBAX_PLACEHOLDER)
        marks = [file.parent / n for n in (*_ORBAX_MARKS, name)]
        if any(os.path.exists(p) for p in marks):  # noqa: PTH110 - Path.exists raises on a long name
            found.problems.append(_orbax_index(file, leaf.path, text))
        return replace(leaf, notes=(_ORBAX_NOTE,))
    return leaf


def _orbax_index(file: Path, path: LeafPath, text: str) -> UnsupportedCheckpoint:
    return UnsupportedCheckpoint(
        f"{file}: leaf {format_path(path)}: {text!r} stands for an array of an Orbax checkpoint, "
        f"of which this file is only the index. Give the folder {file.parent} instead.",
        path=file,
        leaf=path,
    )


def _raise_all(file: Path, problems: list[LegacyError]) -> None:
    """Raise what was found: one problem as it is, several as one error that has them all."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise UnsupportedCheckpoint(
            f"{file}: {len(problems)} leaves cannot be read. The first: {problems[0]}",
            path=file,
            leaf=problems[0].leaf,
            problems=[str(problem) for problem in problems],
        )


def _raise_lost(file: Path, leaves: list[Leaf]) -> None:
    """Refuse a file of which not one value can be read; else the others may be."""
    lost = [leaf for leaf in leaves if leaf.kind == "unreadable"]
    if not lost or any(leaf.kind not in _HOLLOW for leaf in leaves):
        return
    _raise_all(file, [error_of(leaf) for leaf in lost])


def _describe(found: _Found) -> Format:
    evidence = [f"{fact}, first at {format_path(p)}" for fact, p in found.facts.items()]
    for what, spellings in (("codes", found.codes), ("names", found.names)):
        if spellings:
            evidence.append(f"dtypes are {what}: {', '.join(sorted(spellings))}")
    layout = "msgpack+gda" if _GDA in found.facts else "msgpack"
    return Format("flax-msgpack", layout, _era(found), tuple(evidence))


def _era(found: _Found) -> str:
    """The releases that write what was found; dtype names came with flax 0.3.0."""
    old = _OLD_NAMEDTUPLES in found.facts
    named = bool(found.names) or not found.facts.keys().isdisjoint({_SCALARS, _CHUNKS})
    if found.codes:
        return "marks of several eras" if named or _GDA in found.facts else "flax 0.2.2 or older"
    if _GDA in found.facts:
        return "marks of several eras" if old else "flax 0.6.0 or newer, several processes"
    if old:
        return "flax 0.3.0 to 0.3.4" if named else "flax 0.3.4 or older"
    return "flax 0.3.0 or newer" if named else "any release of flax"
