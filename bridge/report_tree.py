"""A checkpoint as text: what it is, its roles, and its tree with repeated blocks folded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bridge._diff import describe
from bridge._fold import MIN_FOLD, fold_paths
from bridge._text import WIDTH, count, size, wrap, wrap_path
from bridge.roles import Group, Roles
from legacy import Checkpoint, Leaf, LeafPath, LeafTable, Run, Skipped, format_path

__all__ = [
    "checkpoint_json",
    "checkpoint_text",
    "run_json",
    "run_text",
    "runs_text",
    "skipped_lines",
    "tree_lines",
]

_LABEL = 10
_LAST_NUMBER = re.compile(r"(.*?)(0|[1-9]\d{0,8})(\D*)")
_SHOWN_STEPS = 12


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
    lines = [str(checkpoint.path)]
    lines += _field("format", str(checkpoint.format), width)
    for evidence in checkpoint.format.evidence:
        lines += _field("", f"- {evidence}", width)
    lines += _field("step", "not said" if checkpoint.step is None else str(checkpoint.step), width)
    for n, (name, table) in enumerate(checkpoint.items.items()):
        lines += _field("" if n else "items", f"{name}: {_item_in_words(table)}", width)
    lines += _field("signature", leaves.signature()[:16], width)
    for n, text in enumerate([] if roles is None else _roles_lines(roles, leaves, width)):
        lines.append(f"  {'' if n else 'roles':<{_LABEL}}{text}")
    lines += ["", *tree_lines(leaves, width)]
    lines += _notes_lines(leaves, width)
    lines += skipped_lines(checkpoint.skipped, width)
    return "\n".join(lines)


def checkpoint_json(checkpoint: Checkpoint, roles: Roles | None) -> dict[str, Any]:
    """The same as plain JSON values."""
    return {
        "path": str(checkpoint.path),
        "format": {
            "name": checkpoint.format.name,
            "layout": checkpoint.format.layout,
            "era": checkpoint.format.era,
            "evidence": list(checkpoint.format.evidence),
        },
        "step": checkpoint.step,
        "signature": checkpoint.leaves.signature(),
        "items": {
            name: {
                "json": table.json_file is not None,
                "nbytes": table.nbytes,
                "leaves": [leaf_json(leaf) for leaf in table.values()],
            }
            for name, table in checkpoint.items.items()
        },
        "roles": [_group_json(g, checkpoint.leaves) for g in roles.groups] if roles else [],
        "metadata": dict(checkpoint.metadata),
        "skipped": [_skipped_json(s) for s in checkpoint.skipped],
    }


def leaf_json(leaf: Leaf) -> dict[str, Any]:
    """A leaf as plain JSON values, without its value."""
    return {
        "path": list(leaf.path),
        "kind": leaf.kind,
        "shape": list(leaf.shape),
        "dtype": None if leaf.dtype is None else leaf.dtype.name,
        "nbytes": leaf.nbytes,
        "container": leaf.container,
        "key_impl": leaf.key_impl,
        "notes": list(leaf.notes),
    }


def _group_json(group: Group, leaves: LeafTable) -> dict[str, Any]:
    return {
        "role": group.role,
        "collection": group.collection,
        "prefix": list(group.prefix),
        "leaves": len(group.paths),
        "nbytes": sum(leaves[p].nbytes for p in group.full()),
    }


def _field(name: str, text: str, width: int) -> list[str]:
    first = f"  {name:<{_LABEL}}"
    return wrap(text, width, first, " " * (len(first) + (2 if text.startswith("- ") else 0)))


def _item_in_words(table: LeafTable) -> str:
    if table.json_file is not None:
        return f"JSON, {count(len(table), 'value')}"
    return f"{count(len(table), 'leaf', 'leaves')}, {size(table.nbytes)}"


def _roles_lines(roles: Roles, leaves: LeafTable, width: int) -> Iterator[str]:
    rows = []
    for group in roles.groups:
        name: str = group.role
        if group.collection and group.collection != group.role:
            name += f" ({group.collection})"
        nbytes = sum(leaves[p].nbytes for p in group.full())
        total = f"{count(len(group.paths), 'leaf', 'leaves')}, {size(nbytes)}"
        rows.append((name, format_path(group.prefix), total))
    name_width = max((len(name) for name, *_ in rows), default=0)
    prefix_width = max((len(prefix) for _, prefix, _ in rows), default=0)
    for name, prefix, total in rows:
        line = f"{name:<{name_width}}  {prefix:<{prefix_width}}  {total}"
        if len(line) + _LABEL + 2 <= width:
            yield line
        else:
            yield f"{name:<{name_width}}  {prefix}"
            yield f"{'':<{name_width}}  {total}"


@dataclass(slots=True)
class _Branch:
    """An inner node while the tree is drawn."""

    children: dict[str, _Branch | Leaf] = field(default_factory=dict)
    nbytes: int = 0
    leaves: int = 0


def tree_lines(leaves: LeafTable, width: int = WIDTH) -> list[str]:
    r"""The tree of a table; blocks that are equal but for a running index are drawn once.

    >>> import numpy as np
    >>> f4 = np.dtype("float32")
    >>> leaves = [Leaf((f"block_{n}", "w"), "array", (2,), f4, 8) for n in range(3)]
    >>> print("\n".join(tree_lines(LeafTable(leaves), 60)))
    tree                                                    24 B
      block_0 … block_2/ ×3                                 24 B
        w                                     float32 (2,)   8 B
    """
    root = _grow(leaves)
    rows = [("tree", "", size(root.nbytes)), *_rows(root, leaves.nodes, (), "  ")]
    sizes = max(len(total) for *_, total in rows)
    room = width - sizes - 2
    kinds = min(max(len(kind) for _, kind, _ in rows), room // 2)
    lines = []
    for name, kind, total in rows:
        left = f"{name:<{room - kinds - 2}}  {kind}" if kind else name
        if kind and len(left) > room:
            lines += wrap_path(name, width, "", f"{_indent(name)}    ")
            left = f"{kind:>{room}}"
        elif len(left) > room:
            *above, left = wrap_path(name, room, "", f"{_indent(name)}    ")
            lines += above
        lines.append(f"{left:<{room}}  {total:>{sizes}}")
    return lines


def _indent(text: str) -> str:
    return " " * (len(text) - len(text.lstrip()))


def _grow(leaves: LeafTable) -> _Branch:
    root = _Branch()
    for path, leaf in leaves.items():
        node = root
        for part in path[:-1]:
            node.nbytes += leaf.nbytes
            node.leaves += 1
            below = node.children.setdefault(part, _Branch())
            assert isinstance(below, _Branch)  # noqa: S101 - a LeafTable has no leaf below a leaf
            node = below
        node.nbytes += leaf.nbytes
        node.leaves += 1
        node.children[path[-1] if path else "(the value itself)"] = leaf
    return root


def _rows(
    node: _Branch, nodes: Mapping[LeafPath, Any], path: LeafPath, indent: str
) -> Iterator[tuple[str, str, str]]:
    for names in _runs(node):
        child = node.children[names[0]]
        name = format_path((names[0],))
        times = ""
        if len(names) > 1:
            between = " … " if len(names) > 2 else ", "  # noqa: PLR2004 - nothing between two
            name = f"{name}{between}{format_path((names[-1],))}"
            times = f" ×{len(names)}"
        if isinstance(child, Leaf):
            yield f"{indent}{name}{times}", describe(child), size(child.nbytes * len(names))
            continue
        below = (*path, names[0])
        made = nodes.get(below)
        kind = "" if made is None else f" {made.container}{f' {made.name}' if made.name else ''}"
        yield f"{indent}{name}/{times}{kind}", "", size(child.nbytes * len(names))
        yield from _rows(child, nodes, below, f"{indent}  ")


def _runs(node: _Branch) -> Iterator[list[str]]:
    """Children in order; neighbours that are equal but for their number together."""
    run: list[str] = []
    for name in node.children:
        if run and not _follows(node, run[-1], name):
            yield from _split(node, run)
            run = []
        run.append(name)
    yield from _split(node, run)


def _split(node: _Branch, run: list[str]) -> Iterator[list[str]]:
    # two equal blocks of many lines are worth folding, two equal leaves are not
    least = MIN_FOLD if run and isinstance(node.children[run[0]], Leaf) else 2
    if len(run) >= least:
        yield run
    else:
        yield from ([name] for name in run)


def _follows(node: _Branch, before: str, after: str) -> bool:
    a, b = _LAST_NUMBER.fullmatch(before), _LAST_NUMBER.fullmatch(after)
    if a is None or b is None or (a[1], a[3]) != (b[1], b[3]) or int(b[2]) != int(a[2]) + 1:
        return False
    return _equal(node.children[before], node.children[after])


def _equal(a: _Branch | Leaf, b: _Branch | Leaf) -> bool:
    if isinstance(a, Leaf) or isinstance(b, Leaf):
        if not isinstance(a, Leaf) or not isinstance(b, Leaf):
            return False
        return (describe(a), a.kind, a.nbytes) == (describe(b), b.kind, b.nbytes)
    return (
        a.leaves == b.leaves
        and a.children.keys() == b.children.keys()
        and all(_equal(a.children[name], b.children[name]) for name in a.children)
    )


def _notes_lines(leaves: LeafTable, width: int) -> Iterator[str]:
    notes: dict[str, list[LeafPath]] = {}
    for path, leaf in leaves.items():
        for note in leaf.notes:
            notes.setdefault(note, []).append(path)
    if notes:
        yield ""
        yield "notes"
    for note, paths in notes.items():
        yield from wrap(note, width, "  - ", "    ")
        for text in fold_paths(paths):
            yield f"      {text}"


def skipped_lines(skipped: tuple[Skipped, ...], width: int = WIDTH) -> Iterator[str]:
    """What was left out, with the reasons."""
    if skipped:
        yield ""
        yield "skipped"
    for entry in skipped:
        yield from wrap(f"{entry.path.name}: {entry.reason}", width, "  - ", "    ")


def run_text(run: Run, width: int | None = None) -> str:
    """A run in a few lines: where, how many steps, what was skipped."""
    width = width or WIDTH
    steps = [str(s.step) for s in run.steps if s.step is not None]
    if run.kind == "single":
        said = f"one checkpoint{f', step {steps[0]}' if steps else ''}"
    elif len(steps) > _SHOWN_STEPS:
        first, last = ", ".join(steps[:3]), ", ".join(steps[-2:])
        said = f"{run.kind}, {len(steps)} steps: {first}, … {last}"
    elif steps:
        said = f"{run.kind}, {count(len(steps), 'step')}: {', '.join(steps)}"
    else:
        said = "nothing finished"
    lines = wrap_path(str(run.path), width, "", "    ")
    if len(lines) == 1 and len(lines[0]) + len(said) + 2 <= width:
        lines[0] += f"  {said}"
    else:
        lines += wrap(said, width, "  ", "    ")
    for entry in run.skipped:
        lines += wrap(f"skipped {entry.path.name}: {entry.reason}", width, "  ", "    ")
    return "\n".join(lines)


def runs_text(runs: tuple[Run, ...], width: int | None = None) -> str:
    """All runs below a root, with totals first."""
    found = [run for run in runs if run.steps]
    total = sum(len(run.steps) for run in found)
    head = f"{count(len(found), 'run')}, {count(total, 'checkpoint')}"
    return "\n".join([head, "", *(run_text(run, width) for run in runs)])


def run_json(run: Run) -> dict[str, Any]:
    """A run as plain JSON values."""
    return {
        "path": str(run.path),
        "kind": run.kind,
        "steps": [{"step": s.step, "path": str(s.path)} for s in run.steps],
        "skipped": [_skipped_json(s) for s in run.skipped],
    }


def _skipped_json(entry: Skipped) -> dict[str, str]:
    return {"path": str(entry.path), "reason": entry.reason}
