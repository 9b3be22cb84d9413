"""Writes guesses as rules to paste, one for all repetitions of a block where that says the same."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bridge.rule_text import quoted
from bridge.suggest_pairs import Guess, numbers, words
from legacy import LeafPath, format_path

__all__ = ["Known", "write_rules"]

_LETTERS = "ijklmn"
_PLAIN = re.compile(r"[^/\"\s\\*{}\[\]#]*")  # may stand beside a capture without quotes


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
    by_length: dict[int, list[LeafPath]] = defaultdict(list)
    for leaf in known.leaves:
        by_length[len(leaf)].append(leaf)
    families: dict[tuple[object, ...], list[int]] = defaultdict(list)
    texts = [""] * len(guesses)
    for n, guess in enumerate(guesses):
        if len(guess.sources) == len(guess.slots) == 1:
            families[words(_from(guess)), words(guess.slots[0].path), guess.transforms].append(n)
        else:
            texts[n] = _joint(guess, item)
    for members in families.values():
        pairs = {_from(guesses[n]): guesses[n].slots[0].path for n in members}
        transforms = guesses[members[0]].transforms
        patterns = _general(pairs, known, by_length) if len(pairs) > 1 else None
        for n in members:
            one = (quoted(_from(guesses[n])), quoted(guesses[n].slots[0].path))
            source, to = patterns or one
            texts[n] = _rule(source, to, transforms, item)
    return texts


def _from(guess: Guess) -> LeafPath:
    return (guess.sources[0].collection, *guess.sources[0].path)


def _rule(source: str, to: str, transforms: str, item: str | None) -> str:
    lines = ["[[map]]", f"from = {source}", f"to = {to}"]
    if item is not None:
        lines.append(f"item = {quoted((item,))}")
    if transforms:
        lines.append(f"transforms = [{transforms}]")
    return "\n".join(lines)


def _joint(guess: Guess, item: str | None) -> str:
    """Several leaves for one slot, or one leaf for several: named one by one, in their order."""
    sources = [quoted((c.collection, *c.path)) for c in guess.sources]
    slots = [quoted(c.path) for c in guess.slots]
    return _rule(_list(sources), _list(slots), guess.transforms, item)


def _list(patterns: Sequence[str]) -> str:
    return patterns[0] if len(patterns) == 1 else "[" + ", ".join(patterns) + "]"


def _general(
    pairs: Mapping[LeafPath, LeafPath],
    known: Known,
    by_length: Mapping[int, Sequence[LeafPath]],
) -> tuple[str, str] | None:
    """Patterns of one rule for all pairs of a family; None when none says exactly that."""
    ours = list(zip(*map(numbers, pairs), strict=True))
    theirs = list(zip(*map(numbers, pairs.values()), strict=True))
    varying = [n for n, column in enumerate(ours) if len(set(column)) > 1]
    letters = dict(zip(varying, _LETTERS, strict=False))
    holes: dict[int, str] = {}
    for n, column in enumerate(theirs):
        if len(set(column)) > 1:
            same = [m for m in varying if ours[m] == column]
            if not same:
                return None
            unused = [m for m in same if letters.get(m) not in holes.values()]
            letter = letters.get((unused or same)[0])
            if letter is None:
                return None
            holes[n] = letter
    first, last = next(iter(pairs.items()))
    if set(holes.values()) != set(letters.values()) or len(letters) < len(varying):
        return None
    for kind in ("", ":int"):
        source = _pattern(first, letters, kind)
        to = _pattern(last, holes, "")
        if source is None or to is None:
            return None
        expression = _expression(first, letters, kind)
        there = [leaf for leaf in by_length[len(first)] if expression.fullmatch("\0".join(leaf))]
        wanted = {**known.pairs, **pairs}
        if all(leaf in wanted and _filled(leaf, expression, last, holes) == wanted[leaf]
               for leaf in there):  # fmt: skip
            return f'"{source}"', f'"{to}"'
    return None


def _pieces(path: LeafPath, holes: Mapping[int, str]) -> list[list[str | int]]:
    """Components as text and numbers of holes."""
    n = 0
    found: list[list[str | int]] = []
    for part in path:
        pieces: list[str | int] = []
        ends = [0, *(e for m in re.finditer(r"\d+", part, re.ASCII) for e in m.span()), len(part)]
        for k, (a, b) in enumerate(pairwise(ends)):
            if k % 2 == 0:
                pieces.append(part[a:b])
            else:
                pieces.append(n if n in holes else part[a:b])
                n += 1
        found.append(pieces)
    return found


def _pattern(path: LeafPath, holes: Mapping[int, str], kind: str) -> str | None:
    parts = []
    for pieces, part in zip(_pieces(path, holes), path, strict=True):
        if not any(isinstance(p, int) for p in pieces):
            parts.append(format_path((part,)))
            continue
        if not all(_PLAIN.fullmatch(p) for p in pieces if isinstance(p, str)):
            return None
        parts.append("".join(p if isinstance(p, str) else f"{{{holes[p]}{kind}}}" for p in pieces))
    text = "/".join(parts)
    return None if '"' in text or "\\" in text else text


def _expression(path: LeafPath, holes: Mapping[int, str], kind: str) -> re.Pattern[str]:
    hole = r"[0-9]+" if kind else r"[^\0]+?"
    return re.compile(
        "\0".join(
            "".join(
                re.escape(p) if isinstance(p, str) else f"(?P<{holes[p]}>{hole})" for p in pieces
            )
            for pieces in _pieces(path, holes)
        )
    )


def _filled(
    leaf: LeafPath, expression: re.Pattern[str], to: LeafPath, holes: Mapping[int, str]
) -> LeafPath:
    found = expression.fullmatch("\0".join(leaf))
    assert found is not None  # noqa: S101 - the caller has seen it match
    return tuple(
        "".join(p if isinstance(p, str) else found[holes[p]] for p in pieces)
        for pieces in _pieces(to, holes)
    )
