r"""Rules from the ``transforms=`` that users of Orbax already have.

``{regex: ocp.Transform(original_key=..., value_fn=...)}`` says, for each key of the new tree that
a regex matches as a whole, which key of the old tree it comes from. Here the same dictionary
becomes rules, with these differences: a regex that matches nothing is a problem, keys of NNX
variables may be written with or without the ``/value`` that Orbax asks for, and a fallback has
nothing to fall back on. Orbax itself is not imported; anything with the right attributes will do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from bridge.errors import RuleError
from bridge.rules import Rules
from bridge.rules_expand import Binding, Expansion, also, nearest, used_twice
from bridge.rules_values import MapRule
from bridge.target import SlotRef
from bridge.transforms import Function, Transform
from legacy.leaves import LeafPath, format_path, natural_key

__all__ = ["RegexMap", "from_orbax"]

_FIELDS = ("original_key", "use_fallback", "value_fn", "multi_value_fn")


@dataclass(frozen=True, slots=True)
class RegexMap(MapRule):
    r"""One entry of an Orbax ``transforms`` dictionary.

    Attributes:
        code: names the rule.
        regex: matched as a whole against the key of a slot: its path joined by slashes, with or
            without the item before it and ``value`` after it.
        original_key: template of the key of the leaf (``\1`` is the first group); a tuple has a
            template for each component; None for the same key.
        transforms: ``value_fn``, as a transform.
        unless: regexes of later entries, which win as they do in Orbax.
        item: the item of the slots; None for any.
        reason: why.
    """

    kind: ClassVar[str] = "regex"
    code: str
    regex: str
    original_key: str | tuple[str, ...] | None = None
    transforms: tuple[Transform, ...] = ()
    unless: tuple[str, ...] = ()
    item: str | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        try:
            pattern = re.compile(self.regex)
            for template in self._templates():
                _check_template(pattern, template)
        except (re.error, IndexError) as error:
            raise RuleError(
                f"transforms[{self.regex!r}]: not a regex, or {self.original_key!r} does not fit "
                f"it ({error})."
            ) from error

    def _templates(self) -> tuple[str, ...]:
        key = self.original_key
        return () if key is None else (key,) if isinstance(key, str) else key

    def expand(self, sources: Iterable[LeafPath], slots: Iterable[SlotRef]) -> Expansion:
        """Which leaves feed which slots, by the rules of ``ocp.apply_transformations``."""
        paths = tuple(sources)
        by_key: dict[str, list[LeafPath]] = {}
        for path in paths:
            by_key.setdefault("/".join(path), []).append(path)
        problems: list[str] = []
        bindings: list[Binding] = []
        matched = shadowed = 0
        for ref in sorted(slots, key=lambda r: (r.item, natural_key(r.path))):
            if self.item not in (None, ref.item):
                continue
            matches = [m for key in _keys(ref) if (m := re.fullmatch(self.regex, key))]
            if not matches:
                continue
            matched += 1
            if any(re.fullmatch(other, key) for other in self.unless for key in _keys(ref)):
                shadowed += 1
                continue
            source = self._source(ref, matches, by_key, paths, problems)
            if source is not None:
                bindings.append(Binding((source,), (ref,)))
        if not bindings and not problems:
            later = "; later regexes take all that it matches" if shadowed else ""
            problems.append(f"regex {self.regex!r} matches no slot{later}")
        problems += [
            f"regex {self.regex!r}: {p}; write an entry for each slot if a copy is meant"
            for p in used_twice((s for b in bindings for s in b.sources), "source")
        ]
        return Expansion(tuple(bindings), tuple(problems))

    def _source(
        self,
        ref: SlotRef,
        matches: Sequence[re.Match[str]],
        by_key: Mapping[str, Sequence[LeafPath]],
        paths: Sequence[LeafPath],
        problems: list[str],
    ) -> LeafPath | None:
        wanted = list(dict.fromkeys(self._original(m) for m in matches))
        found: dict[LeafPath, None] = {}
        for key in wanted:
            if isinstance(key, str):
                found.update(dict.fromkeys(by_key.get(key, ())))
            elif key in by_key.get("/".join(key), ()):
                found[key] = None
        if len(found) == 1:
            return next(iter(found))
        if found:
            shown = ", ".join(map(format_path, found))
            problems.append(f"regex {self.regex!r}: slot {ref} may come from {shown}")
        else:
            first = wanted[0]
            path = tuple(first.split("/")) if isinstance(first, str) else first
            near = [format_path(p) for p in nearest(path, paths)]
            problems.append(
                f"regex {self.regex!r}: slot {ref} wants {'/'.join(path)!r}, and there is no such "
                f"leaf{also(near)}"
            )
        return None

    def _original(self, match: re.Match[str]) -> str | tuple[str, ...]:
        if self.original_key is None:
            return match.string
        if isinstance(self.original_key, str):
            return match.expand(self.original_key)
        return tuple(match.expand(part) for part in self.original_key)


def _keys(ref: SlotRef) -> tuple[str, ...]:
    key = "/".join(ref.path)
    return (key, f"{key}/value", f"{ref.item}/{key}", f"{ref.item}/{key}/value")


def _check_template(pattern: re.Pattern[str], template: str) -> None:
    """Raise for a template that names groups which the regex does not have."""
    for name in re.findall(r"\\g<([^>]*)>|\\([1-9][0-9]?)", template):
        group = name[0] or name[1]
        if group.isdigit():
            if int(group) > pattern.groups:
                raise IndexError(f"there is no group {group}")
        elif group not in pattern.groupindex:
            raise IndexError(f"there is no group {group!r}")


def from_orbax(transforms: Mapping[str, Any]) -> Rules:
    r"""Turn an Orbax ``transforms`` dictionary into rules.

    Args:
        transforms: ``{regex: ocp.Transform(...)}``; may be nested, as in Orbax.

    Returns:
        A rule ``orbax-<n>`` for each entry, in order.

    Raises:
        RuleError: entries that mean nothing here; ``.problems`` has all of them.

    >>> from types import SimpleNamespace as Transform
    >>> rules = from_orbax({r"(.*)/kernel": Transform(original_key=r"params/\1/w")})
    >>> slots = [SlotRef("model", ("a", "kernel"))]
    >>> rules.rules[0].expand([("params", "a", "w")], slots).bindings[0].sources
    (('params', 'a', 'w'),)
    """
    if not isinstance(transforms, Mapping):
        raise RuleError(
            f"transforms: expected {{regex: ocp.Transform(...)}}, got {type(transforms).__name__}."
        )
    entries = list(_flat(transforms, ()))
    regexes = [regex for regex, _ in entries]
    rules: list[RegexMap] = []
    problems: list[str] = []
    for n, (regex, entry) in enumerate(entries, 1):
        problem = _refusal(regex, entry)
        if problem:
            problems.append(problem)
            continue
        fn = getattr(entry, "value_fn", None)
        key = getattr(entry, "original_key", None)
        try:
            rules.append(
                RegexMap(
                    code=f"orbax-{n}",
                    regex=regex,
                    original_key=tuple(key) if isinstance(key, (list, tuple)) else key,
                    transforms=() if fn is None else (_function(fn),),
                    unless=tuple(regexes[n:]),
                    reason=f"transforms[{regex!r}]",
                )
            )
        except RuleError as error:
            problems.append(error.message)
    if problems:
        raise RuleError(
            "transforms: some entries cannot be used:\n  " + "\n  ".join(problems),
            problems=problems,
        )
    return Rules(tuple(rules))


def _function(fn: Callable[..., Any]) -> Function:
    # Orbax lets a value_fn change shape and dtype without saying so
    return Function.of(fn, result="probe")


def _flat(tree: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, (*above, str(key)))
        else:
            yield "/".join((*above, str(key))), value


def _refusal(regex: str, entry: Any) -> str | None:
    """Why an entry cannot be a rule."""
    what = f"transforms[{regex!r}]"
    if not any(hasattr(entry, field) for field in _FIELDS):
        return f"{what}: expected an ocp.Transform, got {entry!r}"
    if getattr(entry, "use_fallback", False):
        return (
            f"{what}: use_fallback has no value to fall back on here; write an [[init]] rule, "
            'such as [[init]] slot = "...", value = "zeros"'
        )
    if getattr(entry, "multi_value_fn", None) is not None:
        return (
            f"{what}: multi_value_fn does not say which leaves it reads; write [[map]] with a "
            "list of patterns in `from` and "
            '{op = "function", name = "package.module:fn", many = true}'
        )
    return _wrong_field(what, entry)


def _wrong_field(what: str, entry: Any) -> str | None:
    fn = getattr(entry, "value_fn", None)
    if fn is not None and hasattr(entry, "multi_value_fn_input_args"):
        return f"{what}: the value_fn of a RestoreTransform takes RestoreArgs; use ocp.Transform"
    if fn is not None and not callable(fn):
        return f"{what}: value_fn is no function but {fn!r}"
    key = getattr(entry, "original_key", None)
    parts = key if isinstance(key, (list, tuple)) else () if key is None else (key,)
    if not all(isinstance(part, str) for part in parts):
        return f"{what}: original_key must be a string or a tuple of strings, not {key!r}"
    return None
