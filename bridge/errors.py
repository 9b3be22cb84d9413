"""What the bridge refuses, as one family of errors.

A refusal is a feature: it comes with all problems at once, as data, and with the rule to paste.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "BridgeError",
    "FleetError",
    "OutputExists",
    "PlanMismatch",
    "PlanProblems",
    "RuleError",
    "TargetError",
    "TransformError",
    "VerifyFailed",
    "WriteFailed",
]


class BridgeError(ValueError):
    """The root of all errors of ``bridge``.

    Args:
        message: what, where, both values, what to do next.
        problems: all problems when several things are wrong; else empty.

    >>> raise BridgeError("refused", problems=["a", "b"])
    Traceback (most recent call last):
        ...
    bridge.errors.BridgeError: refused
    """

    def __init__(self, message: str, *, problems: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return self.message


class TargetError(BridgeError):
    """The model, optimizer or target spec cannot be described as slots."""


class RuleError(BridgeError):
    """A rule is not well formed, or two rules claim one leaf."""


class TransformError(BridgeError):
    """A transform does not fit the shapes or values that it is given."""


class PlanProblems(BridgeError):
    """The plan has problems, so nothing is written; ``.problems`` has every one."""


class PlanMismatch(BridgeError):
    """A stored plan was made for a checkpoint of another structure."""


class OutputExists(BridgeError, FileExistsError):
    """The output is already there, and ``overwrite`` was not asked for."""


class WriteFailed(BridgeError, OSError):
    """The output could not be written; what was begun has been removed."""

    def __init__(self, message: str, *, problems: Sequence[Any] = ()) -> None:
        BridgeError.__init__(self, message, problems=problems)


class FleetError(BridgeError):
    """A batch cannot begin: its outputs collide, its configuration is wrong, or another one runs.

    Nothing was written; the command line exits with 2.
    """


class VerifyFailed(BridgeError):
    """The output does not hold what the plan promised; ``.problems`` has every difference."""
