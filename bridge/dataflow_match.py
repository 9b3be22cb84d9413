"""Pairs the parameters of two data flows by their colours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bridge.dataflow_colour import Colours
from bridge.dataflow_layout import transforms_of
from bridge.dataflow_trace import Path, Traced
from bridge.dataflow_walks import Walk, fused, walk_of
from bridge.proof import Pairing
from legacy import format_path

__all__ = ["Matched", "fix", "match", "natural", "pairings"]

Tie = tuple[list[int], list[int]]
"""Operations of both graphs that nothing tells apart."""

_TRIALS = 8
"""How many partners are tried for the first of a tie."""


@dataclass(slots=True)
class Matched:
    """What refinement found.

    Attributes:
        places: operations of the one graph and the other that correspond; parameters first of all.
        ties: groups of leaves that could be exchanged.
        whole: whether everything in both graphs corresponds.
    """

    places: list[tuple[int, int]] = field(default_factory=list)
    ties: list[str] = field(default_factory=list)
    whole: bool = False


def natural(path: Path) -> tuple[tuple[int, int, str], ...]:
    """A sort key in which ``Dense_10`` comes after ``Dense_2``."""
    return tuple(
        (int(x), 0, "") if x.isdigit() else (-1, 1, x)
        for part in path for x in (*re.findall(r"\d+|\D+", part), "/")
    )  # fmt: skip


def fix(colours: Colours, both: tuple[Traced, Traced], given: Sequence[Pairing]) -> None:
    """Colour leaves that are known to belong together."""
    at: list[dict[Path, list[int]]] = [{}, {}]
    for side in (0, 1):
        for n, op in enumerate(both[side].flow.ops):
            if op.leaf >= 0:
                at[side].setdefault(both[side].leaves[op.leaf], []).append(n)
    for k, pairing in enumerate(given):
        if not (pairing.sources and pairing.slots):
            continue  # ignored or initialised, which says nothing about places
        rows = (
            [at[0].get(p, []) for p in pairing.sources],
            [at[1].get(p, []) for p in pairing.slots],
        )
        if len(pairing.sources) == len(pairing.slots) == 1:
            first, second = rows[0][0], rows[1][0]
            if len(first) == len(second) == 1:
                colours.mark([(0, first[0]), (1, second[0])], ("fixed", k))
                continue
        for side in (0, 1):
            for row in rows[side]:
                colours.mark([(side, n) for n in row], ("fixed", k))


def match(
    colours: Colours, both: tuple[Traced, Traced], hints: Sequence[Pairing], *, ties: bool
) -> tuple[Matched, Colours]:
    """Refine until the parameters of both graphs are told apart.

    Args:
        colours: to begin with; refined in place.
        both: the models.
        hints: pairs by which to choose among leaves that nothing tells apart.
        ties: whether to choose at all.

    Returns:
        The pairs, and the colours that prove them.
    """
    found = Matched()
    colours.refine()
    if not colours.balanced():
        return found, colours
    single = [
        [n for n, op in enumerate(t.flow.ops) if op.leaf >= 0 or op.op == "phi"] for t in both
    ]
    liked = {(s, t) for h in hints for s in h.sources for t in h.slots}
    while True:
        classes = colours.classes(single)
        tied = [c for c in classes.values() if len(c[0]) > 1]
        if not tied:
            found.whole = True
            break
        if not ties:
            break
        tied.sort(key=lambda c: (not _hinted(both, c, liked), _first(both[0], c[0])))
        chosen = _choose(colours, both, tied[0], liked, found)
        if chosen is None:
            break
        colours = chosen
    found.places = [(a[0], b[0]) for a, b in classes.values() if len(a) == len(b) == 1]
    return found, colours


def _name(traced: Traced, n: int) -> tuple[object, ...]:
    op = traced.flow.ops[n]
    if op.leaf < 0:
        return (1, n)
    starts = tuple((d.axis, d.start * d.stride) for d in op.digits)
    return (0, natural(traced.leaves[op.leaf]), sorted(starts), n)


def _hinted(both: tuple[Traced, Traced], tied: Tie, liked: set[tuple[Path, Path]]) -> bool:
    names = [{t.leaves[t.flow.ops[n].leaf] for n in row if t.flow.ops[n].leaf >= 0}
             for t, row in zip(both, tied, strict=True)]  # fmt: skip
    return any(s in names[0] and t in names[1] for s, t in liked)


def _first(traced: Traced, row: Sequence[int]) -> tuple[object, ...]:
    return min(_name(traced, n) for n in row)


def _unlike(path: Path, slot: Path, liked: set[tuple[Path, Path]]) -> tuple[bool, int]:
    """How little the names of a leaf and a slot have in common; a hint comes first."""
    return (path, slot) not in liked, -len(set(path) & set(slot))


def _choose(
    colours: Colours, both: tuple[Traced, Traced], tied: Tie,
    liked: set[tuple[Path, Path]], found: Matched,
) -> Colours | None:  # fmt: skip
    """Tell one pair of a tie apart; None when no choice leaves the graphs alike."""
    left = sorted(tied[0], key=lambda n: _name(both[0], n))
    right = sorted(tied[1], key=lambda n: _name(both[1], n))
    start = left[0]
    leaf = both[0].flow.ops[start].leaf
    if leaf >= 0:
        path = both[0].leaves[leaf]
        right.sort(key=lambda n: _unlike(path, both[1].leaves[both[1].flow.ops[n].leaf], liked))
    for other in right[:_TRIALS]:
        trial = colours.copy()
        trial.mark([(0, start), (1, other)], ("tie", start))
        trial.refine()
        if trial.balanced():
            if leaf >= 0:
                names = {format_path(both[0].leaves[both[0].flow.ops[n].leaf]) for n in left}
                slots = {format_path(both[1].leaves[both[1].flow.ops[n].leaf]) for n in right}
                if len(names) > 1:
                    found.ties.append(f"{', '.join(sorted(names))} -> {', '.join(sorted(slots))}")
            return trial
    return None


def pairings(
    found: Matched, colours: Colours, both: tuple[Traced, Traced]
) -> tuple[list[Pairing], list[Path]]:
    """Pairings of leaves and slots from the pieces that correspond.

    Returns:
        The pairings, and leaves that correspond but for which no transforms are known.
    """
    walks: dict[tuple[int, int], list[Walk]] = {}
    broken: set[int] = set()
    for a, b in found.places:
        one, other = both[0].flow.ops[a], both[1].flow.ops[b]
        if one.leaf < 0:
            continue
        loops = _loops(colours, both, a, b)
        if loops is None:
            broken.add(one.leaf)
            continue
        pairs = [(one.digits[j], other.digits[k]) for j, k in loops]
        rest = one.digits[len(one.out) :], other.digits[len(other.out) :]
        shapes = both[0].shapes[one.leaf], both[1].shapes[other.leaf]
        walks.setdefault((one.leaf, other.leaf), []).append(walk_of(pairs, rest, shapes))
    made: list[Pairing] = []
    lost: list[Path] = [both[0].leaves[n] for n in sorted(broken)]
    for leaves, slots in _groups(walks):
        grid = tuple(tuple(fused(walks.get((s, t), ()))) for s in leaves for t in slots)
        done = None
        if not broken.intersection(leaves):
            done = transforms_of(
                grid, [both[0].shapes[n] for n in leaves], [both[1].shapes[n] for n in slots]
            )
        if done is None:
            lost += [both[0].leaves[n] for n in leaves]
            continue
        sources = tuple(both[0].leaves[leaves[k]] for k in done[0])
        targets = tuple(both[1].leaves[slots[k]] for k in done[1])
        made.append(Pairing(sources, targets, done[2]))
    return made, lost


def _loops(
    colours: Colours, both: tuple[Traced, Traced], a: int, b: int
) -> list[tuple[int, int]] | None:
    """Which axis of the one parameter is which of the other; None if it cannot be told."""
    rows = [[colours.loops[side][n][k] for k in both[side].flow.ops[n].out]
            for side, n in ((0, a), (1, b))]  # fmt: skip
    if sorted(rows[0]) != sorted(rows[1]):
        return None
    if len(set(rows[0])) != len(rows[0]):
        return None
    return [(j, rows[1].index(c)) for j, c in enumerate(rows[0])]


def _groups(walks: Mapping[tuple[int, int], Sequence[Walk]]) -> list[tuple[list[int], list[int]]]:
    """Leaves and slots that hang together."""
    by_leaf: dict[int, set[int]] = {}
    by_slot: dict[int, set[int]] = {}
    for s, t in walks:
        by_leaf.setdefault(s, set()).add(t)
        by_slot.setdefault(t, set()).add(s)
    out = []
    seen: set[int] = set()
    for start in sorted(by_leaf):
        if start in seen:
            continue
        leaves, todo = {start}, [start]
        slots: set[int] = set()
        while todo:
            for t in by_leaf[todo.pop()] - slots:
                slots.add(t)
                new = by_slot[t] - leaves
                leaves |= new
                todo += new
        seen |= leaves
        out.append((sorted(leaves), sorted(slots)))
    return out
