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
_MARK = 0xE000  # private use: stands for a number while a path is formatted
_ALL_STEPS = 6  # up to so many numbers in a path every way to count on is tried

Numbers: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Family(Generic[T]):
    """Rows that differ in one running index.

    Attributes:
        rows: the rows, in order of the index; one row when nothing was folded.
        paths: the paths of the first row as text, with ``{0…11}`` where the index runs.
    """

    rows: tuple[T, ...]
    paths: tuple[str, ...]


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
        key = (tuple(_template(p) for p in paths), rest)
        numbers = tuple(n for p in paths for n in _numbers(p))
        if numbers in groups[key]:
            single.append(at)  # a twin: nothing tells them apart but the row itself
        else:
            groups[key][numbers] = at
    chains = [(chain, _texts(rows[chain[0]][0], len(chain), step))
              for members in groups.values() for chain, step in _chains(members)]  # fmt: skip
    chains += [([at], _texts(rows[at][0], 1, ())) for at in single]
    chains.sort(key=lambda chain: chain[0][0])
    return [Family(tuple(rows[at][2] for at in chain), texts) for chain, texts in chains]


def fold_paths(paths: Sequence[LeafPath]) -> list[str]:
    """Paths as text, with runs of an index folded.

    >>> fold_paths([("l", "0"), ("l", "1"), ("l", "2"), ("m",)])
    ['l/{0…2} ×3', 'm']
    """
    families = fold([((p,), None, p) for p in paths])
    return [f.paths[0] + (f" ×{len(f.rows)}" if len(f.rows) > 1 else "") for f in families]


def _template(path: LeafPath) -> LeafPath:
    return tuple(_NUMBER.sub(chr(_MARK), part) for part in path)


def _numbers(path: LeafPath) -> list[int]:
    return [int(n) for part in path for n in _NUMBER.findall(part)]


def _chains(members: dict[Numbers, int]) -> list[tuple[list[int], Numbers]]:
    """Longest runs first come, first served; a run adds 1 to some of the numbers at each step."""
    left = dict(members)
    chains = []
    for start in sorted(members):
        if start not in left:
            continue
        best: tuple[list[Numbers], Numbers] = ([start], ())
        for step in _steps(len(start)):
            if _add(start, step) not in left:
                continue
            chain = [start]
            while (following := _add(chain[-1], step)) in left:
                chain.append(following)
            if len(chain) > len(best[0]) and len(chain) >= MIN_FOLD:
                best = (chain, step)
        chains.append(([left.pop(numbers) for numbers in best[0]], best[1]))
    return chains


@functools.cache
def _steps(numbers: int) -> tuple[Numbers, ...]:
    """Every way to add 1 to some of the numbers; in long paths to one of them, or to all."""
    if numbers <= _ALL_STEPS:
        return tuple(s for s in itertools.product((0, 1), repeat=numbers) if any(s))
    single = [tuple(int(n == at) for n in range(numbers)) for at in range(numbers)]
    return (*single, (1,) * numbers)


def _add(numbers: Numbers, step: Numbers) -> Numbers:
    return tuple(a + b for a, b in zip(numbers, step, strict=True))


def _texts(paths: tuple[LeafPath, ...], length: int, step: Numbers) -> tuple[str, ...]:
    texts = []
    at = 0
    for path in paths:
        spans: list[str] = []
        marked = []
        for part in path:
            pieces = []
            end = 0
            for found in _NUMBER.finditer(part):
                runs = bool(step) and step[at] == 1
                at += 1
                if runs:
                    first = int(found.group())
                    pieces += [part[end : found.start()], chr(_MARK + len(spans))]
                    spans.append(f"{{{first}…{first + length - 1}}}")
                    end = found.end()
            marked.append("".join(pieces) + part[end:])
        text = format_path(tuple(marked))
        for n, span in enumerate(spans):
            text = text.replace(chr(_MARK + n), span)
        texts.append(text)
    return tuple(texts)
