"""The problems of a plan as text: those of one kind are told together.

A model of five hundred leaves under new names has thousands of problems and a dozen causes; a
person reviews the causes. Problems that one rule would settle are one group, and so are those
that say the same of other blocks. What follows a parameter (its moments, its copies) is counted
with it. What a group is too long to list is counted, too: nothing goes without a number.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass

from bridge._fold import fold_paths
from bridge._plan import Problem
from bridge._text import count, wrap
from bridge.target import SlotRef
from legacy import LeafPath

__all__ = ["problem_lines"]

_ALONE = 2
"""Up to so many problems of one group are told one by one; then a group is shorter."""

_CANDIDATES = 3
_RULES = 3
_ROWS = 12
_GROUPS = 60
_NUMBER = re.compile(r"\d+")
_TOML = re.compile(r"#\s*(\[\[|[a-z_]+ = )")
_COLLECTIONS = frozenset({"batch_stats", "target"})


def problem_lines(problems: Sequence[Problem], width: int) -> Iterator[str]:
    """Problems with their candidates and rules, in groups of one cause.

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
    groups = _groups(problems)
    concerned = _Concerned.of(problems)
    told = f"problems: {len(problems)}"
    if len(groups) < len(problems):
        told += f", of {count(len(groups), 'kind')}"
    yield ""
    yield f"{told} (nothing is written while there are any)"
    if len(groups) < len(problems):
        said = ", ".join(filter(None, (f"open: {concerned}", concerned.followed)))
        yield from wrap(said, width, "  ", "    ")
    for n, group in enumerate(groups[:_GROUPS], 1):
        yield from _group(group, width, f"  {n}. ", " " * (len(str(n)) + 4))
    rest = groups[_GROUPS:]
    if rest:
        left = [p for group in rest for p in group]
        about = ", ".join(filter(None, (f"{_Concerned.of(left)}", _Concerned.of(left).followed)))
        said = (
            f"and {count(len(rest), 'more kind')}: {count(len(left), 'problem')} ({about}); "
            "--json or --suggest FILE has all of them"
        )
        yield from wrap(said, width, "  ", "    ")


def _groups(problems: Sequence[Problem]) -> list[list[Problem]]:
    """Problems of one rule, and then those with a problem that says the same, numbers aside.

    What is said of slots joins problems only where no leaf is concerned: a guess may set the
    leaves of equal blocks against slots of any name.
    """
    by_rule: dict[Hashable, list[Problem]] = {}
    for n, problem in enumerate(problems):
        by_rule.setdefault(problem.rule or n, []).append(problem)
    units = list(by_rule.values())
    above = list(range(len(units)))

    def top(n: int) -> int:
        while above[n] != n:
            above[n] = n = above[above[n]]
        return n

    first: dict[Hashable, int] = {}
    for n, unit in enumerate(units):
        for said in {_said(p) for p in unit if p.sources} or {_said(p) for p in unit}:
            low, high = sorted((top(n), top(first.setdefault(said, n))))
            above[high] = low
    found: dict[int, list[Problem]] = defaultdict(list)
    for n, unit in enumerate(units):
        found[top(n)] += unit
    return list(found.values())


def _said(problem: Problem) -> tuple[bool, str, str]:
    """What a problem says, without the numbers in paths; shapes and dtypes stay."""
    words = (_NUMBER.sub("#", w) if "/" in w else w for w in problem.message.split())
    return bool(problem.sources), problem.kind, " ".join(words)


@dataclass(frozen=True, slots=True)
class _Concerned:
    """The leaves and slots of some problems, each once, and how many follow them."""

    leaves: tuple[LeafPath, ...]
    slots: tuple[SlotRef, ...]
    following: tuple[int, int]

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> _Concerned:
        leaves: dict[LeafPath, bool] = {}
        slots: dict[SlotRef, bool] = {}
        for problem in problems:
            leaves |= _followers(problem.sources)
            item = problem.slots[0].item if problem.slots else ""
            own = {r.path for r in problem.slots if r.item == item}
            slots |= {
                r: r.item != item and r.path[:1] == ("opt_state",) and _holds(r.path[1:], own)
                for r in problem.slots
            }
        return cls(
            tuple(p for p, follows in leaves.items() if not follows),
            tuple(r for r, follows in slots.items() if not follows),
            (sum(leaves.values()), sum(slots.values())),
        )

    def __str__(self) -> str:
        return _both(len(self.leaves), len(self.slots)) or "no leaf and no slot"

    @property
    def followed(self) -> str:
        """What follows them, in words; empty when there is nothing."""
        said = _both(*self.following)
        return f"and {said} that follow them (optimizer state, copies)" if said else ""


def _both(leaves: int, slots: int) -> str:
    said = [count(leaves, "leaf", "leaves")] if leaves else []
    return " and ".join([*said, count(slots, "slot")] if slots else said)


def _followers(sources: Sequence[LeafPath]) -> dict[LeafPath, bool]:
    """For each leaf whether it lies elsewhere, under the path that a parameter among them has."""
    heads = {p: next((n for n, part in enumerate(p, 1) if _collection(part)), 0) for p in sources}
    below = {p[n:] for p, n in heads.items() if 0 < n < len(p)}

    def follows(path: LeafPath, n: int) -> bool:
        if not n:
            return _holds(path, below)
        if path[n - 1] == "params":  # of a TrainState over {"params": ...}
            return path[n - 1 :] in below
        return (*path[: n - 1], "params", *path[n:]) in heads  # ema_params beside params

    return {p: follows(p, n) for p, n in heads.items()}


def _collection(name: str) -> bool:
    return name.endswith("params") or name in _COLLECTIONS


def _holds(path: LeafPath, parts: Collection[LeafPath]) -> bool:
    """Whether one of the parts is in the path."""
    size = len(path)
    return any(path[a:b] in parts for a in range(size) for b in range(a + 1, size + 1))


def _group(group: Sequence[Problem], width: int, first: str, rest: str) -> Iterator[str]:
    concerned = _Concerned.of(group)
    if len(group) > _ALONE:
        yield from _together(group, concerned, width, first, rest)
    else:
        for problem in group:
            yield from wrap(f"{problem.kind}: {problem.message}", width, first, rest)
            yield from _candidates(problem.candidates, width, rest)
            first = rest
    if concerned.followed:
        yield from wrap(concerned.followed, width, rest, f"{rest}  ")
    yield from _rules(tuple(dict.fromkeys(p.rule for p in group if p.rule)), width, rest)


def _together(
    group: Sequence[Problem], concerned: _Concerned, width: int, first: str, rest: str
) -> Iterator[str]:
    # a slot without a source beside its leaf without a slot is the other side of one problem
    sided = any(p.sources for p in group)
    kinds = Counter(p.kind for p in group if p.sources or p.kind != "unfilled-slot" or not sided)
    counts = ", ".join(f"{kind} ×{n}" for kind, n in kinds.items())
    yield from wrap(f"{counts}, for example: {group[0].message}", width, first, rest)
    by_item: dict[str, list[LeafPath]] = defaultdict(list)
    for ref in concerned.slots:
        by_item[ref.item].append(ref.path)
    if concerned.leaves:
        yield f"{rest}{count(len(concerned.leaves), 'leaf', 'leaves')}:"
        yield from _folded(concerned.leaves, "", width, f"{rest}  ")
    for item, paths in by_item.items():
        yield f"{rest}{count(len(paths), 'slot')}:"
        yield from _folded(paths, f"{item}:", width, f"{rest}  ")
    shown = dict.fromkeys(c for problem in group for c in problem.candidates)
    if not by_item or not concerned.leaves:  # where both are named, the candidates are among them
        yield from _candidates(tuple(shown)[:_CANDIDATES], width, rest)


def _folded(paths: Sequence[LeafPath], item: str, width: int, indent: str) -> Iterator[str]:
    rows = fold_paths(paths)
    shown = len(rows) if len(rows) <= _ROWS + 1 else _ROWS
    for text in rows[:shown]:
        yield from wrap(f"{item}{text}", width, indent, f"{indent}  ")
    if len(rows) > shown:
        yield f"{indent}… and {len(rows) - shown} more rows like these (--json has all)"


def _candidates(candidates: Sequence[str], width: int, rest: str) -> Iterator[str]:
    for candidate in candidates:
        yield from wrap(f"candidate: {candidate}", width, rest, f"{rest}  ")


def _rules(rules: Sequence[str], width: int, rest: str) -> Iterator[str]:
    """One rule of each form, which is a rule without its numbers, and how many more there are."""
    forms: dict[str, str] = {}
    for rule in rules:
        forms.setdefault(_NUMBER.sub("#", rule), rule)
    chosen = list(forms.values())[:_RULES]
    for n, rule in enumerate(chosen):
        yield "" if n else f"{rest}{'rules' if len(chosen) > 1 else 'rule'} to paste:"
        for line in rule.splitlines():
            yield from _rule_line(line, width, f"{rest}    ")
    if len(rules) > len(chosen):
        said = f"and {count(len(rules) - len(chosen), 'more rule')}: --suggest FILE writes all"
        yield from wrap(said, width, rest, f"{rest}  ")


def _rule_line(line: str, width: int, indent: str) -> list[str]:
    """A line of TOML as it is; a remark, which may be wrapped."""
    if not line.startswith("# ") or _TOML.match(line):
        return [f"{indent}{line}".rstrip()]
    return wrap(line, width, indent, f"{indent}# ")
