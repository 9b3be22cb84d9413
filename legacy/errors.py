"""What can go wrong with an old checkpoint, as one family of errors.

A user who catches :class:`LegacyError` has caught everything this package raises on purpose.
Each error carries its data as attributes, so that a batch can put it into a ledger without
parsing text.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

__all__ = [
    "AmbiguousCheckpoint",
    "CannotLook",
    "CheckpointNotFound",
    "DamagedCheckpoint",
    "LegacyError",
    "NotACheckpoint",
    "TargetMismatch",
    "UnsupportedCheckpoint",
]


class LegacyError(ValueError):
    """The root of all errors of ``legacy``.

    Args:
        message: what was found, where, what was expected, and what to do.
        path: the file or folder that the error is about.
        leaf: the path of the leaf inside the checkpoint, where there is one.
        offset: the byte offset in ``path``, where it helps.
        problems: all problems when several things are wrong; else empty.

    >>> raise LegacyError("bad", path="ckpt", offset=3)
    Traceback (most recent call last):
        ...
    legacy.errors.LegacyError: bad
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | os.PathLike[str] | None = None,
        leaf: tuple[str, ...] | None = None,
        offset: int | None = None,
        problems: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.path = None if path is None else Path(path)
        self.leaf = leaf
        self.offset = offset
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return self.message


class CheckpointNotFound(LegacyError, FileNotFoundError):
    """There is nothing at the path, or the step is not among those found."""


class CannotLook(LegacyError, PermissionError):
    """Something is there, and this process may not read it: not the same as "not a checkpoint"."""


class NotACheckpoint(LegacyError):
    """The path holds something that no flax or Orbax release wrote; the message names it."""


class UnsupportedCheckpoint(LegacyError):
    """A checkpoint of a known kind of which a needed part is not on disk or not readable here."""


class DamagedCheckpoint(LegacyError):
    """The bytes contradict themselves: truncated, overwritten, or of the wrong size."""


class AmbiguousCheckpoint(LegacyError):
    """The path holds several checkpoints; the message lists them, so that one can be named."""


class TargetMismatch(LegacyError):
    """A typed restore target and the file do not fit; ``.problems`` has every difference."""
