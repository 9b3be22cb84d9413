"""How names of leaves and modules compare: spellings, roles of leaves, numbered families.

Linen and NNX write one thing in several ways (``layers_3`` and ``layers[3]``), and different
things alike (``layers_2`` is the third layer, ``layers[2]`` of a list that holds activations, too,
is the second). What is equal and what only looks equal is decided here, for all matching.
"""

from __future__ import annotations

import functools
import keyword
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from legacy import LeafPath

__all__ = [
    "BOX",
    "Families",
    "is_index",
    "is_vector",
    "may_pair",
    "normal",
    "numbered",
    "unboxed",
]

_INDEXED = re.compile(r"(.+)_(\d+)", re.ASCII)
_COUNTED = re.compile(r"([a-z][A-Za-z_]*?)_?(\d+)", re.ASCII)
_ORDINALS = frozenset(
    {"first", "second", "third", "fourth", "fifth", "last", "one", "two", "three"}
)
"""Words that count, and so say no more than a number."""
BOX = "value"
"""What ``nn.Partitioned`` and NNX Variables add as the last component of a path."""

# What people call the leaves. A name may stand for several roles; two names that are both known
# and share no role are never one thing, whatever their shapes.
_ROLES: Mapping[str, tuple[str, ...]] = {
    "kernel": ("kernel", "weight", "weights", "w"),
    "bias": ("bias", "beta", "b", "shift", "offset"),
    "scale": ("scale", "gamma", "g", "gain", "weight", "w"),
    "embedding": ("embedding", "embeddings", "embed", "table", "weight", "w"),
    "mean": ("mean", "running_mean", "moving_mean"),
    "var": ("var", "variance", "running_var", "moving_var"),
    "negative_slope": ("negative_slope", "alpha", "slope"),
    "u": ("u",),
    "sigma": ("sigma",),
}
_VECTORS = frozenset({"bias", "scale", "mean", "var", "negative_slope"})
ROLES_OF: dict[str, frozenset[str]] = {
    name: frozenset(role for role, names in _ROLES.items() if name in names)
    for names in _ROLES.values()
    for name in names
}


@functools.lru_cache(maxsize=1 << 16)  # names repeat from block to block
def _normal_part(part: str) -> LeafPath:
    tail: list[str] = []
    head = part
    while (found := _INDEXED.fullmatch(head)) is not None:
        head, index = found.groups()
        tail.append(str(int(index)))
    if head.endswith("_") and keyword.iskeyword(head[:-1]):
        head = head[:-1]
    return (head, *reversed(tail))


def normal(path: LeafPath) -> LeafPath:
    """One spelling for indices and keywords.

    >>> normal(("layers_3", "if_", "kernel"))
    ('layers', '3', 'if', 'kernel')
    >>> normal(("nest_1_0",))
    ('nest', '1', '0')
    """
    return tuple(p for part in path for p in _normal_part(part))


def numbered(path: LeafPath) -> LeafPath:
    """A normal path in which ``norm1`` counts as the first of the ``norm``.

    >>> numbered(("block", "0", "norm1"))
    ('block', '0', 'norm', '1')
    """
    return tuple(p for part in path for p in _counted_part(part))


@functools.lru_cache(maxsize=1 << 16)
def _counted_part(part: str) -> LeafPath:
    found = _COUNTED.fullmatch(part)
    return (part,) if found is None else (found[1], str(int(found[2])))


def unboxed(path: LeafPath) -> LeafPath:
    """A path without a last ``value``.

    >>> unboxed(("Dense_0", "kernel", "value"))
    ('Dense_0', 'kernel')
    """
    return path[:-1] if len(path) > 1 and path[-1] == BOX else path


def is_vector(name: str) -> bool:
    """Whether leaves of this name are vectors, one number for each feature.

    >>> is_vector("bias"), is_vector("kernel")
    (True, False)
    """
    roles = ROLES_OF.get(name)
    return roles is not None and roles <= _VECTORS


def may_pair(ours: str, theirs: str, shape: tuple[int, ...], *, placed: bool) -> bool:
    """Whether leaves of these names can be one thing at all.

    Args:
        ours: last component of the source's path.
        theirs: last component of the slot's path.
        shape: of both.
        placed: both are in modules that are known to be the same.

    Returns:
        True for equal names. Names of different roles never pair. Under other names a kernel may
        be stored transposed, which only shows when its sides differ; and a vector whose name says
        nothing pairs in its own module only.

    >>> may_pair("scale", "weight", (8,), placed=False)
    True
    >>> may_pair("scale", "bias", (8,), placed=True)
    False
    >>> may_pair("kernel", "weight", (8, 8), placed=True)
    False
    """
    if ours == theirs:
        return True
    mine, other = ROLES_OF.get(ours), ROLES_OF.get(theirs)
    if mine is not None and other is not None and not mine & other:
        return False
    sides = [n for n in shape if n > 1]
    if len(sides) != len(set(sides)):
        return False
    if placed or (mine is not None and other is not None):
        return True
    return len(shape) > 1 and not (is_vector(ours) or is_vector(theirs))


class Families:
    """Which numbers follow each name, on both sides.

    ``layers_{0,1,2}`` and ``layers[0,2,4]`` share two indices, and neither need mean the same
    layer. Indices are trusted only where both sides have the same ones, or both count up from the
    same start (a model that grew or lost its last layers).

    Args:
        ours: paths of one side, spelled by :func:`normal`.
        theirs: paths of the other.
    """

    def __init__(self, ours: Iterable[LeafPath], theirs: Iterable[LeafPath]) -> None:
        self._ours = _numbers(ours)
        self._theirs = _numbers(theirs)
        self._known: dict[tuple[LeafPath, bool], bool] = {}

    def agree(self, path: LeafPath, *, exact: bool = False) -> bool:
        """Whether all indices in a path can be trusted.

        Args:
            path: spelled by :func:`normal`.
            exact: both sides spell it alike in the files, too; then gaps are no doubt, as long as
                one side has all numbers of the other and both start with the same one:
                ``fc1, fc2, fc3`` may be ``fc0, fc1, fc2``.

        >>> one, other = [("l", "0"), ("l", "1")], [("l", "0"), ("l", "2")]
        >>> Families(one, other).agree(("l", "0"))
        False
        """
        return all(
            self._agree(path[:n], exact=exact) for n, part in enumerate(path) if is_index(part)
        )

    def _agree(self, name: LeafPath, *, exact: bool) -> bool:
        known = self._known.get((name, exact))
        if known is None:
            a, b = self._ours.get(name, set()), self._theirs.get(name, set())
            known = a == b or (bool(a and b) and min(a) == min(b) and _gapless(a) and _gapless(b))
            known = known or (exact and bool(a and b) and min(a) == min(b) and (a <= b or b <= a))
            self._known[name, exact] = known
        return known


def is_index(part: str) -> bool:
    """Whether a component of a path is a number."""
    return part.isascii() and part.isdigit()


def _numbers(paths: Iterable[LeafPath]) -> dict[LeafPath, set[int]]:
    found: dict[LeafPath, set[int]] = defaultdict(set)
    for path in paths:
        for n, part in enumerate(path):
            if is_index(part):
                found[path[:n]].add(int(part))
    return found


def _gapless(numbers: set[int]) -> bool:
    return max(numbers) - min(numbers) + 1 == len(numbers)
