"""Compares two checkpoints of any format, leaf by leaf.

Nothing is converted: the question is what differs between two files, whoever wrote them. Paths
must be equal for two leaves to be compared; a renamed leaf shows up once on each side.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

import legacy
from bridge._bits import Measure, blocks, measure, same_value, show_value
from bridge._leaf_words import describe
from bridge._renames import pairs, subtrees
from legacy.errors import LegacyError
from legacy.leaves import ARRAY_KINDS, Leaf, LeafPath, LeafTable, natural_key

__all__ = ["Diff", "LeafDifference", "Rename", "diff"]

What: TypeAlias = Literal["unreadable", "shape", "dtype", "kind", "value"]
Name: TypeAlias = tuple[str, LeafPath]
"""A JSON item, or an empty text for the tree, and a path in it."""

_ORDER: Mapping[str, int] = {"unreadable": 0, "shape": 1, "dtype": 2, "kind": 3, "value": 4}
_NUMBERS = frozenset({"array", "scalar", "number", "bool", "key"})


@dataclass(frozen=True, slots=True)
class LeafDifference:
    """One leaf that both checkpoints have and that is not the same.

    Attributes:
        item: the JSON item it is in; empty for leaves of the tree.
        path: its path.
        what: everything that differs: ``shape``, ``dtype``, ``kind``, ``value``; or
            ``unreadable``, when one of the two cannot be read: such leaves are never the same.
        a: the leaf in the first checkpoint, in words.
        b: the leaf in the second.
        measure: how far the values are apart, for numbers of one shape.
        problems: why the leaf of the first and of the second cannot be read; None where it can.
    """

    item: str
    path: LeafPath
    what: tuple[What, ...]
    a: str
    b: str
    measure: Measure | None = None
    problems: tuple[str | None, str | None] = (None, None)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "item": self.item,
            "path": list(self.path),
            "what": list(self.what),
            "a": self.a,
            "b": self.b,
            "measure": None if self.measure is None else dict(self.measure.to_json()),
            "problems": list(self.problems),
        }


@dataclass(frozen=True, slots=True)
class Rename:
    """A leaf of the first checkpoint that may be one of the second under another path.

    Attributes:
        item: the JSON item both are in; empty for leaves of the tree.
        a: the path in the first checkpoint.
        b: the path in the second.
        same: whether the values are the same; None when they were not compared.
    """

    item: str
    a: LeafPath
    b: LeafPath
    same: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"item": self.item, "a": list(self.a), "b": list(self.b), "same": self.same}


@dataclass(frozen=True, slots=True)
class Diff:
    """Everything in which two checkpoints differ.

    Attributes:
        a: the first checkpoint, in words.
        b: the second.
        only_a: leaves that only the first has, by (JSON item or empty, path).
        only_b: leaves that only the second has.
        changed: leaves that differ: structure first, then the largest differences of values.
        equal: leaves that are the same in kind, shape, dtype and, if compared, bits.
        values: whether values were compared.
        seconds: how long it took.
        renamed: guesses at which leaves of ``only_a`` are which of ``only_b``.
        subtrees_a: for leaves of ``only_a`` the largest subtree around each that the second
            checkpoint has not at all.
        subtrees_b: likewise for ``only_b``.
    """

    a: str
    b: str
    only_a: tuple[Name, ...] = ()
    only_b: tuple[Name, ...] = ()
    changed: tuple[LeafDifference, ...] = ()
    equal: int = 0
    values: bool = True
    seconds: float = field(default=0.0, compare=False)
    renamed: tuple[Rename, ...] = ()
    subtrees_a: Mapping[Name, LeafPath] = field(default_factory=dict, repr=False, compare=False)
    subtrees_b: Mapping[Name, LeafPath] = field(default_factory=dict, repr=False, compare=False)

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not (self.only_a or self.only_b or self.changed)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "same": self.same,
            "a": self.a,
            "b": self.b,
            "values_compared": self.values,
            "equal": self.equal,
            "only_a": [{"item": item, "path": list(path)} for item, path in self.only_a],
            "only_b": [{"item": item, "path": list(path)} for item, path in self.only_b],
            "renamed": [r.to_json() for r in self.renamed],
            "changed": [c.to_json() for c in self.changed],
            "seconds": round(self.seconds, 3),
        }

    def __str__(self) -> str:
        from bridge.report_diff import diff_text  # noqa: PLC0415 - the report needs Diff

        return diff_text(self)


def diff(
    a: str | os.PathLike[str] | legacy.Checkpoint,
    b: str | os.PathLike[str] | legacy.Checkpoint,
    *,
    values: bool = True,
    step_a: float | None = None,
    step_b: float | None = None,
) -> Diff:
    r"""Compare two checkpoints, each of any format.

    Args:
        a: a checkpoint or a run (then its last step).
        b: the other.
        values: also compare values, bit for bit: NaNs of one bit pattern are equal, ``0.0`` and
            ``-0.0`` are not. Without it no array is read.
        step_a: the step of ``a``.
        step_b: the step of ``b``.

    Returns:
        The differences; ``.same`` when there are none.

    Raises:
        LegacyError: one of the two cannot be opened. A leaf that cannot be read is a difference.

    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "old").write_bytes(b"\x81\xa1a\x01")
    ...     _ = Path(folder, "new").write_bytes(b"\x81\xa1a\x02")
    ...     found = diff(Path(folder, "old"), Path(folder, "new"))
    >>> found.same, found.changed[0].a, found.changed[0].b
    (False, 'number 1', 'number 2')
    """
    started = time.perf_counter()
    first, second = _opened(a, step_a), _opened(b, step_b)
    left, right = dict(_named(first)), dict(_named(second))
    common = [name for name in left if name in right]
    found = [_compare(*name, left[name], right[name], values=values) for name in common]
    changed = [change for change in found if change is not None]
    only_a = {name: left[name] for name in left if name not in right}
    only_b = {name: right[name] for name in right if name not in left}
    return Diff(
        a=_in_words(first),
        b=_in_words(second),
        only_a=tuple(only_a),
        only_b=tuple(only_b),
        changed=tuple(sorted(changed, key=_importance)),
        equal=len(common) - len(changed),
        values=values,
        renamed=tuple(
            Rename(x[0], x[1], y[1], _same(left[x], right[y]) if values else None)
            for x, y in pairs(only_a, only_b)
        ),
        subtrees_a=subtrees(only_a, right),
        subtrees_b=subtrees(only_b, left),
        seconds=time.perf_counter() - started,
    )


def _opened(
    source: str | os.PathLike[str] | legacy.Checkpoint, step: float | None
) -> legacy.Checkpoint:
    return source if isinstance(source, legacy.Checkpoint) else legacy.open(source, step=step)


def _in_words(checkpoint: legacy.Checkpoint) -> str:
    step = "" if checkpoint.step is None else f", step {checkpoint.step}"
    return f"{checkpoint.path} ({checkpoint.format.name}, {checkpoint.format.layout}{step})"


def _named(checkpoint: legacy.Checkpoint) -> Iterator[tuple[tuple[str, LeafPath], Leaf]]:
    tables: dict[str, LeafTable] = {"": checkpoint.leaves}
    tables |= {n: t for n, t in checkpoint.items.items() if t.json_file is not None}
    for item, table in tables.items():
        for path, leaf in table.items():
            yield (item, path), leaf


def _compare(item: str, path: LeafPath, a: Leaf, b: Leaf, *, values: bool) -> LeafDifference | None:
    what: list[What] = []
    if a.shape != b.shape:
        what.append("shape")
    if a.dtype is not None and b.dtype is not None and a.dtype != b.dtype:
        what.append("dtype")
    if (a.kind, a.container, a.key_impl) != (b.kind, b.container, b.key_impl):
        what.append("kind")
    problems = _problem(a), _problem(b)
    apart, words = None, None
    if values and a.shape == b.shape and problems == (None, None):
        try:
            apart = _apart(a, b)
            words = None if apart is None or a.shape else (_with_value(a), _with_value(b))
        except LegacyError:  # one of the two, or both: ask each alone
            problems = _reading(a), _reading(b)
    if problems != (None, None):
        what, apart, words = ["unreadable"], None, None
    elif apart is not None and apart.differing:
        what.append("value")
    if not what:
        return None
    if words is None or "value" not in what:
        words = describe(a), describe(b)
    return LeafDifference(item, path, tuple(what), *words, _numeric(a, b, apart), problems)


def _problem(leaf: Leaf) -> str | None:
    return (leaf.problem or "no reason is given") if leaf.kind == "unreadable" else None


def _reading(leaf: Leaf) -> str | None:
    try:
        for block in blocks(leaf) if leaf.kind in ARRAY_KINDS else [None]:
            leaf.read(block)
    except LegacyError as error:
        return str(error)
    return None


def _apart(a: Leaf, b: Leaf) -> Measure | None:
    """How far two values of one shape are apart; None when they are the same."""
    if a.kind in _NUMBERS and b.kind in _NUMBERS:
        found = _measure(a, b)
        return found if found.differing else None
    return None if same_value(a.read(), b.read()) else Measure(1, 1)


def _numeric(a: Leaf, b: Leaf, apart: Measure | None) -> Measure | None:
    return apart if a.kind in _NUMBERS and b.kind in _NUMBERS else None


def _same(a: Leaf, b: Leaf) -> bool | None:
    try:
        return _apart(a, b) is None
    except LegacyError:
        return None


def _measure(a: Leaf, b: Leaf) -> Measure:
    if a.kind not in ARRAY_KINDS or b.kind not in ARRAY_KINDS:
        return measure(np.asarray(a.read()), np.asarray(b.read()))
    apart = Measure()
    for block in blocks(a, b):
        apart |= measure(np.asarray(a.read(block)), np.asarray(b.read(block)))
    return apart


def _with_value(leaf: Leaf) -> str:
    return leaf.kind if leaf.kind in ("none", "empty") else f"{describe(leaf)} {_shown(leaf)}"


def _shown(leaf: Leaf) -> str:
    value = leaf.read()
    return show_value(value if leaf.kind != "array" else np.asarray(value)[()])


def _importance(change: LeafDifference) -> tuple[Any, ...]:
    largest = change.measure.max_abs if change.measure is not None else math.inf
    if change.measure is not None and change.measure.nonfinite:
        largest = math.inf
    return (min(_ORDER[w] for w in change.what), -largest, change.item, natural_key(change.path))
