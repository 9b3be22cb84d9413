"""Folds rows that agree up to one running index, so that twelve equal layers are one line."""

from __future__ import annotations

import functools
import itertools
import re
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from legacy.leaves import LeafPath, format_path

__all__ = ["Family", "fold", "fold_paths"]

T = TypeVar("T")

MIN_FOLD = 3
"""Two equal neighbours are shown; only from three on is a line saved."""

# whole numbers without leading zeros; "layer_007" keeps its name
_NUMBER = re.compile(r"(?<!\d)(?:0|[1-9]\d{0,8})(?!\d)")
_MARK = "\ue000"  # private use: stands for a number in a template
_SPAN = 0xE100  # private use, from here: each stands for a span while a path is formatted
_ALL_STEPS = 6  # up to so many numbers that run on their own every way to count on is tried

Numbers: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Family(Generic[T]):
    """Rows that differ in one running index.

    Attributes:
        rows: the rows, in order of the index; one row when nothing was folded.
        marked: the paths of the first row, with a mark where the index runs.
        spans: each mark and its text, such as ``{0…11}``.
    """

    rows: tuple[T, ...]
    marked: tuple[LeafPath, ...]
    spans: tuple[tuple[str, str], ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the first row as text, with ``{0…11}`` where the index runs."""
        return tuple(self._unmarked(format_path(path)) for path in self.marked)

    def folded(self, chosen: slice) -> list[str]:
        """Some of the paths as text, folded among themselves where that keeps their order."""
        paths = self.marked[chosen]
        families = fold([((p,), None, p) for p in paths])
        if tuple(p for family in families for p in family.rows) == paths:
            return [self._unmarked(text) for text in _counted(families)]
        return list(self.paths[chosen])

    def _unmarked(self, text: str) -> str:
        for mark, span in self.spans:
            text = text.replace(mark, span)
        return text


def fold(rows: Sequence[tuple[tuple[LeafPath, ...], Hashable, T]]) -> list[Family[T]]:
    """Fold rows whose paths agree up to one index that runs without a gap.

    Args:
        rows: for each row its paths, everything else that must be equal, and the row itself.

    Returns:
        The families, in order of their first rows.

    >>> rows = [((("l_%d" % n, "w"),), None, n) for n in (0, 1, 2, 5)]
    >>> [family.paths for family in fold(rows)]
    [('l_{0…2}/w',), ('l_5/w',)]
    """
    groups: dict[Hashable, dict[Numbers, int]] = defaultdict(dict)
    single: list[int] = []
    for at, (paths, rest, _) in enumerate(rows):
        parts = [_part(part) for p in paths for part in p]
        numbers = tuple(itertools.chain.from_iterable([found for _, found in parts]))
        key = (tuple([text for text, _ in parts]), tuple(map(len, paths)), len(numbers), rest)
        if numbers in groups[key]:
            single.append(at)  # a twin: nothing tells them apart but the row itself
        else:
            groups[key][numbers] = at
    chains = [chain for members in groups.values() for chain in _chains(members)]
    chains += [([at], ()) for at in single]
    chains.sort(key=lambda chain: chain[0][0])
    return [
        Family(tuple(rows[at][2] for at in chain), *_mark(rows[chain[0]][0], len(chain), step))
        for chain, step in chains
    ]


def fold_paths(paths: Sequence[LeafPath]) -> list[str]:
    """Paths as text, with runs of an index folded.

    >>> fold_paths([("l", "0"), ("l", "1"), ("l", "2"), ("m",)])
    ['l/{0…2} ×3', 'm']
    """
    return _counted(fold([((p,), None, p) for p in paths]))


def _counted(families: Sequence[Family[LeafPath]]) -> list[str]:
    return [f.paths[0] + (f" ×{len(f.rows)}" if len(f.rows) > 1 else "") for f in families]


@functools.lru_cache(maxsize=1 << 14)  # names repeat from block to block
def _part(part: str) -> tuple[str, Numbers]:
    """A component with marks in place of its numbers, and the numbers."""
    return _NUMBER.sub(_MARK, part), tuple(map(int, _NUMBER.findall(part)))


def _chains(members: dict[Numbers, int]) -> list[tuple[list[int], Numbers]]:
    """Longest runs first come, first served; a run adds 1 to some of the numbers at each step."""
    left = dict(members)
    chains = []
    together = _together(list(members))
    for start in sorted(members):
        if start not in left:
            continue
        best: tuple[list[Numbers], Numbers] = ([start], ())
        for chosen in _steps(max(together, default=-1) + 1):
            step = tuple(chosen[n] if n >= 0 else 0 for n in together)
            if _add(start, step) not in left:
                continue
            chain = [start]
            while (following := _add(chain[-1], step)) in left:
                chain.append(following)
            if len(chain) > len(best[0]) and len(chain) >= MIN_FOLD:
                best = (chain, step)
        chains.append(([left.pop(numbers) for numbers in best[0]], best[1]))
    return chains


def _together(members: Sequence[Numbers]) -> list[int]:
    """Which numbers always run together: the same index for those; -1 for one that never does."""
    classes: dict[Numbers, int] = {}
    found = []
    for column in zip(*members, strict=True):
        runs = tuple(n - column[0] for n in column)
        found.append(classes.setdefault(runs, len(classes)) if any(runs) else -1)
    return found


@functools.cache
def _steps(numbers: int) -> tuple[Numbers, ...]:
    """Every way to add 1 to some of the numbers; of many to one of them, or to all."""
    if numbers <= _ALL_STEPS:
        return tuple(s for s in itertools.product((0, 1), repeat=numbers) if any(s))
    single = [tuple(int(n == at) for n in range(numbers)) for at in range(numbers)]
    return (*single, (1,) * numbers)


def _add(numbers: Numbers, step: Numbers) -> Numbers:
    return tuple(a + b for a, b in zip(numbers, step, strict=True))


def _mark(
    paths: tuple[LeafPath, ...], length: int, step: Numbers
) -> tuple[tuple[LeafPath, ...], tuple[tuple[str, str], ...]]:
    """The paths with a mark in place of each number that runs, and the texts of the marks."""
    if not any(step):
        return paths, ()
    steps = iter(step)
    taken = {c for path in paths for part in path for c in part}
    free = (mark for mark in map(chr, itertools.count(_SPAN)) if mark not in taken)
    marks: dict[str, str] = {}

    def mark(found: re.Match[str]) -> str:
        if not next(steps):
            return found.group()
        first = int(found.group())
        span = f"{{{first}…{first + length - 1}}}"
        if span not in marks:
            marks[span] = next(free)
        return marks[span]

    marked = tuple(tuple(_NUMBER.sub(mark, part) for part in path) for path in paths)
    return marked, tuple((text, span) for span, text in marks.items())
