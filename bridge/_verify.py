"""Holds a written checkpoint against its source, rung by rung.

The output is read back with the same reader that opens old checkpoints, which knows nothing of the
writers; on the last rung plain Orbax reads it, which knows nothing of us. What was promised comes
from the plan alone.

Level ``fast`` climbs to rung b and compares a part of the values. Arrays that were taken over as
they were stored are compared as they are stored (:mod:`bridge._verify_stored`). Of the others it
reads everything that went through a transform or was initialised, everything up to :data:`SMALL`
bytes, and :data:`SAMPLED` of the larger plain copies, spread evenly.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import legacy
from bridge._memory import frugal
from bridge._plan import Plan, Step
from bridge._verdict import RUNGS, Difference, Level, Verdict, check_level
from bridge._verify_models import check_given, run_models
from bridge._verify_output import Output
from bridge._verify_stored import ComparedStored, compare_stored
from bridge._verify_values import Comparer, Job, compare, compare_restored
from bridge.errors import BridgeError, PlanMismatch
from bridge.target import SlotRef
from legacy.leaves import LeafTable

__all__ = ["verify", "verify_step"]

SMALL = 1 << 20
SAMPLED = 8


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
        level: ``full``, ``values`` (without Orbax), ``fast`` (see above) or ``none``.

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
    with frugal():
        return _verified(checkpoint, plan, Output(legacy.open(folder), plan), level, started)


def _verified(
    checkpoint: legacy.Checkpoint, plan: Plan, output: Output, level: Level, started: float
) -> Verdict:
    problems = [*output.structure(checkpoint), *output.shapes()]
    jobs: list[Job] = [*plan.steps, *plan.initialised]
    stored = ComparedStored()
    if level == "fast":
        stored = compare_stored(jobs, checkpoint.leaves, output)
        jobs = [*stored.suspect, *_chosen(stored.left, checkpoint.leaves)]
    comparer = Comparer(checkpoint.leaves, plan, output)
    if level == "full" and not problems:  # a ladder: nobody climbs above a broken rung
        from bridge._verify_orbax import Restorer  # noqa: PLC0415 - loads jax

        restorer = Restorer(output.checkpoint, output.places, plan.target)
        found = compare_restored(jobs, comparer, restorer)
        if not any(part.problems for part in found):
            problems += restorer.rest()
    else:
        found = compare(jobs, comparer)
    digests = {ref: digest for part in found for ref, digest in part.digests.items()}
    problems += [p for part in found for p in part.problems]
    compared = len(digests) + stored.whole
    return Verdict(
        level=level,
        rung=_rung(problems, level, everything=compared == len(plan.target.slots)),
        problems=tuple(problems),
        slots=len(plan.target.slots),
        compared=compared,
        sampled=stored.sampled,
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
    methods: Any = None,
    tx: Any = None,
    linen_tx: Any = None,
    train_steps: int = 3,
    loss: Any = None,
) -> Verdict:
    """Read a source and its conversion again and compare them leaf by leaf.

    With the Linen module, both models are also run: Linen on the old leaves, NNX on what ``dst``
    holds. Their outputs are rung e; with ``tx``, training steps from the restored state are rung f.

    Args:
        src: the old checkpoint or run.
        dst: the converted checkpoint or run.
        plan: the plan of the conversion; without one it is taken from the provenance in ``dst``.
        step: the step of both; default: the last one of ``dst``.
        level: ``full``, ``values``, ``fast`` or ``none``.
        model: the NNX model, as in :func:`bridge.plan`.
        linen: the Linen module that wrote ``src``, or several by item name.
        sample_input: how both are called, as in :func:`bridge.plan`.
        methods: names of further methods to call with the same input.
        tx: the optimizer, as in :func:`bridge.plan`; then both sides are trained, too.
        linen_tx: the optimizer of the old run, where it is spelled otherwise than ``tx``.
        train_steps: how many steps to train; 0 for none.
        loss: for training: from all arrays of the output, as a tuple, to a scalar. Default: the
            mean square distance of the outputs from fixed random numbers.

    Returns:
        The verdict: ``.ok`` and ``.problems`` say whether the values are right, ``.behaviour``
        whether both models do the same with them.

    Raises:
        BridgeError: the plan is not known, or a model cannot be called.
        TargetError: the models are not what is expected.
        PlanMismatch: the plan does not belong to the source.
        LegacyError: one of the two cannot be opened.

    >>> print(verify("runs/exp1", "runs_nnx/exp1"))  # doctest: +SKIP
    verified to rung d (restored by Orbax): 62 of 62 values compared bit for bit, ...
    """
    check_given(
        {"model": model, "sample_input": sample_input, "methods": methods, "tx": tx,
         "linen_tx": linen_tx, "loss": loss}, linen=linen,
    )  # fmt: skip
    check_level(level)
    output = legacy.open(dst, step=step)
    source = open_source(src, output.step if step is None else step)
    plan = plan or stored_plan(output)
    verdict = verify_step(source, plan, output.path, level=level)
    if linen is None or not verdict.ok:  # what is wrong already need not be run
        return verdict
    return run_models(
        verdict,
        (source, plan, Output(output, plan)),
        {"model": model, "linen": linen, "sample_input": sample_input},
        methods=methods,
        training={"tx": tx, "linen_tx": linen_tx, "steps": train_steps, "loss": loss},
    )


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


def _chosen(jobs: Sequence[Job], leaves: LeafTable) -> list[Job]:
    large = [
        job
        for job in jobs
        if isinstance(job, Step)
        and not job.transforms
        and sum(leaves[p].nbytes for p in job.sources) > SMALL
    ]
    every = -(-len(large) // SAMPLED) or 1
    left_out = {id(step) for n, step in enumerate(large) if n % every}
    return [job for job in jobs if id(job) not in left_out]
