"""Makes a golden of a checkpoint.

Everything that will be compared is measured on what the golden keeps: the copy is opened again,
converted, verified to the last rung, and run. A golden that would fail at once is never made.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import legacy
from bridge import planning
from bridge._plan import Plan
from bridge.golden import (
    DOCUMENT,
    RULES,
    SOURCE,
    VERSION,
    Golden,
    GoldenError,
    Kept,
)
from bridge.golden_digests import nodes_json
from bridge.golden_files import ATTRIBUTES, Files, document_text, tools
from bridge.golden_references import load_input, load_reference, moved_input, moved_reference
from bridge.output import staged
from legacy import Checkpoint

if TYPE_CHECKING:
    from bridge.golden_sides import Recorded

__all__ = ["MAX_SIZE", "Small", "make_golden"]

MAX_SIZE: Final = 1 << 20
"""Bytes of a source that is copied without being asked."""


@dataclass(frozen=True, slots=True)
class Small:
    """The same model with small sizes, by reference; for a shrunken copy of a large source.

    Attributes:
        model: the NNX model.
        tx: its optimizer; None for that of the large one.
        linen: the Linen module of its sizes.
        input: a sample input of its sizes.
    """

    model: str
    tx: str | None = None
    linen: str | None = None
    input: str | None = None


def make_golden(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    model: str | None = None,
    tx: str | None = None,
    linen: str | None = None,
    sample_input: str | None = None,
    methods: Sequence[str] = (),
    rules: str | os.PathLike[str] | None = None,
    plan: Plan | None = None,
    step: float | None = None,
    at: Mapping[str, str] | None = None,
    seed: int = 0,
    rngs: str = "keep",
    allow_order: bool = False,
    max_size: int = MAX_SIZE,
    small: Small | None = None,
    reference: bool = False,
    tolerance: float | None = None,
    overwrite: bool = False,
) -> Golden:
    """Make a golden of a checkpoint.

    Args:
        path: the checkpoint, or a run.
        out: the folder of the golden; its name is the golden's.
        model: the NNX model by reference, ``pkg.mod:fn`` or ``file.py:fn``; None for a structural
            target.
        tx: the optimizer, likewise.
        linen: the Linen module, likewise: its outputs are recorded.
        sample_input: see :func:`bridge.inputs.read_input`. Without ``linen`` the outputs of the NNX
            model are recorded.
        methods: further methods to call.
        rules: a TOML file of rules; it is copied.
        plan: a plan made before; default: today's.
        step: which step of a run.
        at: see :func:`bridge.plan`.
        seed: likewise.
        rngs: likewise.
        allow_order: likewise.
        max_size: bytes up to which the source is copied, and outputs are kept.
        small: makes a shrunken copy of a larger source; without it a golden keeps digests only.
        reference: keep the source where it is, by its path from the golden.
        tolerance: how far outputs may be apart later, in relation to the largest value.
        overwrite: replace a golden of that name.

    Returns:
        The golden.

    Raises:
        GoldenError: it cannot be made; says why.
        OutputExists: there is one of that name.
        PlanProblems: something is not settled.
        BridgeError: as :func:`bridge.plan` and :func:`bridge.convert`.
        legacy.LegacyError: the source cannot be opened or read.

    >>> make_golden("runs/exp1", "tests/goldens/exp1", model="lab.models:make")  # doctest: +SKIP
    """
    place = Path(out)
    how: dict[str, Any] = {"at": None if at is None else dict(at), "seed": seed, "rngs": rngs,
                           "allow_order": allow_order}  # fmt: skip
    named = _Named(model, tx, linen, sample_input, tuple(methods))
    checkpoint = legacy.open(path, step=step)
    drawn = _planned(checkpoint, named, plan, rules, how)
    kept = _kept(checkpoint, max_size, small, reference=reference)
    with staged(place, overwrite=overwrite, sync=False) as folder:
        files = Files(folder)
        if rules is not None:
            shutil.copyfile(rules, folder / RULES)
        source = {"kept": kept, "was": _name(checkpoint), **_about(checkpoint)}
        if kept == "shrunken" and small is not None:
            from bridge.golden_shrink import shrunken  # noqa: PLC0415 - loads jax

            named = _Named(small.model, small.tx or tx, small.linen, small.input, tuple(methods))
            to = folder / SOURCE
            models = named.load(named.model), named.load(named.tx)
            checkpoint = shrunken(checkpoint, drawn.plan, *models, to)
            drawn = _same(drawn, _planned(checkpoint, named, None, rules, how))
        elif kept == "copy":
            checkpoint = _copied(checkpoint, folder / SOURCE)
        source |= _about(checkpoint, format_too=False) | _where(kept, checkpoint, place)
        drawn, outputs = _run(checkpoint, named, drawn, (plan, rules, how), tolerance)
        files.leaves(checkpoint, drawn.plan, "full")
        files.outputs(outputs, max_size)
        made = named.moved(place, with_linen=drawn.with_linen) | how | {"rules": rules is not None}
        document = {"version": VERSION, "made_by": tools(), "source": source, "plan": made}
        if outputs is not None:
            document["outputs"] = outputs.document
        files.text(ATTRIBUTES, "* -text\n")
        files.plan(drawn.plan)
        files.text(DOCUMENT, document_text(document))
    return Golden.load(place)


@dataclass(frozen=True, slots=True)
class _Named:
    """The user's code by reference."""

    model: str | None
    tx: str | None
    linen: str | None
    input: str | None
    methods: tuple[str, ...]

    def load(self, text: str | None) -> Any:
        """What one of them names."""
        return None if text is None else load_reference(text, Path.cwd())

    def running(self) -> dict[str, Any]:
        """How both models are run."""
        return {
            "linen": self.load(self.linen),
            "sample_input": None if self.input is None else load_input(self.input, Path.cwd()),
            "methods": list(self.methods) or None,
        }

    def moved(self, place: Path, *, with_linen: bool) -> dict[str, Any]:
        """As the document has it; the Linen module only where the plan needs it."""
        texts = {"model": self.model, "tx": self.tx}
        found: dict[str, Any] = {k: v and moved_reference(v, place) for k, v in texts.items()}
        if with_linen and self.linen and self.input:
            found |= {"linen": moved_reference(self.linen, place),
                      "input": moved_input(self.input, place),
                      "methods": list(self.methods) or None}  # fmt: skip
        return found


@dataclass(frozen=True, slots=True)
class _Drawn:
    plan: Plan
    with_linen: bool = False


_Way: TypeAlias = tuple[Plan | None, str | os.PathLike[str] | None, Mapping[str, Any]]
"""A plan that was given, the rules, and the other words on how to plan."""


def _planned(checkpoint: Checkpoint, named: _Named, *way: Any) -> _Drawn:
    """A plan from structure; with the Linen module only where that leaves problems."""
    given: Plan | None = way[0]
    if given is not None:
        return _Drawn(given.require_ok())
    plain = _plan(checkpoint, named, way)
    if plain.ok or named.linen is None:
        return _Drawn(plain.require_ok())
    return _Drawn(_plan(checkpoint, named, way, **named.running()).require_ok(), with_linen=True)


def _plan(checkpoint: Checkpoint, named: _Named, way: Sequence[Any], **running: Any) -> Plan:
    _, rules, how = way
    model, tx = named.load(named.model), named.load(named.tx)
    return planning.plan(checkpoint, model=model, tx=tx, rules=rules, **how, **running)


def _run(
    checkpoint: Checkpoint, named: _Named, drawn: _Drawn, way: _Way, tolerance: float | None
) -> tuple[_Drawn, Recorded | None]:
    """Run the models, where there is something to call them with.

    Where they differ by a plan from structure, one from their behaviour is tried.
    """
    if named.input is None or named.model is None:
        return drawn, None
    from bridge.golden_run import ModelsDiffer, record_outputs  # noqa: PLC0415 - loads jax
    from bridge.golden_slots import compare_plans  # noqa: PLC0415 - after a difference

    how = {"model": named.load(named.model), "allowed": tolerance, **named.running()}
    try:
        return drawn, record_outputs(checkpoint, drawn.plan, **how)
    except ModelsDiffer:
        if way[0] is not None or drawn.with_linen:
            raise
        proven = _plan(checkpoint, named, way, **named.running()).require_ok()
        changes = compare_plans(drawn.plan, proven)
        if not (changes.slots or changes.mapping):
            raise
    return _Drawn(proven, with_linen=True), record_outputs(checkpoint, proven, **how)


def _same(large: _Drawn, small: _Drawn) -> _Drawn:
    """The plan of the small model, if it is that of the large one but for sizes."""

    def shape(plan: Plan) -> Any:
        steps = {(s.sources, s.slots, tuple(t.to_json()["op"] for t in s.transforms), s.why)
                 for s in plan.steps}  # fmt: skip
        return steps, {i.path for i in plan.ignored}, {i.slot for i in plan.initialised}

    if shape(large.plan) != shape(small.plan):
        raise GoldenError(
            "the small model is not the large one with other sizes: its plan maps other leaves, "
            "or for other reasons. Compare `linen2nnx plan` of both, or leave --small-model away: "
            "then the golden keeps digests only."
        )
    return small


def _kept(checkpoint: Checkpoint, max_size: int, small: Small | None, *, reference: bool) -> Kept:
    if reference:
        return "reference"
    if small is not None:
        return "shrunken"
    return "copy" if sum(_nbytes(p) for p in _parts(checkpoint.path)) <= max_size else "digests"


def _parts(path: Path) -> list[Path]:
    """A checkpoint, and what flax keeps beside its file."""
    beside = path.with_name(f"{path.name}_gda")
    return [path, beside] if beside.is_dir() else [path]


def _nbytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def _copied(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    folder.mkdir()
    for part in _parts(checkpoint.path):
        to = folder / part.name
        if part.is_dir():
            shutil.copytree(part, to, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(part, to)
    for path, folders, files in os.walk(folder, topdown=False):
        if not files and not any(Path(path, name).is_dir() for name in folders):
            Path(path).rmdir()  # git keeps no empty folders, so the golden must do without
    copy = legacy.open(folder / checkpoint.path.name)
    if copy.leaves.signature() != checkpoint.leaves.signature() or copy.step != checkpoint.step:
        raise GoldenError(
            f"{checkpoint.path}: its copy does not read as the same checkpoint. Keep it where "
            "it is (--reference)."
        )
    return copy


def _about(checkpoint: Checkpoint, *, format_too: bool = True) -> dict[str, Any]:
    found = {"format": checkpoint.format.name, "layout": checkpoint.format.layout,
             "era": checkpoint.format.era} if format_too else {}  # fmt: skip
    return found | {"step": checkpoint.step, "signature": checkpoint.leaves.signature()}


def _name(checkpoint: Checkpoint) -> str:
    """The last two parts of the path: the rest is somebody's machine."""
    return Path(*checkpoint.path.parts[-2:]).as_posix()


def _where(kept: Kept, checkpoint: Checkpoint, place: Path) -> dict[str, Any]:
    if kept == "digests":
        return {"nodes": nodes_json(checkpoint.leaves)}
    if kept == "reference":
        path = os.path.relpath(checkpoint.path.resolve(), place.resolve())
        return {"path": Path(path).as_posix()}
    return {"path": f"{SOURCE}/{checkpoint.path.name}"}
