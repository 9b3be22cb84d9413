"""Guesses which open leaf an open slot is meant for, by names; for suggestions only.

Names with the same words and other numbers are a family (``Block_#/Dense_0``); families are set
against families, and inside two of them the members with the same numbers belong together.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from bridge.match import Candidate
from bridge.names import may_pair, unboxed
from bridge.rule_text import reshaping

__all__ = ["Guess", "guess_pairs", "numbers", "words"]

_NUMBER = re.compile(r"\d+", re.ASCII)
_FAMILIES = 40  # compared with each other; more of one shape cannot be told apart by names
_MEMBERS = 24  # of families that do not agree in number


@dataclass(frozen=True, slots=True)
class Guess:
    """Leaves that may feed slots, with the transforms as TOML."""

    sources: tuple[Candidate, ...]
    slots: tuple[Candidate, ...]
    transforms: str = ""


def words(path: Sequence[str]) -> tuple[str, ...]:
    """A path without its numbers.

    >>> words(("Block_12", "kernel"))
    ('Block_#', 'kernel')
    """
    return tuple(_NUMBER.sub("#", p) for p in path)


def numbers(path: Sequence[str]) -> tuple[str, ...]:
    """The numbers of a path.

    >>> numbers(("Block_12", "Dense_0"))
    ('12', '0')
    """
    return tuple(n for p in path for n in _NUMBER.findall(p))


def guess_pairs(sources: Sequence[Candidate], slots: Sequence[Candidate]) -> list[Guess]:
    """Guess what belongs together.

    Args:
        sources: open leaves.
        slots: open slots.

    Returns:
        Guesses; each leaf and each slot in at most one.
    """
    guesses: list[Guess] = []
    left, right = list(sources), list(slots)
    for key in (_shape, _size):
        found = _in_groups(left, right, key)
        for a, b in found:
            how = "" if a.shape == b.shape else reshaping(a.shape, b.shape)
            guesses.append(Guess((a,), (b,), how))
        done = {id(c) for pair in found for c in pair}
        left = [c for c in left if id(c) not in done]
        right = [c for c in right if id(c) not in done]
        if key is _shape:
            stacks = [*_stacks(left, right, "stack"), *_stacks(right, left, "unstack")]
            guesses += stacks
            done = {id(c) for g in stacks for c in (*g.sources, *g.slots)}
            left = [c for c in left if id(c) not in done]
            right = [c for c in right if id(c) not in done]
    return guesses


def _shape(c: Candidate) -> Hashable:
    return (c.collection, c.shape)


def _size(c: Candidate) -> Hashable:
    return (c.collection, prod(c.shape))


def _in_groups(
    sources: Iterable[Candidate],
    slots: Iterable[Candidate],
    key: Callable[[Candidate], Hashable],
) -> list[tuple[Candidate, Candidate]]:
    ours: dict[Hashable, list[Candidate]] = defaultdict(list)
    theirs: dict[Hashable, list[Candidate]] = defaultdict(list)
    for c in sources:
        ours[key(c)].append(c)
    for c in slots:
        theirs[key(c)].append(c)
    return [pair for k, group in ours.items() if k in theirs for pair in _pair(group, theirs[k])]


def _families(group: Iterable[Candidate]) -> dict[tuple[str, ...], list[Candidate]]:
    found: dict[tuple[str, ...], list[Candidate]] = defaultdict(list)
    for c in group:
        found[words(c.path)].append(c)
    return found


def _pair(ours: list[Candidate], theirs: list[Candidate]) -> list[tuple[Candidate, Candidate]]:
    left, right = _families(ours), _families(theirs)
    pairs: list[tuple[Candidate, Candidate]] = []
    for one, other in _by_likeness(list(left)[:_FAMILIES], list(right)[:_FAMILIES]):
        if one in left and other in right:
            found = _by_numbers(left[one], right[other])
            if found:
                pairs += found
                del left[one], right[other]
    a = [c for family in left.values() for c in family][:_MEMBERS]
    b = [c for family in right.values() for c in family][:_MEMBERS]
    by_path = {c.path: c for c in a}, {c.path: c for c in b}
    for mine, other in _by_likeness(list(by_path[0]), list(by_path[1])):
        if mine in by_path[0] and other in by_path[1]:
            pairs.append((by_path[0].pop(mine), by_path[1].pop(other)))
    return pairs


def _by_likeness(
    ours: Sequence[tuple[str, ...]], theirs: Sequence[tuple[str, ...]]
) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """All pairs that may be one thing, the likest first."""
    scored = [
        (-_likeness("/".join(unboxed(a)).lower(), "/".join(b).lower()), n, m)
        for n, a in enumerate(ours)
        for m, b in enumerate(theirs)
        if may_pair(unboxed(a)[-1] if a else "", b[-1] if b else "", (), placed=True)
    ]
    return [(ours[n], theirs[m]) for _, n, m in sorted(scored)]


@lru_cache(maxsize=1 << 14)  # shapes share families
def _likeness(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()


def _by_numbers(
    ours: list[Candidate], theirs: list[Candidate]
) -> list[tuple[Candidate, Candidate]]:
    """Members of two families with the same numbers; none unless all find their like."""
    if len(ours) != len(theirs):
        return []
    if len(ours) == 1:
        return [(ours[0], theirs[0])]
    mine = list(zip(*(numbers(c.path) for c in ours), strict=True))
    other = list(zip(*(numbers(c.path) for c in theirs), strict=True))
    vary_mine = [column for column in mine if len(set(column)) > 1]
    vary_other = [column for column in other if len(set(column)) > 1]
    if [set(c) for c in vary_mine] != [set(c) for c in vary_other]:
        return []
    by_number = dict(zip(zip(*vary_other, strict=True), theirs, strict=True))
    keys = list(zip(*vary_mine, strict=True))
    if len(by_number) != len(theirs) or set(keys) != by_number.keys():
        return []
    return [(c, by_number[k]) for c, k in zip(ours, keys, strict=True)]


def _stacks(many: list[Candidate], one: list[Candidate], op: str) -> list[Guess]:
    """Arrays that differ in one number, and an array that has room for all of them."""
    families: dict[Hashable, list[list[Candidate]]] = defaultdict(list)
    for group in _families(many).values():
        by_kind: dict[Hashable, list[Candidate]] = defaultdict(list)
        for c in group:
            by_kind[c.collection, c.shape].append(c)
        for kind, members in by_kind.items():
            if len(members) > 1 and _count_up(members):
                families[kind].append(members)
    guesses = []
    for whole in one:
        for axis, n in enumerate(whole.shape):
            part = (*whole.shape[:axis], *whole.shape[axis + 1 :])
            fits = [
                f
                for f in families.get((whole.collection, part), ())
                if len(f) == n
                and may_pair(unboxed(f[0].path)[-1], unboxed(whole.path)[-1], (), placed=True)
            ]
            if fits:
                text = "/".join(words(whole.path)).lower()
                best = max(fits, key=lambda f: _likeness("/".join(words(f[0].path)).lower(), text))
                families[whole.collection, part].remove(best)
                how = f'{{op = "{op}", axis = {axis}}}'
                parts = tuple(best)
                ours, theirs = (parts, (whole,)) if op == "stack" else ((whole,), parts)
                guesses.append(Guess(ours, theirs, how))
                break
    return guesses


def _count_up(members: list[Candidate]) -> bool:
    """Whether one number tells the members apart and counts without gaps; sorts them by it."""
    columns = list(zip(*(numbers(c.path) for c in members), strict=True))
    varying = [n for n, column in enumerate(columns) if len(set(column)) > 1]
    if len(varying) != 1:
        return False
    members.sort(key=lambda c: int(numbers(c.path)[varying[0]]))
    counted = [int(numbers(c.path)[varying[0]]) for c in members]
    return counted == list(range(counted[0], counted[0] + len(counted)))
