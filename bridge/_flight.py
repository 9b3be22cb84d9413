"""Keeps the bytes that several threads hold at a time below a limit, whatever the arrays' sizes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from bridge._bits import BLOCK
from legacy import Leaf

__all__ = ["IN_FLIGHT", "WORKERS", "Flight", "held"]

WORKERS = min(4, os.cpu_count() or 1)
"""Threads that read, digest and compare; each of them waits in C code nearly all the time."""

IN_FLIGHT = 128 << 20
"""Bytes that all of them may hold together, beside what is to stay."""


class Flight:
    """A limit that threads share.

    Args:
        limit: bytes; a single piece that is larger goes alone.

    >>> with Flight(100).carrying(250):
    ...     pass
    """

    def __init__(self, limit: int = IN_FLIGHT) -> None:
        self._limit = limit
        self._held = 0
        self._changed = threading.Condition()

    @contextmanager
    def carrying(self, nbytes: int) -> Iterator[None]:
        """Wait until there is room for so many bytes, and hold it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + nbytes <= self._limit)
            self._held += nbytes
        try:
            yield
        finally:
            with self._changed:
                self._held -= nbytes
                self._changed.notify_all()


def held(leaf: Leaf, block: int = BLOCK) -> int:
    """About how many bytes reading a leaf by blocks holds: stored and decoded chunks.

    >>> held(Leaf(("a",), "array", (4,), None, 32))
    64
    """
    chunk = 0
    if leaf.chunks and leaf.dtype is not None:
        chunk = leaf.dtype.itemsize
        for n, length in zip(leaf.chunks, leaf.shape, strict=True):
            chunk *= min(n, max(1, length))
    return 2 * max(min(leaf.nbytes, block), chunk)
