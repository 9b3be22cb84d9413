"""Converts the steps of one run: plan, write beside the place, verify, commit.

Nothing appears under its final name before it has been verified, and a step that fails leaves
nothing behind. Many runs at once are the business of ``bridge.fleet``.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import legacy
from bridge import output
from bridge._per_plan import per_plan, slots_of
from bridge._plan import Plan
from bridge._steps import Steps, chosen_steps, step_number
from bridge._verdict import Level, Verdict
from bridge._verify import verify_step
from bridge._versions import version
from bridge.apply import slot_dtype
from bridge.errors import BridgeError, OutputExists, PlanMismatch, TransformError
from bridge.layout import CHECKPOINT_METADATA, MANIFEST
from bridge.repack import Layout, Progress, repack, stamp
from bridge.repack_arrays import parse_compression
from legacy import Checkpoint, LeafTable, format_path
from legacy.paths import absolute

__all__ = ["PROVENANCE", "Converted", "convert", "convert_opened"]

PROVENANCE: Final = "linen_nnx_bridge"
"""Our key in Orbax's custom metadata."""

_LIBRARIES = ("numpy", "ml_dtypes", "tensorstore")
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Converted:
    """One step that was converted (or would be).

    Attributes:
        step: its number.
        source: the old checkpoint.
        output: the new step folder.
        plan_digest: of the plan that was carried out.
        seconds: how long it took, verification included.
        nbytes: bytes of its arrays when read.
        verdict: what the verification says; None in a dry run.
        written: how many arrays were ``linked``, ``cloned``, ``copied`` and ``encoded`` (see
            :mod:`bridge.repack`).
    """

    step: int
    source: Path
    output: Path
    plan_digest: str
    seconds: float
    nbytes: int
    verdict: Verdict | None
    written: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _How:
    layout: Layout
    link: bool
    overwrite: bool
    verify: Level
    sync: bool
    on_progress: Progress | None
    compression: str
    seal: Callable[[], Mapping[str, Any]] | None = None


def convert(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    plan: Plan | None = None,
    model: Any = None,
    tx: Any = None,
    linen: Any = None,
    sample_input: Any = None,
    methods: Any = None,
    allow_order: bool = False,
    rules: Any = None,
    transforms: Mapping[str, Any] | None = None,
    at: Any = None,
    steps: Steps = "latest",
    layout: Layout = "composite",
    link: bool = False,
    overwrite: bool = False,
    verify: Level = "full",
    sync: bool = True,
    compression: str = "keep",
    dry_run: bool = False,
    on_progress: Progress | None = None,
    seed: int = 0,
    rngs: str = "keep",
) -> tuple[Converted, ...]:
    """Convert a checkpoint, or steps of a run, to StandardSave checkpoints.

    Args:
        path: a checkpoint, or the folder of a run.
        out: the root of the new run: ``ocp.CheckpointManager(out)`` finds ``out/<step>``. Steps
            keep their numbers; a checkpoint without one becomes step 0.
        plan: a plan made before; then none of the following eight are used.
        model: see :func:`bridge.plan`.
        tx: see :func:`bridge.plan`.
        linen: see :func:`bridge.plan`.
        sample_input: see :func:`bridge.plan`.
        methods: see :func:`bridge.plan`.
        allow_order: see :func:`bridge.plan`.
        rules: see :func:`bridge.plan`.
        transforms: see :func:`bridge.plan`.
        at: see :func:`bridge.plan`.
        steps: ``latest``, ``all``, numbers, or a text such as ``1000,2000``.
        layout: ``composite`` or ``single``; see :func:`bridge.repack.repack`.
        link: hard-link data files of the source where nothing in them changes.
        overwrite: replace steps that are there, each after its successor has been verified.
        verify: ``full``, ``values`` (all but the restore by Orbax), ``fast`` or ``none``.
        sync: force the output to the disk before it gets its name.
        compression: ``keep`` leaves stored bytes as they are, and compresses arrays that have to
            be written anew as Orbax does (zstd, level 1); ``none`` compresses nothing anew;
            ``zstd`` or ``zstd:LEVEL`` compresses what is not compressed yet, arrays of msgpack
            files too, which is slower and needs less room.
        dry_run: plan and check everything, and write nothing.
        on_progress: called with the bytes of arrays that are done and all bytes of the step.
        seed: see :func:`bridge.plan`.
        rngs: see :func:`bridge.plan`.

    Returns:
        One entry for each step, in the order of their numbers.

    Raises:
        PlanProblems: something is not settled; ``.problems`` has everything.
        PlanMismatch: ``plan`` was made for another structure.
        OutputExists: a step is there already.
        VerifyFailed: the output does not hold what the plan promises; it has been removed.
        WriteFailed: it could not be written; what was begun has been removed.
        BridgeError: the output would touch the source, or a step has a number that a
            ``CheckpointManager`` cannot have.
        legacy.LegacyError: the source cannot be opened or read.

    >>> convert("runs/exp1", "runs_nnx/exp1", plan=plan, steps="all")  # doctest: +SKIP
    """
    root = absolute(out)
    parse_compression(compression)  # a typo is seen before anything is read
    how = _How(layout, link, overwrite, verify, sync, on_progress, compression)
    plans = _Plans(
        plan,
        {
            "model": model,
            "tx": tx,
            "linen": linen,
            "sample_input": sample_input,
            "methods": methods,
            "allow_order": allow_order,
            "rules": rules,
            "transforms": transforms,
            "at": at,
            "seed": seed,
            "rngs": rngs,
        },
    )
    chosen = [(entry, step_number(entry)) for entry in chosen_steps(path, steps)]
    numbers = [step for _, step in chosen]
    for entry, step in chosen:
        if numbers.count(step) > 1:
            raise BridgeError(
                f"{absolute(path)}: several entries are step {step}, among them "
                f"{entry.path.name}. Convert each by its own path, to outputs of their own."
            )
        output.check_apart(absolute(path), root / str(step))
        output.check_apart(entry.path, root / str(step))
        if not overwrite and os.path.lexists(root / str(step)):
            raise OutputExists(
                f"{root / str(step)} is there already. Choose another output, or ask for overwrite."
            )
    _check_no_checkpoint_above(root)
    return tuple(
        _convert_step(
            legacy.open(entry.path), step, root / str(step), plans, None if dry_run else how
        )
        for entry, step in chosen
    )


def convert_opened(
    checkpoint: Checkpoint,
    step: int,
    place: Path,
    plan: Plan,
    *,
    layout: Layout = "composite",
    link: bool = False,
    overwrite: bool = False,
    verify: Level = "full",
    sync: bool = True,
    compression: str = "keep",
    on_progress: Progress | None = None,
    seal: Callable[[], Mapping[str, Any]] | None = None,
) -> Converted:
    """Convert one opened checkpoint to a place that the caller has chosen and checked.

    Args:
        checkpoint: the source.
        step: its number in the output.
        place: the new step folder.
        plan: a plan of its structure.
        layout: see :func:`convert`.
        link: see :func:`convert`.
        overwrite: see :func:`convert`.
        verify: see :func:`convert`.
        sync: see :func:`convert`.
        compression: see :func:`convert`.
        on_progress: see :func:`convert`.
        seal: called when all is verified and before the output gets its name. What it returns is
            added to the provenance; when it raises, nothing is left.

    Returns:
        What was converted.

    Raises:
        BridgeError: see :func:`convert`.
        legacy.LegacyError: the source cannot be read.
    """
    how = _How(layout, link, overwrite, verify, sync, on_progress, compression, seal)
    return _convert_step(checkpoint, step, place, _Plans(plan, {}), how)


class _Plans:
    """The plan that was given, or one plan for each structure among the steps."""

    def __init__(self, given: Plan | None, options: Mapping[str, Any]) -> None:
        self._given = given
        self._options = options
        self._made: dict[str, Plan] = {}

    def of(self, checkpoint: Checkpoint) -> Plan:
        signature = checkpoint.leaves.signature()
        if self._given is not None:
            if self._given.signature != signature:
                raise PlanMismatch(_mismatch(self._given, checkpoint))
            return self._given.require_ok()
        if signature not in self._made:
            from bridge import planning  # noqa: PLC0415 - a stored plan needs none of it

            self._made[signature] = planning.plan(checkpoint, **self._options)
        return self._made[signature].require_ok()


def _convert_step(
    checkpoint: Checkpoint, step: int, place: Path, plans: _Plans, how: _How | None
) -> Converted:
    started = time.perf_counter()
    plan = plans.of(checkpoint)
    stored = _stored(plan)
    nbytes = sum(leaf.nbytes for leaf in checkpoint.leaves.values())
    verdict: Verdict | None = None
    written: Mapping[str, int] = {}
    if how is not None:
        staged = output.staged(place, overwrite=how.overwrite, sync=how.sync, needed=nbytes)
        with staged as folder:
            done = repack(
                plan,
                checkpoint,
                folder,
                layout=how.layout,
                link=how.link,
                compression=how.compression,
                sync=False,
                writeback=how.sync,
                final=place,
                on_progress=how.on_progress,
            )
            nbytes = done.nbytes
            written = done.ways
            verdict = verify_step(checkpoint, plan, folder, level=how.verify).require_ok()
            about = _provenance(checkpoint, step, plan, stored, verdict)
            about |= how.seal() if how.seal else {}
            stamp(folder, {PROVENANCE: about})
    seconds = time.perf_counter() - started
    return Converted(step, checkpoint.path, place, stored[1], seconds, nbytes, verdict, written)


def _check_no_checkpoint_above(root: Path) -> None:
    for folder in (root, *root.parents):
        if any((folder / name).exists() for name in (CHECKPOINT_METADATA, MANIFEST)):
            raise BridgeError(
                f"{root}: {folder} is a checkpoint itself, and nothing is written into one. "
                "Choose an output outside of it."
            )


@per_plan
def _stored(plan: Plan) -> tuple[str | None, str]:
    """The plan as text, and its digest; no text when it holds a function without a name."""
    try:
        text = plan.to_json()
    except TransformError:
        return None, ""
    return text, hashlib.sha256(text.encode()).hexdigest()


def _provenance(
    checkpoint: Checkpoint, step: int, plan: Plan, stored: tuple[str | None, str], verdict: Verdict
) -> dict[str, Any]:
    """What is kept with the output: enough to say where it comes from, and to verify it again."""
    return {
        "version": version("linen-nnx-bridge"),
        "source": str(checkpoint.path),
        "format": str(checkpoint.format.name),
        "layout": checkpoint.format.layout,
        "era": checkpoint.format.era,
        "step": step,
        "signature": plan.signature,
        "plan_digest": stored[1],
        "values_digest": verdict.digest,
        "verified": {"level": verdict.level, "rung": verdict.rung, "compared": verdict.compared},
        "versions": {name: version(name) for name in _LIBRARIES},
        "plan": stored[0],
    }


def _mismatch(plan: Plan, checkpoint: Checkpoint) -> str:
    found = checkpoint.leaves
    problems = [*_path_differences(plan, found), *_shape_differences(plan, found)]
    shown = "\n  ".join(problems[:_SHOWN]) or "kinds, shapes or dtypes of its leaves differ"
    more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return (
        f"the plan was made for another structure than that of {checkpoint.path} (signature "
        f"{plan.signature[:12]}…, here {found.signature()[:12]}…):\n  {shown}{more}\n"
        "Make a plan for this checkpoint."
    )


def _path_differences(plan: Plan, found: LeafTable) -> list[str]:
    known = {path for step in plan.steps for path in step.sources}
    known |= {entry.path for entry in plan.ignored}
    lines = [f"{format_path(p)} is not in the checkpoint" for p in sorted(known - found.keys())]
    lines += [f"{format_path(p)} is not in the plan" for p in sorted(found.keys() - known)]
    return lines


def _shape_differences(plan: Plan, found: LeafTable) -> list[str]:
    slots = slots_of(plan)
    lines = []
    for step in plan.steps:
        if step.transforms or len(step.sources) != 1 or step.sources[0] not in found:
            continue
        leaf, slot = found[step.sources[0]], slots[step.slots[0]]
        if leaf.dtype is None or slot.variable_type == "Json":
            continue
        if leaf.shape != slot.shape or leaf.dtype != slot_dtype(slot):
            lines.append(
                f"{format_path(leaf.path)} has shape {leaf.shape} dtype {leaf.dtype}; the plan "
                f"expects {slot.shape} {slot.dtype}"
            )
    return lines
