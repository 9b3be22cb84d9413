"""What became of one conversion, as the command line shows it: steps, or the error.

Several runs are the business of :mod:`bridge.fleet`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge._convert import Converted, convert

__all__ = ["Outcome", "convert_one"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one path.

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


def convert_one(path: Path, out: Path, **options: Any) -> Outcome:
    """Convert one checkpoint or run; an error becomes a part of the outcome.

    Args:
        path: the source.
        out: the root of its output.
        **options: keywords of :func:`bridge.convert`.
    """
    try:
        return Outcome(path, out, convert(path, out, **options))
    except Exception as error:  # noqa: BLE001 - it is told by whoever called
        return Outcome(path, out, error=error)
