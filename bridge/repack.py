"""File to file: one step of an old checkpoint becomes one step folder of the new layout.

An array that only changes its name is not decoded: its stored bytes are *linked*, *cloned* or
*copied* (:mod:`bridge.repack_carry`), wherever they lie (a data file of OCDBT, a chunk file of
zarr, the middle of a msgpack file), and an index is written over them
(:mod:`bridge.ocdbt_tree`). Everything else (zarr3, arrays that a transform makes or a rule fills,
msgpack arrays that are in chunks or not little-endian) is *encoded*: written into the same
database with TensorStore, in transactions of bounded size.

Chunks, compressor and byte order of what is not decoded stay as they were saved. Values that are
not read are not checked here either: that is the business of ``bridge.verify``.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from bridge import layout as names
from bridge import ocdbt, output
from bridge._memory import frugal
from bridge._per_plan import slots_of
from bridge._plan import Plan
from bridge.apply import initial_value, step_values
from bridge.errors import BridgeError, WriteFailed
from bridge.ocdbt_tree import write_database
from bridge.repack_arrays import (
    CHUNK,
    LARGE,
    ArrayWriter,
    parse_compression,
    stored_chunks,
)
from bridge.repack_carry import Carrier, Way
from bridge.repack_copy import INLINE, Stored
from bridge.repack_jobs import Jobs, Move, Place, sort_out
from bridge.repack_json import JsonItems, json_items
from bridge.repack_regions import choose_rows, held
from legacy import Checkpoint

__all__ = ["Layout", "Progress", "Written", "repack", "stamp"]

Layout: TypeAlias = Literal["composite", "single"]

_SMALL = 64 << 10

_FEW = 1000
"""Arrays of an item up to which its documents are kept for the next step."""

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the bytes of arrays that are done, and of all."""


@dataclass(frozen=True, slots=True)
class Written:
    """What :func:`repack` wrote.

    Attributes:
        folder: the step folder.
        items: names of its items.
        nbytes: bytes of its arrays when read.
        ways: how many arrays were ``linked``, ``cloned``, ``copied`` (all three as they were
            stored) and ``encoded`` (written from values).
    """

    folder: Path
    items: tuple[str, ...]
    nbytes: int
    ways: Mapping[str, int]


@dataclass(slots=True)
class _Tally:
    total: int
    report: Progress | None
    done: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, way: str) -> None:
        """One array got across in this way."""
        self.counts[way] = self.counts.get(way, 0) + 1

    def told(self, nbytes: int) -> None:
        """The bytes of an array are there."""
        self.done += nbytes
        if self.report is not None:
            self.report(self.done, self.total)


def repack(
    plan: Plan,
    checkpoint: Checkpoint,
    folder: Path,
    *,
    layout: Layout = "composite",
    link: bool = False,
    compression: str = "keep",
    sync: bool = True,
    writeback: bool = False,
    custom_metadata: Mapping[str, Any] | None = None,
    final: Path | None = None,
    on_progress: Progress | None = None,
) -> Written:
    """Write one step folder by a plan.

    Args:
        plan: without problems, made for the structure of this checkpoint.
        checkpoint: the source, which is only read.
        folder: a temporary folder that is empty or not there; its owner removes it after an error.
        layout: ``composite`` for one item each, ``single`` for one tree item ``default``.
        link: hard-link data files instead of copying them. The source's files must then never be
            changed in place (deleting them is harmless).
        compression: see :func:`bridge.convert`.
        sync: force the files to the disk before returning.
        writeback: begin to do so, because the caller will.
        custom_metadata: plain JSON values for Orbax's ``custom_metadata``.
        final: where the folder will be in the end, for ``commit_success.txt``.
        on_progress: called while arrays are written; what it raises ends the work.

    Returns:
        What was written.

    Raises:
        BridgeError: the plan does not fit, or holds what StandardSave cannot.
        WriteFailed: the disk is full, or the folder cannot be written.
        LegacyError: the source is damaged.
    """
    plan.require_ok()
    if layout not in ("composite", "single"):
        raise BridgeError(f"layout {layout!r}: expected composite or single.")
    begun = time.time_ns()
    raw, level = parse_compression(compression)
    jobs = sort_out(plan, checkpoint.leaves, single=layout == "single", raw=raw)
    custom = dict(custom_metadata or {})
    json = json_items(jobs.json, checkpoint, tuple(jobs.places), single=layout == "single")
    if json.inline is not None:
        if names.METADATA_ITEM in custom:
            raise BridgeError("custom_metadata has a key 'metadata' of its own; rename it.")
        custom[names.METADATA_ITEM] = json.inline
    folder.mkdir(parents=True, exist_ok=True)
    tally = _Tally(sum(p.nbytes for places in jobs.places.values() for p in places), on_progress)
    for item in jobs.places:
        (folder / item).mkdir()
    if raw:
        _make_small(jobs, checkpoint, plan)
    zarrays = _carry(jobs, folder, tally, Carrier(link, jobs.wanted(), sync or writeback))
    with frugal(), ExitStack() as stack:
        writers = _Writers(stack, folder, level)
        for place, value in _computed(jobs, checkpoint, plan, writers):
            chunks = choose_rows(value.shape, value.dtype.itemsize, CHUNK, even=False)
            writers.of(place.item).write(place.name, value, chunks)
            del value  # or it is there until the next one is
            tally.count("encoded")
            tally.told(place.nbytes)
    for item, places in jobs.places.items():
        found = ocdbt.survey(folder / item).zarrays if writers.wrote(item) else zarrays[item]
        _write_documents(folder / item, places, jobs, found)
    _write_json(folder, json)
    for item in (*jobs.places, *json.files):
        text = names.commit_text((final or folder) / item)
        output.write_file(folder / item / names.COMMIT_SUCCESS, text)
    items = dict.fromkeys(jobs.places, False) | dict.fromkeys(json.files, True)
    document = names.checkpoint_metadata(items, custom, (begun, time.time_ns()))
    output.write_file(folder / names.CHECKPOINT_METADATA, document)
    output.write_file(folder / names.COMMIT_SUCCESS, names.commit_text(final or folder))
    if sync:
        output.sync_tree(folder)
    return Written(
        folder,
        tuple(items),
        tally.total,
        {way: tally.counts.get(way, 0) for way in (*get_args(Way), "encoded")},
    )


def stamp(folder: Path, custom_metadata: Mapping[str, Any]) -> None:
    """Add to the custom metadata of a step folder, which is still a temporary one.

    Args:
        folder: what :func:`repack` wrote.
        custom_metadata: keys to add; they replace keys of the same name.
    """
    path = folder / names.CHECKPOINT_METADATA
    output.write_file(path, names.with_custom_metadata(path.read_text(), custom_metadata))


def _make_small(jobs: Jobs, checkpoint: Checkpoint, plan: Plan) -> None:
    """Compute what fits into the index itself (a step, a count), so that no writer is needed."""
    leaves = checkpoint.leaves
    slots = slots_of(plan)
    left = []
    for step in jobs.computed:
        places = [jobs.by_slot[ref] for ref in step.slots]
        read = sum(leaves[p].nbytes for p in step.sources if p in leaves)
        made: list[Move | None] = [None]
        if read <= _SMALL and all(p.nbytes <= INLINE for p in places):
            values = step_values(step, leaves, slots)
            made = [_made(p, v) for p, v in zip(places, values, strict=True)]
        kept = [move for move in made if move is not None]
        if len(kept) < len(made):
            left.append(step)
        else:
            jobs.moves += kept
    jobs.computed = left


def _made(place: Place, value: np.ndarray[Any, Any]) -> Move | None:
    values = held(value)
    return None if values is None else Move(place, values, made=True)


def _carry(
    jobs: Jobs, folder: Path, tally: _Tally, carrier: Carrier
) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Take over what need not be decoded, and write the index of each item's database.

    Returns:
        For each item the parsed ``.zarray`` of its arrays.
    """
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for item in jobs.places:
        moves = [m for m in jobs.moves if m.place.item == item]
        found[item] = {m.place.name: m.document for m in moves}
        values: dict[str, bytes | Stored] = {}
        left: dict[str, _Waiting] = {}
        for move in moves:
            name = move.place.name
            ours = {f"{name}/{key}": value for key, value in move.values.items()}
            if values.keys() & ours.keys():
                raise BridgeError(f"{name} would be on disk twice; make the plan again.")
            values |= ours
            waiting = _Waiting(move, sum(isinstance(v, Stored) for v in ours.values()))
            left |= dict.fromkeys(ours, waiting)
            if not waiting.chunks:
                tally.told(move.place.nbytes)

        def report(key: str, left: Mapping[str, _Waiting] = left) -> None:
            left[key].chunks -= 1
            if not left[key].chunks:
                tally.told(left[key].move.place.nbytes)

        if not moves:
            continue
        carried = carrier.carry(folder / item, values, report)
        write_database(folder / item, carried.values)
        for move in moves:
            keys = (f"{move.place.name}/{key}" for key in move.values)
            ways = [carried.ways[key] for key in keys if key in carried.ways]
            tally.count("encoded" if move.made else ways[0] if ways else "copied")
    return found


@dataclass(slots=True)
class _Waiting:
    move: Move
    chunks: int


class _Writers:
    """The open database of each item, opened when the first array is encoded."""

    def __init__(self, stack: ExitStack, folder: Path, level: int | None) -> None:
        self.folder = folder
        self._stack = stack
        self._level = level
        self._open: dict[str, ArrayWriter] = {}

    def of(self, item: str) -> ArrayWriter:
        if item not in self._open:
            root = self.folder / item
            try:
                exists = (root / names.MANIFEST).exists()
                database = ocdbt.open_database(root, create=not exists)
            except ValueError as error:  # what TensorStore raises for everything
                raise WriteFailed(f"{root}: could not be written: {error}") from error
            writer = ArrayWriter(database, root, self._level)
            self._open[item] = self._stack.enter_context(writer)
        return self._open[item]

    def wrote(self, item: str) -> bool:
        """Whether something was encoded into this item."""
        return item in self._open

    def settle(self) -> None:
        """Bring everything that was collected to the disk, and hold no array any more."""
        for writer in self._open.values():
            writer.settle()


def _computed(
    jobs: Jobs, checkpoint: Checkpoint, plan: Plan, writers: _Writers
) -> Iterator[tuple[Place, Any]]:
    leaves = checkpoint.leaves
    slots = slots_of(plan)
    for step in jobs.computed:
        results = step_values(step, leaves, slots)
        yield from zip((jobs.by_slot[ref] for ref in step.slots), results, strict=True)
        large = sum(r.nbytes for r in results) > LARGE
        del results
        if large:  # a transaction may hold views of what was read, whole stacks of it
            writers.settle()
    for init in jobs.initialised:
        yield jobs.by_slot[init.slot], initial_value(init, slots[init.slot])


def _write_documents(
    root: Path, places: tuple[Place, ...], jobs: Jobs, zarrays: Mapping[str, Mapping[str, Any]]
) -> None:
    """Check that the database has the arrays of the item and no others, and describe them."""
    if not places:
        raise BridgeError(f"item {root.name!r} has no arrays at all, which Orbax cannot restore.")
    expected = {place.name for place in places}
    if zarrays.keys() != expected:
        raise BridgeError(
            f"{root}: the arrays written are not those planned; missing "
            f"{sorted(expected - zarrays.keys())}, too many "
            f"{sorted(zarrays.keys() - expected)}. Please report this."
        )
    arrays = tuple(
        names.ArrayEntry(
            place.disk_path,
            place.slot.shape,
            stored_chunks(zarrays[place.name]),
            place.slot.key_impl,
            place.sequence_at,
        )
        for place in places
    )
    texts = _documents if len(arrays) <= _FEW else _documents.__wrapped__
    for name, text in texts(arrays, jobs.empties.get(root.name, ())).items():
        output.write_file(root / name, text)


@functools.lru_cache(maxsize=16)  # the steps of a run have the same
def _documents(
    arrays: tuple[names.ArrayEntry, ...], empties: tuple[names.EmptyEntry, ...]
) -> Mapping[str, str]:
    return {
        names.TREE_METADATA: names.tree_metadata(arrays, empties),
        names.SHARDING: names.sharding(arrays),
        f"{names.ARRAY_METADATAS}/{names.PROCESS_0}": names.array_metadatas(arrays),
    }


def _write_json(folder: Path, json: JsonItems) -> None:
    for item, (name, content) in json.files.items():
        path = folder / item / name
        if isinstance(content, Path):
            output.copy_file(content, path)
        else:
            output.write_file(path, content)
