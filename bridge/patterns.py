"""Patterns over paths: how a rule says which leaves it means, and where they go.

The text of a pattern is the text of a path (:func:`legacy.format_path`) with holes::

    params/Conv_{i}/kernel      {i} stands for some text, the same wherever {i} is written
    params/Dense_{i:int}/bias   only digits
    params/{where...}/kernel    any number of components
    */kernel   **/kernel        any text in one component, any number of components; not kept

A component in quotes is taken literally: ``params/"{i}"``. A capture takes as little text as
possible, and at least one character; ``*`` may take none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from bridge.errors import RuleError
from bridge.patterns_match import Component, Hole, Program, Rest, Text, search
from legacy.leaf_paths import LeafPath, components, format_path

__all__ = ["Captures", "Pattern"]

Captures: TypeAlias = Mapping[str, "str | tuple[str, ...]"]
"""What the names of a pattern stand for; a tuple of components for ``{name...}``."""

_HOLE = re.compile(r"\*|\{([A-Za-z_][A-Za-z0-9_]*)(:int)?\}")
_REST = re.compile(r"\*\*|\{([A-Za-z_][A-Za-z0-9_]*)\.\.\.\}")
_COMPONENT = re.compile(r'"(?:[^"\\]|\\.)*"|[^/"]+')


@dataclass(frozen=True, slots=True)
class Pattern:
    """A path with holes. Made by :meth:`parse`; equal when it was written alike.

    >>> p = Pattern.parse("params/Conv_{i}/kernel")
    >>> dict(p.match(("params", "Conv_0", "kernel")))
    {'i': '0'}
    >>> Pattern.parse("convs/{i}/kernel").fill({"i": "0"})
    ('convs', '0', 'kernel')
    """

    components: tuple[Component, ...]
    _program: Program = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_program", Program.of(self.components))

    @classmethod
    def parse(cls, text: str | Sequence[str]) -> Pattern:
        """Read a pattern.

        Args:
            text: components between slashes, or a list with the text of each component.

        Raises:
            RuleError: the text is not well formed; says where.
        """
        if isinstance(text, str):
            parts = [] if text == "/" else list(_components(text))
        else:
            parts = [c for part in text for c in _single(part, text)]
        pattern = cls(tuple(_parse_component(p, text) for p in parts))
        both = pattern.rests & {p.name for p in pattern._pieces() if isinstance(p, Hole) and p.name}
        if both:
            raise RuleError(f"pattern {text!r}: {min(both)} is written with and without dots.")
        return pattern

    @classmethod
    def literal(cls, path: LeafPath) -> Pattern:
        """The pattern that only this path matches.

        >>> str(Pattern.literal(("a/b", "{i}")))
        '"a/b"/"{i}"'
        """
        return cls(tuple((Text(p),) for p in path))

    def __str__(self) -> str:
        return "/".join(_component_text(c) for c in self.components) or "/"

    def __repr__(self) -> str:
        return f"Pattern({str(self)!r})"

    @property
    def captures(self) -> tuple[str, ...]:
        """The names, in the order of their first use."""
        names = (piece.name for piece in self._pieces() if not isinstance(piece, Text))
        return tuple(dict.fromkeys(name for name in names if name is not None))

    @property
    def rests(self) -> frozenset[str]:
        """The names that stand for any number of components."""
        return frozenset(p.name for p in self._pieces() if isinstance(p, Rest) and p.name)

    @property
    def wild(self) -> bool:
        """Whether it has a ``*`` or ``**``, which no text can be filled in for."""
        return any(not isinstance(p, Text) and p.name is None for p in self._pieces())

    @property
    def unique(self) -> bool:
        """Whether at most one choice of captures fits a path: there is nothing to try out."""
        rests = sum(isinstance(c, Rest) for c in self.components)
        return rests <= 1 and not any(
            sum(isinstance(p, Hole) for p in c) > 1
            for c in self.components
            if not isinstance(c, Rest)
        )

    def _pieces(self) -> Iterator[Text | Hole | Rest]:
        for component in self.components:
            if isinstance(component, Rest):
                yield component
            else:
                yield from component

    def match(self, path: LeafPath) -> Captures | None:
        """What the names stand for when this is the path; None when it is another one.

        Raises:
            RuleError: the pattern is too ambiguous for this path to be decided.
        """
        return search(self._program, path)

    def fill(self, captures: Captures) -> LeafPath:
        """The path with text for every name.

        Raises:
            RuleError: a name is missing, stands for the wrong kind of thing, or there is a ``*``.
        """
        bound = self.bind(captures)
        if bound.wild:
            raise RuleError(f"pattern {self}: '*' says nothing about where to go; use a capture.")
        if bound.captures:
            raise RuleError(
                f"pattern {self}: nothing is known for {', '.join(bound.captures)}; "
                f"known are: {', '.join(captures) or 'no captures'}."
            )
        return tuple(
            "".join(p.text for p in component if isinstance(p, Text))
            for component in bound.components
            if not isinstance(component, Rest)
        )

    def bind(self, captures: Captures) -> Pattern:
        """The pattern with some names replaced by their text.

        >>> str(Pattern.parse("{a}/{b}").bind({"a": "x"}))
        'x/{b}'
        """
        components: list[Component] = []
        for component in self.components:
            if isinstance(component, Rest):
                value = None if component.name is None else captures.get(component.name)
                if value is None:
                    components.append(component)
                else:
                    whole = (value,) if isinstance(value, str) else value
                    components.extend((Text(v),) for v in whole)
            else:
                components.append(tuple(self._bind_piece(p, captures) for p in component))
        return Pattern(tuple(components))

    def _bind_piece(self, piece: Text | Hole, captures: Captures) -> Text | Hole:
        if isinstance(piece, Text) or piece.name is None or piece.name not in captures:
            return piece
        value = captures[piece.name]
        if not isinstance(value, str):
            raise RuleError(
                f"pattern {self}: {piece.name} stands for the components "
                f"{format_path(value)!r}; write {{{piece.name}...}} to put them here."
            )
        return Text(value)


def _components(text: str) -> Iterator[str]:
    return components(text, _COMPONENT, lambda said: RuleError(f"pattern {text!r}: {said}"))


def _single(part: str, whole: Sequence[str]) -> list[str]:
    if not isinstance(part, str):
        raise RuleError(f"pattern {whole!r}: {part!r} is not a string.")
    got = list(_components(part))
    if len(got) != 1:
        raise RuleError(f"pattern {whole!r}: {part!r} is more than one component; quote it.")
    return got


def _parse_component(part: str, whole: object) -> Component:
    if part.startswith('"'):
        try:
            return (Text(str(json.loads(part))),)
        except ValueError as error:
            raise RuleError(f"pattern {whole!r}: {part} is no JSON string ({error}).") from error
    rest = _REST.fullmatch(part)
    if rest:
        return Rest(rest.group(1))
    pieces: list[Text | Hole] = []
    at = 0
    for hole in _HOLE.finditer(part):
        _add_text(pieces, part[at : hole.start()], whole)
        if pieces and isinstance(pieces[-1], Hole):
            raise RuleError(
                f"pattern {whole!r}: there is no text between {pieces[-1]} and {hole.group()}, "
                "so nobody can tell where one ends."
            )
        pieces.append(Hole(hole.group(1), digits=bool(hole.group(2))))
        at = hole.end()
    _add_text(pieces, part[at:], whole)
    return tuple(pieces)


def _add_text(pieces: list[Text | Hole], text: str, whole: object) -> None:
    if re.search(r"[{}]", text):
        raise RuleError(
            f"pattern {whole!r}: {text!r} is no capture. Write {{name}} or {{name:int}} within a "
            "component, {name...} as a whole component; put a component with braces of its own "
            "in quotes."
        )
    if text:
        pieces.append(Text(text))


def _component_text(component: Component) -> str:
    if isinstance(component, Rest):
        return str(component)
    if all(isinstance(p, Text) for p in component):
        return format_path(("".join(str(p) for p in component),))
    return "".join(str(p) for p in component)
