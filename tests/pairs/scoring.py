"""Scores a plan leaf by leaf against the truth of a pair.

Nothing here knows how the bridge pairs: what a slot must hold comes from the truth, applied to the
params and to everything in the optimizer state that has their structure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import Any

import jax
import numpy as np

import bridge
import legacy
from bridge.apply import step_values

from .pair import Path

EMPTY = ("none", "empty")
KEPT = ("extras", "metadata")


@dataclass(frozen=True)
class Score:
    """How many source leaves went where they belong.

    Attributes:
        right: leaves all of whose slots hold what the truth says, or that it leaves behind.
        refused: leaves that are in a problem.
        wrong: what is wrong, as text: a slot with other values than the truth says, a leaf that
            was left behind though it has a slot, a slot without a source that got one.
        missing: leaves and slots that the plan says nothing about.
        open_slots: slots in a problem.
        notes: the problems.
        why: how often each reason was given.
    """

    right: int
    refused: int
    wrong: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    open_slots: int = 0
    notes: tuple[str, ...] = ()
    why: Mapping[str, int] = field(default_factory=dict)

    @property
    def leaves(self) -> int:
        """All leaves that were scored."""
        return self.right + self.refused + len(self.wrong) + len(self.missing)

    @property
    def complete(self) -> bool:
        """Whether everything is where it belongs."""
        return not (self.refused or self.wrong or self.missing or self.open_slots)


def score(plan: bridge.Plan, made: Any, path: File) -> Score:
    """Hold every leaf and every slot of a plan against the truth; the best symmetry counts.

    Args:
        plan: how the checkpoint is mapped.
        made: the state in memory, a ``harness.Made``.
        path: where it was written.
    """
    leaves = legacy.open(path).leaves
    slots = {slot.ref: slot for slot in plan.target.slots}
    results = [(step, step_values(step, leaves, slots)) for step in plan.steps]
    scores = [_score(plan, made.pair, leaves, results, t) for t in expected(made)]
    return min(scores, key=lambda s: (len(s.wrong), len(s.missing)))


def expected(made: Any) -> list[dict[tuple[str, Path], Any]]:
    """Values by item and slot path; one dict for each symmetry, the plain truth first."""
    return [_expected(made, s) for s in ((lambda v: v), *made.pair.symmetries)]


def _expected(made, symmetry):
    pair, found = made.pair, {}
    others = {c: t for c, t in made.variables.items() if c != "params"}
    for path, value in pair.truth(symmetry(made.variables)).items():
        found["model", path] = value
    ends = [path for _, path in found]
    shape = jax.tree.structure(made.variables["params"])

    def walk(node, path):
        if isinstance(node, Mapping) and node and jax.tree.structure(node) == shape:
            function = {"mu": pair.mu, "trace": pair.mu, "nu": pair.nu}.get(path[-1])
            values = (function or pair.truth)(symmetry({**others, "params": node}))
            for end in ends:
                found["optimizer", (*path, *end)] = values[end]
        elif isinstance(node, Mapping):
            for key, below in node.items():
                walk(below, (*path, key))
        else:
            found["optimizer", path] = node

    walk(made.opt_state, ("opt_state",))
    found["optimizer", ("step",)] = np.asarray(made.step, np.uint32)
    return found


def _score(plan, pair, leaves, results, truth):
    stuck = {r for p in plan.problems for r in p.slots}
    wrong, missing = _slots_amiss(plan, truth, stuck)
    bad = _bad_sources(results, pair, truth)
    mapped = {p for s in plan.steps for p in s.sources}
    refused = {p for problem in plan.problems for p in problem.sources}
    ignored = {i.path: i.rule for i in plan.ignored}
    right = asked = 0
    for source, leaf in leaves.items():
        if leaf.kind in EMPTY:
            continue
        if source in bad:
            wrong.append(bad[source])
        elif source in refused:
            asked += 1
        elif source in mapped or (source in ignored and _may_go(source, pair, ignored[source])):
            right += 1
        elif source in ignored:
            wrong.append(f"{_name(source)} was left behind by {ignored[source]}")
        else:
            missing.append(f"leaf {_name(source)}")
    why: dict[str, int] = {}
    for step in plan.steps:
        why[step.why] = why.get(step.why, 0) + len(step.slots)
    notes = tuple(str(p) for p in plan.problems)
    return Score(right, asked, tuple(wrong), tuple(missing), len(stuck), notes, why)


def _bad_sources(results, pair, truth):
    """Leaves that feed a slot which should hold something else, with words for it."""
    bad: dict[Path, str] = {}
    for step, values in results:
        for ref, value in zip(step.slots, values, strict=True):
            text = f"{' + '.join(_name(s) for s in step.sources)} -> {ref} ({step.why})"
            if ref.item in KEPT:
                bad |= {s: text for s in step.sources if not _is_unused(s, pair)}
                continue
            want = truth.get((ref.item, ref.path))
            if want is None or not same(want, value):
                bad |= dict.fromkeys(step.sources, text)
    return bad


def _slots_amiss(plan, truth, stuck):
    """Slots that were initialised though they have a source, and those without an account."""
    wrong, missing = [], []
    filled = {r for s in plan.steps for r in s.slots}
    fresh = {i.slot: i.rule for i in plan.initialised}
    for slot in plan.target.slots:
        if slot.ref in fresh:
            if not slot.ephemeral and (slot.item, slot.path) in truth:
                wrong.append(f"{slot.ref} has a source, but was initialised by {fresh[slot.ref]}")
        elif slot.ref not in stuck and slot.ref not in filled:
            missing.append(f"slot {slot.ref}")
    return wrong, missing


def same(a: Any, b: Any) -> bool:
    """Equal in every bit, shape and dtype."""
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def _name(path) -> str:
    return legacy.format_path(path)


def _may_go(source, pair, rule) -> bool:
    """Whether the truth has no place for a leaf, or for the parameter whose moment it is."""
    return _is_unused(source, pair) or rule == "moments-of-a-buffer"


def _is_unused(source, pair) -> bool:
    return any(source == u or source[-len(u) + 1 :] == u[1:] for u in pair.unused)
