"""The problems of a plan as text: those that one rule would settle are told together.

A model of five hundred leaves under new names has five hundred problems and a dozen causes; a
person reviews the causes. Nothing is left out: a group names all its leaves and slots, folded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from bridge._fold import fold_paths
from bridge._plan import Problem
from bridge._text import wrap
from bridge.target import SlotRef
from legacy import LeafPath

__all__ = ["problem_lines"]

_ALONE = 2
"""Up to so many problems of one rule are told one by one; then a group is shorter."""

_CANDIDATES = 3


def problem_lines(problems: Sequence[Problem], width: int) -> Iterator[str]:
    """Problems with their candidates and rules, grouped by the rule that would settle them.

    Args:
        problems: of a plan, in order.
        width: of the terminal.

    Yields:
        Lines; nothing when there are no problems.

    >>> list(problem_lines([Problem("rule", "rule map-1: it matches nothing")], 80))[-1]
    '  1. rule: rule map-1: it matches nothing'
    """
    if not problems:
        return
    groups: dict[object, list[Problem]] = {}
    for n, problem in enumerate(problems):
        groups.setdefault(problem.rule or n, []).append(problem)
    told = f"problems: {len(problems)}"
    if len(groups) < len(problems):
        told += f", of {len(groups)} kinds"
    yield ""
    yield f"{told} (nothing is written while there are any)"
    for n, group in enumerate(groups.values(), 1):
        first, rest = f"  {n}. ", " " * (len(str(n)) + 4)
        if len(group) > _ALONE:
            yield from _together(group, width, first, rest)
        else:
            for problem in group:
                yield from wrap(f"{problem.kind}: {problem.message}", width, first, rest)
                yield from _candidates(problem.candidates, width, rest)
                first = rest
        if group[0].rule:
            yield f"{rest}rule to paste:"
            yield from (f"{rest}    {line}" for line in group[0].rule.splitlines())


def _together(group: Sequence[Problem], width: int, first: str, rest: str) -> Iterator[str]:
    kinds = Counter(p.kind for p in group)
    counts = ", ".join(f"{kind} ×{n}" for kind, n in kinds.items())
    yield from wrap(f"{counts}, for example: {group[0].message}", width, first, rest)
    deeper = f"{rest}  "
    sources = dict.fromkeys(p for problem in group for p in problem.sources)
    slots = dict.fromkeys(r for problem in group for r in problem.slots)
    if sources:
        yield f"{rest}leaves:"
        yield from _folded(tuple(sources), "", width, deeper)
    for item, refs in _by_item(tuple(slots)).items():
        yield f"{rest}slots:"
        yield from _folded(tuple(r.path for r in refs), f"{item}:", width, deeper)
    shown = dict.fromkeys(c for problem in group for c in problem.candidates)
    if not slots or not sources:  # where both are named, the candidates are among them
        yield from _candidates(tuple(shown)[:_CANDIDATES], width, rest)


def _folded(paths: Sequence[LeafPath], item: str, width: int, indent: str) -> Iterator[str]:
    for text in fold_paths(paths):
        yield from wrap(f"{item}{text}", width, indent, f"{indent}  ")


def _by_item(refs: Sequence[SlotRef]) -> dict[str, list[SlotRef]]:
    found: dict[str, list[SlotRef]] = {}
    for ref in refs:
        found.setdefault(ref.item, []).append(ref)
    return found


def _candidates(candidates: Sequence[str], width: int, rest: str) -> Iterator[str]:
    for candidate in candidates:
        yield from wrap(f"candidate: {candidate}", width, rest, f"{rest}  ")
