"""Which parts of a restore target may keep their own values, as the caller named them."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from legacy.leaves import LeafPath, parse_path

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["Defaults"]


class Defaults:
    """Patterns of paths; each component may hold ``*``, ``?`` and ``[...]``.

    A pattern covers a leaf when it matches the beginning of its path.

    Args:
        patterns: True for everything, False for nothing, one pattern, or several.

    >>> defaults = Defaults(["opt_state", "params/*/bias", "parms"])
    >>> defaults.covers(("opt_state", "0", "count")), defaults.covers(("params", "a", "kernel"))
    (True, False)
    >>> defaults.unused([("params", "a", "bias"), ("opt_state", "0", "count")])
    ["defaults: no leaf of the target matches 'parms'; remove it or correct it."]
    """

    def __init__(self, patterns: bool | str | Collection[str | LeafPath]) -> None:
        self._all = patterns is True
        given: Collection[str | LeafPath]
        if isinstance(patterns, bool):
            given = ()
        else:
            given = (patterns,) if isinstance(patterns, str) else patterns
        self._patterns = [parse_path(p) if isinstance(p, str) else tuple(p) for p in given]

    def covers(self, path: LeafPath) -> bool:
        """Whether the leaf at ``path`` may keep the target's value."""
        return self._all or any(_matches(p, path) for p in self._patterns)

    def unused(self, leaves: Collection[LeafPath]) -> list[str]:
        """A problem for each pattern that matches no leaf of the target."""
        return [
            f"defaults: no leaf of the target matches {'/'.join(pattern)!r}; remove it or correct "
            "it."
            for pattern in self._patterns
            if not any(_matches(pattern, leaf) for leaf in leaves)
        ]


def _matches(pattern: LeafPath, path: LeafPath) -> bool:
    return len(pattern) <= len(path) and all(
        fnmatchcase(part, wanted) for part, wanted in zip(path, pattern, strict=False)
    )
