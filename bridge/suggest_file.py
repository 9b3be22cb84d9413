"""The rules that a plan's problems suggest, as one TOML file to edit."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from bridge._plan import Plan, Problem

__all__ = ["suggestions"]

_WIDTH = 96
_SHOWN = 6
_HEAD = """\
# Suggested for what the plan could not settle. A suggestion is a guess from names and shapes:
# read each one, correct it, delete what is wrong, then give the file as --rules.
"""


def suggestions(plan: Plan) -> str:
    """A rules file for everything that is left.

    Args:
        plan: any plan; one without problems gives a file without rules.

    Returns:
        TOML that :meth:`bridge.Rules.from_toml` reads; each rule once, under the problems that it
        would settle.

    >>> from bridge._plan import Plan
    >>> from bridge.target import Target
    >>> print(suggestions(Plan((), (), (), (), Target(()), "")).splitlines()[-1])
    # Nothing is left to settle.
    """
    by_rule: dict[str, list[Problem]] = {}
    for problem in plan.problems:
        by_rule.setdefault(problem.rule, []).append(problem)
    blocks = [_HEAD]
    for rule, problems in by_rule.items():
        said = list(dict.fromkeys(p.message for p in problems))
        lines = [_comment(text) for text in said[:_SHOWN]]
        if len(said) > _SHOWN:
            lines.append(f"# ... and {len(said) - _SHOWN} more of the same")
        if problems[0].candidates:
            lines.append(_comment("candidates: " + ", ".join(problems[0].candidates)))
        blocks.append("\n".join([*lines, rule or "# no rule can be suggested"]) + "\n")
    if not by_rule:
        blocks.append("# Nothing is left to settle.\n")
    return "\n".join(blocks)


def _comment(text: str) -> str:
    return "\n".join(_lines(text.splitlines() or [""]))


def _lines(texts: Iterable[str]) -> Iterable[str]:
    for text in texts:
        for line in textwrap.wrap(text, _WIDTH - 2, break_long_words=False) or [""]:
            yield f"# {line}".rstrip()
