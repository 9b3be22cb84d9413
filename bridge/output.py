"""The place of an output: written beside it, synced, and renamed when it is complete.

No lock is needed. Each writer has a temporary folder of its own, and renaming a folder onto one
that is not empty fails: of two that write one step, the first wins and the second is told so.
The temporary name is one that Orbax uses, so a ``CheckpointManager`` passes over what a killed
process leaves behind. Orbax also refuses to read below such a name, so the step has its own name
inside it, and can be verified there by Orbax itself.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bridge.errors import BridgeError, OutputExists, WriteFailed
from bridge.layout import TEMPORARY_SUFFIX
from legacy import LegacyError

__all__ = ["check_apart", "copy_file", "link_file", "staged", "sync_tree", "write_file"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXTS = ("no space left", "disk quota", "file too large", "resource_exhausted")
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
_NO_FAST_COPY = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF)
_COPY_AT_ONCE = 1 << 30


def check_apart(source: Path, place: Path) -> None:
    """Refuse an output that would touch its source.

    Args:
        source: a checkpoint, or the folder of a run.
        place: the folder that is going to be written or replaced.

    Raises:
        BridgeError: they are one, or one lies in the other.
    """
    a, b = source.resolve(), place.resolve()
    if a == b or a in b.parents or b in a.parents:
        how = "is" if a == b else "lies in" if a in b.parents else "holds"
        raise BridgeError(
            f"the output {place} {how} the source {source}. Sources are never written to; choose "
            "an output folder elsewhere."
        )


@contextmanager
def staged(
    place: Path, *, overwrite: bool = False, sync: bool = True, needed: int = 0
) -> Iterator[Path]:
    """Write a folder so that it is there completely, or not at all.

    Args:
        place: the folder in the end.
        overwrite: replace an older one, after the new one is complete.
        sync: force files and folders to the disk before the rename.
        needed: bytes that are going to be written, for the message when the disk is full.

    Yields:
        A new and empty folder of the same name, in a temporary folder beside ``place``.

    Raises:
        OutputExists: ``place`` is there and ``overwrite`` was not asked for.
        WriteFailed: something could not be written; what was begun has been removed.
    """
    if not overwrite and os.path.lexists(place):
        raise _exists(place)
    made: list[Path] = []
    temporary: Path | None = None
    try:
        made = [p for p in (place.parent, *place.parent.parents) if not p.exists()]
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(place)
        folder = temporary / place.name
        folder.mkdir(parents=True)
        yield folder
        if sync:
            sync_tree(folder)
        _commit(folder, place, overwrite=overwrite)
        shutil.rmtree(temporary, ignore_errors=True)
        if sync:
            _sync(place.parent)
    except BaseException as error:
        free = _free(place.parent)  # before anything is removed
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        failure = _as_failure(error, place, needed, free)
        if failure is None:
            raise
        raise failure from error


def write_file(path: Path, data: str | bytes) -> None:
    """Write a small file, its folder included."""
    raw = data.encode() if isinstance(data, str) else data
    try:
        path.write_bytes(raw)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)


def copy_file(source: Path, to: Path) -> None:
    """Copy a file, letting the file system share the blocks where it can.

    Args:
        source: it is opened for reading only.
        to: must not exist.

    Raises:
        OSError: it cannot be read, or the disk is full.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as read, to.open("xb") as write:
        left = os.fstat(read.fileno()).st_size
        try:
            while left > 0:
                done = os.copy_file_range(read.fileno(), write.fileno(), min(left, _COPY_AT_ONCE))
                if not done:
                    break
                left -= done
        except (OSError, AttributeError) as error:  # no such call outside Linux
            if isinstance(error, OSError) and error.errno not in _NO_FAST_COPY:
                raise
        if left:
            read.seek(0)
            write.seek(0)
            shutil.copyfileobj(read, write, 1 << 20)


def link_file(source: Path, to: Path) -> None:
    """Give a file a second name.

    Args:
        source: it must never be changed in place afterwards.
        to: must not exist.

    Raises:
        WriteFailed: the two are on different file systems, or this one has no hard links.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, to)
    except OSError as error:
        if error.errno in _FULL:
            raise
        raise WriteFailed(
            f"{to}: cannot be a hard link to {source} ({error.strerror}). Write to the file "
            "system of the source, or leave out link."
        ) from error


def sync_tree(folder: Path) -> None:
    """Force every file and folder below ``folder`` to the disk."""
    for path, _, files in os.walk(folder, topdown=False):
        for name in files:
            _sync(Path(path, name))
        _sync(Path(path))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
            raise
    finally:
        os.close(handle)


def _temporary(place: Path) -> Path:
    for n in range(1000):
        folder = place.with_name(f"{place.name}{TEMPORARY_SUFFIX}-{os.getpid()}{n:03d}")
        if not os.path.lexists(folder):
            return folder
    raise WriteFailed(
        f"{place.parent}: full of leftovers named *{TEMPORARY_SUFFIX}-*; remove them."
    )


def _commit(folder: Path, place: Path, *, overwrite: bool) -> None:
    aside: Path | None = None
    if overwrite and os.path.lexists(place):
        aside = _temporary(place)
        place.rename(aside)
    try:
        folder.rename(place)
    except BaseException as error:
        if aside is not None and not os.path.lexists(place):
            aside.rename(place)
        if isinstance(error, OSError) and error.errno in _TAKEN:
            raise _exists(place) from error
        raise
    if aside is not None:
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink()


def _exists(place: Path) -> OutputExists:
    return OutputExists(
        f"{place} is there already. Choose another output, or ask for overwrite: it is replaced "
        "after the new one is complete and verified."
    )


def _free(folder: Path) -> int | None:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _as_failure(
    error: BaseException, place: Path, needed: int, free: int | None
) -> WriteFailed | None:
    """What to raise instead of an error of the operating system; None for all other errors."""
    ours = isinstance(error, WriteFailed)
    if isinstance(error, BridgeError | LegacyError) and not ours:
        return None
    if not isinstance(error, OSError):
        return None
    text = str(error)
    full = getattr(error, "errno", None) in _FULL or any(t in text.lower() for t in _FULL_TEXTS)
    if full:
        left = "" if free is None else f" {free} bytes were free when it failed."
        return WriteFailed(
            f"{place}: no room to write it ({text}). It needs about {needed} bytes;{left} What "
            "was begun has been removed. Make room (or a larger file size limit) and try again."
        )
    if ours:
        return None
    return WriteFailed(f"{place}: could not be written ({text}). What was begun has been removed.")
