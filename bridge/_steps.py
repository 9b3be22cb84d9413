"""Which steps of a run are converted, and under which numbers."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import TypeAlias

import legacy
from bridge.errors import BridgeError

__all__ = ["Steps", "chosen_steps", "step_number"]

Steps: TypeAlias = str | Iterable[float]
"""``latest``, ``all``, numbers, or a text such as ``1000,2000``."""


def chosen_steps(path: str | os.PathLike[str], steps: Steps) -> list[legacy.StepEntry]:
    """The wanted entries of a run, by number.

    Args:
        path: a checkpoint, or the folder of a run.
        steps: ``latest``, ``all``, numbers, or a text such as ``1000,2000``.

    Returns:
        At least one entry.

    Raises:
        legacy.CheckpointNotFound: the run has no such step.
        BridgeError: ``steps`` is none of these.
    """
    run = legacy.steps_of(path)
    if not run.steps:
        raise legacy.CheckpointNotFound(f"{run.path}: the run has no finished step.", path=run.path)
    if steps == "all":
        return list(run.steps)
    if steps == "latest":
        return [run.steps[-1]]
    wanted = _numbers(steps)
    if not wanted:
        raise BridgeError("steps is empty, so nothing would be converted. Name a step, or all.")
    by_number = {entry.step: entry for entry in run.steps}
    missing = [n for n in wanted if n not in by_number]
    if missing:
        have = ", ".join(str(entry.step) for entry in run.steps)
        raise legacy.CheckpointNotFound(
            f"{run.path}: no step {', '.join(map(str, missing))}. It has: {have}.", path=run.path
        )
    return [by_number[n] for n in sorted(set(wanted))]


def _numbers(steps: Steps) -> list[float]:
    if not isinstance(steps, str):
        return list(steps)
    try:
        return [_number(part) for part in steps.split(",")]
    except ValueError:
        raise BridgeError(
            f"steps {steps!r}: expected latest, all, or numbers separated by commas."
        ) from None


def _number(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def step_number(entry: legacy.StepEntry) -> int:
    """The number of an entry in the output; a checkpoint without one becomes step 0.

    Args:
        entry: one step of a run.

    Returns:
        A whole number from 0 up.

    Raises:
        BridgeError: it has another number.
    """
    if entry.step is None:
        return 0
    if not (math.isfinite(entry.step) and entry.step >= 0 and entry.step == int(entry.step)):
        raise BridgeError(
            f"{entry.path} is step {entry.step}; a CheckpointManager has whole numbers from 0 up. "
            "Copy it under a name with such a step and convert the copy."
        )
    return int(entry.step)
