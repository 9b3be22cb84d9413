"""Sets open leaves or modules of one kind against each other, by names; for suggestions only.

Names with the same words and other numbers are a family (``Block_#/Dense_0``); families are set
against families, and inside two of them the members with the same numbers belong together.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from bridge.match import Candidate
from bridge.names import unboxed
from legacy import LeafPath

__all__ = ["Part", "families", "first_open", "likeness", "numbers", "pair", "words"]

_NUMBER = re.compile(r"\d+", re.ASCII)
_FAMILIES = 40  # compared with each other; more of one shape cannot be told apart by names
_MEMBERS = 24  # of families that do not agree in number


@dataclass(frozen=True, slots=True)
class Part:
    """Open leaves of one module, or one of them: what is guessed at once."""

    path: LeafPath
    leaves: tuple[Candidate, ...]


_Named = TypeVar("_Named", Part, Candidate)


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


def first_open(path: LeafPath) -> tuple[str, ...]:
    """A path without its first number.

    >>> first_open(("Block_12", "Dense_0"))
    ('Block_#', 'Dense_0')
    """
    text, done = [], 0
    for part in path:
        text.append(part if done else _NUMBER.sub("#", part, count=1))
        done += text[-1] != part
    return tuple(text)


def families(
    group: Iterable[_Named], name: Callable[[LeafPath], tuple[str, ...]] = words
) -> dict[tuple[str, ...], list[_Named]]:
    """Members by what their paths have in common.

    Args:
        group: whatever has a path.
        name: what members of one family share.
    """
    found: dict[tuple[str, ...], list[_Named]] = defaultdict(list)
    for c in group:
        found[name(c.path)].append(c)
    return found


def pair(
    ours: Sequence[Part], theirs: Sequence[Part], fits: Callable[[Part, Part], bool]
) -> list[tuple[Part, Part]]:
    """Pair what may be one thing, by names.

    Args:
        ours: parts of one kind.
        theirs: parts of that kind on the other side.
        fits: whether two of them may be paired.

    Returns:
        Pairs, each part at most once: families with the same numbers first, then families that
        count alike, then single ones by likeness.
    """
    pairs: list[tuple[Part, Part]] = []
    mine, other = list(ours), list(theirs)
    for name in (words, first_open):
        for ranked in (False, True):
            if not mine or not other:
                return pairs
            left, right = families(mine, name), families(other, name)
            for a, b in _by_likeness(list(left)[:_FAMILIES], list(right)[:_FAMILIES]):
                if a not in left or b not in right:
                    continue
                found = _by_numbers(left[a], right[b], ranked=ranked)
                if found and all(fits(x, y) for x, y in found):
                    pairs += found
                    del left[a], right[b]
            mine = [c for family in left.values() for c in family]
            other = [c for family in right.values() for c in family]
    by_path = {c.path: c for c in mine[:_MEMBERS]}, {c.path: c for c in other[:_MEMBERS]}
    for a, b in _by_likeness(list(by_path[0]), list(by_path[1])):
        if a in by_path[0] and b in by_path[1] and fits(by_path[0][a], by_path[1][b]):
            pairs.append((by_path[0].pop(a), by_path[1].pop(b)))
    return pairs


def _by_likeness(
    ours: Sequence[tuple[str, ...]], theirs: Sequence[tuple[str, ...]]
) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """All pairs of names, the likest first."""
    left = ["/".join(unboxed(p)).lower() for p in ours]
    right = ["/".join(unboxed(p)).lower() for p in theirs]
    scored = [(-likeness(a, b), n, m) for n, a in enumerate(left) for m, b in enumerate(right)]
    return [(ours[n], theirs[m]) for _, n, m in sorted(scored)]


@lru_cache(maxsize=1 << 14)  # shapes share families
def likeness(a: str, b: str) -> float:
    """How like two names are, from 0 to 1."""
    return difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()


def _by_numbers(ours: list[Part], theirs: list[Part], *, ranked: bool) -> list[tuple[Part, Part]]:
    """Members of two families with the same numbers; none unless all find their like.

    Args:
        ours: one family.
        theirs: the other.
        ranked: numbers that differ count by their order: ``fc1, fc2`` may be ``fc0, fc1``.
    """
    if len(ours) != len(theirs):
        return []
    if len(ours) == 1:
        return [(ours[0], theirs[0])]
    mine, other = _columns(ours, ranked=ranked), _columns(theirs, ranked=ranked)
    if [set(c) for c in mine] != [set(c) for c in other]:
        return []
    by_number = dict(zip(zip(*other, strict=True), theirs, strict=True))
    keys = list(zip(*mine, strict=True))
    if len(by_number) != len(theirs) or set(keys) != by_number.keys():
        return []
    return [(c, by_number[k]) for c, k in zip(ours, keys, strict=True)]


def _columns(family: Sequence[Part], *, ranked: bool) -> list[list[int]]:
    """The numbers that tell the members of a family apart, one list for each position."""
    rows = [[int(n) for n in numbers(c.path)] for c in family]
    found = [list(column) for column in zip(*rows, strict=True) if len(set(column)) > 1]
    if not ranked:
        return found
    ranks = [{n: rank for rank, n in enumerate(sorted(set(column)))} for column in found]
    return [[rank[n] for n in column] for column, rank in zip(found, ranks, strict=True)]
