"""Rules: what the user says, from TOML or Python, and what it means for a checkpoint.

>>> rules = Rules.from_toml('''
... [[map]]
... from = "params/Conv_{i}/kernel"
... to = "convs/{i}/kernel"
... ''')
>>> expand(rules.rules[0], [("params", "Conv_0", "kernel")],
...        [SlotRef("model", ("convs", "0", "kernel"))]).bindings[0].slots[0].path
('convs', '0', 'kernel')
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from bridge.errors import RuleError
from bridge.patterns import Pattern
from bridge.rules_expand import Binding, Expansion
from bridge.rules_toml import read_rules, write_rules
from bridge.rules_values import CastRule, Ignore, Init, Map, MapRule, Rule
from bridge.target import SlotRef
from legacy.leaves import LeafPath

__all__ = [
    "Binding",
    "CastRule",
    "Expansion",
    "Ignore",
    "Init",
    "Map",
    "MapRule",
    "Pattern",
    "Rule",
    "Rules",
    "expand",
    "is_map",
]

_ORDER = ("map", "regex", "ignore", "init", "cast")


def is_map(rule: Rule) -> TypeGuard[MapRule]:
    """Whether a rule feeds slots from leaves, and so can be expanded."""
    return isinstance(rule, MapRule)


def expand(rule: MapRule, sources: Iterable[LeafPath], slots: Iterable[SlotRef]) -> Expansion:
    """Which leaves feed which slots by a rule.

    Args:
        rule: a map rule.
        sources: paths of all leaves there are; for several rules :class:`~bridge.rules_index.Paths`
            are found faster in.
        slots: names of all slots there are; likewise :class:`~bridge.rules_index.Slots`.

    Returns:
        Bindings, and every problem: leaves or slots that are not there, numbers with gaps,
        several leaves for one place, a rule that matches nothing.
    """
    return rule.expand(sources, slots)


@dataclass(frozen=True, slots=True)
class Rules:
    """A set of rules with codes of their own.

    Attributes:
        rules: maps first, then ignores, inits and casts. The order decides nothing: two rules
            that claim one leaf or slot are a problem.

    Raises:
        RuleError: two rules of one code, or something that is no rule.
    """

    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        for rule in self.rules:
            if not isinstance(rule, Rule):
                raise RuleError(f"{rule!r} is no rule; give Map, Ignore, Init or CastRule values.")
        taken = [r.code for r in self.rules if r.code]
        twice = sorted(c for c, count in Counter(taken).items() if count > 1)
        if twice:
            problems = [f"two rules have the code {c!r}" for c in twice]
            raise RuleError(f"{'; '.join(problems)}. Give each its own.", problems=problems)
        named = []
        free = {kind: _free(kind, frozenset(taken)) for kind in _ORDER}
        for rule in self.rules:
            code = rule.code or next(free[rule.kind])
            named.append(replace(rule, code=code) if not rule.code else rule)  # type: ignore[type-var]
        named.sort(key=lambda r: _ORDER.index(r.kind))
        object.__setattr__(self, "rules", tuple(named))

    @classmethod
    def from_toml(cls, text: str, name: str = "rules") -> Rules:
        """Read rules from TOML text.

        Args:
            text: the TOML.
            name: where it came from, for errors.

        Raises:
            RuleError: names the file and every problem in it.
        """
        try:
            return cls(read_rules(text, name))
        except RuleError as error:
            if error.message.startswith(f"{name}: "):
                raise
            raise RuleError(f"{name}: {error.message}", problems=error.problems) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Rules:
        """Read a TOML file of rules.

        Raises:
            RuleError: it cannot be read, or the rules are not well formed.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RuleError(f"rules file {os.fspath(path)}: cannot be read ({error}).") from error
        return cls.from_toml(text, os.fspath(path))

    @classmethod
    def of(cls, given: Any) -> Rules:
        """Take rules in any form: None, Rules, the path of a TOML file, or a list of rules.

        Raises:
            RuleError: it is none of these.

        >>> Rules.of([Ignore.of("opt_state/**")]).rules[0].code
        'ignore-1'
        """
        if given is None:
            return cls()
        if isinstance(given, Rules):
            return given
        if isinstance(given, str | os.PathLike):
            return cls.load(given)
        if isinstance(given, Iterable) and not isinstance(given, dict | bytes):
            return cls(tuple(given))
        raise RuleError(
            f"rules: expected a path, Rules or a list of rules, got {type(given).__name__}. "
            "Orbax transforms go into `transforms=`."
        )

    def to_toml(self) -> str:
        """The rules as TOML; :meth:`from_toml` reads them back.

        Raises:
            RuleError: a rule that exists in memory only.
        """
        return write_rules(self.rules)


def _free(kind: str, taken: frozenset[str]) -> Iterator[str]:
    """Codes for rules of a kind that the user has not used."""
    return (code for n in itertools.count(1) if (code := f"{kind}-{n}") not in taken)
