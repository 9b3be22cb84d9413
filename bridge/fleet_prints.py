"""What a checkpoint looks like from outside: whether it changed is told without reading it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from legacy.flax_gda import GDA_SUFFIX
from legacy.hf_shards import indexed_shards, is_index

__all__ = ["fingerprint", "in_words"]


def in_words(path: str | os.PathLike[str]) -> str:
    r"""A path as text that every encoding can take.

    >>> in_words("caf\udce9")
    'caf\\xe9'
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def fingerprint(path: Path, *, own: bool = False) -> tuple[str, int]:
    """What the files of a checkpoint look like from outside, and their bytes; none is read.

    Args:
        path: a file or folder.
        own: leave out times and inodes, which a copy changes (for our own outputs).

    Returns:
        A digest over names, sizes, times and inodes, and the bytes on disk.

    Raises:
        OSError: something is not there or may not be looked at.
    """
    digest, total = hashlib.sha256(), 0
    for name, status in sorted(_files(path)):
        size = status.st_size
        about = (size,) if own else (size, status.st_mtime_ns, status.st_ino)
        digest.update(f"{name}\0{about}\n".encode("utf-8", "surrogateescape"))
        total += size
    return digest.hexdigest(), total


def _files(path: Path) -> Iterator[tuple[str, os.stat_result]]:
    status = path.stat()
    if path.is_dir():
        yield from _below(str(path), "")
        return
    yield "", status
    beside = path.with_name(path.name + GDA_SUFFIX)
    if beside.is_dir():
        yield from _below(str(beside), beside.name + "/")
    if is_index(path):
        for name in sorted(indexed_shards(path)):
            shard = path.with_name(name)
            if shard.exists():
                yield name, shard.stat()


def _below(folder: str, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _below(entry.path, f"{prefix}{entry.name}/")
            elif entry.is_symlink() and not os.path.exists(entry.path):  # noqa: PTH110 - a str
                yield f"{prefix}{entry.name}", entry.stat(follow_symlinks=False)
            else:
                yield f"{prefix}{entry.name}", entry.stat()
