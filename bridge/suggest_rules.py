"""Writes guesses as rules to paste: the fewest and most general ones that say exactly that.

Twelve blocks are one rule with a captured index, and all leaves of a submodule that only moved are
one rule with a captured rest. A general rule is offered only when, over everything there is, it
says what the guesses and the existing mapping say and nothing else.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from bridge.errors import RuleError
from bridge.patterns import Captures, Pattern
from bridge.rule_text import quoted
from bridge.suggest_families import numbers, words
from bridge.suggest_pairs import Guess
from legacy import LeafPath, format_path

__all__ = ["Known", "write_rules"]

_LETTERS = "ijklmn"
_PLAIN = re.compile(r"[^/\"\s\\*{}\[\]#]*")  # may stand beside a capture without quotes
_WIDTH = 96
_TRIES = 12
"""General forms tried for one family; deeper ones are hardly shorter."""

Paths: TypeAlias = tuple[LeafPath, ...]
Binding: TypeAlias = tuple[Paths, Paths]
Form: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Known:
    """What a rule may not change by being too general.

    Attributes:
        leaves: variable paths (collection first) of all leaves that feed the item.
        slots: paths of all its slots.
        pairs: slot path by variable path, for what is mapped one to one.
    """

    leaves: Sequence[LeafPath]
    slots: Sequence[LeafPath]
    pairs: Mapping[LeafPath, LeafPath]


def write_rules(guesses: Sequence[Guess], known: Known, item: str | None) -> list[str]:
    """A rule for each guess; guesses that one rule covers get the same text.

    Args:
        guesses: see :func:`~bridge.suggest_pairs.guess_pairs`.
        known: all leaves and slots of the item.
        item: its name, where a rule needs it.
    """
    return _Writer(guesses, known, item).write()


class _Writer:
    """Covers guesses by rules, general forms first."""

    def __init__(self, guesses: Sequence[Guess], known: Known, item: str | None) -> None:
        self.bindings: list[Binding] = [
            (tuple((c.collection, *c.path) for c in g.sources), tuple(c.path for c in g.slots))
            for g in guesses
        ]
        self.guesses = guesses
        self.item = item
        # what a rule with these transforms may say; what is mapped is a plain copy
        self.wanted: dict[str, dict[Paths, Paths]] = defaultdict(dict)
        self.wanted[""] = {(a,): (b,) for a, b in known.pairs.items()}
        for (sources, slots), guess in zip(self.bindings, guesses, strict=True):
            self.wanted[guess.transforms][sources] = slots
        self.leaves = _by_start(known.leaves)
        self.slots = _by_start(known.slots)

    def write(self) -> list[str]:
        families: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for n, (sources, slots) in enumerate(self.bindings):
            key = (words(sources[0]), len(sources), words(slots[0]), len(slots))
            families[*key, self.guesses[n].transforms].append(n)
        texts = [""] * len(self.guesses)
        place = {binding: n for n, binding in enumerate(self.bindings)}
        for family in sorted(families.values(), key=len, reverse=True):
            for members in self._subsets(family):
                if all(texts[n] for n in members):
                    continue
                for form in self._forms(members):
                    covered = self._covers(form, self.guesses[members[0]].transforms)
                    wanted = [self.bindings[n] for n in members]
                    if covered is None or not covered.issuperset(wanted):
                        continue
                    text = self._rule([f'"{form[0]}"'], [f'"{form[1]}"'], members[0])
                    for binding in covered:
                        if binding in place and not texts[place[binding]]:
                            texts[place[binding]] = text
                    break
        return [text or self._literal(n) for n, text in enumerate(texts)]

    def _subsets(self, family: Sequence[int]) -> Iterator[Sequence[int]]:
        """A family, its members that agree in all numbers but the first, then each of them."""
        yield family
        inner: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for n in family:
            inner[numbers(self.bindings[n][0][0])[1:]].append(n)
        if len(inner) > 1:
            yield from inner.values()
        if len(family) > 1:
            yield from ([n] for n in family)

    def _rule(self, source: Sequence[str], to: Sequence[str], n: int) -> str:
        lines = ["[[map]]", *_assigned("from", source), *_assigned("to", to)]
        if self.item is not None:
            lines.append(f"item = {quoted((self.item,))}")
        if self.guesses[n].transforms:
            lines.append(f"transforms = [{self.guesses[n].transforms}]")
        return "\n".join(lines)

    def _literal(self, n: int) -> str:
        """Leaves and slots named one by one, in their order."""
        sources, slots = ([quoted(p) for p in side] for side in self.bindings[n])
        return self._rule(sources, slots, n)

    def _forms(self, members: Sequence[int]) -> Iterator[Form]:
        """Patterns for a family, the most general first."""
        sources = [self.bindings[n][0] for n in members]
        slots = [self.bindings[n][1] for n in members]
        holes = _holes(sources, slots)
        if holes is None:
            return
        first, last = sources[0][0], slots[0][0]
        many = len(members) > 1 or len(sources[0]) > 1 or len(slots[0]) > 1
        same = 0
        while same < min(len(first), len(last)) - 1 and first[~same] == last[~same]:
            same += 1
        for kind in ("", ":int"):
            for shared in range(min(same, _TRIES), -1, -1):
                # the leaf's own name says most about where it goes, so it alone is a small rest
                end = () if not shared else ("{leaf}",) if shared == 1 else ("{rest...}",)
                source = _pattern(first, holes[0], kind, shared, end)
                to = _pattern(last, holes[1], "", shared, end)
                if source is not None and to is not None and (shared or many):
                    yield source, to

    def _covers(self, form: Form, transforms: str) -> set[Binding] | None:
        """What a rule of this form would say; None when that is not what is wanted."""
        try:
            source, to = map(Pattern.parse, form)
            found = set(self._expand(source, to))
        except RuleError:
            return None
        wanted = self.wanted[transforms]
        if not found or any(wanted.get(sources) != slots for sources, slots in found):
            return None
        return found

    def _expand(self, source: Pattern, to: Pattern) -> Iterator[Binding]:
        common = [c for c in source.captures if c in to.captures]
        leaves = _matches(source, self.leaves, common)
        if set(to.captures) <= set(source.captures):
            for captures, paths in leaves.values():
                yield tuple(paths), (to.fill(captures),)
            return
        slots = _matches(to, self.slots, common)
        for key, (_, paths) in leaves.items():
            yield tuple(paths), tuple(slots[key][1]) if key in slots else ()


def _by_start(paths: Sequence[LeafPath]) -> dict[tuple[str, ...], list[LeafPath]]:
    """Paths by the words of their first component, so that a pattern looks at few of them."""
    found: dict[tuple[str, ...], list[LeafPath]] = defaultdict(list)
    for path in paths:
        for n in (1, 2):
            found[words(path[:n])].append(path)
    return found


def _matches(
    pattern: Pattern, by_start: Mapping[tuple[str, ...], list[LeafPath]], common: Sequence[str]
) -> dict[tuple[object, ...], tuple[Captures, list[LeafPath]]]:
    """Paths that a pattern matches, by what both sides capture, in the order of what one does."""
    text = Pattern(pattern.components[:2])
    start = () if text.rests else words(tuple(re.sub(r"\{\w+(:int)?\}", "0", str(text)).split("/")))
    near = by_start.get(start)
    if near is None:
        near = [p for n, paths in by_start.items() if len(n) == 1 for p in paths]
    rows: dict[tuple[object, ...], list[tuple[tuple[int, ...], Captures, LeafPath]]] = {}
    for path in near:
        captures = pattern.match(path)
        if captures is not None:
            own = [captures[c] for c in pattern.captures if c not in common]
            order = tuple(int(c) for c in own if isinstance(c, str) and c.isdigit())
            key = tuple(captures[c] for c in common)
            rows.setdefault(key, []).append((order, captures, path))
    return {
        key: (found[0][1], [path for _, _, path in sorted(found, key=lambda row: row[0])])
        for key, found in rows.items()
    }


def _holes(
    sources: Sequence[Paths], slots: Sequence[Paths]
) -> tuple[dict[int, str], dict[int, str]] | None:
    """Which numbers of the first source and slot become captures, and their names."""
    # one row for each leaf and its slot, however many of one stand against the other
    count = max(len(sources[0]), len(slots[0]))
    rows = [
        (numbers(a[k if len(a) > 1 else 0]), numbers(b[k if len(b) > 1 else 0]))
        for a, b in zip(sources, slots, strict=True)
        for k in range(count)
    ]
    if len({(len(a), len(b)) for a, b in rows}) != 1:
        return None
    ours = list(zip(*(a for a, _ in rows), strict=True))
    theirs = list(zip(*(b for _, b in rows), strict=True))
    joint = len(sources[0]) != len(slots[0])
    left: dict[int, str] = {}
    for n, column in enumerate(ours):
        if len(set(column)) > 1:
            if len(left) == len(_LETTERS):
                return None
            left[n] = _LETTERS[len(left)]
    right: dict[int, str] = {}
    for n, column in enumerate(theirs):
        if len(set(column)) < 2:  # noqa: PLR2004 - it does not vary
            continue
        same = [m for m in left if ours[m] == column]
        unused = [m for m in same if left[m] not in right.values()]
        if same:
            right[n] = left[(unused or same)[0]]
        elif joint and len(slots[0]) > 1 and len(left) < len(_LETTERS):
            right[n] = _LETTERS[len(left) + sum(v not in left.values() for v in right.values())]
        else:
            return None
    if not joint and set(right.values()) != set(left.values()):
        return None
    return left, right


def _assigned(key: str, patterns: Sequence[str]) -> list[str]:
    """Lines of TOML: one pattern, or as many as it takes for a list."""
    if len(patterns) == 1:
        return [f"{key} = {patterns[0]}"]
    line = f"{key} = [{', '.join(patterns)}]"
    return [line] if len(line) <= _WIDTH else [f"{key} = [", *(f"  {p}," for p in patterns), "]"]


def _pattern(
    path: LeafPath, holes: Mapping[int, str], kind: str, shared: int, end: tuple[str, ...]
) -> str | None:
    """A path with captures for some of its numbers, and for its last components."""
    parts = []
    n = 0
    for part in path[: len(path) - shared]:
        pieces = re.split(r"(\d+)", part, flags=re.ASCII)
        text = ""
        for k, piece in enumerate(pieces):
            if k % 2 == 0:
                text += piece
                continue
            text += f"{{{holes[n]}{kind}}}" if n in holes else piece
            n += 1
        if text == part:
            parts.append(format_path((part,)))
        elif all(_PLAIN.fullmatch(p) for p in pieces):
            parts.append(text)
        else:
            return None
    if any(m >= n for m in holes):
        return None  # a number among the last components varies, too
    pattern = "/".join([*parts, *end])
    return None if '"' in pattern or "\\" in pattern else pattern
