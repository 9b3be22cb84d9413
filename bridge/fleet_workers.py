"""The worker processes of a batch, as the parent sees them.

They are started as programs of their own, in sessions of their own: the Ctrl-C of a terminal does
not reach them, nothing of the parent's memory is copied, and a script that starts a batch needs no
``if __name__ == "__main__"``.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from bridge.errors import BridgeError

__all__ = ["Crew", "Death", "Worker"]

_START: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from bridge.fleet_worker import main; main(int(sys.argv[2]), sys.argv[3])"
)
_READ: Final = 1 << 16
_STILLBORN: Final = 5
_TAIL: Final = 2000
_LIKELY: Final = {signal.SIGKILL: " (no memory was left, or somebody killed it)"}


@dataclass(frozen=True, slots=True)
class Death:
    """A worker that ended without being asked to.

    Attributes:
        reason: by which signal, or with which exit code, and the last that it said.
    """

    reason: str


@dataclass(eq=False)
class Worker:
    """One process, and what it has in hand.

    Attributes:
        process: the process.
        errors: where its standard error goes.
        job: what it has in hand; None when it waits.
        ready: whether it has said that it runs.
        loaded: whether it has loaded JAX, which it must not keep for ever.
    """

    process: subprocess.Popen[bytes]
    errors: IO[bytes]
    job: dict[str, Any] | None = None
    ready: bool = False
    loaded: bool = False
    _buffer: bytes = field(default=b"", repr=False)

    @property
    def pid(self) -> int:
        """Its process number."""
        return self.process.pid

    def send(self, job: dict[str, Any]) -> None:
        """Give it something to do; a worker that has died is noticed when it is waited for."""
        self.job = job
        assert self.process.stdin is not None  # noqa: S101 - a pipe, see Crew.hire
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(job).encode() + b"\n")
            self.process.stdin.flush()

    def receive(self) -> list[dict[str, Any]] | None:
        """The answers that are there; None at the end of its output."""
        assert self.process.stdout is not None  # noqa: S101 - a pipe, see Crew.hire
        data = os.read(self.process.stdout.fileno(), _READ)
        if not data:
            return None
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def end(self, *, at_once: bool = False) -> str:
        """Let it go, and say how it ended."""
        assert self.process.stdin is not None  # noqa: S101 - pipes, see Crew.hire
        assert self.process.stdout is not None  # noqa: S101
        if at_once:
            self.process.kill()
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        code = self.process.wait()
        self.process.stdout.close()
        self.errors.seek(max(0, self.errors.seek(0, os.SEEK_END) - _TAIL))
        said = self.errors.read().decode("utf-8", "replace").strip()
        self.errors.close()
        return _how(code) + (f"; it said last:\n{said}" if said else "")


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        by = signal.Signals(-code)
    except ValueError:
        return f"was ended by signal {-code}"
    return f"was ended by {by.name}{_LIKELY.get(by, '')}"


class Crew:
    """All workers of a batch.

    Args:
        size: how many at most.
        folder: our folder in the output; None when nothing is going to be written.
    """

    def __init__(self, size: int, folder: Path | None) -> None:
        self.size = size
        self.workers: list[Worker] = []
        self._folder = folder
        self._stillborn = 0
        self._selector = selectors.DefaultSelector()
        self._wake, wake = os.pipe()
        os.set_blocking(wake, False)
        self._waker = wake
        self._selector.register(self._wake, selectors.EVENT_READ, None)

    @property
    def busy(self) -> list[Worker]:
        """Those that have something in hand."""
        return [w for w in self.workers if w.job is not None]

    def wake(self) -> None:
        """Make :meth:`wait` return; may be called from a signal handler."""
        with suppress(BlockingIOError):
            os.write(self._waker, b"!")

    def hire(self) -> Worker:
        """Start one more."""
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the worker ends
        process = subprocess.Popen(  # noqa: S603 - our own program
            [
                *(sys.executable, "-c", _START, json.dumps(sys.path), str(os.getpid())),
                "" if self._folder is None else str(self._folder),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        worker = Worker(process, errors)
        assert process.stdout is not None  # noqa: S101 - a pipe
        self._selector.register(process.stdout, selectors.EVENT_READ, worker)
        self.workers.append(worker)
        return worker

    def dismiss(self, worker: Worker, *, at_once: bool = False) -> str:
        """Let one go."""
        assert worker.process.stdout is not None  # noqa: S101 - a pipe
        self._selector.unregister(worker.process.stdout)
        self.workers.remove(worker)
        return worker.end(at_once=at_once)

    def wait(self, seconds: float | None) -> list[tuple[Worker, Mapping[str, Any] | Death]]:
        """Wait until a worker answers or dies.

        Args:
            seconds: how long at most; None for ever.

        Returns:
            Answers to jobs, and deaths; a worker that died is no longer among the workers.

        Raises:
            BridgeError: workers end before they begin, one after the other.
        """
        heard: list[tuple[Worker, Mapping[str, Any] | Death]] = []
        for key, _ in self._selector.select(seconds):
            worker = key.data
            if worker is None:
                os.read(self._wake, _READ)
                continue
            answers = worker.receive()
            if answers is None:
                reason = self.dismiss(worker, at_once=False)
                self._stillborn += not worker.ready
                if self._stillborn >= _STILLBORN:
                    raise BridgeError(f"worker processes cannot be started: the last {reason}")
                heard.append((worker, Death(reason)))
                continue
            for answer in answers:
                if "ready" in answer:
                    worker.ready = True
                    self._stillborn = 0
                else:
                    heard.append((worker, answer))
        return heard

    def close(self, *, at_once: bool = True) -> None:
        """End all of them."""
        for worker in list(self.workers):
            self.dismiss(worker, at_once=at_once)
        self._selector.close()
        os.close(self._wake)
        os.close(self._waker)
