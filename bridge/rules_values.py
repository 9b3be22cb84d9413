"""The four kinds of rules, as frozen values.

A rule is what a user says about leaves or slots that nothing else can settle. Its code is the
reason that the plan gives (``rule:<code>``) for everything the rule decided.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from bridge.errors import RuleError, TransformError
from bridge.patterns import Pattern
from bridge.rules_expand import Expansion, SlotIndex, expand_patterns
from bridge.target import SlotRef
from bridge.transforms import Cast, Transform
from legacy.leaves import LeafPath

__all__ = ["CastRule", "Ignore", "Init", "Map", "MapRule", "Rule"]

PatternText: TypeAlias = "str | Pattern"


class MapRule(ABC):
    """A rule that says which leaves feed which slots."""

    __slots__ = ()
    kind: ClassVar[str]
    code: str
    item: str | None
    reason: str
    transforms: tuple[Transform, ...]

    @abstractmethod
    def expand(self, sources: Iterable[LeafPath], slots: Iterable[SlotRef]) -> Expansion:
        """What the rule means for these leaves and slots; never raises for what they hold."""


@dataclass(frozen=True, slots=True)
class Map(MapRule):
    """Leaves become slots, through transforms. Without transforms it is a renaming.

    Attributes:
        code: names the rule; empty for ``map-<n>``.
        sources: one pattern, or several whose leaves are put together in this order.
        to: where they go; several when the transforms split.
        item: the item of the slots; None where paths tell.
        transforms: in the order in which they are applied.
        reason: why, in the user's words.

    >>> Map.of("params/Conv_{i}/kernel", "convs/{i}/kernel").to
    Pattern('convs/{i}/kernel')
    """

    kind: ClassVar[str] = "map"
    code: str
    sources: tuple[Pattern, ...]
    to: Pattern | tuple[Pattern, ...]
    item: str | None = None
    transforms: tuple[Transform, ...] = ()
    reason: str = ""

    @classmethod
    def of(
        cls,
        sources: PatternText | Sequence[PatternText],
        to: PatternText | Sequence[PatternText],
        transforms: Iterable[Transform] = (),
        *,
        item: str | None = None,
        code: str = "",
        reason: str = "",
    ) -> Map:
        """Make one from text.

        Raises:
            RuleError: a pattern is not well formed, or the two sides do not fit together.
        """
        targets = _patterns(to)
        single = targets[0] if len(targets) == 1 else targets
        return cls(code, _patterns(sources), single, item, tuple(transforms), reason)

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise RuleError(f"rule {self.code or 'map'}: {'; '.join(problems)}.", problems=problems)

    @property
    def targets(self) -> tuple[Pattern, ...]:
        """The patterns of ``to``, as a tuple."""
        return self.to if isinstance(self.to, tuple) else (self.to,)

    def _problems(self) -> Iterable[str]:
        if not self.sources or not self.targets:
            yield "`from` and `to` need at least one pattern each"
            return
        for side, patterns in (("from", self.sources), ("to", self.targets)):
            for other in patterns[1:]:
                if set(other.captures) != set(patterns[0].captures):
                    yield f"`{side}`: {patterns[0]} and {other} must have the same captures"
        yield from (
            f"`to`: {t} has a '*', which says nothing about where to go"
            for t in self.targets
            if t.wild
        )
        source, target = self.sources[0], self.targets[0]
        for name in sorted(source.rests ^ target.rests):
            if name in source.captures and name in target.captures:
                yield f"capture {name} is written with dots on one side only"
        gathered = [f"{{{n}}}" for n in source.captures if n not in target.captures]
        spread = [f"{{{n}}}" for n in target.captures if n not in source.captures]
        if gathered and not any(t.joins for t in self.transforms):
            yield (
                f"{', '.join(gathered)} occurs in `from` only, so several leaves become one: "
                "that needs stack or join among the transforms (or '*', if one leaf is meant)"
            )
        if spread and not any(t.splits for t in self.transforms):
            yield (
                f"{', '.join(spread)} occurs in `to` only, so one leaf becomes several: "
                "that needs unstack or split among the transforms"
            )
        n, m = len(self.sources), len(self.targets)
        if n != m and not any(t.joins or t.splits for t in self.transforms):
            yield f"{n} sources become {m} slots, which needs stack, join, unstack or split"

    def expand(self, sources: Iterable[LeafPath], slots: Iterable[SlotRef]) -> Expansion:
        """Which leaves feed which slots; see :mod:`bridge.rules_expand`."""
        index = SlotIndex(slots, self.item)
        return expand_patterns(self.sources, self.targets, sources, index)


@dataclass(frozen=True, slots=True)
class Ignore:
    """Leaves that are left behind on purpose.

    >>> Ignore.of("params/old_head/**").source
    Pattern('params/old_head/**')
    """

    kind: ClassVar[str] = "ignore"
    code: str
    source: Pattern
    reason: str = ""

    @classmethod
    def of(cls, source: PatternText, *, code: str = "", reason: str = "") -> Ignore:
        """Make one from text."""
        return cls(code, _pattern(source), reason)

    def matches(self, path: LeafPath) -> bool:
        """Whether the rule is about this leaf."""
        return self.source.match(path) is not None


@dataclass(frozen=True, slots=True)
class Init:
    """Slots that get a value of their own because no leaf feeds them.

    Attributes:
        code: names the rule; empty for ``init-<n>``.
        slot: which slots.
        how: ``zeros``, ``ones``, a number, ``rng:<seed>``, or ``package.module:function``.
        item: their item; None for any.
        reason: why, in the user's words.

    >>> Init.of("attn/key/bias", 0.5).how
    '0.5'
    """

    kind: ClassVar[str] = "init"
    code: str
    slot: Pattern
    how: str
    item: str | None = None
    reason: str = ""

    @classmethod
    def of(
        cls,
        slot: PatternText,
        how: str | float,
        *,
        item: str | None = None,
        code: str = "",
        reason: str = "",
    ) -> Init:
        """Make one from text; ``how`` may be a number.

        Raises:
            RuleError: ``how`` is none of the known ways.
        """
        return cls(code, _pattern(slot), str(how), item, reason)

    def __post_init__(self) -> None:
        if self.how in ("zeros", "ones") or re.fullmatch(r"rng:[0-9]+", self.how):
            return
        if re.fullmatch(r"[^\W\d][\w.]*:[^\W\d][\w.]*", self.how) and self.how[:4] != "rng:":
            return
        try:
            if not math.isnan(float(self.how)):
                return
        except ValueError:
            pass
        raise RuleError(
            f"rule {self.code or 'init'}: value {self.how!r} is not known; write 'zeros', 'ones', "
            "a number, 'rng:<seed>' or 'package.module:function'."
        )

    def matches(self, ref: SlotRef) -> bool:
        """Whether the rule is about this slot."""
        return self.item in (None, ref.item) and self.slot.match(ref.path) is not None


@dataclass(frozen=True, slots=True)
class CastRule:
    """Slots whose dtype may differ from that of their leaf.

    Attributes:
        code: names the rule; empty for ``cast-<n>``.
        slot: which slots.
        dtype: the dtype of those slots, which the leaf is cast to.
        item: their item; None for any.
        exact: refuse when a value would be rounded.
        reason: why, in the user's words.

    >>> CastRule.of("**", "bfloat16").dtype
    'bfloat16'
    """

    kind: ClassVar[str] = "cast"
    code: str
    slot: Pattern
    dtype: str
    item: str | None = None
    exact: bool = False
    reason: str = ""

    @classmethod
    def of(
        cls,
        slot: PatternText,
        dtype: str,
        *,
        item: str | None = None,
        exact: bool = False,
        code: str = "",
        reason: str = "",
    ) -> CastRule:
        """Make one from text.

        Raises:
            RuleError: no such dtype.
        """
        return cls(code, _pattern(slot), dtype, item, exact, reason)

    def __post_init__(self) -> None:
        try:
            name = Cast(self.dtype, exact=self.exact).dtype
        except TransformError as error:
            raise RuleError(f"rule {self.code or 'cast'}: {error.message}") from error
        object.__setattr__(self, "dtype", name)

    def matches(self, ref: SlotRef) -> bool:
        """Whether the rule is about this slot."""
        return self.item in (None, ref.item) and self.slot.match(ref.path) is not None


Rule: TypeAlias = MapRule | Ignore | Init | CastRule


def _pattern(value: PatternText) -> Pattern:
    return value if isinstance(value, Pattern) else Pattern.parse(value)


def _patterns(value: PatternText | Sequence[PatternText]) -> tuple[Pattern, ...]:
    return (_pattern(value),) if isinstance(value, str | Pattern) else tuple(map(_pattern, value))
