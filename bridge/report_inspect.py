"""What ``inspect`` says of a checkpoint, of a run, and of a folder of runs.

The first lines answer "what have I got, and is it whole"; the tree is for the second look. What
cannot be read, and what the file no longer says, is counted at the top and told at the end, where
a terminal stops.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge._fold import fold_paths
from bridge._leaf_words import Reason, dtype_name, group_reasons
from bridge._text import WIDTH, columns, count, grid, size, where, wrap, wrap_path
from bridge.report_tree import tree_lines
from legacy.checkpoint import Checkpoint, Format, Run, Skipped
from legacy.leaves import Leaf, LeafPath, LeafTable, format_path

if TYPE_CHECKING:
    from bridge.roles import Roles

__all__ = ["checkpoint_text", "losses", "run_text", "runs_text", "unreadable_count"]

_LABEL = 10
_KEEP = "\N{NO-BREAK SPACE}"
_SHOWN_STEPS = 12
_SHOWN_PATHS = 6
_SHOWN_VALUES = 6
_SHOWN_METADATA = 400
_ORDER = ("params", "collection", "opt_state", "copy", "rng", "step", "rest")
_FORMATS: Mapping[str, str] = {
    "flax-msgpack": "one msgpack file of flax",
    "orbax": "a folder of Orbax",
    "orbax-v1": "a folder of Orbax v1",
}
_LAYOUTS: Mapping[str, str] = {
    "msgpack": "",
    "gda": "large arrays in folders beside it",
    "shards": "in several files, with an index",
    "ocdbt": "arrays in an OCDBT database",
    "zarr": "a zarr folder for each array",
    "zarr3": "a zarr3 folder for each array",
    "aggregate": "values in the file checkpoint",
}


def checkpoint_text(checkpoint: Checkpoint, roles: Roles | None, width: int | None = None) -> str:
    """Everything that is known about a checkpoint without reading an array.

    Args:
        checkpoint: opened.
        roles: of ``checkpoint.leaves``; None leaves that part out.
        width: of the terminal; default 80.

    Returns:
        Lines of text.
    """
    width = width or WIDTH
    leaves = checkpoint.leaves
    lines = wrap_path(where(checkpoint.path), width, "", "    ")
    lines += _field("format", f"{_format_in_words(checkpoint.format)}", width)
    lines += _field("era", checkpoint.format.era, width)
    for evidence in checkpoint.format.evidence:
        lines += _field("", f"- {evidence}", width)
    step = "not said by the path" if checkpoint.step is None else str(checkpoint.step)
    lines += _field("step", step, width)
    for n, (name, table) in enumerate(checkpoint.items.items()):
        lines += _field("" if n else "items", f"{name}: {_item_in_words(table)}", width)
    if checkpoint.metadata:
        lines += _field("metadata", _metadata_in_words(checkpoint.metadata), width)
    lines += _field("dtypes", _dtypes_in_words(leaves), width)
    for n, text in enumerate([] if roles is None else _roles_lines(roles, leaves, width)):
        lines.append(f"  {'' if n else 'roles':<{_LABEL}}{text}")
    signature = f"{leaves.signature()[:16]} (checkpoints of one signature can share a plan)"
    lines += _field("signature", signature, width)
    problems, notes = losses(checkpoint)
    lines += _warning(problems, notes, _total(checkpoint), width)
    lines += ["", *tree_lines(leaves, width)]
    lines += _lost_lines(problems, notes, _total(checkpoint), width)
    if checkpoint.skipped:
        lines += ["", *_skipped_lines(checkpoint.skipped, checkpoint.path.parent, width)]
    return "\n".join(lines)


def _field(name: str, text: str, width: int) -> list[str]:
    first = f"  {name:<{_LABEL}}"
    lines = wrap(text, width, first, " " * (len(first) + (2 if text.startswith("- ") else 0)))
    return [line.replace(_KEEP, " ") for line in lines]


def _format_in_words(found: Format) -> str:
    parts = [_LAYOUTS.get(part, part) for part in found.layout.split("+")]
    words = ", ".join(filter(None, [_FORMATS.get(found.name, ""), *parts]))
    return f"{found.name} ({found.layout}): {words}"


def _item_in_words(table: LeafTable) -> str:
    if table.json_file is None:
        return f"{count(len(table), 'leaf', 'leaves')}, {size(table.nbytes)}"
    said = f"JSON, {count(len(table), 'value')}"
    if any(leaf.kind == "unreadable" for leaf in table.values()):
        return "JSON, cannot be read"
    shown = [
        f"{format_path(path)} = {_short(leaf.read())}"
        for path, leaf in table.items()
        if leaf.kind in {"number", "bool", "str"}
    ][:_SHOWN_VALUES]
    more = ", …" if len(table) > len(shown) else ""
    return f"{said}: {', '.join(shown)}{more}" if shown else said


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LABEL * 4 else f"{text[: _LABEL * 4]}…"


def _metadata_in_words(metadata: Mapping[str, Any]) -> str:
    text = json.dumps(metadata, ensure_ascii=False, default=str)
    if len(text) <= _SHOWN_METADATA:
        return text
    return f"{count(len(metadata), 'entry', 'entries')} (--json has them): {', '.join(metadata)}"


def _dtypes_in_words(leaves: LeafTable) -> str:
    totals: dict[str, list[int]] = {}
    for leaf in leaves.values():
        total = totals.setdefault(dtype_name(leaf.dtype) or leaf.kind, [0, 0])
        total[0] += 1
        total[1] += leaf.nbytes
    shown = sorted(totals.items(), key=lambda item: (-item[1][1], -item[1][0]))
    return ", ".join(f"{name}{_KEEP}×{n:,}" for name, (n, _) in shown) or "none"


def _roles_lines(roles: Roles, leaves: LeafTable, width: int) -> list[str]:
    rows = []
    for group in sorted(roles.groups, key=lambda g: _ORDER.index(g.role)):
        name: str = group.role
        if group.collection and group.collection != group.role:
            name += f" ({group.collection})"
        nbytes = sum(leaves[p].nbytes for p in group.full())
        total = count(len(group.paths), "leaf", "leaves")
        rows.append((name, format_path(group.prefix), total, size(nbytes)))
    if len(rows) > 1:
        rows.append(("total", "", count(len(leaves), "leaf", "leaves"), size(leaves.nbytes)))
    lines = grid(rows, right=(2, 3))
    if all(columns(line) + _LABEL + 2 <= width for line in lines):
        return lines
    texts = [f"{name}: {total}, {amount}, at {prefix}" for name, prefix, total, amount in rows]
    return [line for text in texts for line in wrap_path(text, width - _LABEL - 2, "", "    ")]


def losses(checkpoint: Checkpoint) -> tuple[list[Reason], list[Reason]]:
    """Why leaves cannot be read, and what the file no longer says about others.

    Args:
        checkpoint: opened.

    Returns:
        Problems and notes, each with its leaves; leaves of JSON items below the item's name.
    """
    every = list(_every_leaf(checkpoint))
    problems = group_reasons(
        (path, leaf.problem or "no reason is given")
        for path, leaf in every
        if leaf.kind == "unreadable"
    )
    return problems, group_reasons((path, note) for path, leaf in every for note in leaf.notes)


def unreadable_count(checkpoint: Checkpoint) -> int:
    """How many leaves of a checkpoint, JSON items included, cannot be read."""
    return sum(leaf.kind == "unreadable" for _, leaf in _every_leaf(checkpoint))


def _every_leaf(checkpoint: Checkpoint) -> Iterator[tuple[LeafPath, Leaf]]:
    alone = len(checkpoint.tree_items) == 1
    for name, table in checkpoint.items.items():
        inside = () if table.json_file is None and alone else (name,)
        if inside:
            yield from (((*inside, *path), leaf) for path, leaf in table.items())
        else:
            yield from table.items()


def _total(checkpoint: Checkpoint) -> int:
    return sum(map(len, checkpoint.items.values()))


def _warning(problems: list[Reason], notes: list[Reason], total: int, width: int) -> list[str]:
    lines = []
    if problems:
        lost = sum(len(reason.paths) for reason in problems)
        said = f"{lost:,} of {count(total, 'leaf', 'leaves')} cannot be read: "
        said += f"{problems[0].text.rstrip('.')}. All reasons are below the tree."
        lines += _field("damage", said, width)
    if notes:
        told = len({path for reason in notes for path in reason.paths})
        said = f"on {count(told, 'leaf', 'leaves')}, below the tree"
        lines += _field("notes", said, width)
    return lines


def _lost_lines(problems: list[Reason], notes: list[Reason], total: int, width: int) -> list[str]:
    lines: list[str] = []
    if problems:
        lost = sum(len(reason.paths) for reason in problems)
        lines += ["", f"cannot be read: {lost:,} of {count(total, 'leaf', 'leaves')}"]
        lines += _reason_lines(problems, width)
    if notes:
        lines += ["", "notes: what the files no longer say"]
        lines += _reason_lines(notes, width)
    return lines


def _reason_lines(reasons: list[Reason], width: int) -> Iterator[str]:
    for reason in reasons:
        n = len(reason.paths)
        same = f" ({n:,} leaves; the text is of the first)" if n > 1 else ""
        yield from wrap(f"{reason.text}{same}", width, "  - ", "    ")
        folded = fold_paths(reason.paths)
        for text in folded[:_SHOWN_PATHS]:
            yield from wrap_path(text, width, "      ", "          ")
        if len(folded) > _SHOWN_PATHS:
            yield f"      and {len(folded) - _SHOWN_PATHS:,} more lines like these (--json has all)"


def _skipped_lines(skipped: Sequence[Skipped], beside: Path, width: int) -> Iterator[str]:
    by_reason: dict[str, list[str]] = {}
    for entry in skipped:
        near = entry.path.is_relative_to(beside) and entry.path != beside
        name = where(entry.path.relative_to(beside) if near else entry.path)
        by_reason.setdefault(entry.reason, []).append(name)
    for reason, names in by_reason.items():
        shown = ", ".join(names[:_SHOWN_PATHS])
        more = f" and {len(names) - _SHOWN_PATHS:,} more" if len(names) > _SHOWN_PATHS else ""
        yield from wrap(f"skipped {shown}{more}: {reason}", width, "  ", "    ")


def run_text(run: Run, width: int | None = None) -> str:
    """A run in a few lines: where, how many steps, what was skipped."""
    width = width or WIDTH
    steps = [str(s.step) for s in run.steps if s.step is not None]
    if run.kind == "single":
        said = f"one checkpoint{f', step {steps[0]}' if steps else ''}"
    elif len(steps) > _SHOWN_STEPS:
        first, last = ", ".join(steps[:3]), ", ".join(steps[-2:])
        said = f"{run.kind}, {len(steps):,} steps: {first}, … {last}"
    elif steps:
        said = f"{run.kind}, {count(len(steps), 'step')}: {', '.join(steps)}"
    else:
        said = "nothing finished"
    lines = wrap_path(where(run.path), width, "", "    ")
    if len(lines) == 1 and columns(lines[0]) + len(said) + 2 <= width:
        lines[0] += f"  {said}"
    else:
        lines += wrap(said, width, "  ", "    ")
    return "\n".join([*lines, *_skipped_lines(run.skipped, run.path, width)])


def runs_text(runs: tuple[Run, ...], width: int | None = None) -> str:
    """All runs below a root, with totals first."""
    found = [run for run in runs if run.steps]
    total = sum(len(run.steps) for run in found)
    head = f"{count(len(found), 'run')}, {count(total, 'checkpoint')}"
    return "\n".join([head, "", *(run_text(run, width) for run in runs)])
