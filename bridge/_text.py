"""Small pieces of plain text for reports: sizes, wrapped paths, tables."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

__all__ = ["WIDTH", "count", "size", "table", "wrap", "wrap_path"]

WIDTH = 80
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_STEP = 1024
_ARROW = "→ "
_MIN_PATH = 16


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
        room = max(width, _MIN_PATH) - len(lines[-1])
        if len(piece) > room and lines[-1] not in (first, rest):
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
    note_room = min(24, max((len(note) for *_, note in rows), default=0) + 2)
    room = width - len(indent) - between - note_room
    left_width, right_width = _columns(rows, room)
    lines = []
    for left, right, note in rows:
        line = f"{indent}{left:<{left_width}}"
        if arrow:
            line += f" {_ARROW if right else '  '}{right:<{right_width}}"
        line = f"{line}  {note}".rstrip()
        if len(left) <= left_width and len(right) <= right_width and len(line) <= width:
            lines.append(line)
            continue
        lines += wrap_path(left, width, indent, f"{indent}    ")
        if right:
            lines += wrap_path(right, width, f"{indent}  {_ARROW}", f"{indent}      ")
        if note and len(lines[-1]) + len(note) + 2 <= width:
            lines[-1] += f"  {note}"
        elif note:
            lines += wrap(note, width, f"{indent}    ", f"{indent}    ")
    return lines


def _columns(rows: Sequence[Sequence[str]], room: int) -> tuple[int, int]:
    """Widths of two columns that let most rows fit."""
    lefts = sorted(len(left) for left, *_ in rows) or [0]
    rights = sorted(len(right) for _, right, _ in rows) or [0]
    if lefts[-1] + rights[-1] <= room:
        return lefts[-1], rights[-1]
    fitting = [
        (sum(len(a) <= left and len(b) <= room - left for a, b, _ in rows), -left)
        for left in set(lefts)
        if left <= room
    ]
    _, left = max(fitting, default=(0, -(room // 2)))
    return -left, max((n for n in rights if n <= room + left), default=max(0, room + left))
