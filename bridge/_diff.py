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
from legacy.leaves import ARRAY_KINDS, Leaf, LeafPath, LeafTable, natural_key

__all__ = ["Diff", "LeafDifference", "diff"]

What: TypeAlias = Literal["shape", "dtype", "kind", "value"]

_ORDER: Mapping[str, int] = {"shape": 0, "dtype": 1, "kind": 2, "value": 3}
_NUMBERS = frozenset({"array", "scalar", "number", "bool", "key"})


@dataclass(frozen=True, slots=True)
class LeafDifference:
    """One leaf that both checkpoints have and that is not the same.

    Attributes:
        item: the JSON item it is in; empty for leaves of the tree.
        path: its path.
        what: everything that differs: ``shape``, ``dtype``, ``kind``, ``value``.
        a: the leaf in the first checkpoint, in words.
        b: the leaf in the second.
        measure: how far the values are apart, for numbers of one shape.
    """

    item: str
    path: LeafPath
    what: tuple[What, ...]
    a: str
    b: str
    measure: Measure | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "item": self.item,
            "path": list(self.path),
            "what": list(self.what),
            "a": self.a,
            "b": self.b,
            "measure": None if self.measure is None else dict(self.measure.to_json()),
        }


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
    """

    a: str
    b: str
    only_a: tuple[tuple[str, LeafPath], ...] = ()
    only_b: tuple[tuple[str, LeafPath], ...] = ()
    changed: tuple[LeafDifference, ...] = ()
    equal: int = 0
    values: bool = True
    seconds: float = field(default=0.0, compare=False)

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
            "changed": [c.to_json() for c in self.changed],
            "seconds": round(self.seconds, 3),
        }

    def __str__(self) -> str:
        from bridge.report import diff_text  # noqa: PLC0415 - the report needs Diff

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
        values: also compare values, bit for bit; NaNs of one bit pattern are equal. Without it
            no array is read.
        step_a: the step of ``a``.
        step_b: the step of ``b``.

    Returns:
        The differences; ``.same`` when there are none.

    Raises:
        LegacyError: one of the two cannot be opened or read.

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
    changed = []
    common = [name for name in left if name in right]
    for name in common:
        found = _compare(*name, left[name], right[name], values=values)
        if found is not None:
            changed.append(found)
    return Diff(
        a=_in_words(first),
        b=_in_words(second),
        only_a=tuple(name for name in left if name not in right),
        only_b=tuple(name for name in right if name not in left),
        changed=tuple(sorted(changed, key=_importance)),
        equal=len(common) - len(changed),
        values=values,
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
    if a.dtype != b.dtype and a.dtype is not None and b.dtype is not None:
        what.append("dtype")
    if (a.kind, a.container, a.key_impl) != (b.kind, b.container, b.key_impl):
        what.append("kind")
    apart = None
    words = describe(a), describe(b)
    if values and a.kind in _NUMBERS and b.kind in _NUMBERS and a.shape == b.shape:
        apart = _measure(a, b)
        if apart.differing:
            what.append("value")
            if not a.shape:
                words = _with_value(a), _with_value(b)
    elif values and a.shape == b.shape and not same_value(a.read(), b.read()):
        what.append("value")
        words = _with_value(a), _with_value(b)
    return LeafDifference(item, path, tuple(what), *words, apart) if what else None


def _measure(a: Leaf, b: Leaf) -> Measure:
    if a.kind not in ARRAY_KINDS or b.kind not in ARRAY_KINDS:
        return measure(np.asarray(a.read()), np.asarray(b.read()))
    apart = Measure()
    for block in blocks(a, b):
        apart |= measure(np.asarray(a.read(block)), np.asarray(b.read(block)))
    return apart


def describe(leaf: Leaf) -> str:
    """Kind, dtype and shape of a leaf in words.

    >>> describe(Leaf(("a",), "array", (2, 3), np.dtype("float32"), 24))
    'float32 (2, 3)'
    >>> describe(Leaf(("a",), "empty", container="tuple"))
    'empty tuple'
    """
    if leaf.kind == "array":
        return f"{leaf.dtype} {leaf.shape}"
    if leaf.kind == "key":
        return f"{leaf.key_impl or 'PRNG'} key {leaf.shape}"
    if leaf.kind == "empty":
        return f"empty {leaf.container or 'container'}"
    return f"{leaf.dtype} scalar" if leaf.kind == "scalar" else leaf.kind


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
