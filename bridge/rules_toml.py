"""Rules as TOML: how users write them down, and how they are stored beside a run.

Every wrong table, key and value of a file is reported at once, with the nearest right name.
"""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bridge.errors import BridgeError, RuleError
from bridge.patterns import Pattern
from bridge.rules_values import CastRule, Ignore, Init, Map, Rule
from bridge.transforms import Transform, transform_from_json

__all__ = ["read_rules", "write_rules"]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise RuleError(f"expected a string, got {value!r}")
    return value


def _pattern(value: Any) -> Pattern:
    return Pattern.parse(_text(value))


def _patterns(value: Any) -> tuple[Pattern, ...]:
    return tuple(map(_pattern, value)) if isinstance(value, list) else (_pattern(value),)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise RuleError(f"expected true or false, got {value!r}")
    return value


def _value(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise RuleError(f"expected a string or a number, got {value!r}")
    return str(value)


def _transforms(value: Any) -> tuple[Transform, ...]:
    if not isinstance(value, list):
        raise RuleError(f"expected a list such as [{{op = 'stack', axis = 0}}], got {value!r}")
    return tuple(map(transform_from_json, value))


@dataclass(frozen=True, slots=True)
class _Table:
    """What one kind of table may hold: a reader for each key, and which keys it needs."""

    make: Callable[..., Rule]
    keys: Mapping[str, tuple[str, Callable[[Any], Any]]]
    needed: tuple[str, ...]


_ABOUT = {"code": ("code", _text), "reason": ("reason", _text)}
_ITEM = {"item": ("item", _text)}
_TABLES: Mapping[str, _Table] = {
    "map": _Table(
        Map.of,
        {
            "from": ("sources", _patterns),
            "to": ("to", _patterns),
            "transforms": ("transforms", _transforms),
            **_ITEM,
            **_ABOUT,
        },
        ("from", "to"),
    ),
    "ignore": _Table(Ignore.of, {"source": ("source", _pattern), **_ABOUT}, ("source",)),
    "init": _Table(
        Init.of,
        {"slot": ("slot", _pattern), "value": ("how", _value), **_ITEM, **_ABOUT},
        ("slot", "value"),
    ),
    "cast": _Table(
        CastRule.of,
        {
            "slot": ("slot", _pattern),
            "dtype": ("dtype", _text),
            "exact": ("exact", _flag),
            **_ITEM,
            **_ABOUT,
        },
        ("slot", "dtype"),
    ),
}


def read_rules(text: str, name: str) -> tuple[Rule, ...]:
    """Read rules; codes may still be empty.

    Args:
        text: TOML.
        name: of the file, for errors.

    Raises:
        RuleError: the text is not TOML, or rules are not well formed; ``.problems`` has all.
    """
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise RuleError(f"{name}: not valid TOML: {error}.") from error
    rules: list[Rule] = []
    problems: list[str] = []
    for table, entries in data.items():
        if table not in _TABLES:
            problems.append(f"unknown table [[{table}]]{_meant(table, _TABLES)}")
        elif not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            problems.append(f"[{table}] must be written [[{table}]], once for each rule")
        else:
            for n, entry in enumerate(entries, 1):
                where = f"[[{table}]] number {n}"
                rules += _read(_TABLES[table], entry, where, problems)
    if problems:
        raise RuleError(
            f"{name}: {len(problems)} problem(s):\n  " + "\n  ".join(problems), problems=problems
        )
    return tuple(rules)


def _read(table: _Table, entry: Mapping[str, Any], where: str, problems: list[str]) -> list[Rule]:
    before = len(problems)
    given = {}
    for key, value in entry.items():
        if key not in table.keys:
            problems.append(f"{where}: unknown key {key!r}{_meant(key, table.keys)}")
            continue
        field, reader = table.keys[key]
        try:
            given[field] = reader(value)
        except BridgeError as error:
            problems.append(f"{where}: {key}: {error.message}")
    missing = [key for key in table.needed if key not in entry]
    if missing:
        problems.append(f"{where}: needs {' and '.join(missing)}")
    if len(problems) == before:
        try:
            return [table.make(**given)]
        except RuleError as error:
            problems += [f"{where}: {p}" for p in error.problems or (error.message,)]
    return []


def _meant(word: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else f"; known are: {', '.join(names)}"


def write_rules(rules: Iterable[Rule]) -> str:
    """Rules as TOML that :func:`read_rules` reads back to equal rules.

    Raises:
        RuleError: a rule that exists in memory only: an Orbax regex, or a function without name.
    """
    return "\n".join(_write(rule) for rule in rules)


def _write(rule: Rule) -> str:
    if isinstance(rule, Map):
        sources = [str(p) for p in rule.sources]
        targets = [str(p) for p in rule.targets]
        entry: dict[str, Any] = {
            "from": sources[0] if len(sources) == 1 else sources,
            "to": targets[0] if len(targets) == 1 else targets,
            "transforms": [t.to_json() for t in rule.transforms],
        }
    elif isinstance(rule, Ignore):
        entry = {"source": str(rule.source)}
    elif isinstance(rule, Init):
        entry = {"slot": str(rule.slot), "value": rule.how}
    elif isinstance(rule, CastRule):
        entry = {"slot": str(rule.slot), "dtype": rule.dtype, "exact": rule.exact}
    else:
        raise RuleError(
            f"rule {rule.code}: Orbax transforms are no TOML; write the rule as [[map]] with "
            "patterns, or give `transforms=` again."
        )
    entry |= {"item": getattr(rule, "item", None), "code": rule.code, "reason": rule.reason}
    lines = [f"{k} = {_toml(v)}" for k, v in entry.items() if v not in (None, "", [], False)]
    return "\n".join([f"[[{rule.kind}]]", *lines, ""])


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k} = {_toml(v)}' for k, v in value.items())}}}"
    return repr(value) if math.isfinite(value) else str(value)
