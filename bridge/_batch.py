"""Converts several checkpoints one after the other, or in worker processes.

A checkpoint that fails becomes an outcome with its error; the others go on.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import legacy
from bridge._convert import Converted, convert

__all__ = ["Outcome", "convert_all"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one path (or of one step of it, with several workers).

    Attributes:
        path: the source.
        out: the root of the output.
        converted: the steps that were converted.
        error: why not; None when all went well.
    """

    path: Path
    out: Path
    converted: tuple[Converted, ...] = ()
    error: Exception | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "path": str(self.path),
            "out": str(self.out),
            "ok": self.error is None,
            "error": None if self.error is None else str(self.error),
            "error_type": None if self.error is None else type(self.error).__name__,
            "converted": [
                {
                    "step": c.step,
                    "source": str(c.source),
                    "output": str(c.output),
                    "plan_digest": c.plan_digest,
                    "seconds": round(c.seconds, 3),
                    "nbytes": c.nbytes,
                    "written": dict(c.written),
                    "verdict": None if c.verdict is None else c.verdict.to_json(),
                }
                for c in self.converted
            ],
        }


def convert_all(
    places: Mapping[Path, Path],
    *,
    jobs: int = 1,
    before: Callable[[Path], None] = lambda _: None,
    **options: Any,
) -> Iterator[Outcome]:
    """Convert every path.

    Args:
        places: each source with the root of its output (:func:`bridge._places.outputs`).
        jobs: worker processes; more than one needs a stored ``plan``, because a model cannot be
            handed to a process. Then each step is a piece of work of its own.
        before: called with a path when its turn comes (one process only).
        **options: keywords of :func:`bridge.convert`.

    Yields:
        What became of each piece of work, in order.
    """
    if jobs > 1:
        yield from _in_processes(places, jobs, options)
        return
    for path, out in places.items():
        before(path)
        yield _outcome(path, out, options)


def _outcome(path: Path, out: Path, options: Mapping[str, Any]) -> Outcome:
    try:
        return Outcome(path, out, convert(path, out, **options))
    except Exception as error:  # noqa: BLE001 - one bad checkpoint never ends the batch
        return Outcome(path, out, error=error)


def _in_processes(
    places: Mapping[Path, Path], jobs: int, options: Mapping[str, Any]
) -> Iterator[Outcome]:
    options = {**options, "on_progress": None}
    work = [
        (path, out, steps)
        for path, out in places.items()
        for steps in _pieces(path, options.get("steps", "latest"))
    ]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        running: list[tuple[Path, Path, Future[Outcome]]] = [
            (path, out, pool.submit(_outcome, path, out, {**options, "steps": steps}))
            for path, out, steps in work
        ]
        try:
            for path, out, future in running:
                try:
                    yield future.result()
                except Exception as error:  # noqa: BLE001 - a worker that died, an error that does not pickle
                    yield Outcome(path, out, error=error)
        finally:
            pool.shutdown(cancel_futures=True)


def _pieces(path: Path, steps: Any) -> list[Any]:
    """One piece of work for each step where they are known, else the whole path."""
    if steps == "latest":
        return [steps]
    if steps != "all":
        return steps.split(",") if isinstance(steps, str) else [[n] for n in steps]
    try:
        numbers = [entry.step for entry in legacy.steps_of(path).steps]
    except legacy.LegacyError:
        return [steps]  # converting it will say why
    return [[n] for n in numbers] if numbers and None not in numbers else [steps]
