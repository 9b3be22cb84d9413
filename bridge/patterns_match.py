"""The pieces of a pattern, and the search for what they stand for in a path.

The search takes the shortest text first and goes back when that fails. What failed once is
remembered, so the work grows with the length of the path and not exponentially; only names that
occur twice can make it long, and then it stops with an error instead of running on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from bridge.errors import RuleError
from legacy.leaves import LeafPath, format_path

__all__ = ["Component", "Hole", "Program", "Rest", "Text", "search"]

MAX_TRIES = 1_000_000
"""Steps after which the search is given up."""

Value: TypeAlias = "str | tuple[str, ...]"


@dataclass(frozen=True, slots=True)
class Text:
    """Text as it is."""

    text: str
    name: None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Hole:
    """Some text within a component: ``*`` without a name, else a capture."""

    name: str | None = None
    digits: bool = False

    def __str__(self) -> str:
        return "*" if self.name is None else f"{{{self.name}{':int' * self.digits}}}"

    def takes(self, text: str) -> bool:
        """Whether it can stand for this text."""
        if self.digits:
            return text.isascii() and text.isdigit()
        return bool(text) or self.name is None


@dataclass(frozen=True, slots=True)
class Rest:
    """Any number of components: ``**`` without a name, else a capture."""

    name: str | None = None

    def __str__(self) -> str:
        return "**" if self.name is None else f"{{{self.name}...}}"


Component: TypeAlias = "Rest | tuple[Text | Hole, ...]"


Piece: TypeAlias = "Text | Hole | Rest | None"


@dataclass(frozen=True, slots=True)
class Program:
    """A pattern made ready for searching many paths.

    Attributes:
        tokens: the pieces in a row; None is the end of a component.
        live: for each token, the names bound before it that are still to be compared. A failure
            is final only for their values.
        length: how many components a path must have; None for any.
    """

    tokens: tuple[Piece, ...]
    live: tuple[tuple[str, ...], ...]
    length: int | None

    @classmethod
    def of(cls, components: Sequence[Component]) -> Program:
        """Prepare the components of a pattern."""
        tokens = tuple(_tokens(components))
        names = [None if t is None else t.name for t in tokens]
        counts = Counter(n for n in names if n is not None)
        twice = sorted(n for n, count in counts.items() if count > 1)
        live = tuple(
            tuple(n for n in twice if n in names[:k] and n in names[k:]) if twice else ()
            for k in range(len(names) + 1)
        )
        any_length = any(isinstance(c, Rest) for c in components)
        return cls(tokens, live, None if any_length else len(components))


def search(program: Program, path: LeafPath) -> dict[str, Value] | None:
    """What the names stand for, or None.

    Raises:
        RuleError: undecided after :data:`MAX_TRIES` steps.
    """
    if program.length not in (None, len(path)):
        return None
    found = _Search(program, path)
    return dict(found.bound) if found.run(0, 0, 0) else None


class _Search:
    def __init__(self, program: Program, path: LeafPath) -> None:
        self.path = path
        self.tokens = program.tokens
        self.live = program.live
        self.bound: dict[str, Value] = {}
        self.dead: set[tuple[object, ...]] = set()
        self.tries = 0

    def run(self, k: int, at: int, offset: int) -> bool:
        """Whether tokens from ``k`` on match the path from a component and an offset on."""
        while k < len(self.tokens):
            token = self.tokens[k]
            if isinstance(token, Rest):
                return self._branch(k, at, offset)
            if at == len(self.path):
                return False
            if isinstance(token, Hole):
                return self._branch(k, at, offset)
            if token is None:
                if offset != len(self.path[at]):
                    return False
                at, offset = at + 1, 0
            else:
                if not self.path[at].startswith(token.text, offset):
                    return False
                offset += len(token.text)
            k += 1
        return at == len(self.path)

    def _branch(self, k: int, at: int, offset: int) -> bool:
        key = (k, at, offset, *(self.bound.get(n) for n in self.live[k]))
        if key in self.dead:
            return False
        token = self.tokens[k]
        name = None if token is None else token.name
        known = name in self.bound
        for value, next_at, next_offset in self._choices(k, at, offset):
            self.tries += 1
            if self.tries > MAX_TRIES:
                raise RuleError(
                    f"a pattern is too ambiguous for {format_path(self.path)}: undecided after "
                    f"{MAX_TRIES} steps. Use fewer captures, or text between them."
                )
            if known and self.bound[str(name)] != value:
                continue
            if name is not None:
                self.bound[name] = value
            if self.run(k + 1, next_at, next_offset):
                return True
            if name is not None and not known:
                del self.bound[name]
        self.dead.add(key)
        return False

    def _choices(self, k: int, at: int, offset: int) -> Iterator[tuple[Value, int, int]]:
        token = self.tokens[k]
        if isinstance(token, Rest):
            for end in range(at, len(self.path) + 1):
                yield self.path[at:end], end, 0
        elif isinstance(token, Hole):
            text = self.path[at]
            last = self.tokens[k + 1] is None  # the rest of the component is the only choice
            for end in range(len(text) if last else offset, len(text) + 1):
                if token.takes(text[offset:end]):
                    yield text[offset:end], at, end


def _tokens(components: Sequence[Component]) -> Iterator[Piece]:
    for component in components:
        if isinstance(component, Rest):
            yield component
        else:
            yield from component
            yield None  # the end of the component
