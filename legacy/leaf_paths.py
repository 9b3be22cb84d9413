"""Where a leaf is: a tuple of strings, and the one way in which it becomes text and back.

A key may hold a slash, a dot or a quote, so paths stay tuples everywhere; :func:`format_path` is
the only place where one becomes text, and :func:`parse_path` its inverse.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
from typing import TypeAlias

from legacy.errors import LegacyError

__all__ = ["LeafPath", "components", "format_path", "natural_key", "parse_path"]

LeafPath: TypeAlias = tuple[str, ...]
"""Where a leaf is: dict keys, field names and sequence indices, all as strings."""

_PLAIN = re.compile(r"[^/\"\s\\*{}\[\]#]+")
_COMPONENT = re.compile(r'"(?:[^"\\]|\\.)*"|[^/"]+')
_DIGITS = re.compile(r"(\d+)")


def format_path(path: LeafPath) -> str:
    """Print a path; components that would not read back plainly are quoted as JSON strings.

    >>> format_path(("params", "Dense_0", "kernel"))
    'params/Dense_0/kernel'
    >>> format_path(("SpectralNorm_0", "Dense_0/kernel/u"))
    'SpectralNorm_0/"Dense_0/kernel/u"'
    >>> format_path(())
    '/'
    """
    if not path:
        return "/"
    return "/".join(p if _PLAIN.fullmatch(p) else json.dumps(p, ensure_ascii=False) for p in path)


def parse_path(text: str) -> LeafPath:
    """Read back what :func:`format_path` printed.

    Raises:
        LegacyError: an empty component or a quote that does not close.

    >>> parse_path('SpectralNorm_0/"Dense_0/kernel/u"')
    ('SpectralNorm_0', 'Dense_0/kernel/u')
    """
    if text == "/":
        return ()
    parts = components(text, _COMPONENT, lambda said: LegacyError(f"path {text!r}: {said}"))
    return tuple(json.loads(part) if part.startswith('"') else part for part in parts)


def components(
    text: str, component: re.Pattern[str], refuse: Callable[[str], Exception]
) -> Iterator[str]:
    """Cut text at the slashes between its components, quotes and all.

    Args:
        text: a path, or a pattern of paths.
        component: what a component looks like.
        refuse: makes the error of what is wrong with the text.

    Yields:
        The components, as they are written.

    >>> list(components('a/"b/c"', _COMPONENT, ValueError))
    ['a', '"b/c"']
    """
    at = 0
    while True:
        found = component.match(text, at)
        if found is None:
            raise refuse(
                f"expected a component at character {at}. "
                'Write components between slashes; quote one that holds a slash: a/"b/c"/d.'
            )
        yield found.group()
        at = found.end()
        if at == len(text):
            return
        if text[at] != "/":
            raise refuse(f"expected a slash at character {at}.")
        at += 1


def natural_key(path: LeafPath) -> tuple[tuple[tuple[int, int, str], ...], ...]:
    """Sort key in which ``Dense_10`` follows ``Dense_2``.

    >>> sorted([("Dense_10",), ("Dense_2",)], key=natural_key)
    [('Dense_2',), ('Dense_10',)]
    """
    return tuple(map(_natural_part, path))


@functools.lru_cache(maxsize=1 << 16)  # names repeat from block to block
def _natural_part(part: str) -> tuple[tuple[int, int, str], ...]:
    # isascii: "²".isdigit() is true and int("²") is an error
    return tuple(
        (0, int(s), "") if s.isascii() and s.isdigit() else (1, 0, s)
        for s in _DIGITS.split(part)
        if s
    )
