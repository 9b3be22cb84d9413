"""What ``inspect --leaf`` says: one leaf in detail, or a line for each leaf of a subtree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bridge._leaf_words import describe
from bridge._stats import Look, Statistics
from bridge._text import WIDTH, columns, count, grid, printable, size, wrap, wrap_path
from bridge.report_json import leaf_json as structure_json
from legacy.leaves import Leaf, format_path

__all__ = ["leaf_json", "leaf_text", "look_json", "look_text", "looks_json", "looks_text"]

_BARS = "▁▂▃▄▅▆▇█"


def leaf_text(leaf: Leaf, found: Statistics | str, width: int | None = None) -> str:
    """One leaf with statistics of its values, or its value."""
    return look_text(Look(leaf.path, leaf, found), width)


def leaf_json(leaf: Leaf, found: Statistics | str) -> dict[str, Any]:
    """The same as plain JSON values."""
    return look_json(Look(leaf.path, leaf, found, value=found))


def look_text(seen: Look, width: int | None = None) -> str:
    """One leaf in detail.

    Args:
        seen: the leaf and what is in it.
        width: of the terminal; default 80.
    """
    width = width or WIDTH
    leaf, found = seen.leaf, seen.found
    lines = wrap_path(format_path(seen.path), width, "", "    ")
    stored = f", stored in chunks of {leaf.chunks}" if leaf.chunks else ""
    lines += wrap(f"{describe(leaf)}, {size(leaf.nbytes)}{stored}", width, "  ", "    ")
    if seen.problem is not None:
        lines += wrap(f"cannot be read: {seen.problem}", width, "  ", "    ")
    elif isinstance(found, str):
        text = str(seen.value) if isinstance(seen.value, str) and leaf.kind == "str" else found
        lines += wrap(f"value {printable(text)}", width, "  ", "    ")
    elif found.size == 1:
        lines += wrap(f"value {found.first[0]}", width, "  ", "    ")
    elif leaf.kind == "key":  # bits, of which no number says anything
        lines += _first_lines(found, width)
    else:
        lines += _statistics_lines(found, width)
    for note in leaf.notes:
        lines += wrap(f"note: {note}", width, "  ", "    ")
    return "\n".join(lines)


def _statistics_lines(found: Statistics, width: int) -> list[str]:
    said = f"{count(found.size, 'element')}, {found.size - found.finite:,} NaN or infinite"
    if found.nans and found.infinite:
        said += f" ({found.nans:,} NaN, {found.infinite:,} infinite)"
    share = f" ({found.zeros / found.size:.1%})" if found.zeros else ""
    lines = wrap(f"{said}, {found.zeros:,} zero{share}", width, "  ", "    ")
    numbers = [
        f"{name} {_number(value)}"
        for name, value in (
            ("min", found.minimum),
            ("max", found.maximum),
            ("mean", found.mean),
            ("std", found.std),
            ("norm", found.norm),
        )
        if value is not None
    ]
    if numbers:
        lines += wrap(", ".join(numbers), width, "  ", "    ")
    if found.histogram:
        lines += wrap(f"histogram {_bars(found.histogram)} from min to max", width, "  ", "    ")
    return lines + _first_lines(found, width)


def _first_lines(found: Statistics, width: int) -> list[str]:
    if not found.first:
        return []
    more = ", …" if found.size > len(found.first) else ""
    return wrap(f"first {', '.join(found.first)}{more}", width, "  ", "    ")


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _bars(histogram: Sequence[int]) -> str:
    most = max(histogram)
    # a bin with a single element is still to be seen beside an empty one
    return "".join(
        " " if n == 0 else _BARS[min(len(_BARS) - 1, n * len(_BARS) // most)] for n in histogram
    )


def look_json(seen: Look) -> dict[str, Any]:
    """One leaf as plain JSON values: its structure, then ``statistics``, ``value`` or neither."""
    data = {**structure_json(seen.leaf), "path": list(seen.path)}
    if seen.problem is not None:
        return {**data, "problem": seen.problem}
    if isinstance(seen.found, str):
        return {**data, "value": seen.value}
    return {**data, "statistics": dict(seen.found.to_json())}


def looks_text(seen: Sequence[Look], width: int | None = None) -> str:
    """A line for each leaf of a subtree."""
    width = width or WIDTH
    head = ("leaf", "what", "min", "max", "mean", "std", "")
    rows = [head, *map(_row, seen)]
    lines = grid(rows, right=(2, 3, 4, 5))
    if max(map(columns, lines)) <= width:
        return "\n".join(lines)
    # names above their numbers, so that the columns stay columns
    lines = []
    numbers = grid([row[1:] for row in rows], right=(1, 2, 3, 4))
    for row, line in zip(rows, numbers, strict=True):
        lines += [*wrap_path(row[0], width, "", "    "), f"  {line}"]
    return "\n".join(lines)


def _row(seen: Look) -> tuple[str, ...]:
    name, kind = format_path(seen.path), describe(seen.leaf)
    if seen.problem is not None:
        return (name, kind, "", "", "", "", "cannot be read (--leaf with its path says why)")
    if isinstance(seen.found, str):
        said = "" if seen.found == kind or kind.startswith("empty") else printable(seen.found)
        return (name, kind, "", "", "", "", said)
    found = seen.found
    if found.size == 1:
        return (name, kind, "", "", "", "", found.first[0])
    numbers = (found.minimum, found.maximum, found.mean, found.std)
    if seen.leaf.kind == "key":
        return (name, kind, "", "", "", "", "")
    lost = found.size - found.finite
    said = f"{lost:,} NaN or infinite" if lost else ""
    if found.size and found.zeros == found.size:
        said = "all zero"
    return (name, kind, *("" if n is None else _short(n) for n in numbers), said)


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3g}"


def looks_json(seen: Sequence[Look]) -> list[dict[str, Any]]:
    """The leaves of a subtree as plain JSON values."""
    return [look_json(one) for one in seen]
