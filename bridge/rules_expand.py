"""From a rule to its bindings: which leaves feed which slots.

Nothing is guessed. Captures on both sides tie one leaf to one slot. A capture on the left side
only is *gathered* (``layers_{i}`` into one stack), one on the right side only is *spread*; both
need numbers without gaps, because the order of names such as the gates ``i f g o`` is known to
the user alone. Whatever does not come out even is a problem, and all of them are reported.
"""

from __future__ import annotations

import difflib
import heapq
import math
import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from bridge.errors import RuleError
from bridge.patterns import Captures, Pattern
from bridge.rules_index import PathIndex, Paths, Slots
from bridge.target import SlotRef
from legacy.leaves import LeafPath, format_path

__all__ = ["Binding", "Expansion", "SlotIndex", "expand_patterns", "nearest"]

MAX_SUGGESTIONS = 20
"""Problems of one rule that come with nearest names; finding those takes a while."""

T = TypeVar("T", bound=Hashable)
Value: TypeAlias = "str | tuple[str, ...]"
Values: TypeAlias = tuple[Value, ...]

_NUMBER = re.compile(r"([^0-9]*)([0-9]+)([^0-9]*)")


@dataclass(frozen=True, slots=True)
class Binding:
    """Leaves and the slots they feed together, both in the order the transforms expect."""

    sources: tuple[LeafPath, ...]
    slots: tuple[SlotRef, ...]


@dataclass(frozen=True, slots=True)
class Expansion:
    """What a rule means for one source and one target.

    Attributes:
        bindings: in natural order of their sources.
        problems: what is wrong, in sentences; while there are any the rule is not to be used.
    """

    bindings: tuple[Binding, ...]
    problems: tuple[str, ...]


def nearest(path: LeafPath, candidates: Iterable[LeafPath], n: int = 3) -> tuple[LeafPath, ...]:
    """The paths most like one, nearest first.

    >>> nearest(("conv", "kernel"), [("convs", "kernel"), ("x", "y")])
    (('convs', 'kernel'),)
    """
    parts = set(path)
    few = heapq.nlargest(50, candidates, key=lambda c: len(parts.intersection(c)))
    by_text = {format_path(c): c for c in few}
    return tuple(by_text[t] for t in difflib.get_close_matches(format_path(path), by_text, n))


def also(found: Sequence[object]) -> str:
    """Near names as half a sentence."""
    return f"; nearest: {', '.join(map(str, found))}" if found else ""


class SlotIndex:
    """The slots a rule may fill, by path.

    Args:
        slots: all of them; :class:`~bridge.rules_index.Slots` where there are several rules.
        item: the only item the rule is about; None for any.
    """

    def __init__(self, slots: Iterable[SlotRef], item: str | None) -> None:
        self.item = item
        self._slots = Slots.of(slots).only(item)
        self.refs = self._slots.refs
        self._suggested = 0
        self._tables: dict[tuple[Pattern, tuple[str, ...]], dict[Values, list[SlotRef]]] = {}

    def candidates(self, to: Pattern, captures: Captures) -> Sequence[SlotRef]:
        """Slots among which all are that a pattern matches with these captures."""
        if not to.unique:
            return self.refs
        names = tuple(captures)
        table = self._tables.get((to, names))
        if table is None:
            table = self._tables[to, names] = defaultdict(list)
            for _, path, ref in self._slots.index.near(to):
                found = to.match(path)
                if found is not None:
                    table[tuple(found[n] for n in names)].append(ref)
        return table.get(tuple(captures.values()), ())

    def find(self, path: LeafPath, problems: list[str]) -> SlotRef | None:
        """The slot of this path; else None, and one more problem."""
        found = self._slots.by_path.get(path, [])
        if len(found) == 1:
            return found[0]
        where = "" if self.item is None else f" in item {self.item!r}"
        if found:
            items = ", ".join(repr(r.item) for r in found)
            problems.append(f"slot {format_path(path)} is in items {items}: say which by `item`")
        else:
            near: list[str] = []
            if self._suggested < MAX_SUGGESTIONS:
                self._suggested += 1
                near = [format_path(p) for p in nearest(path, self._slots.by_path)]
            problems.append(f"there is no slot {format_path(path)}{where}{also(near)}")
        return None


def expand_patterns(
    froms: Sequence[Pattern],
    tos: Sequence[Pattern],
    sources: Iterable[LeafPath],
    index: SlotIndex,
) -> Expansion:
    """Bind the leaves that patterns match to the slots that other patterns name.

    Args:
        froms: all with the same captures; one leaf for each goes into a binding.
        tos: all with the same captures, and without wildcards.
        sources: the leaves there are; :class:`~bridge.rules_index.Paths` for several rules.
        index: the slots there are.
    """
    problems: list[str] = []
    every = Paths.of(sources)
    names = froms[0].captures
    common = tuple(n for n in names if n in tos[0].captures)
    try:
        rows = _table(froms, names, every, problems)
    except RuleError as error:
        return Expansion((), (error.message,))
    if not rows and not problems:
        problems += [_nothing(p, every.ordered) for p in froms]
    groups: dict[Values, dict[Values, tuple[LeafPath, ...]]] = defaultdict(dict)
    for values, row in rows.items():
        captures = dict(zip(names, values, strict=True))
        gathered = tuple(v for n, v in captures.items() if n not in common)
        groups[tuple(captures[n] for n in common)][gathered] = row
    gathering = tuple(n for n in names if n not in common)
    bindings = []
    for key, group in groups.items():
        captures = dict(zip(common, key, strict=True))
        found = _slots(tos, captures, index, problems)
        leaves = _in_order(group, gathering, "gathered", problems)
        if leaves and found:
            bindings.append(Binding(leaves, found))
    problems += used_twice((s for b in bindings for s in b.sources), "source")
    problems += used_twice((s for b in bindings for s in b.slots), "slot")
    return Expansion(tuple(bindings), tuple(problems))


def _table(
    patterns: Sequence[Pattern],
    names: tuple[str, ...],
    things: PathIndex[T],
    problems: list[str],
) -> dict[Values, tuple[T, ...]]:
    """For all captures, the thing that each pattern matches; problems where there is not one."""
    cells: dict[Values, list[list[T]]] = {}
    likely = [[(r, c) for r in things.near(p)] for c, p in enumerate(patterns)]
    # in the order of the things, whichever pattern they are for
    for (_, path, thing), column in heapq.merge(*likely, key=lambda one: (one[0][0], one[1])):
        captures = patterns[column].match(path)
        if captures is not None:
            values = tuple(captures[n] for n in names)
            row = cells.setdefault(values, [[] for _ in patterns])
            row[column].append(thing)
    table = {}
    for values, row in cells.items():
        for pattern, cell in zip(patterns, row, strict=True):
            if not cell:
                problems.append(f"{pattern} matches nothing{_for(names, values)}")
            elif len(cell) > 1:
                shown = ", ".join(_name(c) for c in cell[:4]) + ", ..." * (len(cell) > 4)  # noqa: PLR2004
                problems.append(
                    f"{pattern} matches {len(cell)} paths{_for(names, values)}: {shown}; "
                    "name what differs by a capture"
                )
        if all(len(cell) == 1 for cell in row):
            table[values] = tuple(cell[0] for cell in row)
    return table


def _slots(
    tos: Sequence[Pattern], captures: Captures, index: SlotIndex, problems: list[str]
) -> tuple[SlotRef, ...]:
    spread = tuple(n for n in tos[0].captures if n not in captures)
    try:
        if not spread:
            refs = [index.find(to.fill(captures), problems) for to in tos]
            return tuple(r for r in refs if r is not None) if None not in refs else ()
        bound = [to.bind(captures) for to in tos]
        near = dict.fromkeys(r for to in tos for r in index.candidates(to, captures))
        rows = _table(bound, spread, PathIndex((r.path, r) for r in near), problems)
    except RuleError as error:
        problems.append(error.message)
        return ()
    if not rows:
        problems += [_nothing(to, [r.path for r in index.refs]) for to in bound]
    return _in_order(rows, spread, "spread", problems)


def _in_order(
    rows: Mapping[Values, tuple[T, ...]], names: tuple[str, ...], verb: str, problems: list[str]
) -> tuple[T, ...]:
    """The things of all rows, rows in the order of their numbers."""
    if len(rows) <= 1:
        return tuple(thing for row in rows.values() for thing in row)
    numbers: dict[Values, list[int]] = {values: [] for values in rows}
    count = 1
    for column, name in enumerate(names):
        texts = [values[column] for values in rows]
        found = _numbers(texts)
        if found is None:
            shown = ", ".join(sorted({str(t) for t in texts}))
            problems.append(
                f"{{{name}}} is {verb} and its values are not numbers ({shown}), so their order "
                "is not known; give a list of patterns in the order you mean"
            )
            return ()
        for values, number in zip(rows, found, strict=True):
            numbers[values].append(number)
        low, high = min(found), max(found)
        gaps = sorted(set(range(low, min(high, low + 10_000) + 1)) - set(found))
        if gaps:
            problems.append(
                f"{{{name}}} is {verb}, and {', '.join(map(str, gaps[:5]))} is missing between "
                f"{low} and {high}; give a list of patterns if that is meant"
            )
            return ()
        count *= high - low + 1
    if count != len(rows) or len({tuple(n) for n in numbers.values()}) != len(rows):
        wanted = math.prod(len({n[c] for n in numbers.values()}) for c in range(len(names)))
        problems.append(
            f"{', '.join(f'{{{n}}}' for n in names)} are {verb}: {len(rows)} combinations were "
            f"found, {wanted} expected, each once"
        )
        return ()
    return tuple(t for values in sorted(rows, key=numbers.__getitem__) for t in rows[values])


def _numbers(texts: Sequence[Value]) -> list[int] | None:
    """The numbers in texts that differ in one number only (``3``, or ``layer_3``)."""
    found = [_NUMBER.fullmatch(t) if isinstance(t, str) else None for t in texts]
    matches = [m for m in found if m is not None]
    if len(matches) < len(found) or len({(m[1], m[3]) for m in matches}) != 1:
        return None
    return [int(m[2]) for m in matches]


def _nothing(pattern: Pattern, paths: Sequence[LeafPath]) -> str:
    likely = tuple(parse for c in pattern.components for parse in [_flat(c)])
    return f"{pattern} matches nothing{also([format_path(p) for p in nearest(likely, paths)])}"


def _flat(component: object) -> str:
    return "".join(map(str, component)) if isinstance(component, tuple) else str(component)


def _for(names: tuple[str, ...], values: Values) -> str:
    pairs = [
        f"{n} = {v if isinstance(v, str) else format_path(v)}"
        for n, v in zip(names, values, strict=True)
    ]
    return f" for {', '.join(pairs)}" if pairs else ""


def _name(thing: object) -> str:
    return format_path(thing) if isinstance(thing, tuple) else str(thing)


def used_twice(things: Iterable[Hashable], kind: str) -> list[str]:
    """A problem for each thing that occurs more than once."""
    seen: set[Hashable] = set()
    twice: dict[Hashable, None] = {}
    for thing in things:
        if thing in seen:
            twice[thing] = None
        seen.add(thing)
    return [f"{kind} {_name(t)} is used more than once by this rule" for t in twice]
