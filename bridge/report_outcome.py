"""What became of a conversion, and a verdict, for people; a light module for quick commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bridge._text import WIDTH, count, size, wrap, wrap_path
from bridge._verdict import RUNGS, Verdict

if TYPE_CHECKING:
    from bridge._batch import Outcome

__all__ = ["outcome_text", "outcomes_text", "verdict_text"]


def verdict_text(verdict: Verdict, width: int | None = None) -> str:
    """A verdict in a line, or with every difference.

    >>> verdict_text(Verdict("none", "", slots=3))
    'not verified (level none)'
    """
    width = width or WIDTH
    if verdict.level == "none":
        return "not verified (level none)"
    compared = (
        f"{verdict.compared:,} of {count(verdict.slots, 'value')} compared bit for bit, "
        + (f"stored bytes of {verdict.sampled:,} sampled, " if verdict.sampled else "")
        + f"{size(verdict.nbytes)}, {verdict.seconds:.1f} s"
    )
    reached = f"rung {verdict.rung} ({RUNGS[verdict.rung]})" if verdict.rung else "no rung"
    if verdict.ok:
        lines = wrap(f"verified to {reached}: {compared}", width, "", "  ")
        for line in verdict.behaviour_lines():
            lines += wrap(line, width, "  ", "      ")
        return "\n".join(lines)
    found = count(len(verdict.problems), "difference")
    lines = wrap(f"NOT VERIFIED: {found}; {reached} holds; {compared}", width, "", "  ")
    for problem in verdict.problems:
        lines += wrap(str(problem), width, "  ", "      ")
    return "\n".join(lines)


def outcome_text(outcome: Outcome, width: int | None = None, *, dry_run: bool = False) -> str:
    """What became of one path in a conversion."""
    width = width or WIDTH
    head = f"{outcome.path} → {outcome.out}"
    lines = wrap_path(head, width, "", "    ")
    if outcome.error is not None:
        lines.append(f"  FAILED: {type(outcome.error).__name__} (see the error message)")
    for done in outcome.converted:
        said = f"step {done.step}: {size(done.nbytes)}, {done.seconds:.1f} s"
        if dry_run:
            said += "; nothing written (dry run)"
        elif done.verdict is not None:
            arrays = ", ".join(f"{n} {how}" for how, n in done.written.items() if n)
            said += f"; arrays: {arrays or 'none'}; {verdict_text(done.verdict, 10_000)}"
        lines += wrap(said, width, "  ", "      ")
    return "\n".join(lines)


def outcomes_text(outcomes: Sequence[Outcome], *, dry_run: bool = False) -> str:
    """A conversion in one line."""
    steps = sum(len(outcome.converted) for outcome in outcomes)
    failed = sum(outcome.error is not None for outcome in outcomes)
    verb = "would be converted" if dry_run else "converted"
    return f"{count(steps, 'checkpoint')} {verb}, {failed} failed"
