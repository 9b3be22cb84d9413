"""The tree of a checkpoint as text, with repeated blocks drawn once.

Blocks are compared by a number that equal structures share, so that a hundred thousand leaves
cost one walk and not one comparison for each pair of blocks.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bridge._fold import MIN_FOLD
from bridge._leaf_words import describe
from bridge._text import WIDTH, columns, pad, size, wrap_path
from legacy.leaves import Leaf, LeafPath, LeafTable, Node, format_path

__all__ = ["tree_lines"]

_LAST_NUMBER = re.compile(r"(.*?)(0|[1-9]\d{0,8})(\D*)")
_MOST_RANGES = 3
"""Blocks of one structure with more gaps than this between them get a row for each range."""

Row = tuple[str, str, str]


def tree_lines(leaves: LeafTable, width: int = WIDTH) -> list[str]:
    r"""The tree of a table; blocks that are equal but for a running index are drawn once.

    Args:
        leaves: the table.
        width: of the terminal; the tree takes no more of it than it needs.

    Returns:
        Lines of text: names, kind with dtype and shape, size. Of a row that stands for several
        blocks the size is that of all of them, and the rows below it are those of one.

    >>> import numpy as np
    >>> f4 = np.dtype("float32")
    >>> leaves = [Leaf((f"block_{n}", "w"), "array", (2,), f4, 8) for n in range(3)]
    >>> print("\n".join(tree_lines(LeafTable(leaves), 60)))
    tree                                   24 B
      block_0 … block_2/ ×3  each 8 B      24 B
        w                    float32 (2,)   8 B
    """
    if not leaves:
        return ["tree: empty, there are no leaves"]
    root = _grow(leaves)
    _number(root, leaves.nodes, (), {})
    rows = [("tree", "", size(root.nbytes)), *_rows(root, leaves.nodes, (), "  ")]
    sizes = max(columns(total) for *_, total in rows)
    kinds = max(columns(kind) for _, kind, _ in rows)
    most = width - sizes - 2
    kinds = min(kinds, most // 2)
    room = min(most, max(columns(name) for name, *_ in rows) + 2 + kinds)
    lines = []
    for name, kind, total in rows:
        left = f"{pad(name, room - kinds - 2)}  {kind}" if kind else name
        if kind and columns(left) > room:
            lines += wrap_path(name, width, "", f"{_indent(name)}    ")
            left = pad(kind, room, right=True)
        elif columns(left) > room:
            *above, left = wrap_path(name, room, "", f"{_indent(name)}    ")
            lines += above
        lines.append(f"{pad(left, room)}  {pad(total, sizes, right=True)}")
    return lines


def _indent(text: str) -> str:
    return " " * (len(text) - len(text.lstrip(" ")))


@dataclass(slots=True)
class _Branch:
    """An inner node while the tree is drawn.

    Attributes:
        children: by name.
        nbytes: of all leaves below.
        kinds: for each child the number of its structure, which equal structures share.
    """

    children: dict[str, _Branch | Leaf] = field(default_factory=dict)
    nbytes: int = 0
    kinds: dict[str, int] = field(default_factory=dict)


def _grow(leaves: LeafTable) -> _Branch:
    root = node = _Branch()
    parent: LeafPath = ()
    for path, leaf in leaves.items():
        if path[:-1] != parent:  # leaves of one parent come one after the other
            node, parent = root, path[:-1]
            for part in parent:
                below = node.children.get(part)
                if below is None:
                    below = node.children[part] = _Branch()
                assert isinstance(below, _Branch)  # noqa: S101 - LeafTable: none below a leaf
                node = below
        node.children[path[-1] if path else "(the value itself)"] = leaf
    return root


def _number(
    node: _Branch, nodes: Mapping[LeafPath, Node], path: LeafPath, known: dict[Hashable, int]
) -> int:
    """Sum up sizes and number structures, from the leaves up."""
    for name, child in node.children.items():
        if isinstance(child, Leaf):
            structure: Hashable = (describe(child), child.kind, child.nbytes)
            node.kinds[name] = known.setdefault(structure, len(known))
        else:
            node.kinds[name] = _number(child, nodes, (*path, name), known)
        node.nbytes += child.nbytes
    return known.setdefault((nodes.get(path), *node.kinds.items()), len(known))


def _rows(
    node: _Branch, nodes: Mapping[LeafPath, Node], path: LeafPath, indent: str
) -> Iterator[Row]:
    for ranges in _repeated(node):
        first = ranges[0][0]
        child = node.children[first]
        times = sum(map(len, ranges))
        name = f"{indent}{', '.join(map(_range_text, ranges))}"
        total = size(child.nbytes * times)
        many = f" ×{times}" if times > 1 else ""
        if isinstance(child, Leaf):
            yield f"{name}{many}", describe(child), total
            continue
        below = (*path, first)
        made = nodes.get(below)
        kind = "" if made is None else f" {made.container}{f' {made.name}' if made.name else ''}"
        yield f"{name}/{many}{kind}", f"each {size(child.nbytes)}" if many else "", total
        yield from _rows(child, nodes, below, f"{indent}  ")


def _range_text(names: Sequence[str]) -> str:
    if len(names) < MIN_FOLD:
        return ", ".join(format_path((name,)) for name in names)
    return f"{format_path((names[0],))} … {format_path((names[-1],))}"


def _repeated(node: _Branch) -> Iterator[list[list[str]]]:
    """Children in order, each as ranges of names that are equal but for their number."""
    groups: dict[Hashable, list[tuple[int, str]]] = {}
    for name, kind in node.kinds.items():
        found = _LAST_NUMBER.fullmatch(name)
        key = name if found is None else (found[1], found[3], kind)
        groups.setdefault(key, []).append((0 if found is None else int(found[2]), name))
    order = {name: n for n, name in enumerate(node.children)}
    rows = [row for group in groups.values() for row in _split(node, group)]
    yield from sorted(rows, key=lambda row: order[row[0][0]])


def _split(node: _Branch, group: list[tuple[int, str]]) -> Iterator[list[list[str]]]:
    """One row for all of a group where it can be said in a few ranges, else one for each range."""
    ranges: list[list[tuple[int, str]]] = []
    for number, name in group:
        if ranges and ranges[-1][-1][0] + 1 == number:
            ranges[-1].append((number, name))
        else:
            ranges.append([(number, name)])
    named = [[name for _, name in one] for one in ranges]
    if len(group) < MIN_FOLD or len(ranges) > _MOST_RANGES:
        for one in named:
            # two equal blocks of many lines are worth folding, two equal leaves are not
            least = MIN_FOLD if isinstance(node.children[one[0]], Leaf) else 2
            yield from [[one]] if len(one) >= least else ([[name]] for name in one)
    else:
        yield named
