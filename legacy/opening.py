"""Opens whatever a user's path points at: one door for every format.

The order of the questions matters. What a file is comes before what a parser makes of it; whether a
folder is a checkpoint comes before whether it holds some; and when there are several, the caller
chooses and not we.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from legacy.checkpoint import DEFAULT_ITEM, Checkpoint, Format, Run, StepEntry
from legacy.errors import (
    AmbiguousCheckpoint,
    CannotLook,
    CheckpointNotFound,
    LegacyError,
    NotACheckpoint,
    UnsupportedCheckpoint,
)
from legacy.flax_msgpack import open_msgpack
from legacy.hf_shards import is_index, open_shards, shard_of
from legacy.impostors import name_impostor, read_head
from legacy.orbax import is_tree_folder, open_items
from legacy.orbax_documents import looking
from legacy.paths import absolute
from legacy.runs import contents_in_words, steps_of
from legacy.step_names import split_step, step_of
from legacy.survey import FolderKind, kind_of, survey
from legacy.unfinished import not_committed

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["detect", "open", "require_step"]

_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+://")
_NEAR: Final = 8


def open(  # noqa: A001 - read as legacy.open
    path: str | os.PathLike[str], *, step: float | None = None
) -> Checkpoint:
    r"""Open a checkpoint of any format, reading no array.

    Args:
        path: a msgpack file, an Orbax checkpoint folder, a step of a CheckpointManager, or the
            folder of a run (then its last step is taken). ``~`` is not expanded.
        step: the step of a run to open instead of the last.

    Returns:
        The checkpoint; its leaves are read when asked. One that cannot be read is listed with the
        kind ``unreadable`` and does not stop the others.

    Opening reads no array. It takes about a kilobyte for each leaf and a few times the size of the
    JSON documents; reading a leaf takes its ``nbytes`` and at most about two chunks more. A size
    beyond the memory of the machine, a chunk larger than its array, and one that unpacks to more
    than it says are refused. Nothing is unpickled or executed, no address in a file is followed,
    and neither are links that lead out of an Orbax folder or a ``_gda`` folder.

    Raises:
        CheckpointNotFound: nothing is at the path, or the run has no such step.
        CannotLook: the path may not be read.
        AmbiguousCheckpoint: the path holds several checkpoints or runs.
        NotACheckpoint: the path holds something else; the message names it.
        UnsupportedCheckpoint: a needed part of the checkpoint is not on disk, or the path is not
            on a local file system.
        DamagedCheckpoint: the bytes contradict themselves.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "checkpoint_3").write_bytes(b"\x81\xa1a\x01")
    ...     checkpoint = open(folder)
    >>> checkpoint.step, list(checkpoint.leaves)
    (3, [('a',)])
    """
    place = _local(path)
    with looking(place):
        if place.is_dir():
            return _with_doubt(_open_folder(place, step))
        if not place.is_file():
            raise NotACheckpoint(
                f"{place}: neither a regular file nor a folder. Give the path of a checkpoint.",
                path=place,
            )
        checkpoint = _open_file(place, step_of(place, has_items=False))
        return _with_doubt(require_step(checkpoint, step))


def detect(path: str | os.PathLike[str], *, step: float | None = None) -> Format:
    r"""Tell what wrote a checkpoint, with the evidence.

    Args:
        path: as for :func:`open`.
        step: as for :func:`open`.

    Returns:
        The format.

    Raises:
        LegacyError: as :func:`open` does.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "checkpoint_3").write_bytes(b"\x81\xa1a\x01")
    ...     detect(folder).name
    'flax-msgpack'
    """
    return open(path, step=step).format


def _with_doubt(checkpoint: Checkpoint) -> Checkpoint:
    name, found = checkpoint.path.name, checkpoint.format
    if checkpoint.step is not None or split_step(name) is None:
        return checkpoint
    doubt = f"the name {name} ends in a number that was not taken for a step"
    return replace(checkpoint, format=replace(found, evidence=(*found.evidence, doubt)))


def _local(path: str | os.PathLike[str]) -> Path:
    text = os.fspath(path)
    if _SCHEME.match(text):
        raise UnsupportedCheckpoint(
            f"{text}: only checkpoints on a local file system are read. Copy it first (for gs: "
            "gcloud storage cp -r; for s3: aws s3 cp --recursive) and give the copy's path.",
        )
    place = absolute(text)
    try:
        place.stat()
    except PermissionError as error:
        raise CannotLook(
            f"{place}: this process may not look there (permission denied). Give it read access, "
            "or run as a user who has it.",
            path=place,
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointNotFound(_nothing_at(place), path=place) from error
    return place


def _nothing_at(place: Path) -> str:
    parent, child = place.parent, place.name
    while not parent.is_dir() and parent != parent.parent:
        parent, child = parent.parent, parent.name
    said = f"{place}: there is nothing. The nearest folder that exists is {parent}"
    try:
        names = sorted(entry.name for entry in parent.iterdir())
    except OSError:
        return f"{said}, which may not be listed."
    import difflib  # noqa: PLC0415 - only after a mistake

    close = difflib.get_close_matches(child, names, n=_NEAR) or names[:_NEAR]
    if not close:
        return f"{said}, and it is empty."
    return f"{said}; in it: {', '.join(close)}. Check the spelling and the mount."


def _open_folder(folder: Path, step: float | None) -> Checkpoint:
    if (kind := kind_of(folder)) is not None:
        return require_step(_open_items(folder, kind), step)
    run = steps_of(folder)
    if run.kind == "single":
        return replace(require_step(_open_entry(run.steps[0]), step), skipped=run.skipped)
    return replace(_open_entry(_choose(run, step)), skipped=run.skipped)


def _choose(run: Run, step: float | None) -> StepEntry:
    if not run.steps:
        reasons = "; ".join(f"{s.path.name}: {s.reason}" for s in run.skipped)
        raise CheckpointNotFound(
            f"{run.path}: the run has no finished step. Skipped: {reasons}.", path=run.path
        )
    wanted = run.steps[-1].step if step is None else step
    chosen = [entry for entry in run.steps if entry.step == wanted]
    if len(chosen) > 1:
        names = ", ".join(entry.path.name for entry in chosen)
        raise AmbiguousCheckpoint(
            f"{run.path}: {len(chosen)} entries are step {wanted}: {names}. Give the path of one.",
            path=run.path,
        )
    if not chosen:
        raise CheckpointNotFound(_no_such_step(run, wanted), path=run.path)
    return chosen[0]


def _no_such_step(run: Run, wanted: float | None) -> str:
    steps: Sequence[float] = [entry.step for entry in run.steps if entry.step is not None]
    near = sorted(sorted(steps, key=lambda s: abs(s - (wanted or 0)))[:_NEAR])
    said = f"{run.path}: the run has no step {wanted}. "
    for skip in run.skipped:
        if step_of(skip.path, has_items=True) == wanted:
            return f"{said}{skip.path.name} was left out: {skip.reason}."
    return f"{said}It has {len(steps)}; near it: {', '.join(map(str, near))}."


def require_step(checkpoint: Checkpoint, step: float | None) -> Checkpoint:
    """The checkpoint itself, when it is of the step asked for.

    Raises:
        CheckpointNotFound: it is of another step, or does not say of which.
    """
    if step is None or checkpoint.step == step:
        return checkpoint
    said = "does not say its step" if checkpoint.step is None else f"is step {checkpoint.step}"
    raise CheckpointNotFound(
        f"{checkpoint.path}: step {step} was asked for, but this single checkpoint {said}. "
        "Leave step out, or give the folder of the run.",
        path=checkpoint.path,
    )


def _open_entry(entry: StepEntry) -> Checkpoint:
    try:
        is_file = entry.path.is_file()
        opened = _open_file(entry.path, entry.step) if is_file else _open_items(entry.path)
    except CannotLook:
        raise
    except PermissionError as error:
        raise _may_not_read(entry.path) from error
    return replace(opened, step=entry.step)


def _open_file(file: Path, step: float | None) -> Checkpoint:
    if is_tree_folder(file.parent):
        raise NotACheckpoint(
            f"{file}: one file of the Orbax checkpoint in its folder, not the checkpoint. "
            f"Give the path of the folder, {file.parent}.",
            path=file,
        )
    if is_index(file):
        table, kind = open_shards(file)
        return Checkpoint(file, kind, step, {DEFAULT_ITEM: table})
    try:
        what = name_impostor(read_head(file), file)
    except PermissionError as error:
        raise _may_not_read(file) from error
    if what is not None:
        raise NotACheckpoint(f"{file}: not a checkpoint but {what}", path=file)
    table, kind = open_msgpack(file)
    return Checkpoint(file, _part_of(file, kind), step, {DEFAULT_ITEM: table})


def _part_of(file: Path, kind: Format) -> Format:
    """The format, with a doubt when the file is named as one of several.

    Raises:
        NotACheckpoint: it is one of several, and their index is beside it.
    """
    index = shard_of(file.name)
    if index is None:
        return kind
    if (file.parent / index).is_file():
        raise NotACheckpoint(
            f"{file}: one file of a checkpoint in several, not the checkpoint. Give the path of "
            f"their index, {file.parent / index}.",
            path=file,
        )
    doubt = f"{file.name} is named as one of several files, and {index} is not beside it"
    return replace(kind, evidence=(*kind.evidence, doubt))


def _open_items(folder: Path, kind: FolderKind | None = None) -> Checkpoint:
    kind = kind or kind_of(folder)
    if kind is None:
        raise NotACheckpoint(contents_in_words(survey(folder)), path=folder)
    reason = not_committed(folder)
    try:
        items, found, metadata = open_items(folder)
    except LegacyError as error:
        if reason:
            error.message = f"{error.message} The save was {reason}."
        raise
    if reason:
        found = replace(found, evidence=(*found.evidence, reason))
    return Checkpoint(folder, found, step_of(folder, has_items=kind == "items"), items, metadata)


def _may_not_read(path: Path) -> CannotLook:
    return CannotLook(
        f"{path}: this process may not read it (permission denied). Give it read access, or run "
        "as a user who has it.",
        path=path,
    )
