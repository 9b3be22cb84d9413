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

__all__ = ["container", "cut", "cut_all", "field_of", "homes", "only", "pair_heads"]

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
        Where an optimizer keeps a list for each parameter (``sm3``), the position in the list is
        the last part of the head.

    >>> cut(("0", "mu", "Dense_0", "kernel"), {("Dense_0", "kernel")})
    (('0', 'mu'), ('Dense_0', 'kernel'))
    >>> cut(("0", "mu", "Dense_0", "kernel", "1"), {("Dense_0", "kernel")})
    (('0', 'mu', '1'), ('Dense_0', 'kernel'))
    """
    ends = [len(path), len(path) - 1] if is_index(path[-1]) else [len(path)]
    for end in ends:
        for i in range(end):
            if path[i:end] in names:
                head = path[:i]
                if wrapper and head[-len(wrapper) :] == wrapper:
                    head = head[: -len(wrapper)]
                return (*head, *path[end:]), path[i:end]
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


def container(head: Path) -> Path:
    """The state that a field belongs to: the head without the field, and the position in a list.

    >>> container(("1", "0", "mu")), container(("0", "mu", "1"))
    (('1', '0'), ('0',))
    """
    return head[: _last(head)]


def _last(head: Path) -> int:
    """Where the name of the field is."""
    return max((n for n, part in enumerate(head) if not is_index(part)), default=0)


def pair_heads(ours: Heads, theirs: Heads) -> dict[Path, tuple[Path, str]]:
    """Pair heads by path, then by field name and the parameters that they cover.

    An older optax may have had an ``EmptyState`` more or fewer in the chain, so that ``0/mu``
    became ``1/0/mu``; the only ``mu`` over the same parameters is still the same one. Where a
    field occurs more than once, its positions must be the same on both sides. The fields of one
    state stay together: ``mu`` and ``nu`` of Adam are not dealt out to two other optimizers.

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
    fields_left, fields_right = _by(left, field_of), _by(right, field_of)
    for name, heads in fields_left.items():
        others = set(fields_right.get(name, ()))
        # at other places on both sides: each one may have moved, so no path proves anything
        if others <= set(heads) or set(heads) <= others:
            pairs |= {h: (h, "path") for h in heads if h in others}
    for key in (lambda h, s: (field_of(h, s), s), lambda h, s: (_name(h), s)):
        left = {h: s for h, s in left.items() if h not in pairs}
        taken = {o for o, _ in pairs.values()}
        right = {h: s for h, s in right.items() if h not in taken}
        a, b = only(left, key), only(right, key)
        pairs |= {a[k]: (b[k], "unique") for k in a if k in b}
    return _together(pairs)


def _together(pairs: dict[Path, tuple[Path, str]]) -> dict[Path, tuple[Path, str]]:
    """Without pairs that would take the fields of one state to several, or of several to one."""
    there: dict[Path, set[Path]] = defaultdict(set)
    back: dict[Path, set[Path]] = defaultdict(set)
    for head, (other, _) in pairs.items():
        there[container(head)].add(container(other))
        back[container(other)].add(container(head))
    return {
        head: (other, why)
        for head, (other, why) in pairs.items()
        if len(there[container(head)]) == 1 == len(back[container(other)])
    }


def homes(pairs: Mapping[Path, tuple[Path, str]]) -> dict[Path, Path]:
    """Which state became which one: those whose fields are paired, and what is around both.

    >>> homes({("1", "inner_state", "mu"): (("inner_state", "mu"), "unique")})
    {('1', 'inner_state'): ('inner_state',), ('1',): ()}
    """
    found: dict[Path, set[Path]] = defaultdict(set)
    for head, (other, _) in pairs.items():
        a, b = container(head), container(other)
        found[a].add(b)
        while a and b and a[-1] == b[-1]:
            a, b = a[:-1], b[:-1]
            found[a].add(b)
    return {a: next(iter(b)) for a, b in found.items() if len(b) == 1}


def field_of(head: Path, _: frozenset[Path] = frozenset()) -> Path:
    """A head without positions in chains; a position in a list of a parameter's own stays."""
    end = _last(head)
    return (*(p for p in head[:end] if not is_index(p)), *head[end:])


def _name(head: Path) -> Path:
    return head[_last(head) :]


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
