"""One batch at a time writes to an output.

The kernel holds the lock for a process and lets go of it when the process ends, however it ends,
so a lock is never left behind. The workers share a second one: a batch whose parent was killed is
over only when its last worker is gone, too.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from bridge.errors import FleetError, WriteFailed
from bridge.ledger import FOLDER, now

__all__ = ["WORKERS_LOCK", "alone", "beside", "join_workers"]

WORKERS_LOCK: Final = "workers.lock"
_LOCK: Final = "lock"
_PATIENCE: Final = 20.0
_PAUSE: Final = 0.05


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold an output for one batch, after the last worker of an earlier one is gone.

    Args:
        out: the output; it is made.

    Raises:
        FleetError: somebody else holds it.
        WriteFailed: the folder cannot be made.
    """
    folder = out / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise WriteFailed(
            f"{folder}: could not be made ({error.strerror or error}). Choose an output that this "
            "process may write to."
        ) from error
    try:
        if not _take(handle, fcntl.LOCK_EX):
            raise _busy(out, handle)
        about = {"pid": os.getpid(), "host": socket.gethostname(), "since": now()}
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(about).encode(), 0)
        _wait_for_workers(folder)
        yield
    finally:
        os.close(handle)


@contextmanager
def beside(root: Path) -> Iterator[None]:
    """Hold off batches while a single conversion writes below an output of theirs.

    Args:
        root: the root of the output.

    Raises:
        FleetError: a batch is writing there.
    """
    handles = []
    try:
        for folder in (root, *root.parents):
            try:
                handle = os.open(folder / FOLDER / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue  # no batch has ever written here
            handles.append(handle)
            if not _take(handle, fcntl.LOCK_SH):
                raise _busy(folder, handle)
        yield
    finally:
        for handle in handles:
            os.close(handle)


def join_workers(folder: str) -> None:
    """Hold the workers' lock, together with the others, until this process ends.

    Args:
        folder: our folder in the output.
    """
    handle = os.open(Path(folder, WORKERS_LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    fcntl.flock(handle, fcntl.LOCK_SH)


def _wait_for_workers(folder: Path) -> None:
    handle = os.open(folder / WORKERS_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        ends = time.monotonic() + _PATIENCE
        while not _take(handle, fcntl.LOCK_EX):
            if time.monotonic() > ends:
                raise FleetError(
                    f"{folder.parent}: a worker of an earlier batch is still writing, though its "
                    "parent is gone. End it (its command line holds bridge.fleet_worker) or wait."
                )
            time.sleep(_PAUSE)
    finally:
        os.close(handle)


def _take(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _busy(out: Path, handle: int) -> FleetError:
    try:
        about: dict[str, Any] = json.loads(os.pread(handle, 4096, 0))
        who = f"process {about['pid']} on {about['host']}, since {about['since']}"
    except (ValueError, KeyError, TypeError, OSError):
        who = "a process that has not said which"
    return FleetError(
        f"{out}: another conversion is writing there ({who}). Wait for it or choose another "
        f"output; `linen2nnx status {out}` shows how far a batch is."
    )
