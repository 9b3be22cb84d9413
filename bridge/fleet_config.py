"""``fleet.toml``: which model, optimizer and rules belong to which runs.

Names of models and files are relative to the folder of the file, so that it can be kept beside
the models and called from anywhere.
"""

from __future__ import annotations

import difflib
import fnmatch
import functools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bridge._plan import Plan
from bridge.errors import FleetError
from bridge.fleet_objects import load_object
from legacy.paths import absolute

__all__ = ["Config", "Entry", "matches", "read_config"]

_TEXTS: Final = ("signature", "model", "tx", "linen", "input", "rules", "plan", "rngs", "skip")
_KEYS: Final = (*_TEXTS, "match", "at", "seed", "allow_order")
_PLANNING: Final = ("model", "tx", "linen", "input", "rules", "at", "seed", "rngs", "allow_order")
_RNGS: Final = ("keep", "reseed", "drop")
_UNMATCHED: Final = ("structural", "leave")


@dataclass(frozen=True)
class Entry:
    """What some runs have in common.

    Attributes:
        name: for messages.
        match: globs of run paths; none match all.
        signature: the beginning of the signature; empty matches all.
        skip: why these are not converted; empty when they are.
        plan: a stored plan.
        options: keywords of :func:`bridge.plan`, still as text where they name objects.
        folder: what names are relative to.
        given: keywords of :func:`bridge.plan` that are objects already.
    """

    name: str
    match: tuple[str, ...] = ()
    signature: str = ""
    skip: str = ""
    plan: Path | Plan | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = field(default_factory=Path)
    given: Mapping[str, Any] = field(default_factory=dict)

    def covers(self, run: str, signature: str) -> bool:
        """Whether a checkpoint of this run and signature belongs here.

        >>> Entry("a", match=("lm/**",)).covers("lm/big/1", "12ab")
        True
        """
        fits = not self.match or any(matches(pattern, run) for pattern in self.match)
        return fits and signature.startswith(self.signature)

    @functools.cached_property
    def keywords(self) -> dict[str, Any]:
        """The keywords of :func:`bridge.plan`, with everything imported.

        Raises:
            BridgeError: something that is named does not exist or cannot be imported.
        """
        made = dict(self.given)
        for key, value in self.options.items():
            if key in ("model", "tx", "linen"):
                made[key] = load_object(value, self.folder)
            elif key == "rules":
                made[key] = str(self.folder / value)
            elif key == "input":
                from bridge.inputs import read_input  # noqa: PLC0415 - loads jax

                is_file = value.endswith((".npy", ".npz")) or ".py:" in value
                made["sample_input"] = read_input(str(self.folder / value) if is_file else value)
            else:
                made[key] = value
        return made


@dataclass(frozen=True, slots=True)
class Config:
    """A whole ``fleet.toml``.

    Attributes:
        entries: in order; the first that covers a checkpoint decides.
        structural: whether a checkpoint that none covers is converted structurally; else it is
            left.
    """

    entries: tuple[Entry, ...] = ()
    structural: bool = True

    def entry_of(self, run: str, signature: str) -> Entry | None:
        """The first entry that covers a checkpoint; None when none does."""
        return next((e for e in self.entries if e.covers(run, signature)), None)

    @property
    def needs_signature(self) -> bool:
        """Whether any entry asks for a signature."""
        return any(entry.signature for entry in self.entries)


def matches(pattern: str, run: str) -> bool:
    """Whether a glob fits the path of a run; ``**`` stands for any number of folders.

    >>> [matches(p, "lm/big/1") for p in ("lm/**", "*/1", "**/1", "lm/*/[0-9]")]
    [True, False, True, True]
    """
    return _matches(pattern.strip("/").split("/"), run.split("/"))


def _matches(pattern: Sequence[str], parts: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(pattern[1:], parts[n:]) for n in range(len(parts) + 1))
    first = bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0])
    return first and _matches(pattern[1:], parts[1:])


def read_config(path: str | Path) -> Config:
    """Read a ``fleet.toml``.

    Args:
        path: the file.

    Returns:
        Its entries.

    Raises:
        FleetError: it cannot be read, or something in it is wrong; all of it is told at once.

    >>> read_config("fleet.toml").entries[0].name  # doctest: +SKIP
    'group 1 (lm/**)'
    """
    path = absolute(path)
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise FleetError(f"{path}: {error.strerror or error}. Give an existing file.") from error
    except ValueError as error:
        raise FleetError(f"{path} is no TOML: {error}") from error
    problems = _unknown("the top level", data, ("group", "default"))
    groups = data.get("group", [])
    if not isinstance(groups, list) or not all(isinstance(g, dict) for g in groups):
        problems.append("group is written [[group]], once for each entry")
        groups = []
    entries = [_entry(n, group, path.parent, problems) for n, group in enumerate(groups, 1)]
    structural = _default(data.get("default", {}), problems)
    if problems:
        raise FleetError(
            f"{path}: {len(problems)} problem(s):\n  " + "\n  ".join(problems), problems=problems
        )
    return Config(tuple(entries), structural)


def _default(default: Any, problems: list[str]) -> bool:
    if not isinstance(default, dict):
        problems.append("default is written [default]")
        return True
    problems += _unknown("[default]", default, ("unmatched",))
    unmatched = default.get("unmatched", "structural")
    if unmatched not in _UNMATCHED:
        problems.append(f"[default] unmatched = {unmatched!r}: expected one of {_UNMATCHED}")
    return bool(unmatched == "structural")


def _entry(number: int, group: dict[str, Any], folder: Path, problems: list[str]) -> Entry:
    match = group.get("match", [])
    match = [match] if isinstance(match, str) else match
    shown = ", ".join(map(str, match)) if isinstance(match, list) else repr(match)
    name = f"group {number} ({shown or group.get('signature', 'everything')})"
    found = _unknown(name, group, _KEYS)
    if not isinstance(match, list) or not all(isinstance(m, str) and m for m in match):
        found.append(f'{name}: match = {match!r}: expected globs such as ["lm/**"]')
        match = []
    wrong = [
        key for key in _TEXTS if not isinstance(group.get(key, "x"), str) or not group.get(key, "x")
    ]
    found += [f"{name}: {key} = {group[key]!r}: expected a text" for key in wrong]
    if not isinstance(group.get("at", {}), dict):
        found.append(f'{name}: at = {group["at"]!r}: expected {{ item = "path" }}')
    if not isinstance(group.get("seed", 0), int):
        found.append(f"{name}: seed = {group['seed']!r}: expected a whole number")
    if not isinstance(group.get("allow_order", False), bool):
        found.append(f"{name}: allow_order = {group['allow_order']!r}: expected true or false")
    if group.get("rngs", "keep") not in _RNGS:
        found.append(f"{name}: rngs = {group['rngs']!r}: expected one of {_RNGS}")
    options: dict[str, Any] = {key: group[key] for key in _PLANNING if key in group}
    found += _together(name, group, options)
    problems += found
    return Entry(
        name=name,
        match=tuple(match),
        signature=str(group.get("signature", "")).rstrip("…"),
        skip=str(group.get("skip", "")),
        plan=folder / group["plan"] if isinstance(group.get("plan"), str) else None,
        options=options,
        folder=folder,
    )


def _together(name: str, group: dict[str, Any], options: dict[str, Any]) -> list[str]:
    """What does not go together in one entry."""
    found = []
    for instead in ("plan", "skip"):
        others = [key for key in options if key in group] if instead in group else []
        if others:
            found.append(f"{name}: {instead} is instead of {', '.join(others)}")
    if "plan" in group and "skip" in group:
        found.append(f"{name}: plan and skip do not go together")
    if "tx" in group and "model" not in group:
        found.append(f"{name}: tx needs model")
    if "linen" in group and "model" not in group:
        found.append(f"{name}: linen needs model, which it is compared with")
    if ("linen" in group) != ("input" in group):
        found.append(f"{name}: linen and input go together")
    return found


def _unknown(where: str, given: Mapping[str, Any], known: tuple[str, ...]) -> list[str]:
    said = []
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            said.append(f"{where}: unknown key {key!r}; {hint}")
    return said
