"""The differences of two checkpoints as text, most important first.

A leaf that is missing says more than one whose values moved, and a whole missing subtree is one
line. Of leaves that differ in values alone the largest differences come first, and what is left
out of a long list is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from bridge._diff import Diff, LeafDifference, Rename
from bridge._fold import fold
from bridge._text import WIDTH, count, table, wrap, wrap_path
from legacy.leaves import LeafPath

__all__ = ["diff_json", "diff_text"]

MOST = 60
"""Rows of a list that are shown unless all are asked for."""


def diff_text(diff: Diff, width: int | None = None, *, full: bool = False) -> str:
    """The differences of two checkpoints, most important first.

    Args:
        diff: any.
        width: of the terminal; default 80.
        full: list every difference; else the first ones and how many there are.
    """
    width = width or WIDTH
    most = None if full else MOST
    lines = [*wrap_path(diff.a, width, "a  ", "   "), *wrap_path(diff.b, width, "b  ", "   ")]
    how = "equal bit for bit" if diff.values else "equal in structure (values not compared)"
    said = f"{count(diff.equal, 'leaf', 'leaves')} {how}"
    if diff.same:
        return "\n".join([*lines, f"same: {said}"])
    lines += wrap(f"different: {_totals(diff)}; {said}", width, "", "  ")
    if diff.renamed:
        lines += ["", "perhaps renamed (alike in kind, dtype, shape and the end of the path)"]
        lines += _some(_rename_lines(diff.renamed, width), most)
    told_a = {(r.item, r.a) for r in diff.renamed}
    told_b = {(r.item, r.b) for r in diff.renamed}
    for name, only, told in (("a", diff.only_a, told_a), ("b", diff.only_b, told_b)):
        left = [entry for entry in only if entry not in told]
        if left:
            below = diff.subtrees_a if name == "a" else diff.subtrees_b
            lines += ["", f"only in {name}: {count(len(left), 'leaf', 'leaves')}"]
            lines += _some(_only_lines(left, dict(below), width), most)
    if diff.changed:
        lines += ["", "different: a | b"]
        lines += _some(_changed_lines(diff.changed, width), most)
    return "\n".join(lines)


def _totals(diff: Diff) -> str:
    parts = [f"{count(len(diff.changed), 'leaf', 'leaves')} differ"]
    unreadable = sum("unreadable" in change.what for change in diff.changed)
    if unreadable:
        parts.append(f"{unreadable:,} of them cannot be read")
    parts += [f"{len(diff.only_a):,} only in a", f"{len(diff.only_b):,} only in b"]
    return ", ".join(parts)


def _some(entries: Iterator[list[str]], most: int | None) -> Iterator[str]:
    """The lines of the first entries, and how many entries were left out."""
    left = 0
    for n, lines in enumerate(entries):
        if most is None or n < most:
            yield from lines
        else:
            left += 1
    if left:
        yield f"  and {left:,} more rows (--full or --json has all)"


def _rename_lines(renamed: Iterable[Rename], width: int) -> Iterator[list[str]]:
    """A row for each subtree that was renamed, or for all of them that a number tells apart."""
    roots: dict[tuple[str, LeafPath, LeafPath, bool | None], list[Rename]] = {}
    for rename in renamed:
        a, b = _without_common_end(rename.a, rename.b)
        roots.setdefault((rename.item, a, b, rename.same), []).append(rename)
    rows = []
    for (item, a, b, same), group in roots.items():
        alone = len(group) == 1
        pair = (group[0].a, group[0].b) if alone else (a, b)
        rows.append((pair, (item, same, len(group)), group))
    shown = []
    for family in fold(rows):
        group, n = family.rows[0], len(family.rows)
        end = "/" if len(group) > 1 else ""
        a_text, b_text = (_in_item(group[0].item, text) + end for text in family.paths)
        note = {True: "same values", False: "other values", None: ""}[group[0].same]
        leaves = len(group) * n
        size = f"{count(leaves, 'leaf', 'leaves')}" if leaves > 1 else ""
        shown.append((a_text, b_text, ", ".join(filter(None, (size, note)))))
    yield from ([line] for line in table(shown, width))


def _without_common_end(a: LeafPath, b: LeafPath) -> tuple[LeafPath, LeafPath]:
    n = 0
    while n < min(len(a), len(b)) - 1 and a[-1 - n] == b[-1 - n]:
        n += 1
    return a[: len(a) - n], b[: len(b) - n]


def _only_lines(
    only: list[tuple[str, LeafPath]], subtrees: dict[tuple[str, LeafPath], LeafPath], width: int
) -> Iterator[list[str]]:
    """Leaves of one side; a subtree that the other side has not at all is one line."""
    whole: dict[tuple[str, LeafPath], list[LeafPath]] = {}
    for item, path in only:
        whole.setdefault((item, subtrees.get((item, path), path)), []).append(path)
    for item in dict.fromkeys(item for item, _ in only):
        mine = {top: paths for (i, top), paths in whole.items() if i == item}
        rows = [((top,), (top in paths, len(paths)), top) for top, paths in mine.items()]
        for family in fold(rows):
            top, n = family.rows[0], len(family.rows)
            inside = mine[top]
            text = _in_item(item, family.paths[0]) + ("" if top in inside else "/")
            text += f" ×{n}" if n > 1 else ""
            if top not in inside:
                each = " in each" if n > 1 else ""
                text += f"  {count(len(inside), 'leaf', 'leaves')}{each}"
            yield wrap_path(text, width, "  ", "      ")


def _changed_lines(changed: Iterable[LeafDifference], width: int) -> Iterator[list[str]]:
    """Rows in order; leaves that differ in structure alike, but for an index, are one row."""
    rows = [((c.path,), (c.item, c.what, c.a, c.b, c.measure, c.problems), c) for c in changed]
    order = {id(c): n for n, (_, _, c) in enumerate(rows)}
    for family in sorted(fold(rows), key=lambda f: order[id(f.rows[0])]):
        change, n = family.rows[0], len(family.rows)
        times = f" ×{n}" if n > 1 else ""
        head = _in_item(change.item, family.paths[0]) + times
        yield [*wrap_path(head, width, "  ", "      "), *_change_lines(change, width)]


def _change_lines(change: LeafDifference, width: int) -> list[str]:
    said = f"{', '.join(change.what)}: {change.a}"
    if change.b != change.a:
        said += f" | {change.b}"
    if change.measure is not None and change.measure.differing and change.measure.size > 1:
        said += f"; {change.measure}"
    lines = wrap(said, width, "      ", "      ")
    a, b = change.problems
    told = [("both", a)] if a == b else [("a", a), ("b", b)]
    for side, problem in told:
        if problem is not None:
            lines += wrap(f"{side} cannot be read: {problem}", width, "      ", "        ")
    return lines


def _in_item(item: str, path: str) -> str:
    return f"{item}:{path}" if item else path


def diff_json(diff: Diff) -> dict[str, Any]:
    """The differences as plain JSON values."""
    return diff.to_json()
