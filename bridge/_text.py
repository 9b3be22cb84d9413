"""Small pieces of plain text for reports: sizes, wrapped paths, tables.

Names come from files and may hold anything: columns are counted as a terminal counts them, and
what would steer the terminal is shown by its code.
"""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = [
    "WIDTH",
    "columns",
    "count",
    "grid",
    "pad",
    "printable",
    "size",
    "table",
    "where",
    "wrap",
    "wrap_path",
]

WIDTH = 80
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_STEP = 1024
_ARROW = "→ "
_MIN_PATH = 16
# control characters but the newline, marks that turn the direction of writing, lone surrogates
_STEERS = re.compile(
    "[\\x00-\\x09\\x0b-\\x1f\\x7f-\\x9f\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)


def size(nbytes: int) -> str:
    """Bytes for people.

    >>> size(12), size(2048), size(5 << 30)
    ('12 B', '2.0 KiB', '5.0 GiB')
    """
    amount = float(nbytes)
    for unit in _UNITS:
        if amount < _STEP or unit == _UNITS[-1]:
            return f"{nbytes} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= _STEP
    raise AssertionError  # pragma: no cover


def count(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun.

    >>> count(1, "leaf", "leaves"), count(2, "leaf", "leaves"), count(2, "slot")
    ('1 leaf', '2 leaves', '2 slots')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def printable(text: str) -> str:
    r"""The text with everything that would steer a terminal written as an escape.

    >>> print(printable("red \x1b[31m"))
    red \x1b[31m
    """
    return _STEERS.sub(lambda found: ascii(found.group())[1:-1], text)


def where(path: Path) -> str:
    """The path of a file or folder on one line, whatever its name is made of.

    >>> where(Path("runs/exp1"))
    'runs/exp1'
    """
    return printable(str(path)).replace("\n", "\\n")


def columns(text: str) -> int:
    """How many columns of a terminal a text takes.

    >>> columns("kernel"), columns("核")
    (6, 2)
    """
    if text.isascii():
        return len(text)
    return sum(
        0
        if unicodedata.category(c) in {"Mn", "Me", "Cf"}
        else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def pad(text: str, width: int, *, right: bool = False) -> str:
    """The text with spaces up to a width, behind it or (``right``) before it."""
    space = " " * (width - columns(text))
    return space + text if right else text + space


def grid(rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), gap: str = "  ") -> list[str]:
    """Rows as lines with their cells in columns.

    Args:
        rows: of one length.
        right: numbers of the columns that end flush.
        gap: between columns.

    >>> grid([("a", "1"), ("bcd", "23")], right=(1,))
    ['a     1', 'bcd  23']
    """
    widths = [max(map(columns, column)) for column in zip(*rows, strict=True)]
    return [
        gap.join(
            pad(cell, width, right=n in right)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def wrap(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    """Wrap prose; long words (paths) are never cut."""
    return textwrap.wrap(
        text,
        max(width, 20),
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [first.rstrip()]


def wrap_path(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    """Break a long path after slashes; nothing is left out.

    >>> wrap_path("params/aaaaaaaaaa/bbbbbbbbbb", 20, "", "  ")
    ['params/aaaaaaaaaa/', '  bbbbbbbbbb']
    """
    lines = [first]
    for piece in text.replace("/", "/\0").split("\0"):
        room = max(width, _MIN_PATH) - columns(lines[-1])
        if columns(piece) > room and lines[-1] not in (first, rest):
            lines.append(rest)
        lines[-1] += piece
    return lines


def table(rows: Iterable[Sequence[str]], width: int, indent: str = "  ") -> list[str]:
    """Lines of ``left → right  note``: in columns where they fit, else below each other.

    Args:
        rows: left, right (may be empty) and note of each row.
        width: of the terminal.
        indent: before each line.
    """
    rows = list(rows)
    arrow = any(right for _, right, _ in rows)
    between = len(_ARROW) + 1 if arrow else 0
    note_room = min(24, max((columns(note) for *_, note in rows), default=0) + 2)
    room = width - len(indent) - between - note_room
    left_width, right_width = _columns(rows, room)
    lines = []
    for left, right, note in rows:
        line = f"{indent}{pad(left, left_width)}"
        if arrow:
            line += f" {_ARROW if right else '  '}{pad(right, right_width)}"
        line = f"{line}  {note}".rstrip()
        fits = columns(left) <= left_width and columns(right) <= right_width
        if fits and columns(line) <= width:
            lines.append(line)
            continue
        lines += wrap_path(left, width, indent, f"{indent}    ")
        if right:
            lines += wrap_path(right, width, f"{indent}  {_ARROW}", f"{indent}      ")
        if note and columns(lines[-1]) + columns(note) + 2 <= width:
            lines[-1] += f"  {note}"
        elif note:
            lines += wrap(note, width, f"{indent}    ", f"{indent}    ")
    return lines


def _columns(rows: Sequence[Sequence[str]], room: int) -> tuple[int, int]:
    """Widths of two columns that let most rows fit."""
    lefts = sorted(columns(left) for left, *_ in rows) or [0]
    rights = sorted(columns(right) for _, right, _ in rows) or [0]
    if lefts[-1] + rights[-1] <= room:
        return lefts[-1], rights[-1]
    fitting = [
        (sum(columns(a) <= left and columns(b) <= room - left for a, b, _ in rows), -left)
        for left in set(lefts)
        if left <= room
    ]
    _, left = max(fitting, default=(0, -(room // 2)))
    return -left, max((n for n in rights if n <= room + left), default=max(0, room + left))
