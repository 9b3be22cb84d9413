"""Sorts the steps of a plan by how their arrays get across, before anything is written."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bridge import layout as names
from bridge import ocdbt
from bridge._plan import Initialised, Plan, Step
from bridge.apply import JSON_TYPE, slot_dtype
from bridge.errors import BridgeError
from bridge.repack_arrays import chunk_names, moves_unread
from bridge.target import Slot, SlotPath, SlotRef
from legacy import DamagedCheckpoint, Leaf, LeafTable, format_path
from legacy.leaves import StoredArray

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
    """One array that need not be decoded: its store, its key in it, and where it goes."""

    storage: StoredArray
    place: Place
    document: Mapping[str, Any]

    @property
    def root(self) -> Path:
        """The folder of its store."""
        return self.storage.root

    @property
    def key(self) -> str:
        """Its name in the store."""
        return self.storage.key


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
        surveys: the OCDBT databases that moves come from.
    """

    places: dict[str, tuple[Place, ...]]
    empties: dict[str, tuple[names.EmptyEntry, ...]]
    by_slot: dict[SlotRef, Place]
    moves: list[Move] = field(default_factory=list)
    computed: list[Step] = field(default_factory=list)
    initialised: list[Initialised] = field(default_factory=list)
    json: list[tuple[SlotRef, Leaf]] = field(default_factory=list)
    surveys: dict[Path, ocdbt.Survey] = field(default_factory=dict)
    _chosen: dict[str, Path] | None = None
    _opened: dict[Path, Any] = field(default_factory=dict)

    def adopted(self, item: str, *, link: bool) -> tuple[Move, ...]:
        """The moves of an item whose data files are taken over; all from one database."""
        if self._chosen is None:
            self._chosen = self._choose(link=link)
        root = self._chosen.get(item)
        return tuple(
            m for m in self.moves if m.place.item == item and m.storage.ocdbt and m.root == root
        )

    def moved(self) -> Iterator[Move]:
        """The moves that are not adopted, each database and folder in turn."""
        chosen = self._chosen or {}
        for move in sorted(self.moves, key=lambda m: (str(m.root), m.key)):
            if not (move.storage.ocdbt and chosen.get(move.place.item) == move.root):
                yield move

    def chunks(self, move: Move) -> Iterator[tuple[str, bytes]]:
        """The stored bytes of an array: its ``.zarray``, then its chunks, by name."""
        if move.storage.ocdbt:
            if move.root not in self._opened:
                self._opened[move.root] = ocdbt.open_for_reading(move.root)
            database = self._opened[move.root]
            for name in (names.ZARRAY, *sorted(chunk_names(move.document))):
                yield name, database.read(f"{move.key}/{name}").result().value
        else:
            for name in (names.ZARRAY, *sorted(chunk_names(move.document))):
                file = move.root / move.key / name
                if not file.is_file():  # a pipe would wait for a writer
                    raise DamagedCheckpoint(
                        f"{file}: is missing or no regular file. Take another step or a backup.",
                        path=file,
                    )
                yield name, file.read_bytes()

    def _choose(self, *, link: bool) -> dict[str, Path]:
        """For each item the database whose files it takes over."""
        weights: dict[str, Counter[Path]] = defaultdict(Counter)
        wanted: dict[Path, set[str]] = defaultdict(set)
        for move in self.moves:
            if move.storage.ocdbt:
                weights[move.place.item][move.root] += move.place.nbytes
                wanted[move.root].add(move.key)
        worth = {
            root for root, keys in wanted.items() if link or _mostly_used(self.surveys[root], keys)
        }
        best = {
            item: max((n, root) for root, n in counter.items())[1]
            for item, counter in weights.items()
        }
        return {item: root for item, root in best.items() if root in worth}


def _mostly_used(content: ocdbt.Survey, keys: set[str]) -> bool:
    used = sum(value.length for value in content.values(keys))
    held = sum((content.root / file).stat().st_size for file in content.files(keys))
    return 2 * used >= held


def sort_out(plan: Plan, leaves: LeafTable, *, single: bool) -> Jobs:
    """Decide how each slot is filled.

    Args:
        plan: a plan without problems.
        leaves: the leaves of the checkpoint.
        single: put all tree items into one.

    Returns:
        The jobs; nothing has been read but the B-trees of OCDBT databases and ``.zarray`` files.

    Raises:
        BridgeError: a slot is filled twice or not at all, or is one that StandardSave refuses.
    """
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
    jobs = Jobs(places, empties, by_slot, initialised=list(plan.initialised))
    for step in plan.steps:
        _sort_step(step, leaves, jobs)
    return jobs


def _sort_step(step: Step, leaves: LeafTable, jobs: Jobs) -> None:
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
        move = _as_move(leaves[path], jobs.by_slot[ref], jobs) if path in leaves else None
        if move is None:
            jobs.computed.append(replace(step, sources=(path,), slots=(ref,)))
        else:
            jobs.moves.append(move)


def _as_move(leaf: Leaf, place: Place, jobs: Jobs) -> Move | None:
    storage = leaf.storage
    if not isinstance(storage, StoredArray) or storage.driver != "zarr":
        return None
    if storage.metadata_key is not None:
        return None  # its description has another name than the one that would be written
    if leaf.shape != place.slot.shape or leaf.dtype != slot_dtype(place.slot):
        return None  # computing it names the difference
    if storage.ocdbt:
        if storage.root not in jobs.surveys:
            jobs.surveys[storage.root] = ocdbt.survey(storage.root)
        content = jobs.surveys[storage.root]
        document = content.zarrays.get(storage.key)
        stored = [k[len(storage.key) + 1 :] for k in content.arrays.get(storage.key, ())]
    else:
        folder = storage.root / storage.key
        try:
            document = json.loads((folder / names.ZARRAY).read_bytes())
            stored = [p.name for p in folder.iterdir() if p.exists()]
        except (OSError, ValueError):
            return None  # reading it as usual names what is wrong
    if document is None or not moves_unread(document, place.slot, stored):
        return None
    return Move(storage, place, document)


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
