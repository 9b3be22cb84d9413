"""What opening a path gives: a format, a step, and items of leaves.

These are plain values; :mod:`legacy.opening` makes them, and :mod:`legacy.runs` lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from legacy.leaves import LeafTable

__all__ = ["Checkpoint", "Format", "Run", "Skipped", "StepEntry"]

DEFAULT_ITEM = "default"
"""Orbax's name of the only item of a step; ours for formats that have no items."""


@dataclass(frozen=True, slots=True)
class Format:
    """Which writer made a checkpoint, and how we know.

    Attributes:
        name: ``flax-msgpack``, ``orbax`` or ``orbax-v1``.
        layout: how arrays lie on disk: ``msgpack``, ``msgpack+gda``, ``msgpack+shards``, ``ocdbt``,
            ``zarr``, ``zarr3``, ``aggregate``, or several joined by ``+``.
        era: the releases that write this, in words, as far as it can be told.
        evidence: the facts on disk that say so.
    """

    name: str
    layout: str
    era: str
    evidence: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} ({self.layout}), {self.era}"


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something beside a checkpoint that was not read, with the reason."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class StepEntry:
    """One step of a run: its number (None when it has none) and where it lies."""

    step: int | float | None
    path: Path


@dataclass(frozen=True, slots=True)
class Run:
    """A folder of steps, or a single checkpoint (then ``steps`` has one entry).

    Attributes:
        path: the folder of the steps, or the checkpoint itself.
        kind: ``flax``, ``orbax-manager`` or ``single``.
        steps: sorted by number.
        skipped: temporary, uncommitted and foreign neighbours, by name.
    """

    path: Path
    kind: str
    steps: tuple[StepEntry, ...]
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint, opened and not read.

    Attributes:
        path: the file or step folder that holds it.
        format: see :class:`Format`.
        step: its number; None where neither name nor folder says.
        items: tables by item name; one named ``default`` where the format has no items. JSON
            items (``LeafTable.json_file`` is set) are among them.
        metadata: the custom metadata that Orbax keeps for the step, as parsed JSON.
        skipped: things in the folder that are no part of the checkpoint, with reasons.
    """

    path: Path
    format: Format
    step: int | float | None
    items: Mapping[str, LeafTable]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()

    @property
    def tree_items(self) -> Mapping[str, LeafTable]:
        """The items that are trees of arrays (not JSON)."""
        return {name: t for name, t in self.items.items() if t.json_file is None}

    @property
    def leaves(self) -> LeafTable:
        """The table of the only tree item, or all of them, each under its item's name."""
        trees = self.tree_items
        if len(trees) == 1:
            return next(iter(trees.values()))
        return LeafTable(
            (
                replace(leaf, path=(name, *path))
                for name, table in trees.items()
                for path, leaf in table.items()
            ),
            {(name, *p): node for name, table in trees.items() for p, node in table.nodes.items()},
        )
