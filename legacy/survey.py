"""What lies directly in one folder: steps, single checkpoints, leftovers, and the rest.

The names of steps are a convention of each library (``checkpoint_3``, ``7``, ``ckpt_0000075``).
Nothing is opened beyond the first bytes of a file and the step's own metadata document.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from legacy.checkpoint import Run, Skipped, StepEntry
from legacy.errors import CannotLook
from legacy.flax_gda import GDA_SUFFIX
from legacy.hf_shards import indexed_shards, is_index, shard_of
from legacy.impostors import looks_like_msgpack, read_head
from legacy.orbax import TEMPORARY as ORBAX_TMP
from legacy.orbax import holds_items, is_tree_folder
from legacy.orbax_items import json_file_of
from legacy.orbax_metadata import AGGREGATE, STEP_METADATA, TREE_METADATA, V1_MARKER
from legacy.orbax_stores import MANIFEST
from legacy.step_names import split_step, step_of
from legacy.unfinished import COMMIT_SUCCESS, leftover, not_committed

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Survey", "kind_of", "survey"]

MANAGER_METADATA: Final = "metadata"
_MANAGER_METADATA_FILES: Final = ("_ROOT_METADATA", "metadata")
_MARKS: Final = frozenset({STEP_METADATA, V1_MARKER, TREE_METADATA, AGGREGATE, MANIFEST})
_DEFAULT_ITEM: Final = "default"
_NO_STEP: Final = "named like a step, and no checkpoint itself: it holds others"
_NO_ITEMS: Final = frozenset({"best", "last", "latest", "final", "checkpoint", "ckpt"})
_SIDE_BY_SIDE: Final = frozenset({"seed", "fold", "split", "trial", "exp", "experiment"})
_VERSION_CONTROL: Final = frozenset({".git", ".hg"})

FolderKind = Literal["tree", "items"]


def kind_of(folder: Path) -> FolderKind | None:
    """Whether a folder is a checkpoint: an Orbax tree, or a step with items.

    A folder of trees named by number is a run, though each of them looks like an item.

    Args:
        folder: an existing folder.

    Returns:
        ``tree``, ``items`` or None.

    Raises:
        CannotLook: the folder may not be read.
    """
    try:
        names = set(os.listdir(folder))  # noqa: PTH208 - names, not paths
    except OSError as error:
        raise _cannot_look(folder, error) from error
    try:
        if is_tree_folder(folder):
            return "tree"
        return "items" if holds_items(folder) and _is_step(folder, names) else None
    except CannotLook:
        if names & _MARKS:
            raise
        return None  # one entry that cannot be read does not hide the others: survey names it


def _is_step(folder: Path, names: set[str]) -> bool:
    """Tell a step with items from a folder in which somebody keeps several checkpoints.

    Orbax marks a step since 0.5.11. Before that the name of a manager's step is a number, alone or
    after a prefix of any kind; without either, trees side by side are taken for checkpoints, unless
    a JSON item is with them.
    """
    if names & {STEP_METADATA, V1_MARKER}:
        return True
    inside = [folder / name for name in names if ORBAX_TMP not in name and (folder / name).is_dir()]
    trees = [path for path in inside if is_tree_folder(path)]
    if trees and all(split_step(path.name) for path in trees):
        return False  # a run of trees
    if step_of(folder, has_items=False) is not None:
        return True
    documents = [path for path in inside if json_file_of(path) and path not in trees]
    if len(trees) + len(documents) != len(inside):
        return False
    return bool(documents) or _is_prefixed_step(folder, names, {path.name for path in trees})


def _is_prefixed_step(folder: Path, names: set[str], trees: set[str]) -> bool:
    """Tell an unmarked step ``<prefix>_<number>`` of a manager, whatever the prefix.

    It has the item that a manager names itself, or another step beside it has the same items, and
    nothing else. ``seed_0/params`` and ``run_1/best`` are checkpoints of several runs.
    """
    name = split_step(folder.name)
    if name is None or not name.prefix.endswith("_"):
        return False
    if trees == {_DEFAULT_ITEM}:
        return True
    if not trees or trees & _NO_ITEMS or name.prefix[:-1].lower() in _SIDE_BY_SIDE:
        return False
    if names - trees - {COMMIT_SUCCESS}:
        return False
    try:
        beside = [path for path in folder.parent.iterdir() if path.name != folder.name]
        return any(_has_items(path, trees) for path in beside if _prefix(path) == name.prefix)
    except OSError:
        return False


def _has_items(folder: Path, trees: set[str]) -> bool:
    if not folder.is_dir() or {path.name for path in folder.iterdir()} - {COMMIT_SUCCESS} != trees:
        return False
    return all(is_tree_folder(folder / name) for name in trees)


def _prefix(path: Path) -> str | None:
    name = split_step(path.name)
    return name and name.prefix


@dataclass(frozen=True, slots=True)
class Survey:
    """What lies directly in one folder.

    Attributes:
        folder: the folder.
        runs: steps by name, one run for each prefix.
        singles: checkpoints that are no step of a run.
        strays: leftovers and unreadable things, with reasons.
        below: folders that are none of this; a search goes on there.
        foreign: names of files that are no checkpoints.
    """

    folder: Path
    runs: tuple[Run, ...]
    singles: tuple[Run, ...]
    strays: tuple[Skipped, ...]
    below: tuple[Path, ...]
    foreign: tuple[str, ...]


@dataclass(slots=True)
class _Desk:
    """The piles that the entries of a folder are sorted onto."""

    singles: list[Run] = field(default_factory=list)
    strays: list[Skipped] = field(default_factory=list)
    below: list[Path] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    groups: dict[str, list[_Named]] = field(default_factory=lambda: defaultdict(list))


class _Named(NamedTuple):
    """An entry whose name is a step's; ``good`` when it looks like a checkpoint inside, too."""

    number: int | float
    path: Path
    is_folder: bool
    kind: FolderKind | None
    good: bool


def survey(folder: Path) -> Survey:
    """Look at the entries of one folder.

    Args:
        folder: an existing folder that is itself no checkpoint.

    Returns:
        Everything in it, sorted by what it is.

    Raises:
        CannotLook: the folder may not be listed.
    """
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda e: e.name)
    except OSError as error:
        raise _cannot_look(folder, error) from error
    desk = _Desk()
    names = {entry.name for entry in listed}
    indices = [folder / name for name in names if is_index(Path(name))]
    shards = {name for index in indices for name in indexed_shards(index)}
    shards |= {name for name in names if shard_of(name) in names}  # an empty one has no parameter
    for entry in listed:
        if entry.name in shards:
            continue  # the index stands for them
        try:
            _sort_in(desk, Path(folder, entry.name), entry, names)
        except OSError as error:
            reason = f"could not look: {error.strerror or error}"
            desk.strays.append(Skipped(Path(folder, entry.name), reason))
    runs = [run for prefix in sorted(desk.groups) for run in _runs_of(desk, folder, prefix)]
    return Survey(
        folder,
        tuple(runs),
        tuple(desk.singles),
        tuple(desk.strays),
        tuple(desk.below),
        tuple(desk.foreign),
    )


def _sort_in(desk: _Desk, path: Path, entry: os.DirEntry[str], names: set[str]) -> None:
    reason = leftover(entry.name, names)
    if reason:
        desk.strays.append(Skipped(path, reason))
    elif entry.is_symlink() and (sibling := _sibling(path, names)):
        desk.strays.append(Skipped(path, f"a link to {sibling!r} beside it"))
    elif entry.is_dir():
        _sort_folder(desk, path, names)
    elif entry.is_file():
        _sort_file(desk, path, entry.stat().st_size)
    elif entry.is_symlink():
        desk.strays.append(Skipped(path, "a link to nothing"))
    elif split_step(entry.name) is not None:
        desk.strays.append(Skipped(path, "named like a step, and neither a file nor a folder"))
    else:
        desk.foreign.append(entry.name)


def _sibling(path: Path, names: set[str]) -> str | None:
    target = Path(os.path.realpath(path))  # unlike resolve(), bears with a loop
    beside = target.parent == path.parent.resolve() and target.name in names - {path.name}
    return target.name if beside else None


def _sort_folder(desk: _Desk, path: Path, names: set[str]) -> None:
    name = path.name
    if name.endswith(GDA_SUFFIX) and (owner := name.removesuffix(GDA_SUFFIX)):
        if owner in names:
            return
        if split_step(owner):
            reason = f"arrays of the msgpack file {owner!r}, which is not here"
            desk.strays.append(Skipped(path, reason))
            return
    if name in _VERSION_CONTROL or _is_manager_metadata(path):
        return
    kind = kind_of(path)
    step = split_step(name)
    if step is not None:
        desk.groups[step.prefix].append(_Named(step.number, path, True, kind, kind is not None))
    elif kind is not None:
        desk.singles.append(_single(path))
    else:
        desk.below.append(path)


def _is_manager_metadata(path: Path) -> bool:
    return path.name == MANAGER_METADATA and any(
        (path / file).is_file() for file in _MANAGER_METADATA_FILES
    )


def _sort_file(desk: _Desk, path: Path, size: int) -> None:
    if is_index(path):
        desk.singles.append(_single(path))
        return
    step = split_step(path.name)
    try:
        good = looks_like_msgpack(read_head(path), size)
    except PermissionError:
        if step is None:
            raise
        good = True  # a step that cannot be read is a step: opening it says so
    if step is not None:
        desk.groups[step.prefix].append(_Named(step.number, path, False, None, good))
    elif good:
        desk.singles.append(_single(path))
    else:
        desk.foreign.append(path.name)


def _runs_of(desk: _Desk, folder: Path, prefix: str) -> Iterable[Run]:
    members = desk.groups[prefix]
    good = [m for m in members if m.good]
    if not good:
        desk.foreign.extend(m.path.name for m in members if not m.is_folder)
        desk.below.extend(m.path for m in members if m.is_folder)
        return
    alone = len(good) == 1 and step_of(good[0].path, has_items=good[0].kind == "items") is None
    if alone:
        desk.singles.append(_single(good[0].path))
        desk.below.extend(m.path for m in members if m.is_folder and not m.good)
        desk.foreign.extend(m.path.name for m in members if not m.is_folder and not m.good)
        return
    steps, skipped = [], []
    for m in sorted(members, key=lambda m: (m.number, m.path.name)):
        if m.is_folder and not m.good and _holds_checkpoints(m.path):
            desk.below.append(m.path)
            skipped.append(Skipped(m.path, _NO_STEP))
        elif reason := _unfinished(m):
            skipped.append(Skipped(m.path, reason))
        else:
            steps.append(StepEntry(m.number, m.path))
    manager = any(m.kind == "items" for m in good) or (
        not prefix and all(m.is_folder for m in members)
    )
    yield Run(folder, "orbax-manager" if manager else "flax", tuple(steps), tuple(skipped))


def _holds_checkpoints(folder: Path) -> bool:
    try:
        for path in folder.iterdir():
            if path.is_dir() and kind_of(path) is not None:
                return True
            if path.is_file() and looks_like_msgpack(read_head(path), path.stat().st_size):
                return True
    except OSError:
        pass  # opening the step says so
    return False


def _unfinished(member: _Named) -> str | None:
    if not member.is_folder:
        return None
    try:
        if not os.listdir(member.path):  # noqa: PTH208 - names, not paths
            return "empty step folder"
        return not_committed(member.path)
    except OSError:
        return None  # opening the step says so


def _single(path: Path) -> Run:
    return Run(path, "single", (StepEntry(None, path),))


def _cannot_look(path: Path, error: OSError) -> CannotLook:
    return CannotLook(
        f"{path}: could not look ({error.strerror or error}), so whether it holds checkpoints is "
        "unknown. Give this process read access, or run as a user who has it.",
        path=path,
    )
