"""The rules that a plan's problems suggest, as one TOML file to edit.

A suggestion is a guess, and a file of guesses that is used unread must not make a wrong plan. So a
rule is active only when it is forced: nothing else that is open could be meant. All others are
written as comments, for the user to judge.
"""

from __future__ import annotations

import re
import textwrap
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from math import prod

from bridge._plan import Plan, Problem
from bridge.names import ROLES_OF, may_pair, unboxed
from legacy import LeafPath

__all__ = ["suggestions"]

_WIDTH = 100
_SHOWN = 6
_VECTORS = frozenset({"bias", "scale", "mean", "var", "negative_slope"})
_SOURCE = re.compile(r" [a-z]\w*\[([\d, ]*)\] has no slot")
_CHOICE = "  # or "
"""What follows a value in a rule that the user has to choose."""
_HEAD = """\
## Suggested for what the plan could not settle.
##
## Rules that begin with "# " are guesses from names and shapes: uncomment what you know to be
## right, correct it where it is wrong, leave the rest. Rules that are not commented are forced:
## nothing else that is open could be meant; read them, too. Then give the file as --rules.
"""


def suggestions(plan: Plan) -> str:
    """A rules file for everything that is left.

    Args:
        plan: any plan; one without problems gives a file without rules.

    Returns:
        TOML that :meth:`bridge.Rules.from_toml` reads; each rule once, under the problems that it
        would settle. Only rules that nothing else could replace are active.

    >>> from bridge._plan import Plan
    >>> from bridge.target import Target
    >>> print(suggestions(Plan((), (), (), (), Target(()), "")).splitlines()[-1])
    ## Nothing is left to settle.
    """
    by_rule: dict[str, list[Problem]] = {}
    for problem in plan.problems:
        by_rule.setdefault(problem.rule, []).append(problem)
    forced = _forced(plan, by_rule)
    blocks = [_HEAD]
    for rule, problems in by_rule.items():
        said = list(dict.fromkeys(p.message for p in problems))
        lines = [_comment(text) for text in said[:_SHOWN]]
        if len(said) > _SHOWN:
            lines.append(f"## ... and {len(said) - _SHOWN} more of the same")
        others = list(dict.fromkeys(c for p in problems[:_SHOWN] for c in p.candidates))
        lines += [_comment(f"candidate: {c}") for c in others[: 2 * _SHOWN]]
        text = rule if rule in forced else _inactive(rule)
        blocks.append("\n".join([*lines, text or "## no rule can be suggested"]) + "\n")
    if not by_rule:
        blocks.append("## Nothing is left to settle.\n")
    return "\n".join(blocks)


@dataclass(frozen=True, slots=True)
class _Open:
    """A leaf or slot that a problem is about; without a shape when only its path is known."""

    name: LeafPath
    module: tuple[str, LeafPath]
    shape: tuple[int, ...] | None
    rule: str
    slot: bool = False
    state: bool = False  # of an optimizer


def _forced(plan: Plan, by_rule: dict[str, list[Problem]]) -> set[str]:
    """Rules that nothing else which is open could replace."""
    sources, slots = _open_sources(plan.problems), _open_slots(plan)
    theirs, ours = _Others(sources, slots), _Others(slots, sources)
    left, right = _by_rule(sources), _by_rule(slots)
    active = set()
    for rule, problems in by_rule.items():
        if not rule or _CHOICE in rule or any(not _giving(p) for p in problems):
            continue
        one_side, other = left[rule], right[rule]
        if rule.startswith("[[map]]"):
            found = [theirs.only(a) for a in one_side]
            pairs = [(a, b) for a, b in zip(one_side, found, strict=True) if b is not None]
            alone = len(pairs) == len(found) and all(ours.only(b) is not None for b in other)
            inside = sorted(id(b) for _, b in pairs) == sorted(map(id, other))
            if alone and inside and all(_same(a, b) for a, b in pairs):
                active.add(rule)
        elif not any(map(theirs.any, one_side)) and not any(map(ours.any, other)):
            active.add(rule)
    return _whole_modules(active, [*sources, *slots])


def _by_rule(side: Iterable[_Open]) -> dict[str, list[_Open]]:
    found: dict[str, list[_Open]] = defaultdict(list)
    for one in side:
        found[one.rule].append(one)
    return found


class _Others:
    """What else of the other side could be meant: nothing, one, or several.

    Blocks repeat, and only shape, roles and side decide: each kind is set against each kind.
    """

    def __init__(self, ones: Iterable[_Open], others: Iterable[_Open]) -> None:
        kinds: dict[Hashable, list[_Open]] = defaultdict(list)
        for other in others:
            kinds[_kind(other)].append(other)
        self.found: dict[Hashable, list[_Open]] = {}
        for one in ones:
            if _kind(one) not in self.found:
                near = (k for k in kinds.values() if _related(*_sides(one, k[0])))
                # the second says that there are several
                self.found[_kind(one)] = list(islice(chain.from_iterable(near), 2))

    def any(self, one: _Open) -> bool:
        """Whether some could be meant."""
        return bool(self.found[_kind(one)])

    def only(self, one: _Open) -> _Open | None:
        """The only one that could be meant."""
        found = self.found[_kind(one)]
        return found[0] if len(found) == 1 else None


def _kind(one: _Open) -> Hashable:
    return one.slot, one.shape, one.state, _roles(one)


def _sides(one: _Open, other: _Open) -> tuple[_Open, _Open]:
    """The leaf, then the slot."""
    return (other, one) if one.slot else (one, other)


def _whole_modules(active: set[str], everything: Sequence[_Open]) -> set[str]:
    """Without rules about modules of which something else is in doubt."""
    by_module: dict[tuple[str, LeafPath], set[str]] = defaultdict(set)
    for one in everything:
        by_module[one.module].add(one.rule)
    while True:
        doubtful = {r for rules in by_module.values() if not rules <= active for r in rules}
        if not doubtful & active:
            return active
        active = active - doubtful


def _giving(problem: Problem) -> bool:
    """Whether it only says that something has no counterpart; all else is the user's to decide."""
    return problem.kind in ("unmatched-source", "unfilled-slot", "ambiguous")


def _open_sources(problems: Iterable[Problem]) -> list[_Open]:
    found = []
    for p in problems:
        said = _SOURCE.search(p.message)
        for path in p.sources[: 1 if said else None]:  # moments go where their parameter goes
            shape = tuple(int(n) for n in said[1].split(",") if n.strip()) if said else None
            found.append(_Open(unboxed(path), ("source", unboxed(path)[:-1]), shape, p.rule))
    return found


def _open_slots(plan: Plan) -> list[_Open]:
    slots = {s.ref: s for s in plan.target.slots}
    found = []
    for p in plan.problems:
        for ref in p.slots:
            slot = slots[ref]
            state = slot.collection == "opt_state"
            module = (f"slot {ref.item}", ref.path[:-1])
            found.append(_Open(ref.path, module, slot.shape, p.rule, slot=True, state=state))
    return found


def _roles(one: _Open) -> frozenset[str]:
    return ROLES_OF.get(one.name[-1], frozenset()) if one.name else frozenset()


def _related(source: _Open, slot: _Open) -> bool:
    """Whether one could be meant for the other in any way: whole, in part, padded or reshaped."""
    if source.shape is None or slot.shape is None:
        return True
    if slot.state:
        return False
    roles = _roles(source), _roles(slot)
    if all(roles) and not roles[0] & roles[1] and any(r <= _VECTORS for r in roles):
        return False
    one, other = source.shape, slot.shape
    small, big = sorted((prod(one), prod(other)))
    if small == big or (small > 1 and not big % small):
        return True
    return len(one) == len(other) and sum(a != b for a, b in zip(one, other, strict=True)) <= 1


def _same(source: _Open, slot: _Open) -> bool:
    """Whether one can only be the other as it is; axes of length 1 are no difference."""
    if source.shape is None or slot.shape is None:
        return False
    sides = tuple(n for n in source.shape if n > 1)
    if sides != tuple(n for n in slot.shape if n > 1):
        return False
    ours, theirs = source.name[-1:], slot.name[-1:]
    known = ours == theirs or bool(_roles(source) & _roles(slot))
    return known and may_pair("".join(ours), "".join(theirs), sides, placed=True)


def _inactive(rule: str) -> str:
    """A rule as comments; of one that is written so already, the words before it are marked."""
    lines = rule.splitlines()
    if not all(line.startswith("#") for line in lines):
        return "\n".join(f"# {line}".rstrip() for line in lines)
    start = next((n for n, line in enumerate(lines) if line.startswith("# [[")), 0)
    return "\n".join([*(_comment(line[2:]) for line in lines[:start]), *lines[start:]])


def _comment(text: str) -> str:
    lines = [
        line
        for part in text.splitlines() or [""]
        for line in textwrap.wrap(part, _WIDTH - 3, break_long_words=False, break_on_hyphens=False)
        or [""]
    ]
    return "\n".join(f"## {line}".rstrip() for line in lines)
