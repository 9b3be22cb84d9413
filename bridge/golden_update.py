"""Writes a golden anew from its own source, after saying what changes.

What an old Linen model gave is the truth that a golden was made for: it is never replaced by what
today's NNX model gives, unless the user says so.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import legacy
from bridge._convert import convert
from bridge._plan import Plan
from bridge._text import count
from bridge._verify_output import Output
from bridge.golden import DOCUMENT, OUTPUTS, Golden, GoldenError
from bridge.golden_check import planned_today
from bridge.golden_digests import differing
from bridge.golden_files import Files, document_text, tools
from bridge.golden_leaves import changed_leaves
from bridge.golden_references import References, moved_reference
from bridge.golden_slots import compare_plans
from bridge.output import staged
from legacy import Checkpoint

__all__ = ["Update", "moved_leaves", "update_golden"]


@dataclass(frozen=True, slots=True)
class Update:
    """What became of a golden.

    Attributes:
        golden: the golden, as it is now.
        changes: what changes, in words; empty when nothing does.
        written: whether it was written.
    """

    golden: Golden
    changes: tuple[str, ...]
    written: bool

    def __str__(self) -> str:
        name = self.golden.name
        if not self.changes:
            return f"golden {name}: nothing changes"
        lines = "\n".join(self.changes).splitlines()
        return "\n".join([f"golden {name} changes:", *(f"  {line}" for line in lines)])


def update_golden(
    golden: Golden,
    *,
    model: str | None = None,
    tx: str | None = None,
    accept_outputs: bool = False,
    dry_run: bool = False,
    tell: Callable[[Update], None] = lambda _: None,
) -> Update:
    """Bring a golden up to today's code.

    Args:
        golden: the golden.
        model: another reference to the model; default: the one that it names.
        tx: another reference to the optimizer.
        accept_outputs: record what today's model gives, where it differs from what was recorded.
        dry_run: say what would change, and write nothing.
        tell: gets what changes before anything is written.

    Returns:
        What changed.

    Raises:
        GoldenError: it has no source to be made from, or the outputs differ and were not accepted.
        PlanProblems: today's plan has problems.
        BridgeError: today's plan cannot be carried out.
        legacy.LegacyError: the source cannot be read.

    >>> update_golden(Golden.load("tests/goldens/cnn"), dry_run=True)  # doctest: +SKIP
    """
    if golden.kept == "digests":
        raise GoldenError(
            f"golden {golden.name} keeps digests only, so it cannot be made from itself. Make it "
            "again from its checkpoint: `linen2nnx golden make ... --overwrite`."
        )
    checkpoint = golden.checkpoint
    new = Golden(golden.path, _document(golden, checkpoint, model, tx))
    references = References.of(new)
    plan = planned_today(new, checkpoint, references.model, references.tx).require_ok()
    with tempfile.TemporaryDirectory(prefix="golden-") as scratch:
        folder = Path(scratch) / golden.name
        shutil.copytree(golden.path, folder)
        files = Files(folder)
        changes = [*_named(golden.document, new.document), *_plans(golden, plan)]
        changes += _leaves(golden, files.leaves(checkpoint, plan, "fast"))
        if new.document.get("outputs"):
            outputs, said = _outputs(new, plan, files, Path(scratch), accept=accept_outputs)
            new, changes = Golden(new.path, {**new.document, "outputs": outputs}), changes + said
        if not changes:
            return Update(golden, (), written=False)
        found = Update(golden, tuple(changes), written=False)
        tell(found)
        if dry_run:
            return found
        files.plan(plan)
        files.text(DOCUMENT, document_text({**new.document, "made_by": tools()}))
        with staged(golden.path, overwrite=True, sync=False) as place:
            shutil.copytree(folder, place, dirs_exist_ok=True)
    return Update(Golden.load(golden.path), tuple(changes), written=True)


def _document(
    golden: Golden, checkpoint: Checkpoint, model: str | None, tx: str | None
) -> dict[str, Any]:
    given = {"model": model, "tx": tx}
    named = {k: moved_reference(v, golden.path) for k, v in given.items() if v is not None}
    return {
        **golden.document,
        "source": {**golden.document["source"], "signature": checkpoint.leaves.signature()},
        "plan": {**golden.document["plan"], **named},
    }


def _named(was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for section in ("source", "plan"):
        for key, value in now[section].items():
            if was[section].get(key) != value:
                yield f"{section}: {key} {was[section].get(key)} → {value}"


def _plans(golden: Golden, plan: Plan) -> Iterator[str]:
    changes = compare_plans(golden.plan, plan)
    for line in (*changes.slots, *changes.mapping, *changes.notes):
        yield f"plan: {line}"


def _leaves(golden: Golden, now: Mapping[str, Any]) -> Iterator[str]:
    was = golden.digests
    for side, called in (("source", "source"), ("target", "output")):
        moved = moved_leaves(was[side], now[side])
        if moved:
            old, new = next(iter(moved.items()))
            number = count(len(moved), "leaf has", "leaves have")
            yield f"{called}: {number} another name and the same values: {old} → {new}" + (
                ", ..." if len(moved) > 1 else ""
            )
        known = {*moved, *moved.values()}
        before, after = ({n: e for n, e in x.items() if n not in known}
                         for x in (was[side], now[side]))  # fmt: skip
        for line in changed_leaves(before, after, {}, {}):
            yield f"{called}: {line}"


def moved_leaves(was: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Leaves that have another name and are the same: old name to new.

    >>> leaf = {"kind": "array", "dtype": "int8", "shape": [], "sha256": "0"}
    >>> moved_leaves({"a": leaf}, {"b": leaf})
    {'a': 'b'}
    """
    gone = [name for name in was if name not in now]
    new = {name: now[name] for name in now if name not in was}
    found: dict[str, str] = {}
    for name in gone:
        same = next((n for n, entry in new.items() if not differing(was[name], entry)), None)
        if same is not None:
            found[name] = same
            del new[same]
    return found


def _outputs(
    golden: Golden, plan: Plan, files: Files, scratch: Path, *, accept: bool
) -> tuple[dict[str, Any], list[str]]:
    from bridge.golden_run import compare_outputs, outputs_again  # noqa: PLC0415 - loads jax
    from bridge.golden_sides import write_arrays  # noqa: PLC0415 - loads jax

    (done,) = convert(golden.checkpoint.path, scratch / "out", plan=plan, verify="fast", sync=False)
    output = Output(legacy.open(done.output), plan)
    model = References.of(golden).model()
    differing = compare_outputs(golden, plan, model, output)
    kept: dict[str, Any] = golden.document["outputs"]
    if not differing:
        return kept, []
    if not accept:
        told = "\n  ".join(differing)
        who = "Linen" if kept["from"] == "linen" else "the model"
        raise GoldenError(
            f"golden {golden.name} is not updated: with today's plan the model does not give what "
            f"{who} gave:\n  {told}\nIf that was meant, `linen2nnx golden update --accept-outputs` "
            "records what it gives today.",
            problems=differing,
        )
    found = outputs_again(golden, plan, model, output)
    write_arrays(files.folder / OUTPUTS, found.arrays)
    return found.document, [f"outputs: {line}" for line in differing]
