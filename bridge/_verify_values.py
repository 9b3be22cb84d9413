"""Rungs c and d: every value of the output against the value that the source gives for it.

On level ``full`` the output's values are decoded once, by plain Orbax, which knows nothing of us,
and those are the ones that are compared. The own reader still opens every array and counts its
chunks, and wherever Orbax's bits are not the source's (or it cannot restore them) it reads the
values, too, and so tells damage on the disk (rung c) from a restore that goes wrong (rung d). On
the other levels it reads all values that are compared.

Both sides are read a block at a time into memory that is used again, by several threads.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from bridge._bits import Measure, blocks, host_bytes, measure, same_bytes, same_value, show_value
from bridge._flight import WORKERS, Flight, held
from bridge._memory import passed
from bridge._per_plan import slots_of
from bridge._plan import Initialised, Plan, Step
from bridge._verdict import Difference
from bridge._verify_output import MISSING, Output
from bridge.apply import JSON_TYPE, initial_value, slot_dtype, step_values
from bridge.errors import BridgeError
from bridge.json_item import plain
from bridge.target import Slot, SlotRef
from legacy.errors import LegacyError
from legacy.leaves import ARRAY_KINDS, Leaf, LeafPath, LeafTable, format_path

__all__ = ["Comparer", "Found", "Job", "Restored", "compare", "compare_restored", "misfit"]

_FEW = 2
"""So many jobs are done sooner than threads are started."""

BATCH = 256 << 20
"""Bytes that Orbax restores at a time (one array, or the results of one step, when that is more).
Two batches are held: one is restored while the one before is compared. A call of Orbax costs 40 ms
of one core beside the reading, so smaller batches are slower."""

_PIECE = 4 << 20
"""Bytes of an array that are brought into C order at a time."""

Job: TypeAlias = Step | Initialised

Restored: TypeAlias = Callable[
    [Sequence[SlotRef]], tuple[dict[SlotRef, np.ndarray[Any, Any]], list[Difference]]
]
"""Restores slots with Orbax: their values, and what it cannot do."""


@dataclass
class Found:
    """What one job found; the parts of all jobs are added up at the end."""

    problems: list[Difference] = field(default_factory=list)
    digests: dict[SlotRef, str] = field(default_factory=dict)
    nbytes: int = 0


def compare(jobs: Sequence[Job], comparer: Comparer) -> list[Found]:
    """Compare what jobs give with what the own reader finds in the output."""
    if len(jobs) <= _FEW:
        return [comparer.run(job) for job in jobs]
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(comparer.run, jobs))


def compare_restored(jobs: Sequence[Job], comparer: Comparer, restored: Restored) -> list[Found]:
    """Compare what jobs give with what Orbax restores, a batch at a time."""
    found: list[Found] = []
    running: list[Future[Found]] = []
    with ThreadPoolExecutor(WORKERS) as pool:
        for batch in _batches(jobs, comparer.slots):
            values, problems = restored([ref for job in batch for ref in _refs(job)])
            found += [future.result() for future in running]
            found.append(Found(problems))
            running = [
                pool.submit(comparer.run, job, {r: values.pop(r, None) for r in _refs(job)})
                for job in batch
            ]
        found += [future.result() for future in running]
    if any(p.rung == "c" for part in found for p in part.problems):
        for part in found:  # a ladder: nobody climbs above a broken rung
            part.problems = [p for p in part.problems if p.rung == "c"]
    return found


def _refs(job: Job) -> tuple[SlotRef, ...]:
    return job.slots if isinstance(job, Step) else (job.slot,)


def _size(slot: Slot) -> int:
    is_plain = slot.variable_type == JSON_TYPE
    return 0 if is_plain else math.prod(slot.shape) * slot_dtype(slot).itemsize


def _batches(jobs: Sequence[Job], slots: Mapping[SlotRef, Slot]) -> Iterator[list[Job]]:
    batch: list[Job] = []
    held_now = 0
    for job in jobs:
        size = sum(_size(slots[ref]) for ref in _refs(job))
        if batch and held_now + size > BATCH:
            yield batch
            batch, held_now = [], 0
        batch.append(job)
        held_now += size
    if batch:
        yield batch


def _pieces(
    before: np.ndarray[Any, Any], after: np.ndarray[Any, Any]
) -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Two arrays of one shape; cut along the first axis where the first one is not in C order.

    Its bytes have to be copied then, and only a few are at a time.
    """
    if before.flags.c_contiguous:
        yield before, after
        return
    rows = max(1, _PIECE * len(before) // before.nbytes)
    for at in range(0, len(before), rows):
        yield np.ascontiguousarray(before[at : at + rows]), after[at : at + rows]


def misfit(slot: Slot, value: np.ndarray[Any, Any]) -> Difference | None:
    """What is wrong with the shape or dtype of what Orbax restores."""
    if value.shape == slot.shape and value.dtype == slot_dtype(slot):
        return None
    got, want = f"{value.dtype.name} {value.shape}", f"{slot.dtype} {slot.shape}"
    message = f"slot {slot.ref}: the plan says {want}, Orbax restores {got}."
    return Difference("d", message, slot.ref)


class Comparer:
    """Reads both sides of one step after the other, a block at a time.

    Args:
        leaves: the source.
        plan: what was promised.
        output: the written step.
    """

    def __init__(self, leaves: LeafTable, plan: Plan, output: Output) -> None:
        self.leaves = leaves
        self.slots = slots_of(plan)
        self.output = output
        self._flight = Flight()
        self._memory = threading.local()

    def run(
        self, job: Job, restored: Mapping[SlotRef, np.ndarray[Any, Any] | None] | None = None
    ) -> Found:
        """Compare the results of one step or one initialised slot with the output.

        Args:
            job: the step or slot.
            restored: what Orbax gives for its slots; where there is nothing, the own reader reads.
        """
        with self._flight.carrying(held_now := self._held(job)):
            found = self._run(job, restored or {})
        passed(held_now)
        return found

    def _run(self, job: Job, restored: Mapping[SlotRef, np.ndarray[Any, Any] | None]) -> Found:
        found = Found()
        refs = _refs(job)
        sources = job.sources if isinstance(job, Step) else ()
        try:
            expected = self._expected(job)
        except (BridgeError, LegacyError) as error:
            message = f"the source cannot be read again: {error}"
            found.problems += [Difference("c", f"slot {r}: {message}", r, sources) for r in refs]
            return found
        for ref, value in zip(refs, expected, strict=True):
            if self.slots[ref].variable_type == JSON_TYPE:
                self._compare_plain(ref, plain(value), found, sources)
                continue
            leaf, after = self.output.leaf(ref), restored.get(ref)
            if leaf is None:
                continue  # rung a has said so
            try:
                if after is None or not self._same(self.slots[ref], value, leaf, after, found):
                    self._compare(self.slots[ref], value, leaf, found, sources)
            except LegacyError as error:
                message = f"slot {ref}: the output cannot be read: {error}"
                found.problems.append(Difference("c", message, ref, sources))
        return found

    def _held(self, job: Job) -> int:
        if isinstance(job, Step) and (leaf := self._copied(job)) is not None:
            return 2 * held(leaf)
        sources = job.sources if isinstance(job, Step) else ()
        read = sum(self.leaves[p].nbytes for p in sources if p in self.leaves)
        return read + sum(_size(self.slots[ref]) for ref in _refs(job))

    def _copied(self, step: Step) -> Leaf | None:
        """The leaf of a plain copy, which is read in blocks."""
        if len(step.sources) == len(step.slots) == 1 and not step.transforms:
            leaf, slot = self.leaves[step.sources[0]], self.slots[step.slots[0]]
            if leaf.kind in ARRAY_KINDS and slot.variable_type != JSON_TYPE:
                return leaf
        return None

    def _expected(self, job: Job) -> Sequence[Any]:
        if isinstance(job, Initialised):
            return (initial_value(job, self.slots[job.slot]),)
        leaf = self._copied(job)
        if leaf is not None:
            return (leaf,)
        self._memory.__dict__.clear()  # what a transform holds is enough
        return step_values(job, self.leaves, self.slots)

    def _compare_plain(
        self, ref: SlotRef, value: Any, found: Found, sources: tuple[LeafPath, ...]
    ) -> None:
        after = self.output.plain(ref)
        found.digests[ref] = hashlib.sha256(repr(value).encode()).hexdigest()
        if after is not MISSING and not same_value(value, after):
            said = f"{show_value(value)} in the source, {show_value(after)} in the output"
            found.problems.append(Difference("c", f"slot {ref}: {said}.", ref, sources))

    def _same(
        self, slot: Slot, value: Any, leaf: Leaf, after: np.ndarray[Any, Any], found: Found
    ) -> bool:
        """Whether Orbax restores the bits of the source; if not, that is a difference of rung d."""
        if (wrong := misfit(slot, after)) is not None:
            found.problems.append(wrong)
            return False
        if (value.shape, value.dtype) != (after.shape, after.dtype):
            return False
        # an empty block: its metadata is parsed and its chunks are counted
        leaf.read(tuple(slice(0, 0) for _ in leaf.shape) if leaf.kind == "array" else None)
        digest, same = hashlib.sha256(), True
        source = value if isinstance(value, Leaf) else None
        for block in (None,) if source is None else blocks(source):
            before = np.asarray(value) if source is None else self._read(source, block, 0)
            for left, right in _pieces(before, after if block is None else after[block]):
                digest.update(host_bytes(left))
                same = same and same_bytes(left, right)
        if not same:
            message = f"slot {slot.ref}: what Orbax restores has other bits than the source gives."
            found.problems.append(Difference("d", message, slot.ref))
            return False
        found.nbytes += after.nbytes
        found.digests[slot.ref] = digest.hexdigest()
        return True

    def _compare(
        self, slot: Slot, value: Any, leaf: Leaf, found: Found, sources: tuple[LeafPath, ...]
    ) -> None:
        if leaf.kind not in ARRAY_KINDS or leaf.shape != value.shape or leaf.dtype != value.dtype:
            shown = f"{value.dtype.name} {value.shape}"
            message = f"slot {slot.ref}: the source gives {shown}; see rung b for the output."
            found.problems.append(Difference("c", message, slot.ref, sources))
            return
        digest, apart = hashlib.sha256(), Measure()
        source = value if isinstance(value, Leaf) else None
        for block in blocks(leaf, source):
            before = np.asarray(
                value[() if block is None else block]
                if source is None
                else self._read(source, block, 0)
            )
            for left, right in _pieces(before, self._read(leaf, block, 1)):
                digest.update(host_bytes(left))
                apart |= measure(left, right)
            found.nbytes += before.nbytes
        found.digests[slot.ref] = digest.hexdigest()
        if apart.differing:
            origin = " + ".join(format_path(p) for p in sources) or "its initial value"
            message = f"slot {slot.ref}: values differ from {origin}: {apart}."
            found.problems.append(Difference("c", message, slot.ref, sources))

    def _read(self, leaf: Leaf, block: Any, side: int) -> np.ndarray[Any, Any]:
        """A block, in the memory of this thread; the next one of this side takes its place."""
        if leaf.kind != "array" or leaf.dtype is None or not leaf.nbytes:
            return np.asarray(leaf.read(block))
        shape = leaf.shape if block is None else tuple(s.stop - s.start for s in block)
        need = math.prod(shape) * leaf.dtype.itemsize
        sides = self._memory.__dict__.setdefault("sides", {})
        if side not in sides or len(sides[side]) < need:
            sides[side] = np.empty(need, np.uint8)
        out = sides[side][:need].view(leaf.dtype).reshape(shape)
        return np.asarray(leaf.read(block, out=out))
