"""Copies ranges of old files into new data files, by several threads.

Measured on ext4 (1 GB in 119 ranges at odd offsets, medians of 4): ``cp`` 0.86 s; reading into a
buffer of 1 MiB and writing it 0.91 s; ``copy_file_range`` of the same ranges 1.13 s, ``sendfile``
1.18 s: the kernel copies a range that does not begin at a page page by page.

Each thread writes a file of its own, because two that write to one file wait for each other (the
lock of the inode). Another thread forces what is written to the disk meanwhile, so that the disk
works while the next bytes are read, and not only when all have been.
"""

from __future__ import annotations

import errno
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Self, TypeAlias

from bridge.layout import TARGET_DATA_FILE_SIZE
from bridge.ocdbt_tree import Place, new_data_file
from legacy import DamagedCheckpoint

__all__ = ["INLINE", "Stored", "copied"]

INLINE = 1024
"""Values up to this size are kept in the B-tree, as Orbax has it."""

_BUFFER = 1 << 20
_THREADS = min(4, os.cpu_count() or 1)
_WORTH = 16 << 20
"""Bytes for which a thread more is worth its file."""

_BEHIND = 32 << 20
"""Bytes that are written before they are forced to the disk."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Bytes in a file of the source."""

    file: Path
    offset: int
    length: int


Values: TypeAlias = Sequence[tuple[str, Stored]]


def copied(
    root: Path, values: Values, report: Callable[[str], None], *, sync: bool
) -> Iterator[tuple[str, bytes | Place]]:
    """Copy values into data files.

    Args:
        root: the folder of the database.
        values: by key, in the order of the files that they lie in.
        report: called in this thread with each key whose bytes are there.
        sync: force them to the disk as well.

    Yields:
        Each key with where its value is now; small ones are given back as bytes.

    Raises:
        DamagedCheckpoint: a file of the source is gone, or shorter than it was.
        OSError: the disk is full, or the folder cannot be written.
    """
    keys: dict[Stored, list[str]] = {}
    for key, value in values:  # an array may go to several places
        keys.setdefault(value, []).append(key)
    parts = _parts(list(keys))
    # starting threads takes longer than copying little
    way = _one_by_one if len(parts) == 1 else _in_threads
    for value, place in way(root, parts, sync=sync):
        for key in keys[value]:
            report(key)
            yield key, place


def _one_by_one(
    root: Path, parts: Sequence[Sequence[Stored]], *, sync: bool
) -> Iterator[tuple[Stored, bytes | Place]]:
    large = sum(v.length for part in parts for v in part) > _BEHIND
    with _Writeback(active=sync and large) as writeback:
        for part in parts:
            yield from _places(root, part, threading.Event(), writeback)


def _in_threads(
    root: Path, parts: Sequence[Sequence[Stored]], *, sync: bool
) -> Iterator[tuple[Stored, bytes | Place]]:
    done: queue.SimpleQueue[tuple[Stored, bytes | Place] | None] = queue.SimpleQueue()
    stop = threading.Event()
    with _Writeback(active=sync) as writeback, ThreadPoolExecutor(max(1, len(parts))) as pool:
        running = [pool.submit(_copy, root, part, done, stop, writeback) for part in parts]
        try:
            waiting = len(running)
            while waiting:
                one = done.get()
                if one is None:
                    waiting -= 1
                else:
                    yield one
        finally:
            stop.set()
        for future in running:
            future.result()


def _parts(values: Sequence[Stored]) -> list[list[Stored]]:
    """Runs of about equal bytes, one for each thread."""
    total = sum(v.length for v in values)
    count = max(1, min(_THREADS, total // _WORTH))
    parts: list[list[Stored]] = [[] for _ in range(count)]
    held = 0
    for value in values:
        parts[min(count - 1, held * count // max(1, total))].append(value)
        held += value.length
    return [part for part in parts if part]


def _copy(
    root: Path,
    values: Sequence[Stored],
    done: queue.SimpleQueue[tuple[Stored, bytes | Place] | None],
    stop: threading.Event,
    writeback: _Writeback,
) -> None:
    """Copy one part in a thread; None says that it is over, whatever became of it."""
    try:
        for one in _places(root, values, stop, writeback):
            done.put(one)
    except BaseException:
        stop.set()  # the others need not go on
        raise
    finally:
        done.put(None)


def _places(
    root: Path, values: Sequence[Stored], stop: threading.Event, writeback: _Writeback
) -> Iterator[tuple[Stored, bytes | Place]]:
    buffer = memoryview(bytearray(_BUFFER))
    target = _Target(root, writeback)
    source: FileIO | None = None
    try:
        for value in values:
            if source is None or source.name != value.file:
                if source is not None:
                    source.close()
                source = _opened(value.file)
            pieces = _pieces(source, value, buffer)
            if value.length <= INLINE:
                yield value, b"".join(map(bytes, pieces))
                continue
            place = target.begin(value.length)
            for piece in pieces:
                if stop.is_set():
                    return
                target.write(piece)
            yield value, place
    finally:
        if source is not None:
            source.close()


class _Target:
    """The data files of one thread."""

    def __init__(self, root: Path, writeback: _Writeback) -> None:
        self._root = root
        self._writeback = writeback
        self._file: FileIO | None = None
        self._name = ""
        self._at = 0

    def begin(self, length: int) -> Place:
        """Where the next bytes are going to be; they are all in one file."""
        if self._file is None or self._at + length > TARGET_DATA_FILE_SIZE:
            self._name, self._at = new_data_file(), 0
            path = self._root / self._name
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = FileIO(path, "xb")
            self._writeback.opened(self._file)
        place = Place(self._name, self._at, length)
        self._at += length
        return place

    def write(self, piece: memoryview) -> None:
        """Write all of it; a disk that fills up takes a part."""
        assert self._file is not None  # noqa: S101 - begin() comes first
        written = 0
        while written < len(piece):
            written += self._file.write(piece[written:])
        self._writeback.wrote(self._file, len(piece))


def _opened(file: Path) -> FileIO:
    try:
        return FileIO(file, "rb")
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        raise DamagedCheckpoint(
            f"{file}: cannot be opened any more ({error.strerror}). Was the source changed "
            "while it was read? Take another step or a backup.",
            path=file,
        ) from error


def _pieces(source: FileIO, value: Stored, buffer: memoryview) -> Iterator[memoryview]:
    at, end = value.offset, value.offset + value.length
    while at < end:
        count = os.preadv(source.fileno(), [buffer[: min(len(buffer), end - at)]], at)
        if not count:
            raise DamagedCheckpoint(
                f"{value.file}: ends at byte {at}, and bytes up to {end} are wanted. Was the "
                "source changed while it was read? Take another step or a backup.",
                path=value.file,
                offset=at,
            )
        yield buffer[:count]
        at += count


class _Writeback:
    """Owns the new files, and forces them to the disk behind those who write."""

    def __init__(self, *, active: bool) -> None:
        self._active = active
        self._files: list[FileIO] = []
        self._behind: dict[int, int] = {}
        self._running: dict[int, Future[None]] = {}
        self._pool = ThreadPoolExecutor(_THREADS) if active else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        for file in self._files:
            file.close()

    def opened(self, file: FileIO) -> None:
        """Take a file over."""
        self._files.append(file)

    def wrote(self, file: FileIO, nbytes: int) -> None:
        """Note what was written; called by the one thread that writes this file."""
        if self._pool is None:
            return
        handle = file.fileno()
        self._behind[handle] = self._behind.get(handle, 0) + nbytes
        running = self._running.get(handle)
        if self._behind[handle] >= _BEHIND and (running is None or running.done()):
            self._behind[handle] = 0
            self._running[handle] = self._pool.submit(_force, handle)


def _force(handle: int) -> None:
    """Force a file to the disk; whether it worked is seen when the whole folder is synced."""
    try:
        os.fdatasync(handle)
    except OSError:
        return
