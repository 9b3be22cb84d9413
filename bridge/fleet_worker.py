"""The process that converts: one checkpoint after the other, with stored plans, without JAX.

It is told what to do by lines of JSON on its standard input, and answers by lines on its standard
output. When the input ends, the parent is gone or has had enough, and it ends at once, in the
middle of whatever it does: that is as safe as ``kill -9``, which the parent has to bear anyway.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TextIO

import legacy
from bridge._convert import convert_opened
from bridge._plan import Plan, read_plan
from bridge.errors import BridgeError
from bridge.fleet_lock import join_workers
from bridge.fleet_prints import fingerprint

__all__ = ["FINGERPRINT", "SourceChanged", "main"]

FINGERPRINT: Final = "source_fingerprint"
"""Where the provenance of an output keeps what its source looked like from outside."""

_PLANS_KEPT: Final = 16
_DEATH_SIGNAL: Final = 1  # PR_SET_PDEATHSIG


class SourceChanged(BridgeError):
    """A source was changed while it was converted; nothing was written."""


def main(parent: int, folder: str) -> None:
    """Work until the input ends.

    Args:
        parent: the process that gives the work.
        folder: our folder in the output; empty when nothing is going to be written.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _die_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    if folder:
        join_workers(folder)
    if os.getppid() != parent:
        return
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    _answer(answers, {"ready": os.getpid()})
    plans: dict[str, Plan] = {}
    while True:
        job = json.loads(lines.get())
        _answer(answers, {"id": job["id"], **_carry_out(job, plans)})


def _die_with_parent() -> None:
    """Be killed together with the parent, where the system can do that (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)


def _listen(lines: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


def _answer(to: TextIO, data: Mapping[str, Any]) -> None:
    to.write(json.dumps(data) + "\n")
    to.flush()


def _carry_out(job: Mapping[str, Any], plans: dict[str, Plan]) -> dict[str, Any]:
    task: Callable[..., dict[str, Any]] = _look if job["task"] == "look" else _convert
    try:
        return {"ok": True, **task(job, plans)}
    except Exception as error:  # noqa: BLE001 - one bad checkpoint never ends the batch
        rungs = [p.rung for p in getattr(error, "problems", ()) if hasattr(p, "rung")]
        text = str(error) or type(error).__name__
        return {"ok": False, "kind": type(error).__name__, "error": text, "rungs": rungs}


def _look(job: Mapping[str, Any], _: Any) -> dict[str, Any]:
    checkpoint = legacy.open(job["source"])
    return {
        "signature": checkpoint.leaves.signature(),
        "format": str(checkpoint.format),
        "nbytes": sum(leaf.nbytes for leaf in checkpoint.leaves.values()),
    }


def _convert(job: Mapping[str, Any], plans: dict[str, Plan]) -> dict[str, Any]:
    source, place = Path(job["source"]), Path(job["place"])
    plan = _plan(job["plan"], plans)

    def seal() -> Mapping[str, Any]:
        try:
            same = fingerprint(source)[0] == job["fingerprint"]
        except OSError as error:
            raise SourceChanged(
                f"{source} was there when the batch began, and cannot be looked at any more "
                f"({error.strerror or error}). Nothing was written."
            ) from error
        if not same:
            raise SourceChanged(
                f"{source} was changed by somebody since the batch began, so nothing was written. "
                "Start again when nobody writes to it."
            )
        return {FINGERPRINT: job["fingerprint"]}

    seal()
    done = convert_opened(
        legacy.open(source),
        job["step"],
        place,
        plan,
        layout=job["layout"],
        link=job["link"],
        overwrite=job["overwrite"],
        verify=job["level"],
        sync=job["sync"],
        compression=job["compression"],
        seal=seal,
    )
    return {
        "seconds": done.seconds,
        "nbytes": done.nbytes,
        "rung": done.verdict.rung if done.verdict else "",
        "values_digest": done.verdict.digest if done.verdict else "",
        "plan_digest": done.plan_digest,
        "identity": fingerprint(place, own=True)[0],
    }


def _plan(path: str, plans: dict[str, Plan]) -> Plan:
    if path not in plans:
        if len(plans) >= _PLANS_KEPT:
            del plans[next(iter(plans))]
        plans[path] = read_plan(path)
    return plans[path]
