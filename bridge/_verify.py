"""Holds a written checkpoint against its source, rung by rung.

The output is read back with the same reader that opens old checkpoints, which knows nothing of the
writers; on the last rung plain Orbax reads it, which knows nothing of us. What was promised comes
from the plan alone.

Level ``fast`` climbs to rung b and compares the values of a part: everything that went through a
transform or was initialised, everything up to :data:`SMALL` bytes, and :data:`SAMPLED` of the
larger plain copies, spread evenly.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

import legacy
from bridge._bits import Measure, blocks, host_bytes, measure, same_value, show_value
from bridge._plan import Initialised, Plan, Step
from bridge._verdict import RUNGS, Difference, Level, Verdict, check_level
from bridge._verify_output import MISSING, Output
from bridge.apply import JSON_TYPE, initial_value, step_values
from bridge.errors import BridgeError, PlanMismatch
from bridge.json_item import plain
from bridge.target import Slot, SlotRef
from legacy.errors import LegacyError
from legacy.leaves import ARRAY_KINDS, Leaf, LeafPath, LeafTable, format_path

__all__ = ["verify", "verify_step"]

SMALL = 1 << 20
SAMPLED = 8
WORKERS = min(4, os.cpu_count() or 1)

Job: TypeAlias = Step | Initialised


@dataclass
class _Found:
    """What one job found; the parts of all jobs are added up at the end."""

    problems: list[Difference] = field(default_factory=list)
    digests: dict[SlotRef, str] = field(default_factory=dict)
    nbytes: int = 0


def verify_step(
    checkpoint: legacy.Checkpoint,
    plan: Plan,
    folder: str | os.PathLike[str],
    *,
    level: Level = "full",
) -> Verdict:
    """Compare one written step with its source.

    Args:
        checkpoint: the source, opened.
        plan: what was carried out.
        folder: the step folder that was written.
        level: ``full``, ``fast`` (see above) or ``none``.

    Returns:
        The verdict, with every difference; it raises for none of them.

    Raises:
        BridgeError: there is no such level, or the plan has problems.
        PlanMismatch: the plan was made for another structure than that of the source.
        LegacyError: the output cannot be opened at all.
    """
    check_level(level)
    if level == "none":
        return Verdict(level, "", slots=len(plan.target.slots))
    started = time.perf_counter()
    plan.require_ok()
    _require_signature(checkpoint, plan)
    output = Output(legacy.open(folder), plan)
    problems = [*output.structure(checkpoint), *output.shapes()]
    jobs = _chosen(plan, checkpoint.leaves, level)
    comparer = _Comparer(checkpoint.leaves, plan, output)
    with ThreadPoolExecutor(WORKERS) as pool:
        found = list(pool.map(comparer.run, jobs))
    digests = {ref: digest for part in found for ref, digest in part.digests.items()}
    problems += [p for part in found for p in part.problems]
    if level == "full" and not problems:  # a ladder: nobody climbs above a broken rung
        from bridge._verify_orbax import restored_differences  # noqa: PLC0415 - loads jax

        problems += restored_differences(output.checkpoint, output.places, plan.target, digests)
    return Verdict(
        level=level,
        rung=_rung(problems, level, everything=len(digests) == len(plan.target.slots)),
        problems=tuple(problems),
        slots=len(plan.target.slots),
        compared=len(digests),
        nbytes=sum(part.nbytes for part in found),
        seconds=time.perf_counter() - started,
        digest=_digest_of(digests),
    )


def verify(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    plan: Plan | None = None,
    step: float | None = None,
    level: Level = "full",
    model: Any = None,
    linen: Any = None,
    sample_input: Any = None,
) -> Verdict:
    """Read a source and its conversion again and compare them leaf by leaf.

    Args:
        src: the old checkpoint or run.
        dst: the converted checkpoint or run.
        plan: the plan of the conversion; without one it is taken from the provenance in ``dst``.
        step: the step of both; default: the last one of ``dst``.
        level: ``full``, ``fast`` or ``none``.
        model: for the forward check, which is not in this release.
        linen: likewise.
        sample_input: likewise.

    Returns:
        The verdict; ``.ok``, and ``.problems`` with every difference.

    Raises:
        BridgeError: the plan is not known, or a forward check was asked for.
        PlanMismatch: the plan does not belong to the source.
        LegacyError: one of the two cannot be opened.

    >>> print(verify("runs/exp1", "runs_nnx/exp1"))  # doctest: +SKIP
    verified to rung d (restored by Orbax): 62 of 62 values compared bit for bit, ...
    """
    if linen is not None or sample_input is not None or model is not None:
        raise BridgeError(
            "verify(linen=, sample_input=, model=): the forward and training checks (rungs e and "
            "f) are not in this release. Leave them out to verify up to rung d."
        )
    check_level(level)
    output = legacy.open(dst, step=step)
    source = open_source(src, output.step if step is None else step)
    return verify_step(source, plan or stored_plan(output), output.path, level=level)


def open_source(src: str | os.PathLike[str], step: float | None) -> legacy.Checkpoint:
    """Open the source of a step; a single checkpoint that says no step is taken as it is."""
    try:
        return legacy.open(src, step=step)
    except legacy.CheckpointNotFound:
        alone = legacy.open(src)
        if alone.step is None:
            return alone
        raise


def stored_plan(output: legacy.Checkpoint) -> Plan:
    """The plan in the provenance of a converted checkpoint.

    Raises:
        BridgeError: it has none.
    """
    provenance = output.metadata.get("linen_nnx_bridge")
    stored = provenance.get("plan") if isinstance(provenance, Mapping) else None
    if not isinstance(stored, str):
        raise BridgeError(
            f"{output.path}: its metadata holds no plan, so what it should hold is not known. "
            "Give the plan of the conversion: verify(..., plan=plan), or --plan plan.json."
        )
    return Plan.from_json(stored)


def _require_signature(checkpoint: legacy.Checkpoint, plan: Plan) -> None:
    signature = checkpoint.leaves.signature()
    if signature != plan.signature:
        raise PlanMismatch(
            f"{checkpoint.path} has the signature {signature[:12]}…, the plan was made for "
            f"{plan.signature[:12]}… ({plan.source or 'source unknown'}). Their structures "
            "differ: give the plan of this checkpoint, or make one."
        )


def _rung(problems: Sequence[Difference], level: str, *, everything: bool) -> str:
    climbed = "abcd" if level == "full" else "abc" if everything else "ab"
    failed = {p.rung for p in problems}
    first = next((n for n, rung in enumerate(RUNGS) if rung in failed), len(climbed))
    return climbed[:first][-1:]


def _digest_of(digests: Mapping[SlotRef, str]) -> str:
    total = hashlib.sha256()
    for ref, digest in sorted(digests.items()):
        total.update(f"{ref} {digest}\n".encode())
    return total.hexdigest()


def _chosen(plan: Plan, leaves: LeafTable, level: str) -> list[Job]:
    jobs: list[Job] = [*plan.steps, *plan.initialised]
    if level == "full":
        return jobs
    large = [
        step
        for step in plan.steps
        if not step.transforms and sum(leaves[p].nbytes for p in step.sources) > SMALL
    ]
    every = -(-len(large) // SAMPLED) or 1
    left_out = {id(step) for n, step in enumerate(large) if n % every}
    return [job for job in jobs if id(job) not in left_out]


class _Comparer:
    """Rung c: reads both sides of one step after the other, a block at a time."""

    def __init__(self, leaves: LeafTable, plan: Plan, output: Output) -> None:
        self.leaves = leaves
        self.slots = {slot.ref: slot for slot in plan.target.slots}
        self.output = output

    def run(self, job: Job) -> _Found:
        """Compare the results of one step or one initialised slot with the output."""
        found = _Found()
        refs = job.slots if isinstance(job, Step) else (job.slot,)
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
            leaf = self.output.leaf(ref)
            if leaf is None:
                continue  # rung a has said so
            try:
                self._compare(self.slots[ref], value, leaf, found, sources)
            except LegacyError as error:
                message = f"slot {ref}: the output cannot be read: {error}"
                found.problems.append(Difference("c", message, ref, sources))
        return found

    def _expected(self, job: Job) -> Sequence[Any]:
        if isinstance(job, Initialised):
            return (initial_value(job, self.slots[job.slot]),)
        if len(job.sources) == len(job.slots) == 1 and not job.transforms:
            leaf, slot = self.leaves[job.sources[0]], self.slots[job.slots[0]]
            if leaf.kind in ARRAY_KINDS and slot.variable_type != JSON_TYPE:
                return (leaf,)  # read in blocks, both sides
        return step_values(job, self.leaves, self.slots)

    def _compare_plain(
        self, ref: SlotRef, value: Any, found: _Found, sources: tuple[LeafPath, ...]
    ) -> None:
        after = self.output.plain(ref)
        found.digests[ref] = hashlib.sha256(repr(value).encode()).hexdigest()
        if after is not MISSING and not same_value(value, after):
            said = f"{show_value(value)} in the source, {show_value(after)} in the output"
            found.problems.append(Difference("c", f"slot {ref}: {said}.", ref, sources))

    def _compare(
        self, slot: Slot, value: Any, leaf: Leaf, found: _Found, sources: tuple[LeafPath, ...]
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
                value[() if block is None else block] if source is None else source.read(block)
            )
            after = np.asarray(leaf.read(block))
            digest.update(host_bytes(before))
            apart |= measure(before, after)
            found.nbytes += before.nbytes
        found.digests[slot.ref] = digest.hexdigest()
        if apart.differing:
            origin = " + ".join(format_path(p) for p in sources) or "its initial value"
            message = f"slot {slot.ref}: values differ from {origin}: {apart}."
            found.problems.append(Difference("c", message, slot.ref, sources))
