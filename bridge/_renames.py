"""Guesses at what was renamed between two checkpoints, from names and structure alone.

A guess needs the same kind, dtype and shape, the same end of the path, the same numbers in what
was renamed, and no second leaf on either side of which all that is true. It is a hint for the
reader of a comparison; nothing is ever mapped by it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterable, Mapping
from typing import Any, TypeAlias

from legacy.leaves import Leaf, LeafPath

__all__ = ["pairs", "subtrees"]

Name: TypeAlias = tuple[str, LeafPath]

_NUMBER = re.compile(r"\d+")
_MOST = 20_000
"""Leaves beyond which only whole subtrees are paired: the rest costs a walk for each depth."""


def pairs(only_a: Mapping[Name, Leaf], only_b: Mapping[Name, Leaf]) -> list[tuple[Name, Name]]:
    """Pair leaves of two sides that may be one leaf under two paths.

    Args:
        only_a: leaves that only the first side has.
        only_b: leaves that only the second side has.

    Returns:
        The pairs, in order of the first side; each leaf occurs at most once.

    >>> a = {("", ("Dense_0", "bias")): Leaf(("Dense_0", "bias"), "number")}
    >>> b = {("", ("fc", "0", "bias")): Leaf(("fc", "0", "bias"), "number")}
    >>> [(x[1], y[1]) for x, y in pairs(a, b)]
    [(('Dense_0', 'bias'), ('fc', '0', 'bias'))]
    """
    found: dict[Name, Name] = _whole(only_a, only_b)
    taken = set(found.values())
    left = {name: only_a[name] for name in only_a if name not in found}
    right = {name: only_b[name] for name in only_b if name not in taken}
    if len(left) + len(right) <= _MOST:
        found |= _single(left, right)
    return [(name, found[name]) for name in only_a if name in found]


def _whole(only_a: Mapping[Name, Leaf], only_b: Mapping[Name, Leaf]) -> dict[Name, Name]:
    """Subtrees of one parent with equal leaves, one on each side (or one of each number)."""
    of_a, of_b = _by_structure(only_a, only_b), _by_structure(only_b, only_a)
    found: dict[Name, Name] = {}
    for key, tops in of_a.items():
        for (item, top), (_, other) in _alone(tops, of_b.get(key, [])):
            for path in key[-1]:
                found[item, top + path[0]] = (item, other + path[0])
    return found


def _by_structure(
    only: Mapping[Name, Leaf], other: Mapping[Name, Leaf]
) -> dict[tuple[Any, ...], list[Name]]:
    inside: dict[Name, list[tuple[LeafPath, Hashable]]] = {}
    for (item, path), top in subtrees(only, other).items():
        if path != top:
            entry = (path[len(top) :], _kind(only[item, path]))
            inside.setdefault((item, top), []).append(entry)
    groups: dict[tuple[Any, ...], list[Name]] = {}
    for (item, top), entries in inside.items():
        groups.setdefault((item, top[:-1], tuple(entries)), []).append((item, top))
    return groups


def _alone(a: list[Name], b: list[Name]) -> list[tuple[Name, Name]]:
    """The only one of each side, or the only ones whose last names hold the same numbers."""
    if len(a) == len(b) == 1:
        return [(a[0], b[0])]
    by_numbers: dict[Hashable, tuple[list[Name], list[Name]]] = {}
    for side, names in enumerate((a, b)):
        for name in names:
            by_numbers.setdefault(_numbers(name[1][-1:]), ([], []))[side].append(name)
    return [(x[0], y[0]) for x, y in by_numbers.values() if len(x) == len(y) == 1]


def _single(only_a: Mapping[Name, Leaf], only_b: Mapping[Name, Leaf]) -> dict[Name, Name]:
    """Leaves whose paths start and end alike; the more is alike, the earlier they are paired."""
    left, right = dict(only_a), dict(only_b)
    longest = max((len(path) for _, path in (*left, *right)), default=0)
    lengths = [(start, end) for start in range(longest) for end in range(1, longest + 1)]
    found: dict[Name, Name] = {}
    for start, end in sorted(lengths, key=lambda pair: (-sum(pair), -pair[1])):
        if not left or not right:
            break
        of_a, of_b = _by_ends(left, start, end), _by_ends(right, start, end)
        for key, names in of_a.items():
            others = of_b.get(key, [])
            if len(names) == len(others) == 1:
                found[names[0]] = others[0]
                del left[names[0]], right[others[0]]
    return found


def _by_ends(leaves: Mapping[Name, Leaf], start: int, end: int) -> dict[Hashable, list[Name]]:
    groups: dict[Hashable, list[Name]] = {}
    for (item, path), leaf in leaves.items():
        if len(path) >= start + end:
            middle = path[start : len(path) - end]
            key = (item, path[:start], path[-end:], _numbers(middle), _kind(leaf))
            groups.setdefault(key, []).append((item, path))
    return groups


def _kind(leaf: Leaf) -> Hashable:
    return leaf.kind, leaf.shape, leaf.dtype, leaf.container, leaf.key_impl


def _numbers(path: LeafPath) -> tuple[str, ...]:
    return tuple(_NUMBER.findall("/".join(path)))


def subtrees(only: Iterable[Name], other: Collection[Name]) -> dict[Name, LeafPath]:
    """The largest subtree around each leaf that the other side has not at all.

    Args:
        only: leaves of one side.
        other: all leaves of the other side.

    >>> subtrees([("", ("ema", "a", "w"))], [("", ("params", "a", "w"))])
    {('', ('ema', 'a', 'w')): ('ema',)}
    """
    names = list(only)
    if not names:
        return {}
    there = {(item, path[:n]) for item, path in other for n in range(1, len(path) + 1)}
    found = {}
    for item, path in names:
        tops = (path[:n] for n in range(1, len(path)) if (item, path[:n]) not in there)
        found[item, path] = next(tops, path)
    return found
