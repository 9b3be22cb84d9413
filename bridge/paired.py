"""Which submodules of both models are the same, by what is mapped between them.

Two submodules are one and the same when the same steps of a plan feed all that is in them. So a
layer with its layer pairs, a cell with four gates with one that has them fused, and a block with
its block, whatever they are called and however they are cut.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise

__all__ = ["Pairs", "home", "module_groups", "module_pairs"]

Path = tuple[str, ...]
Pairs = Sequence[tuple[tuple[Path, ...], tuple[Path, ...]]]
"""Variable paths (collection first) and slot paths, of each step."""


def home(path: Path, modules: Collection[Path]) -> Path:
    """The innermost module that a variable is in.

    >>> home(("cell", "hf", "kernel"), {(), ("cell",)})
    ('cell',)
    """
    return next((path[:n] for n in range(len(path) - 1, -1, -1) if path[:n] in modules), ())


def module_groups(
    pairs: Pairs, ours: Mapping[Path, str], theirs: Mapping[Path, str]
) -> list[tuple[tuple[Path, ...], tuple[Path, ...]]]:
    """Modules of both sides that the same steps feed.

    Args:
        pairs: the steps.
        ours: class name by path of the Linen modules.
        theirs: class name by path of the NNX modules.

    Returns:
        Linen paths and NNX paths, innermost first; several where one contains nothing but the
        other.
    """
    left = _fed_by(((n, p[1:]) for n, (s, _) in enumerate(pairs) for p in s), ours)
    right = _fed_by(((n, p) for n, (_, s) in enumerate(pairs) for p in s), theirs)
    return [(left[k], right[k]) for k in sorted(left.keys() & right.keys(), key=len)]


def _fed_by(
    leaves: Iterable[tuple[int, Path]], modules: Collection[Path]
) -> dict[frozenset[int], tuple[Path, ...]]:
    steps: dict[Path, set[int]] = defaultdict(set)
    for n, path in leaves:
        inside = home(path, modules)
        for k in range(len(inside) + 1):
            if inside[:k] in modules:
                steps[inside[:k]].add(n)
    found: dict[frozenset[int], list[Path]] = defaultdict(list)
    for path in sorted(steps, key=lambda p: (-len(p), p)):
        found[frozenset(steps[path])].append(path)
    return {key: tuple(paths) for key, paths in found.items()}


def module_pairs(
    pairs: Pairs, ours: Mapping[Path, str], theirs: Mapping[Path, str]
) -> list[tuple[Path, Path]]:
    """One Linen module and one NNX module each; the models themselves are always a pair.

    >>> pairs = [((("params", "Dense_0", "kernel"),), (("fc", "kernel"),))]
    >>> module_pairs(pairs, {(): "M", ("Dense_0",): "Dense"}, {(): "N", ("fc",): "Linear"})
    [(('Dense_0',), ('fc',)), ((), ())]
    """
    found: list[tuple[Path, Path]] = []
    for left, right in module_groups(pairs, ours, theirs):
        mine = [p for p in left if p]
        others = [p for p in right if p]
        # of several with the same content those of one class are the same, then the innermost
        for p in list(mine):
            same = [q for q in others if alike(ours[p], theirs[q])]
            if len(same) == 1 and sum(alike(ours[o], theirs[same[0]]) for o in mine) == 1:
                found.append((p, same[0]))
                mine.remove(p)
                others.remove(same[0])
        if _chain(mine) and _chain(others):
            found += zip(mine, others, strict=False)
    return [*found, ((), ())]


_NAMES = {
    "Dense": "Linear",
    "DenseGeneral": "Linear",
    "LinearGeneral": "Linear",
    "MultiHeadDotProductAttention": "MultiHeadAttention",
    "SelfAttention": "MultiHeadAttention",
    "OptimizedLSTMCell": "LSTMCell",
}


def alike(ours: str, theirs: str) -> bool:
    """Whether two class names mean one layer.

    >>> alike("DenseGeneral", "Linear"), alike("Dense", "Conv")
    (True, False)
    """
    return _NAMES.get(ours, ours) == _NAMES.get(theirs, theirs)


def _chain(paths: Sequence[Path]) -> bool:
    """Whether each contains the one before it: stacked layers on one side do not."""
    return all(a[: len(b)] == b for a, b in pairwise(paths))
