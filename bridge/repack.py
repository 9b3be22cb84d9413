"""File to file: one step of an old checkpoint becomes one step folder of the new layout.

An array that only changes its name is not decoded. How it gets across, best first:

1. *adopted*: its OCDBT data file is copied (or hard-linked) whole, and the copy's B-tree is
   rearranged in one transaction (:mod:`bridge.ocdbt`). Only files that hold a wanted value are
   taken. Where two items need one file, the second gets a hard link to the first one's copy, so
   the output is never larger than the source.
2. *moved*: its chunks are copied as they are, compressed: per-parameter zarr folders, a second
   OCDBT database of one item, and databases of which less than half of the bytes are wanted (a
   copy of their files would be mostly waste; with ``link`` waste costs nothing).
3. *encoded*: everything else, namely msgpack, zarr3, transformed and initialised arrays.

Chunks, compressor and byte order of adopted and moved arrays stay as they were saved. Values that
are not read are not checked here either: that is the business of ``bridge.verify``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from bridge import layout as names
from bridge import ocdbt, output
from bridge._plan import Plan
from bridge.apply import initial_value, step_values
from bridge.errors import BridgeError, WriteFailed
from bridge.repack_arrays import ArrayWriter, choose_chunks, stored_chunks
from bridge.repack_jobs import Jobs, Move, Place, sort_out
from bridge.repack_json import JsonItems, json_items
from legacy import Checkpoint

__all__ = ["Layout", "Progress", "Written", "repack", "stamp"]

Layout: TypeAlias = Literal["composite", "single"]

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the bytes of arrays that are done, and of all."""


@dataclass(frozen=True, slots=True)
class Written:
    """What :func:`repack` wrote.

    Attributes:
        folder: the step folder.
        items: names of its items.
        nbytes: bytes of its arrays when read.
        adopted: how many arrays changed only their name.
        moved: how many were copied chunk by chunk, still compressed.
        encoded: how many were written from values.
    """

    folder: Path
    items: tuple[str, ...]
    nbytes: int
    adopted: int
    moved: int
    encoded: int


@dataclass(slots=True)
class _Tally:
    total: int
    report: Progress | None
    done: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, how: str, nbytes: int) -> None:
        self.counts[how] = self.counts.get(how, 0) + 1
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
    sync: bool = True,
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
        sync: force the files to the disk before returning.
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
    jobs = sort_out(plan, checkpoint.leaves, single=layout == "single")
    custom = dict(custom_metadata or {})
    json = json_items(jobs.json, checkpoint, tuple(jobs.places), single=layout == "single")
    if json.inline is not None:
        if names.METADATA_ITEM in custom:
            raise BridgeError("custom_metadata has a key 'metadata' of its own; rename it.")
        custom[names.METADATA_ITEM] = json.inline
    folder.mkdir(parents=True, exist_ok=True)
    tally = _Tally(sum(p.nbytes for places in jobs.places.values() for p in places), on_progress)
    with ExitStack() as stack:
        writers = _open_items(stack, jobs, folder, link=link, tally=tally)
        _write_moves(jobs, writers, tally)
        for place, value in _computed(jobs, checkpoint, plan):
            chunks = choose_chunks(value.shape, value.dtype.itemsize)
            writers[place.item].write(place.name, value, chunks)
            tally.add("encoded", place.nbytes)
    for item, places in jobs.places.items():
        _write_documents(folder / item, places, jobs)
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
        *(tally.counts.get(how, 0) for how in ("adopted", "moved", "encoded")),
    )


def stamp(folder: Path, custom_metadata: Mapping[str, Any]) -> None:
    """Add to the custom metadata of a step folder, which is still a temporary one.

    Args:
        folder: what :func:`repack` wrote.
        custom_metadata: keys to add; they replace keys of the same name.
    """
    path = folder / names.CHECKPOINT_METADATA
    output.write_file(path, names.with_custom_metadata(path.read_text(), custom_metadata))


def _open_items(
    stack: ExitStack, jobs: Jobs, folder: Path, *, link: bool, tally: _Tally
) -> dict[str, ArrayWriter]:
    """Make the database of each item, adopting files on the way."""
    taken: dict[Path, Path] = {}
    writers = {}
    for item in jobs.places:
        root = folder / item
        root.mkdir()
        moves = jobs.adopted(item, link=link)
        try:
            if moves:
                content = jobs.surveys[moves[0].root]
                _take_files(content, moves, root, taken, link=link)
                database = ocdbt.open_database(root)
                ocdbt.rearrange(database, content, [(m.key, m.place.name) for m in moves])
            else:
                database = ocdbt.open_database(root, create=True)
        except ValueError as error:  # what TensorStore raises for everything
            if isinstance(error, BridgeError):
                raise
            raise WriteFailed(f"{root}: could not be written: {error}") from error
        for move in moves:
            tally.add("adopted", move.place.nbytes)
        writers[item] = stack.enter_context(ArrayWriter(database, root))
    return writers


def _take_files(
    content: ocdbt.Survey,
    moves: tuple[Move, ...],
    root: Path,
    taken: dict[Path, Path],
    *,
    link: bool,
) -> None:
    """Copy or link the files of a database that some arrays need.

    Args:
        content: the survey of the source database.
        moves: the arrays that one item takes from it.
        root: the item's folder.
        taken: which source files were copied before, and where to; it grows.
        link: hard-link to the source.
    """
    output.copy_file(content.root / names.MANIFEST, root / names.MANIFEST)
    for relative in sorted(content.files(m.key for m in moves) | content.nodes):
        source, to = content.root / relative, root / relative
        if link:
            output.link_file(source.resolve(), to)
        elif source not in taken:
            output.copy_file(source, to)
            taken[source] = to
        else:
            try:
                output.link_file(taken[source], to)
            except WriteFailed:  # a file system without links
                output.copy_file(taken[source], to)


def _write_moves(jobs: Jobs, writers: Mapping[str, ArrayWriter], tally: _Tally) -> None:
    for move in jobs.moved():
        writer = writers[move.place.item]
        for key, value in jobs.chunks(move):
            writer.put(move.place.name, key, value)
        tally.add("moved", move.place.nbytes)


def _computed(jobs: Jobs, checkpoint: Checkpoint, plan: Plan) -> Iterator[tuple[Place, Any]]:
    leaves = checkpoint.leaves
    slots = {slot.ref: slot for slot in plan.target.slots}
    for step in jobs.computed:
        results = step_values(step, leaves, slots)
        yield from zip((jobs.by_slot[ref] for ref in step.slots), results, strict=True)
        del results
    for init in jobs.initialised:
        yield jobs.by_slot[init.slot], initial_value(init, slots[init.slot])


def _write_documents(root: Path, places: tuple[Place, ...], jobs: Jobs) -> None:
    """Check that the database has the arrays of the item and no others, and describe them."""
    if not places:
        raise BridgeError(f"item {root.name!r} has no arrays at all, which Orbax cannot restore.")
    content = ocdbt.survey(root)
    expected = {place.name for place in places}
    if content.arrays.keys() != expected:
        raise BridgeError(
            f"{root}: the arrays written are not those planned; missing "
            f"{sorted(expected - content.arrays.keys())}, too many "
            f"{sorted(content.arrays.keys() - expected)}. Please report this."
        )
    arrays = [
        names.ArrayEntry(
            place.disk_path,
            place.slot.shape,
            stored_chunks(content.zarrays[place.name]),
            place.slot.key_impl,
            place.sequence_at,
        )
        for place in places
    ]
    output.write_file(
        root / names.TREE_METADATA, names.tree_metadata(arrays, jobs.empties.get(root.name, ()))
    )
    output.write_file(root / names.SHARDING, names.sharding(arrays))
    output.write_file(root / names.ARRAY_METADATAS / names.PROCESS_0, names.array_metadatas(arrays))


def _write_json(folder: Path, json: JsonItems) -> None:
    for item, (name, content) in json.files.items():
        path = folder / item / name
        if isinstance(content, Path):
            output.copy_file(content, path)
        else:
            output.write_file(path, content)
