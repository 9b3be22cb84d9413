"""Compares a golden checkpoint with the truth that was written beside it, leaf by leaf.

`differences` is the whole of it: it opens the checkpoint of a golden as a user would, and lists
everything that is not as the truth says. What the release did not store (`losses` of the truth)
must be said by the reader: the leaf cannot be read, or carries a note.
"""

from __future__ import annotations

import json
import math
from collections import namedtuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

import legacy

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PLACES = ("ckpt", "mgr", "run")
"""Where the checkpoint of a golden may be, when its truth does not name it."""

ORBAX_KINDS = {
    "number": {"number", "scalar", "array"},
    "bool": {"bool", "scalar", "array"},
    "scalar": {"scalar", "array", "number", "bool"},
    "empty": {"empty", "none"},
}
"""Where Orbax keeps no difference: Python and numpy numbers are scalars, EmptyState is None."""

ORBAX_NODES = {
    "list": {"list", "tuple", "namedtuple"},
    "tuple": {"tuple", "list"},
}
"""Sequences that some releases of Orbax write as one kind."""

RENAMED = {"float8_e4m3b11": "float8_e4m3b11fnuz"}
"""Dtypes that ml_dtypes has given another name."""


def differences(golden: Path) -> list[str]:
    """Everything in which a golden's checkpoint is not as its truths say; empty when it is right.

    Args:
        golden: the folder that holds a checkpoint and `truth*.json`.

    Returns:
        One line for each difference.
    """
    found: list[str] = []
    for file in sorted(golden.glob("truth*.json")):
        truth = StoredTruth(file)
        try:
            found += [f"{file.stem}: {line}" for line in _compare(truth)]
        except legacy.LegacyError as error:
            found.append(f"{file.stem}: refused: {type(error).__name__}: {error}")
    return found or ([] if list(golden.glob("truth*.json")) else ["there is no truth"])


class StoredTruth:
    """One truth file."""

    def __init__(self, file: Path) -> None:
        self.info = json.loads(file.read_text(encoding="utf-8"))
        self.folder = file.parent
        self.is_main = file.stem == "truth"
        with np.load(file.with_suffix(".npz")) as arrays:
            self.arrays = dict(arrays)
        self.losses = {tuple(loss["path"]): loss["why"] for loss in self.info.get("losses", ())}

    @property
    def checkpoint(self) -> Path:
        """The path that a user would give."""
        name = self.info.get("checkpoint")
        names = [name] if name else [f"checkpoint_{self.info['step']}", *PLACES]
        return next(self.folder / name for name in names if (self.folder / name).exists())

    @property
    def open_step(self) -> float | None:
        """The step to ask for; None to take the last."""
        asked: float | None = self.info.get("open_step")
        if asked is None and not self.is_main and self.checkpoint.name in ("mgr", "run"):
            asked = self.info["step"]
        return asked

    @property
    def leaves(self) -> dict[tuple[str, ...], dict[str, Any]]:
        """Leaf entries by path."""
        return {tuple(entry["path"]): entry for entry in self.info["leaves"]}

    def value(self, entry: Mapping[str, Any]) -> Any:
        """The value of a leaf: an array of its own dtype, or a Python value."""
        if "data" in entry:
            return self._array(entry)
        value = entry.get("value")
        if entry["kind"] == "bytes":
            return bytes.fromhex(entry["value"])
        if entry.get("type") == "complex":
            return complex(*entry["value"])
        return value

    def _array(self, entry: Mapping[str, Any]) -> Any:
        array = self.arrays[entry["data"]]
        if entry["kind"] == "key":  # the truth has the key's data
            return array
        if not array.dtype.isnative:
            return array.astype(array.dtype.newbyteorder("="))
        extended = getattr(ml_dtypes, RENAMED.get(entry["dtype"], entry["dtype"]), None)
        if extended is not None and array.dtype.kind == "u":
            return array.view(extended)
        return array


def _compare(truth: StoredTruth) -> Iterator[str]:
    checkpoint = legacy.open(truth.checkpoint, step=truth.open_step)
    if truth.checkpoint.name in ("mgr", "run") and checkpoint.step != truth.info["step"]:
        yield f"step {checkpoint.step}, not {truth.info['step']}"
    table = _table(checkpoint, truth)
    wanted = truth.leaves
    for path in sorted(set(table) - set(wanted)):
        yield f"{legacy.format_path(path)}: too much, a leaf of kind {table[path].kind}"
    for path, entry in wanted.items():
        name = legacy.format_path(path)
        if path not in table:
            yield f"{name}: missing, a leaf of kind {entry['kind']}"
        elif path in truth.losses:
            yield from _loss(checkpoint, table[path], truth.losses[path], name)
        else:
            yield from (f"{name}: {line}" for line in _leaf(checkpoint, table[path], entry, truth))
    yield from _nodes(checkpoint, table, truth)
    for name, document in truth.info.get("json_items", {}).items():
        yield from _json_item(checkpoint, name, document)
    if not truth.losses:
        yield from _restored(checkpoint, truth)


def _table(checkpoint: legacy.Checkpoint, truth: StoredTruth) -> legacy.LeafTable:
    item = truth.info.get("item")
    if item is None:
        return checkpoint.leaves
    if item not in checkpoint.items:
        raise legacy.LegacyError(f"no item {item!r} but {sorted(checkpoint.items)}")
    return checkpoint.items[item]


def _loss(checkpoint: legacy.Checkpoint, leaf: legacy.Leaf, why: str, name: str) -> Iterator[str]:
    """A leaf that is not on disk as it was: the reader must say so."""
    if leaf.kind == "unreadable":
        try:
            leaf.read()
        except legacy.LegacyError:
            return
        yield f"{name}: kind unreadable, and it was read"
    elif not (_said_of_leaf(leaf, why) or _said_of_all(checkpoint, why)):
        yield f"{name}: read as {leaf.kind} without a note, though {why}"


def _said_of_leaf(leaf: legacy.Leaf, why: str) -> bool:
    """Whether a note is about the loss; many leaves have one on byte order and lost nothing."""
    return any("byte order" in why or "byte order" not in note for note in leaf.notes)


def _said_of_all(checkpoint: legacy.Checkpoint, why: str) -> bool:
    """Some losses cannot be told leaf by leaf: then the format says what may be lost."""
    return "byte order" in why and any("byte order" in e for e in checkpoint.format.evidence)


def _leaf(
    checkpoint: legacy.Checkpoint, leaf: legacy.Leaf, entry: dict[str, Any], truth: StoredTruth
) -> Iterator[str]:
    kind, orbax = entry["kind"], checkpoint.format.name != "flax-msgpack"
    allowed = ORBAX_KINDS.get(kind, {kind}) if orbax else {kind}
    if entry.get("type") == "complex":
        allowed = allowed | {"scalar"}  # flax 0.3.0 to 0.8 wrote Python's complex as numpy's
    if leaf.kind not in allowed:
        yield f"kind {leaf.kind}, not {kind} ({leaf.problem or 'no problem'})"
        return
    try:
        got = leaf.read()
    except legacy.LegacyError as error:
        yield f"cannot be read: {error}"
        return
    if kind in ("none", "empty"):
        return
    want = truth.value(entry)
    if kind in ("array", "key", "scalar"):
        yield from _array(leaf, got, want)
        if leaf.key_impl != entry.get("key_impl"):
            yield f"key_impl {leaf.key_impl}, not {entry.get('key_impl')}"
    elif not _same_value(got, want, exact_type=leaf.kind == kind):
        yield f"{got!r}, not {want!r}"


def _array(leaf: legacy.Leaf, got: Any, want: Any) -> Iterator[str]:
    got, want = np.asarray(got), np.asarray(want)
    if got.dtype != want.dtype:
        yield f"dtype {got.dtype}, not {want.dtype}"
    elif got.shape != want.shape:
        yield f"shape {got.shape}, not {want.shape}"
    elif got.tobytes() != want.tobytes():
        yield f"other bits: {got.reshape(-1)[:4]}, not {want.reshape(-1)[:4]}"
    if leaf.kind in ("array", "scalar", "key") and leaf.shape != want.shape:
        yield f"shape announced as {leaf.shape}, not {want.shape}"
    if leaf.kind in ("array", "scalar") and leaf.dtype != want.dtype:
        yield f"dtype announced as {leaf.dtype}, not {want.dtype}"


def _same_value(got: Any, want: Any, *, exact_type: bool) -> bool:
    if exact_type and type(got) is not type(want):
        return False
    if isinstance(want, float):
        if math.isnan(want):
            return bool(np.isnan(got))
        return bool(got == want) and math.copysign(1, got) == math.copysign(1, want)
    return bool(got == want)


def _nodes(
    checkpoint: legacy.Checkpoint, table: legacy.LeafTable, truth: StoredTruth
) -> Iterator[str]:
    """What the reader claims about inner nodes must be so; it need not claim anything."""
    if "nodes" not in truth.info:
        return
    was = {tuple(node["path"]): node for node in truth.info["nodes"]}
    for path, node in table.nodes.items():
        true = was.get(path, {"container": "dict", "name": "dict"})
        allowed = {true["container"]}
        if checkpoint.format.name != "flax-msgpack":
            allowed = {kind for kind in ORBAX_NODES if true["container"] in ORBAX_NODES[kind]}
            allowed |= {true["container"]}
        if node.container not in allowed:
            yield f"{legacy.format_path(path)}: called a {node.container}, was {true}"
        elif node.name not in (None, true["name"]):
            yield f"{legacy.format_path(path)}: called {node.name}, was {true['name']}"


def _json_item(checkpoint: legacy.Checkpoint, name: str, document: Any) -> Iterator[str]:
    item = checkpoint.items.get(name)
    if item is None or item.json_file is None:
        yield f"no JSON item {name}"
    elif json.loads(item.json_file.read_text(encoding="utf-8")) != document:
        yield f"JSON item {name} holds something else"


def _restored(checkpoint: legacy.Checkpoint, truth: StoredTruth) -> Iterator[str]:
    """`legacy.restore` into lists, tuples and namedtuples as they were must give all back."""
    wanted = {p: e for p, e in truth.leaves.items() if e["kind"] not in ("key", "none")}
    if not wanted:  # a typed key alone
        return
    values = {path: _target_leaf(truth, entry) for path, entry in wanted.items()}
    nodes = {tuple(node["path"]): node for node in truth.info.get("nodes", ())}
    target = _as_it_was(_nested(values), nodes, ())
    try:
        result = legacy.restore(checkpoint, target, item=truth.info.get("item"))
    except legacy.LegacyError as error:
        yield f"restore refused: {error}"
        return
    for path, entry in wanted.items():
        got, want = _at(result, path), values[path]
        if "data" in entry:
            same = not list(_bits(got, want))
        elif entry["kind"] == "empty":
            same = got is not None and not got
        else:
            same = _same_value(got, want, exact_type=True)
        if not same:
            yield f"{legacy.format_path(path)}: restored as {got!r}, not {want!r}"


def _target_leaf(truth: StoredTruth, entry: Mapping[str, Any]) -> Any:
    if entry["kind"] != "empty":
        return truth.value(entry)
    plain: dict[str, Any] = {"dict": {}, "list": [], "tuple": (), "FrozenDict": {}}
    container = entry["container"]
    return plain[container] if container in plain else namedtuple(container, "")()  # noqa: PYI024


def _as_it_was(tree: Any, nodes: Mapping[tuple[str, ...], Any], path: tuple[str, ...]) -> Any:
    """Nested dicts as the containers they were; dataclasses and FrozenDicts stay dicts."""
    if not isinstance(tree, dict) or not tree:
        return tree
    made = {name: _as_it_was(child, nodes, (*path, name)) for name, child in tree.items()}
    node = nodes.get(path, {"container": "dict"})
    if node["container"] in ("list", "tuple"):
        children = [made.get(str(n)) for n in range(1 + max(map(int, made)))]
        return tuple(children) if node["container"] == "tuple" else children
    if node["container"] == "namedtuple":
        return namedtuple(node["name"], list(made))(**made)  # noqa: PYI024
    return made


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        if isinstance(tree, dict):
            tree = tree[part]
        else:
            tree = getattr(tree, part) if hasattr(tree, "_fields") else tree[int(part)]
    return tree


def _bits(got: Any, want: Any) -> Iterator[str]:
    got, want = np.asarray(got), np.asarray(want)
    if (got.dtype, got.shape, got.tobytes()) != (want.dtype, want.shape, want.tobytes()):
        yield "other"


def _nested(values: Mapping[tuple[str, ...], Any]) -> Any:
    if () in values:
        return values[()]
    root: dict[str, Any] = {}
    for path, value in values.items():
        node = root
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = value
    return root
