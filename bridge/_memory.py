"""Keeps freed buffers from staying with the process.

glibc keeps what is freed in an arena of each thread, and after the first large buffer that is
freed it takes buffers of up to 32 MB from there. TensorStore's threads allocate chunks of that
size by the hundred, so a process that holds 60 MB at any time grew to several hundred (measured:
a list of 64 layers made a stack of 100 MB held 378 MB, and 247 MB with a fixed threshold).

A threshold is not all: buffers that grow while a chunk is compressed stay in the arena, and one
small value behind them keeps all of it (measured: 30 MB for each thread that compresses chunks of
32 MB, whatever ``M_TRIM_THRESHOLD`` says). Hence :func:`passed`, which gives it back now and then.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["frugal", "passed"]

_M_MMAP_THRESHOLD = -3
_LARGE = 1 << 20
_USUAL = 32 << 20
"""Where glibc's own adjustment of the threshold ends."""

_OFTEN = 32 << 20
"""Bytes after which memory is given back; it takes a millisecond."""

_LOCK = threading.Lock()
_INSIDE = [0]
_PASSED = [0]


@contextmanager
def frugal() -> Iterator[None]:
    """Give freed buffers of 1 MiB and more back to the system, while this lasts.

    The setting is that of the whole process; afterwards it is what a process comes to that frees
    large buffers. Without glibc nothing happens.

    >>> with frugal():
    ...     pass
    """
    with _LOCK:
        _INSIDE[0] += 1
        if _INSIDE[0] == 1:
            _set(_LARGE)
    try:
        yield
    finally:
        with _LOCK:
            _INSIDE[0] -= 1
            if not _INSIDE[0]:
                _set(_USUAL)


def passed(nbytes: int) -> None:
    """Say that so many bytes of arrays were decoded or encoded, and are needed no more.

    Every :data:`_OFTEN` bytes glibc gives what is free back to the system. Without glibc nothing
    happens.

    >>> passed(1 << 30)
    """
    with _LOCK:
        _PASSED[0] += nbytes
        if _PASSED[0] < _OFTEN:
            return
        _PASSED[0] = 0
    _ask("malloc_trim", 0)


def _set(threshold: int) -> None:
    _ask("mallopt", _M_MMAP_THRESHOLD, threshold)


def _ask(name: str, *values: int) -> None:
    try:
        getattr(ctypes.CDLL(None), name)(*values)
    except (AttributeError, OSError, TypeError):  # not glibc
        return
