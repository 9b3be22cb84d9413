"""Sorts the steps of a plan by how their arrays get across, before anything is written."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bridge import layout as names
from bridge import ocdbt
from bridge._per_plan import per_plan
from bridge._plan import Initialised, Plan, Step
from bridge.apply import JSON_TYPE, slot_dtype
from bridge.errors import BridgeError
from bridge.repack_arrays import CHUNK, chunks_unread
from bridge.repack_copy import Stored
from bridge.repack_regions import described
from bridge.stored_values import StoredValues
from bridge.target import Slot, SlotPath, SlotRef
from legacy import Leaf, LeafTable, format_path
from legacy.leaves import FileRegion, StoredArray

__all__ = ["Jobs", "Move", "Place", "sort_out"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where one slot lies in the output."""

    slot: Slot
    item: str
    disk_path: SlotPath

    @property
    def name(self) -> str:
        """The name of its array in the item."""
        return names.param_name(self.disk_path)

    @property
    def sequence_at(self) -> tuple[int, ...]:
        """Positions in its path that are indices of a tuple or list."""
        shift = len(self.disk_path) - len(self.slot.disk_path)
        return tuple(n + shift for n in self.slot.sequence_at)

    @property
    def nbytes(self) -> int:
        """Bytes of its value."""
        return math.prod(self.slot.shape) * slot_dtype(self.slot).itemsize


@dataclass(frozen=True, slots=True)
class Move:
    """One array that need not be decoded.

    Attributes:
        place: where it goes.
        values: its ``.zarray`` and its chunks, by name: bytes, or where they are stored.
        made: whether the bytes are a value that was computed here.
    """

    place: Place
    values: Mapping[str, bytes | Stored]
    made: bool = False

    @property
    def document(self) -> Mapping[str, Any]:
        """The parsed ``.zarray``, whose text is always at hand."""
        text = self.values[names.ZARRAY]
        assert isinstance(text, bytes)  # noqa: S101 - moves are only made where it is
        return ocdbt.parsed(text)


@dataclass(slots=True)
class Jobs:
    """What has to be done for each item.

    Attributes:
        places: the arrays of each item.
        empties: the entries without arrays of each item.
        by_slot: the place of each slot of arrays.
        moves: arrays that need not be decoded.
        computed: the other steps.
        initialised: slots that no source feeds.
        json: slots of JSON items with their leaves.
        stored: finds stored bytes.
    """

    places: Mapping[str, tuple[Place, ...]]
    empties: Mapping[str, tuple[names.EmptyEntry, ...]]
    by_slot: Mapping[SlotRef, Place]
    moves: list[Move] = field(default_factory=list)
    computed: list[Step] = field(default_factory=list)
    initialised: list[Initialised] = field(default_factory=list)
    json: list[tuple[SlotRef, Leaf]] = field(default_factory=list)
    stored: StoredValues = field(default_factory=StoredValues)

    def wanted(self) -> Counter[Path]:
        """How many bytes of each file of the source are taken over."""
        total: Counter[Path] = Counter()
        for move in self.moves:
            for value in move.values.values():
                if isinstance(value, Stored):
                    total[value.file] += value.length
        return total


def sort_out(plan: Plan, leaves: LeafTable, *, single: bool, raw: bool = True) -> Jobs:
    """Decide how each slot is filled.

    Args:
        plan: a plan without problems.
        leaves: the leaves of the checkpoint.
        single: put all tree items into one.
        raw: leave uncompressed bytes of a msgpack file as they are.

    Returns:
        The jobs; nothing has been read but the B-trees of OCDBT databases and ``.zarray`` files.

    Raises:
        BridgeError: a slot is filled twice or not at all, or is one that StandardSave refuses.
    """
    laid_out = _layout(plan, single)
    jobs = Jobs(
        laid_out.places, laid_out.empties, laid_out.by_slot, initialised=list(plan.initialised)
    )
    for step in plan.steps:
        _sort_step(step, leaves, jobs, raw=raw)
    return jobs


@dataclass(frozen=True, slots=True)
class _Layout:
    places: Mapping[str, tuple[Place, ...]]
    empties: Mapping[str, tuple[names.EmptyEntry, ...]]
    by_slot: Mapping[SlotRef, Place]


@per_plan
def _layout(plan: Plan, single: bool) -> _Layout:
    """Where everything goes."""
    arrays = [slot for slot in plan.target.slots if slot.variable_type != JSON_TYPE]
    _check_filled(plan)
    _check_savable(arrays)
    by_slot = {slot.ref: _place(slot, single=single) for slot in arrays}
    items = dict.fromkeys([p.item for p in by_slot.values()])
    places = {item: tuple(p for p in by_slot.values() if p.item == item) for item in items}
    empties: dict[str, tuple[names.EmptyEntry, ...]] = {}
    for empty in plan.target.empties:
        item, path = _within(empty.item, empty.disk_path, single=single)
        shift = len(path) - len(empty.disk_path)
        at = tuple(n + shift for n in empty.sequence_at)
        entry = names.EmptyEntry(path, empty.value_type, at)
        empties[item] = (*empties.get(item, ()), entry)
        places.setdefault(item, ())
    return _Layout(places, empties, by_slot)


def _sort_step(step: Step, leaves: LeafTable, jobs: Jobs, *, raw: bool) -> None:
    plain = not step.transforms and len(step.sources) == len(step.slots)
    in_json = [ref not in jobs.by_slot for ref in step.slots]
    if any(in_json):
        if not (plain and all(in_json)):
            raise BridgeError(
                f"{' + '.join(map(format_path, step.sources))} goes to a JSON item, where only "
                "plain copies are possible."
            )
        jobs.json += [(r, leaves[p]) for p, r in zip(step.sources, step.slots, strict=True)]
        return
    if not plain:
        jobs.computed.append(step)
        return
    for path, ref in zip(step.sources, step.slots, strict=True):
        move = _as_move(leaves.get(path), jobs.by_slot[ref], jobs, raw=raw)
        if move is None:
            jobs.computed.append(replace(step, sources=(path,), slots=(ref,)))
        else:
            jobs.moves.append(move)


def _as_move(leaf: Leaf | None, place: Place, jobs: Jobs, *, raw: bool) -> Move | None:
    """How a leaf can be taken over as it is stored; None when it has to be decoded."""
    if leaf is None or leaf.shape != place.slot.shape or leaf.dtype != slot_dtype(place.slot):
        return None  # computing it names the difference
    found: Mapping[str, bytes | Stored] | None = None
    if isinstance(leaf.storage, FileRegion):
        found = described(leaf.storage, leaf.shape, leaf.dtype, CHUNK) if raw else None
    elif isinstance(leaf.storage, StoredArray):
        found = _chunks(leaf.storage, place.slot, jobs)
    return None if found is None else Move(place, found)


def _chunks(storage: StoredArray, slot: Slot, jobs: Jobs) -> Mapping[str, bytes | Stored] | None:
    """The ``.zarray`` and all chunks of an array, when they are what the slot takes."""
    values = jobs.stored.of(storage)
    text = values.get(names.ZARRAY)
    if not isinstance(text, bytes):
        return None  # reading it as usual names what is wrong
    wanted = _taken_over(text, slot.shape, slot.dtype)
    if wanted is None or not wanted <= values.keys():
        return None  # chunks that are not stored count as the fill value
    return {name: values[name] for name in (names.ZARRAY, *sorted(wanted))}


@functools.lru_cache(maxsize=256)  # an array may have a million chunks
def _taken_over(text: bytes, shape: tuple[int, ...], dtype: str) -> frozenset[str] | None:
    """The names of the chunks that are those of a slot byte for byte; None when they are not."""
    try:
        document = ocdbt.parsed(text)
    except ValueError:
        return None
    return chunks_unread(document, shape, dtype)


def _within(item: str, path: SlotPath, *, single: bool) -> tuple[str, SlotPath]:
    return (names.DEFAULT_ITEM, (item, *path)) if single else (item, path)


def _place(slot: Slot, *, single: bool) -> Place:
    return Place(slot, *_within(slot.item, slot.disk_path, single=single))


def _check_filled(plan: Plan) -> None:
    filled = Counter(ref for step in plan.steps for ref in step.slots)
    filled.update(init.slot for init in plan.initialised)
    wanted = {slot.ref for slot in plan.target.slots}
    problems = [f"{ref} is filled {n} times" for ref, n in filled.items() if n > 1]
    problems += [f"{ref} is filled by nothing" for ref in sorted(wanted - filled.keys())]
    problems += [f"{ref} is no slot of the target" for ref in sorted(filled.keys() - wanted)]
    if problems:
        raise BridgeError(
            "the plan cannot be carried out:\n  " + "\n  ".join(problems) + "\nMake it again.",
            problems=problems,
        )


def _check_savable(arrays: list[Slot]) -> None:
    problems = [
        f"{slot.ref}: shape {slot.shape} has no elements, which StandardSave refuses"
        for slot in arrays
        if 0 in slot.shape
    ]
    problems += [
        f"{slot.ref}: the key {part!r} leaves the item's folder"
        for slot in arrays
        for part in slot.disk_path
        if part in ("", ".", "..") or part.startswith("/") or "\0" in part
    ]
    problems += [
        f"item name {item!r} is not one folder name"
        for item in dict.fromkeys(slot.item for slot in arrays)
        if item in ("", ".", "..") or "/" in item or "\0" in item
    ]
    if problems:
        raise BridgeError(
            "the target cannot be saved by Orbax:\n  "
            + "\n  ".join(problems)
            + "\nIgnore or rename them with rules.",
            problems=problems,
        )
