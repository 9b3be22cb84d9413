"""Holds a golden against today's code, and says what differs in the order in which to look at it.

Source, plan, output, behaviour: each stage says all that it finds. A stage that could not look
says so, so that silence is never agreement.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import legacy
from bridge import planning
from bridge._plan import Plan
from bridge._text import count
from bridge._verify_output import Output
from bridge.errors import BridgeError, TargetError
from bridge.golden import RULES, Golden
from bridge.golden_digests import named_leaves, records
from bridge.golden_leaves import changed_leaves, known_values
from bridge.golden_references import References
from bridge.golden_report import SHOWN, Report
from bridge.golden_slots import HOMELESS, PlanChanges, compare_plans, compare_slots, own_slots
from bridge.target import Target
from legacy import Checkpoint, Leaf, format_path
from legacy.errors import LegacyError

__all__ = ["check_golden", "output_leaves", "planned_today"]


def check_golden(
    golden: Golden | str | os.PathLike[str],
    *,
    model: Any = None,
    tx: Any = None,
    behaviour: bool = True,
) -> Report:
    """Hold a golden against today's code.

    Its source must have the recorded digests; today's plan must map it as the stored one does; the
    conversion by the stored plan must give the recorded leaves, bit for bit; and the model, with
    the values of the output, the recorded outputs.

    Args:
        golden: a golden, or its folder.
        model: instead of the model that the golden names; see :func:`bridge.plan`.
        tx: likewise.
        behaviour: also run the model, where outputs were recorded.

    Returns:
        Everything that differs; it raises for none of it.

    Raises:
        GoldenError: there is no golden.

    >>> check_golden("tests/goldens/cnn")  # doctest: +SKIP
    """
    golden = golden if isinstance(golden, Golden) else Golden.load(golden)
    report = Report(golden.name, golden.path)
    references = References.of(golden)
    try:
        plan, digests = golden.plan, golden.digests
        checkpoint = golden.checkpoint
    except (BridgeError, LegacyError, OSError) as error:
        report.add("source", str(error))
        return report
    given = _Given(golden, references, model, tx, plan)
    leaves = _source(report, golden, checkpoint, plan, digests["source"])
    fits = _plan(report, given, checkpoint)
    with tempfile.TemporaryDirectory(prefix="golden-") as scratch:
        output = _output(report, golden, plan, digests, leaves, Path(scratch))
        if behaviour:
            _behaviour(report, given, output, fits=fits)
    return report


@dataclass(frozen=True, slots=True)
class _Given:
    golden: Golden
    references: References
    own_model: Any
    own_tx: Any
    plan: Plan

    def model(self) -> Any:
        """The model: the one that was given, the one that is named, or the stored target."""
        if self.own_model is not None:
            return self.own_model
        named = self.references.model()
        if named is not None or self.plan.target.structural:
            return named
        # the carried slots follow from the source, as they did
        kept = tuple(s for s in self.plan.target.slots if s.item not in HOMELESS)
        empties = tuple(e for e in self.plan.target.empties if e.item not in HOMELESS)
        return Target(kept, empties)

    def tx(self) -> Any:
        return self.references.tx() if self.own_tx is None else self.own_tx


def _source(
    report: Report, golden: Golden, checkpoint: Checkpoint, plan: Plan, was: Mapping[str, Any]
) -> dict[str, Leaf] | None:
    """The leaves of the source; None where there is nothing to read."""
    if golden.kept == "digests":
        report.notes.append("the golden keeps digests of its source only: nothing is converted")
        return None
    found = checkpoint.leaves.signature()
    recorded = golden.document["source"].get("signature")
    for name, signature in (("golden", recorded), ("stored plan", plan.signature)):
        if signature != found:
            report.add("source", f"its signature is {found[:16]}, the {name} is for "
                       f"{str(signature)[:16]}: other paths, kinds, shapes or dtypes")  # fmt: skip
    leaves = named_leaves(checkpoint)
    try:
        now = records(leaves)
    except LegacyError as error:
        report.add("source", f"a leaf cannot be read: {error}")
        return None
    report.add("source", *changed_leaves(was, now, leaves, {}))
    report.looked.append(f"{len(now):,} leaves of the source")
    return leaves


def _plan(report: Report, given: _Given, checkpoint: Checkpoint) -> bool:
    """Whether the slots of the stored plan are those of today's model."""
    try:
        today = planned_today(given.golden, checkpoint, given.model, given.tx)
    except _LinenIsGone as gone:
        report.notes.append(str(gone))
        return _fits(report, given)
    except (BridgeError, LegacyError) as error:
        report.add("plan", f"today's plan cannot be made: {error}")
        return False
    except Exception as error:  # noqa: BLE001 - it runs the user's code
        report.add("plan", f"today's plan cannot be made: {type(error).__name__}: {error}")
        return False
    report.today = today
    changes = compare_plans(given.plan, today)
    _tell(report, changes)
    report.looked.append(f"the plan ({len(given.plan.steps):,} steps)")
    return not changes.slots


def _tell(report: Report, changes: PlanChanges) -> None:
    report.add("plan", *changes.slots, *changes.mapping)
    # most of them follow from a slot that is gone
    shown = 3 if changes.slots else SHOWN
    report.add("plan", *changes.problems[:shown])
    if len(changes.problems) > shown:
        report.add("plan", f"and {len(changes.problems) - shown:,} more problems of today's plan")
    report.notes += changes.notes


def _fits(report: Report, given: _Given) -> bool:
    from bridge._describe import describe  # noqa: PLC0415 - loads jax

    try:
        today = describe(given.model(), given.tx())
    except Exception as error:  # noqa: BLE001 - it runs the user's code
        report.add("plan", f"the model cannot be described: {type(error).__name__}: {error}")
        return False
    slots, _ = compare_slots(own_slots(given.plan.target), own_slots(today))
    report.add("plan", *slots)
    report.looked.append("the slots of the plan")
    return not slots


class _LinenIsGone(Exception):
    """The Linen module that the plan was made with cannot be imported any more."""


def planned_today(golden: Golden, checkpoint: Checkpoint, model: Any, tx: Any) -> Plan:
    """The plan that today's code makes in the way in which the stored one was made.

    Args:
        golden: the golden.
        checkpoint: its source.
        model: gives the model.
        tx: gives the optimizer.
    """
    made = golden.document.get("plan") or {}
    references = References.of(golden)
    running: dict[str, Any] = {}
    if made.get("linen") is not None:
        try:
            running = {"linen": references.linen(), "sample_input": references.sample_input()}
        except TargetError as error:
            raise _LinenIsGone(
                f"the plan is not made anew, because its Linen module is gone: {error}"
            ) from error
        running["methods"] = made.get("methods")
    rules = golden.path / RULES
    return planning.plan(
        checkpoint,
        model=model(),
        tx=tx(),
        rules=rules if made.get("rules") else None,
        at=made.get("at"),
        seed=made.get("seed", 0),
        rngs=made.get("rngs", "keep"),
        allow_order=made.get("allow_order", False),
        **running,
    )


def _output(
    report: Report,
    golden: Golden,
    plan: Plan,
    digests: Mapping[str, Mapping[str, Any]],
    leaves: Mapping[str, Leaf] | None,
    scratch: Path,
) -> Output | None:
    if leaves is None:
        return None
    try:
        done = golden.convert(scratch / "out", verify="fast")
        output = Output(legacy.open(done.output), plan)
    except (BridgeError, LegacyError) as error:
        report.add("output", f"the stored plan cannot be carried out: {error}")
        return None
    found = output_leaves(output)
    now = records(found)
    known = known_values(records(leaves), leaves, "leaf")
    known = {**known_values(now, found, "today's"), **known}
    report.add("output", *changed_leaves(digests["target"], now, found, known))
    report.looked.append(f"{len(now):,} leaves of the output")
    return output


def output_leaves(output: Output) -> dict[str, Leaf]:
    """All leaves of a converted checkpoint by the names of their slots, or item and path."""
    slots = {place: str(ref) for ref, place in output.places.items()}
    return {
        slots.get((item, path), f"{item}:{format_path(path)}"): leaf
        for item, table in output.checkpoint.items.items()
        for path, leaf in table.items()
    }


def _behaviour(report: Report, given: _Given, output: Output | None, *, fits: bool) -> None:
    if not given.golden.document.get("outputs"):
        return
    if output is None or not fits:
        report.notes.append("the outputs of the model were not compared, because of the above")
        return
    from bridge.golden_run import compare_outputs  # noqa: PLC0415 - loads jax

    recorded = given.golden.document["outputs"]
    report.add("behaviour", *compare_outputs(given.golden, given.plan, given.model(), output))
    number = sum(call["outputs"] for call in recorded["calls"])
    who = "Linen" if recorded["from"] == "linen" else "the model"
    report.looked.append(f"{count(number, 'output')} of {who}")
