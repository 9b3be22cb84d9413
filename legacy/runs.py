"""Finds runs and checkpoints on a disk, and the steps of one run.

A name that was left out is always named with the reason, and a folder that may not be read is never
reported as one with nothing in it: in a list of two hundred runs nobody would miss the one.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from legacy.checkpoint import Run, Skipped, StepEntry
from legacy.errors import AmbiguousCheckpoint, CannotLook, CheckpointNotFound, NotACheckpoint
from legacy.hf_shards import is_index
from legacy.impostors import looks_like_msgpack, name_impostor, read_head
from legacy.leaves import natural_key
from legacy.orbax_documents import looking
from legacy.paths import absolute
from legacy.step_names import split_step, step_of, step_of_only
from legacy.strangers import name_folder
from legacy.survey import Survey, kind_of, survey
from legacy.unfinished import leftover

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["contents_in_words", "find", "single", "steps_of"]

MAX_DEPTH: Final = 64
"""Folders below the root that a search goes down; deeper ones are named as skipped."""

_MENTIONED: Final = 10
_NO_STEP: Final = "named like a step, and no checkpoint"
_BESIDE: Final = "a checkpoint beside the steps; give its own path to read it"


def find(root: str | os.PathLike[str]) -> tuple[Run, ...]:
    r"""List the runs and single checkpoints at or below a folder.

    Links are followed, and no folder is looked at twice.

    Args:
        root: a folder, or one checkpoint.

    Returns:
        Runs in natural order of their paths. A folder in which only leftovers or unreadable
        things were found gives a run of kind ``none`` without steps, so that they are named.

    Raises:
        CheckpointNotFound: nothing is at ``root``.
        CannotLook: ``root`` itself may not be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("checkpoint_9", "checkpoint_10", "checkpoint_tmp"):
    ...         _ = Path(folder, name).write_bytes(b"\x81\xa1a\x01")
    ...     (run,) = find(folder)
    >>> run.kind, [entry.step for entry in run.steps], run.skipped[0].reason
    ('flax', [9, 10], 'temporary file of a flax save that did not finish')
    """
    root = _existing(root)
    with looking(root):
        if root.is_file():
            file = _single_file(root)
            return () if file is None else (file,)
        if kind_of(root) is not None:
            return (single(root),)
        return tuple(sorted(_walk(root), key=lambda run: natural_key(run.path.parts)))


def steps_of(folder: str | os.PathLike[str]) -> Run:
    r"""The steps of one run.

    Args:
        folder: the folder of a run, or a single checkpoint.

    Returns:
        The run; for a single checkpoint a run of one step.

    Raises:
        CheckpointNotFound: nothing is at ``folder``.
        CannotLook: it may not be read.
        AmbiguousCheckpoint: it holds the steps of several runs, or several checkpoints.
        NotACheckpoint: it holds neither steps nor one checkpoint.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "checkpoint_3").write_bytes(b"\x81\xa1a\x01")
    ...     steps_of(folder).steps[0].step
    3
    """
    folder = _existing(folder)
    with looking(folder):
        return _steps_of(folder)


def _steps_of(folder: Path) -> Run:
    if folder.is_file():
        file = _single_file(folder)
        if file is None:
            raise NotACheckpoint(
                f"{folder}: {name_impostor(read_head(folder), folder) or 'no checkpoint'}",
                path=folder,
            )
        return file
    if kind_of(folder) is not None:
        return single(folder)
    here = survey(folder)
    if len(here.runs) == 1:
        beside = [Skipped(run.path, _BESIDE) for run in here.singles]
        run = here.runs[0]
        return replace(run, skipped=(*run.skipped, *here.strays, *beside))
    if here.runs:
        raise AmbiguousCheckpoint(_several_runs(here), path=folder)
    walked = list(_walk(folder))
    every = [run for run in walked if run.steps]
    if not every:
        raise NotACheckpoint(contents_in_words(here), path=folder)
    if len(every) == len(here.singles) == 1:
        below = [s for run in walked if not run.steps for s in run.skipped]
        run = _only(here)
        return replace(run, skipped=(*run.skipped, *(s for s in below if s not in run.skipped)))
    raise AmbiguousCheckpoint(_several(folder, every), path=folder)


def _only(here: Survey) -> Run:
    """The only checkpoint of a folder: a run of one step, when its name tells one there."""
    run = here.singles[0]
    path = run.path
    step, name = step_of_only(path), split_step(path.name)
    if step is None or name is None:
        return replace(run, skipped=here.strays)
    others = [*here.below, *(here.folder / other for other in here.foreign)]
    alike = [(other, split_step(other.name)) for other in others]
    missed = [Skipped(other, _NO_STEP) for other, n in alike if n and n.prefix == name.prefix]
    return Run(here.folder, "flax", (StepEntry(step, path),), (*here.strays, *missed))


def single(path: Path) -> Run:
    """A run of the one checkpoint at ``path``, with the step its name tells.

    >>> single(Path("/nowhere/checkpoint_3")).steps[0].step
    3
    """
    has_items = path.is_dir() and kind_of(path) == "items"
    return Run(path, "single", (StepEntry(step_of(path, has_items=has_items), path),))


def contents_in_words(here: Survey) -> str:
    """The message for a folder that is no checkpoint: what is in it.

    Args:
        here: what lies in the folder.

    Returns:
        A message that says what was found, where, and what to do.
    """
    said = [f"{here.folder}: neither a checkpoint nor the folder of a run."]
    if reason := leftover(here.folder.name, set()):
        said.append(f"It is a {reason}: take another step.")
    what = name_folder({path.name for path in here.folder.iterdir()})
    if what:
        said.append(f"It is {what}")
    strange = [_strange(here.folder / name) for name in here.foreign]
    named = [text for text in strange if text]
    if named:
        said.append("Found " + " ".join(named[:_MENTIONED]))
    elif here.foreign:
        said.append(f"Found files of other kinds: {_list(here.foreign)}.")
    if here.strays:
        said.append(
            "Left out: " + _list([f"{s.path.name} ({s.reason})" for s in here.strays]) + "."
        )
    if here.below:
        said.append(f"Folders in it: {_list([path.name for path in here.below])}.")
    elif not (here.foreign or here.strays):
        said.append("The folder is empty.")
    said.append(
        "Expected a flax msgpack file, checkpoint_<step> files or folders, an Orbax checkpoint, or "
        "the steps of a CheckpointManager."
    )
    return " ".join(said)


def _several_runs(here: Survey) -> str:
    shown = [f"{_pattern(run)} ({len(run.steps)} steps)" for run in here.runs]
    return (
        f"{here.folder}: holds the steps of {len(here.runs)} runs: {_list(shown)}. Give the "
        f"path of one step, such as {here.runs[0].steps[-1].path}."
    )


def _several(folder: Path, every: list[Run]) -> str:
    paths = sorted({run.path for run in every}, key=lambda path: natural_key(path.parts))
    shown = [os.path.relpath(path, folder) for path in paths]
    what = "1 checkpoint or run" if len(paths) == 1 else f"{len(paths)} checkpoints or runs"
    return (
        f"{folder}: is no checkpoint and no run, and holds {what}: {_list(shown)}. Give the path "
        f"of one, such as {paths[0]}."
    )


def _pattern(run: Run) -> str:
    return f"{run.steps[0].path.name} … {run.steps[-1].path.name}"


def _strange(path: Path) -> str | None:
    try:
        what = name_impostor(read_head(path), path)
    except OSError:
        return None
    if what is None or what.startswith(("a JSON", "a text")):
        return None
    return f"{path.name!r}: {what}"


def _list(names: list[str] | tuple[str, ...]) -> str:
    more = len(names) - _MENTIONED
    shown = ", ".join(names[:_MENTIONED])
    return f"{shown}, and {more} more" if more > 0 else shown


def _existing(path: str | os.PathLike[str]) -> Path:
    path = absolute(path)
    try:
        path.stat()
    except PermissionError as error:
        raise CannotLook(
            f"{path}: this process may not look there (permission denied).", path=path
        ) from error
    except OSError as error:
        raise CheckpointNotFound(
            f"{path}: {error.strerror or error}. Give an existing file or folder.", path=path
        ) from error
    return path


def _single_file(path: Path) -> Run | None:
    try:
        good = is_index(path) or looks_like_msgpack(read_head(path), path.stat().st_size)
    except PermissionError as error:
        raise CannotLook(f"{path}: this process may not read it.", path=path) from error
    return single(path) if good else None


def _walk(root: Path) -> Iterator[Run]:
    seen = {_identity(root)}
    waiting = [(root, 0)]
    while waiting:
        folder, depth = waiting.pop()
        try:
            here = survey(folder)
        except CannotLook as error:
            if folder == root:
                raise
            yield _nothing(folder, (Skipped(folder, error.message),))
            continue
        strays = list(here.strays)
        for below in here.below:
            reason = _refusal(below, depth, seen)
            if reason:
                strays.append(Skipped(below, reason))
            else:
                seen.add(_identity(below))
                waiting.append((below, depth + 1))
        found = (*here.runs, *here.singles)
        if found:
            yield replace(found[0], skipped=(*found[0].skipped, *strays))
            yield from found[1:]
        elif strays:
            yield _nothing(folder, tuple(strays))


def _refusal(folder: Path, depth: int, seen: set[tuple[int, int]]) -> str | None:
    if depth >= MAX_DEPTH:
        return f"more than {MAX_DEPTH} folders below where the search began"
    try:
        known = _identity(folder) in seen
    except OSError as error:
        return f"could not look: {error.strerror or error}"
    return "a link to a folder that was looked at already" if known else None


def _nothing(folder: Path, skipped: tuple[Skipped, ...]) -> Run:
    return Run(folder, "none", (), skipped)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
