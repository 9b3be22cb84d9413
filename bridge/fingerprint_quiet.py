"""Pairs what neither outputs nor gradients show, by exclusion and never by shape alone.

The key bias of an attention has no influence: softmax does not see it. Its kernel is matched,
though, and the bias beside it can only be the one beside the matched kernel. Where more than one
way remains, nothing is paired.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from bridge.fingerprint_match import Unit
from bridge.fingerprint_pairs import Piece
from bridge.fingerprint_readings import Path, Reading
from bridge.names import unboxed
from bridge.proof import Pairing

__all__ = ["quiet_pairs", "siblings"]

Node: TypeAlias = tuple[Path, int]
"""A module, and which of its pieces (-1 when its leaves are whole)."""


def quiet_pairs(
    ours: Iterable[Unit],
    theirs: Iterable[Unit],
    partners: Mapping[Piece, Piece],
    readings: tuple[Mapping[Path, tuple[Reading, ...]], Mapping[Path, tuple[Reading, ...]]],
    params: tuple[Mapping[Path, bool], Mapping[Path, bool]],
    hints: Iterable[Pairing],
) -> list[tuple[Unit, Unit]]:
    """Pairs of units without influence for which one way remains.

    Args:
        ours: units of the Linen model without influence.
        theirs: those of the NNX model.
        partners: the pieces that are matched for certain.
        readings: of the leaves of both sides.
        params: whether each leaf and each slot is a parameter; only equal kinds pair.
        hints: pairs by name, for what is left.
    """
    ours, theirs = list(ours), list(theirs)
    beside = _beside(partners, readings)
    ways: dict[Unit, list[Unit]] = {}
    for unit in ours:
        node = beside.get(_node(unit.path[1:], unit.piece, unit.reading))
        ways[unit] = [
            other
            for other in theirs
            if _node(other.path, other.piece, other.reading) == node
            and other.size == unit.size
            and params[0][unit.path] == params[1][other.path]
        ]
    chosen = [(a, bs[0]) for a, bs in ways.items() if len(bs) == 1]
    taken = [b for _, b in chosen]
    firsts = [a[::2] for a, _ in chosen]
    pairs = [(a, b) for a, b in chosen if taken.count(b) == 1 and firsts.count(a[::2]) == 1]
    done = {u for pair in pairs for u in pair}
    ones = {u.path: u for u in ours if u.reading.count == 1}
    others = {u.path: u for u in theirs if u.reading.count == 1}
    for hint in hints:
        if len(hint.sources) != 1 or len(hint.slots) != 1:
            continue
        a, b = ones.get(hint.sources[0]), others.get(hint.slots[0])
        if a is None or b is None or a.size != b.size or {a, b} & done:
            continue
        if params[0][a.path] == params[1][b.path]:
            pairs.append((a, b))
            done |= {a, b}
    return pairs


def siblings(
    ours: Iterable[Unit],
    theirs: Iterable[Unit],
    partners: Mapping[Piece, Piece],
    readings: tuple[Mapping[Path, tuple[Reading, ...]], Mapping[Path, tuple[Reading, ...]]],
) -> list[tuple[Unit, Unit]]:
    """Pairs of units that lie in modules which belong together, where only one pair does.

    Args:
        ours: units of the Linen model that are alike.
        theirs: units of the NNX model that are like them.
        partners: the pieces that are matched.
        readings: of the leaves of both sides.
    """
    beside = _beside(partners, readings)
    theirs = list(theirs)
    found = []
    for unit in ours:
        node = beside.get(_node(unit.path[1:], unit.piece, unit.reading))
        others = [u for u in theirs if _node(u.path, u.piece, u.reading) == node]
        if len(others) == 1:
            found.append((unit, others[0]))
    return found


def _beside(
    partners: Mapping[Piece, Piece],
    readings: tuple[Mapping[Path, tuple[Reading, ...]], Mapping[Path, tuple[Reading, ...]]],
) -> dict[Node, Node]:
    """The module of each module all of whose matched leaves lie in one, and the reverse."""
    there: dict[Node, set[Node]] = defaultdict(set)
    back: dict[Node, set[Node]] = defaultdict(set)
    for (p, n), (q, m) in partners.items():
        one, other = _node(p[1:], n, readings[0][p][0]), _node(q, m, readings[1][q][0])
        there[one].add(other)
        back[other].add(one)
    firsts = {a: next(iter(bs)) for a, bs in there.items() if len(bs) == 1}
    return {a: b for a, b in firsts.items() if len(back[b]) == 1}


def _node(path: Path, piece: int, reading: Reading) -> Node:
    """Where a leaf lies; paths of Linen without their collection."""
    return unboxed(path)[:-1], piece if reading.count > 1 else -1
