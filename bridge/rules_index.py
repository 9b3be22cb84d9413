"""Finds what a pattern may match without a look at every path.

A rules file may have a rule for every leaf, and looking at all leaves for each rule takes hours
where the leaves are many. Whatever a pattern leaves open, the components that it spells out stand
at a fixed place, counted from one end of the path: only paths with the same text there can match.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar

from bridge.patterns import Pattern
from bridge.patterns_match import Rest, Text
from bridge.target import SlotRef
from legacy.leaves import LeafPath, natural_key

__all__ = ["Near", "PathIndex", "Paths", "Slots", "fixed_runs"]

T = TypeVar("T")
Near: TypeAlias = "tuple[int, LeafPath, T]"
"""A place in the order of an index, the path, and what has it."""
Run: TypeAlias = "tuple[int, LeafPath]"
"""Where some components begin, counted from the end if negative, and their texts."""


def fixed_runs(pattern: Pattern) -> list[Run]:
    """Components that a pattern spells out at a place that is known.

    Args:
        pattern: any.

    Returns:
        Neighbours together; those behind a ``**`` or ``{rest...}`` counted from the end.

    >>> fixed_runs(Pattern.parse("params/b_{i}/{rest...}/Dense_0/kernel"))
    [(0, ('params',)), (-2, ('Dense_0', 'kernel'))]
    """
    parts = pattern.components
    rests = [n for n, part in enumerate(parts) if isinstance(part, Rest)]
    if not rests:
        return _runs(parts, 0)
    behind = rests[-1] + 1
    return [*_runs(parts[: rests[0]], 0), *_runs(parts[behind:], behind - len(parts))]


def _runs(parts: Sequence[object], start: int) -> list[Run]:
    """Components of text only, in a row, as one."""
    runs: list[tuple[int, list[str]]] = []
    at_run = False
    for n, part in enumerate(parts):
        text = _text(part)
        if text is None:
            at_run = False
            continue
        if not at_run:
            runs.append((start + n, []))
        runs[-1][1].append(text)
        at_run = True
    return [(at, tuple(texts)) for at, texts in runs]


def _text(part: object) -> str | None:
    """A component without holes."""
    if not isinstance(part, tuple) or not all(isinstance(piece, Text) for piece in part):
        return None
    return "".join(map(str, part))


class PathIndex(Generic[T]):
    """Things with paths, in a given order.

    Args:
        things: path and thing.
    """

    def __init__(self, things: Iterable[tuple[LeafPath, T]]) -> None:
        self.rows: tuple[Near[T], ...] = tuple((n, p, t) for n, (p, t) in enumerate(things))
        self._by_run: dict[tuple[int, int], dict[LeafPath, list[Near[T]]]] = {}

    def near(self, pattern: Pattern) -> Sequence[Near[T]]:
        """All things whose path a pattern may match, in their order; few more than it does.

        >>> index = PathIndex([(("a", "x"), 1), (("a", "y"), 2), (("b", "x"), 3)])
        >>> index.near(Pattern.parse("{k}/x"))
        [(0, ('a', 'x'), 1), (2, ('b', 'x'), 3)]
        """
        best: Sequence[Near[T]] = self.rows
        for at, texts in fixed_runs(pattern):
            found = self._runs(at, len(texts)).get(texts, [])
            if len(found) < len(best):
                best = found
        return best

    def _runs(self, at: int, length: int) -> dict[LeafPath, list[Near[T]]]:
        """Things by some components of their paths."""
        known = self._by_run.get((at, length))
        if known is None:
            known = self._by_run[at, length] = defaultdict(list)
            end = None if at + length == 0 else at + length
            for row in self.rows:
                if len(row[1]) >= (-at if at < 0 else at + length):
                    known[row[1][at:end]].append(row)
        return known


class Paths(PathIndex[LeafPath]):
    """Paths of leaves in natural order; made once for all rules.

    Args:
        paths: in any order.
    """

    def __init__(self, paths: Iterable[LeafPath]) -> None:
        self.ordered: tuple[LeafPath, ...] = tuple(sorted(paths, key=natural_key))
        super().__init__((p, p) for p in self.ordered)

    def __iter__(self) -> Iterator[LeafPath]:
        return iter(self.ordered)

    @classmethod
    def of(cls, paths: Iterable[LeafPath]) -> Paths:
        """Paths in any form."""
        return paths if isinstance(paths, Paths) else cls(paths)


@dataclass
class Slots:
    """Slots that rules may fill, in their order; made once for all rules.

    Attributes:
        refs: all of them.
    """

    refs: tuple[SlotRef, ...]
    _by_path: dict[LeafPath, list[SlotRef]] | None = None
    _index: PathIndex[SlotRef] | None = None
    _of_item: dict[str, Slots] = field(default_factory=dict)

    def __iter__(self) -> Iterator[SlotRef]:
        return iter(self.refs)

    @classmethod
    def of(cls, refs: Iterable[SlotRef]) -> Slots:
        """Slots in any form."""
        return refs if isinstance(refs, Slots) else cls(tuple(refs))

    def only(self, item: str | None) -> Slots:
        """The slots of one item; all when it is None."""
        if item is None:
            return self
        if item not in self._of_item:
            self._of_item[item] = Slots(tuple(r for r in self.refs if r.item == item))
        return self._of_item[item]

    @property
    def by_path(self) -> dict[LeafPath, list[SlotRef]]:
        """The slots of each path; several where items have one in common."""
        if self._by_path is None:
            self._by_path = {}
            for ref in self.refs:
                self._by_path.setdefault(ref.path, []).append(ref)
        return self._by_path

    @property
    def index(self) -> PathIndex[SlotRef]:
        """The slots by their paths."""
        if self._index is None:
            self._index = PathIndex((ref.path, ref) for ref in self.refs)
        return self._index
