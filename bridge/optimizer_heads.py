"""The parts of an optimizer state, and which part of another one each is.

A state is cut at the parameter names: what comes before is the *head* (``0/mu``), and all that
lies below a head is one copy of the parameters, or of some of them. The numbers in a head are
positions in a chain, which other versions of optax count otherwise.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TypeAlias, TypeVar

from bridge.names import is_index

__all__ = ["cut", "cut_all", "only", "pair_heads"]

T = TypeVar("T")
Path: TypeAlias = tuple[str, ...]
Heads: TypeAlias = Mapping[Path, frozenset[Path]]


def cut(
    path: Path, names: Iterable[Path] | Mapping[Path, object], wrapper: Path = ()
) -> tuple[Path, Path] | None:
    """Split a path of an optimizer state into head and parameter path.

    Args:
        path: below the optimizer state.
        names: parameter paths (a set or dict, looked up).
        wrapper: what lies between the head and the params collection (``('params',)`` when the
            optimizer was made for ``{'params': ...}``); not part of the head.

    Returns:
        ``(head, parameter path)``, the longest parameter path first; None when no suffix is one.

    >>> cut(("0", "mu", "Dense_0", "kernel"), {("Dense_0", "kernel")})
    (('0', 'mu'), ('Dense_0', 'kernel'))
    """
    for i in range(len(path)):
        if path[i:] in names:
            head = path[:i]
            if wrapper and head[-len(wrapper) :] == wrapper:
                head = head[: -len(wrapper)]
            return head, path[i:]
    return None


def cut_all(
    entries: Mapping[Path, T], names: Mapping[Path, object], wrapper: Path
) -> tuple[dict[Path, dict[Path, T]], dict[Path, T]]:
    """Cut every path of a state.

    Returns:
        Entries by head and parameter path, and those that belong to no parameter.
    """
    heads: dict[Path, dict[Path, T]] = defaultdict(dict)
    rest: dict[Path, T] = {}
    for path, entry in entries.items():
        found = cut(path, names, wrapper)
        if found is None or not found[0]:
            rest[path] = entry
        else:
            heads[found[0]][found[1]] = entry
    return dict(heads), rest


def pair_heads(ours: Heads, theirs: Heads) -> dict[Path, tuple[Path, str]]:
    """Pair heads by path, then by field name and the parameters that they cover.

    An older optax may have had an ``EmptyState`` more or fewer in the chain, so that ``0/mu``
    became ``1/0/mu``; the only ``mu`` over the same parameters is still the same one. Where a
    field occurs more than once, its positions must be the same on both sides.

    Args:
        ours: slot paths that each head of the source maps onto.
        theirs: slot paths below each head of the target.

    Returns:
        ``{our head: (their head, why)}``.

    >>> p = frozenset({("k",)})
    >>> pair_heads({("0", "mu"): p}, {("1", "0", "mu"): p})
    {('0', 'mu'): (('1', '0', 'mu'), 'unique')}
    """
    pairs: dict[Path, tuple[Path, str]] = {}
    left, right = dict(ours), dict(theirs)
    fields_left, fields_right = _by(left, _field), _by(right, _field)
    for name, heads in fields_left.items():
        others = set(fields_right.get(name, ()))
        # at other places on both sides: each one may have moved, so no path proves anything
        if others <= set(heads) or set(heads) <= others:
            pairs |= {h: (h, "path") for h in heads if h in others}
    for key in (lambda h, s: (_field(h, s), s), lambda h, s: (h[-1:], s)):
        left = {h: s for h, s in left.items() if h not in pairs}
        taken = {o for o, _ in pairs.values()}
        right = {h: s for h, s in right.items() if h not in taken}
        a, b = only(left, key), only(right, key)
        pairs |= {a[k]: (b[k], "unique") for k in a if k in b}
    return pairs


def _field(head: Path, _: frozenset[Path]) -> Path:
    """A head without positions."""
    return tuple(p for p in head if not is_index(p))


def _by(heads: Heads, key: Callable[[Path, frozenset[Path]], Path]) -> dict[Path, list[Path]]:
    found: dict[Path, list[Path]] = defaultdict(list)
    for head, covered in heads.items():
        found[key(head, covered)].append(head)
    return found


def only(heads: Heads, key: Callable[[Path, frozenset[Path]], Hashable]) -> dict[Hashable, Path]:
    """The heads whose key no other head has, by key."""
    found: dict[Hashable, list[Path]] = defaultdict(list)
    for head, covered in heads.items():
        found[key(head, covered)].append(head)
    return {k: v[0] for k, v in found.items() if len(v) == 1}
