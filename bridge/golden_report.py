"""What came of checking a golden, as a value and in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from bridge._plan import Plan

__all__ = ["SHOWN", "Finding", "Report", "Stage"]

Stage: TypeAlias = Literal["source", "plan", "output", "behaviour"]

_WORDS: Mapping[str, str] = {
    "source": "the source is not what was recorded",
    "plan": "the plan is not today's",
    "output": "the conversion gives something else",
    "behaviour": "the model gives something else",
}
SHOWN = 20
"""Findings of one stage that a report shows."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it was recorded.

    Attributes:
        stage: ``source``, ``plan``, ``output`` or ``behaviour``.
        message: what, with both values.
    """

    stage: Stage
    message: str


@dataclass
class Report:
    """What came of checking a golden.

    Attributes:
        name: of the golden.
        path: its folder.
        findings: everything that differs.
        notes: what there is to know, and is no failure.
        looked: what was compared, in words.
        today: today's plan, where one could be made.
    """

    name: str
    path: Path
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    looked: list[str] = field(default_factory=list)
    today: Plan | None = field(default=None, repr=False)

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return not self.findings

    def add(self, stage: Stage, *messages: str) -> None:
        """Say what differs."""
        self.findings += [Finding(stage, message) for message in messages]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "golden": self.name,
            "path": str(self.path),
            "ok": self.ok,
            "findings": [{"stage": f.stage, "message": f.message} for f in self.findings],
            "notes": self.notes,
            "looked": self.looked,
        }

    def __str__(self) -> str:
        if self.ok:
            return "\n".join([f"golden {self.name}: the same ({', '.join(self.looked)})",
                              *(f"  note: {note}" for note in self.notes)])  # fmt: skip
        place = _from_here(self.path)
        lines = [f"golden {self.name} ({place}):"]
        for stage, words in _WORDS.items():
            said = [f.message for f in self.findings if f.stage == stage]
            if said:
                lines += [f"  {words}:", *(f"    {_indented(s)}" for s in said[:SHOWN])]
                lines += [f"    and {len(said) - SHOWN:,} more"] if len(said) > SHOWN else []
        lines += [f"  note: {note}" for note in self.notes]
        lines.append(
            "  if this was meant: `pytest --update-goldens`, or "
            f"`linen2nnx golden update {place}`, shows the change and writes it"
        )
        return "\n".join(lines)


def _indented(text: str) -> str:
    return text.replace("\n", "\n      ")


def _from_here(path: Path) -> str:
    """A path as somebody in the working folder would write it."""
    place = path.absolute()
    return str(place.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else path)
