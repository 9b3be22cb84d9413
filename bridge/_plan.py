"""The plan: a frozen value that says where every leaf goes and why.

It is made from structure alone, printed for review, stored as JSON, and applied to every
checkpoint of the same signature. Making one is the business of :mod:`bridge.planning`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge.errors import BridgeError, PlanProblems
from bridge.target import SlotRef, Target
from bridge.transforms import Transform, transform_from_json
from legacy import LeafPath, format_path

__all__ = ["Ignored", "Initialised", "Plan", "Problem", "Step", "read_plan"]

PLAN_VERSION = 1


@dataclass(frozen=True, slots=True)
class Step:
    """Some source leaves become some slots.

    Attributes:
        sources: paths in ``Checkpoint.leaves``.
        slots: where the results go, in order.
        transforms: applied in order to the tuple of arrays; none means a plain copy.
        why: ``rule:<code>``, ``path``, ``unique``, ``fingerprint`` or ``order``.
    """

    sources: tuple[LeafPath, ...]
    slots: tuple[SlotRef, ...]
    transforms: tuple[Transform, ...] = ()
    why: str = "path"


@dataclass(frozen=True, slots=True)
class Ignored:
    """A source leaf that a named rule leaves behind."""

    path: LeafPath
    rule: str


@dataclass(frozen=True, slots=True)
class Initialised:
    """A slot that no source feeds.

    ``how`` is ``zeros``, ``ones``, ``rng:<seed>``, a number, ``constant`` (the value that the
    target holds for the slot), or ``pkg.mod:function`` (called with shape, numpy dtype and path).
    """

    slot: SlotRef
    rule: str
    how: str


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that must be settled before anything is written.

    Attributes:
        kind: ``unmatched-source``, ``unfilled-slot``, ``shape``, ``dtype``, ``ambiguous``,
            ``rule``, ``moments`` or ``loss``.
        message: one sentence with both values.
        sources: the source leaves concerned.
        slots: the slots concerned.
        candidates: what it might be, nearest first, in words.
        rule: TOML to paste.
    """

    kind: str
    message: str
    sources: tuple[LeafPath, ...] = ()
    slots: tuple[SlotRef, ...] = ()
    candidates: tuple[str, ...] = ()
    rule: str = ""

    def __str__(self) -> str:
        lines = [f"{self.kind}: {self.message}"]
        lines += [f"  candidate: {c}" for c in self.candidates]
        if self.rule:
            lines += ["  rule to paste:", *(f"    {line}" for line in self.rule.splitlines())]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Plan:
    """Where every source leaf goes and what feeds every slot.

    Attributes:
        steps: the mapped leaves.
        ignored: source leaves left behind by named rules (``rule:empty`` for leaves without data).
        initialised: slots filled by named rules.
        problems: what must be settled first; while there are any, nothing is written.
        target: the slots, so that the plan can be carried out without the model.
        signature: digest of the source structure the plan is for.
        source: what the source was, in words, for people.
        warnings: differences in behaviour that no shape shows.
    """

    steps: tuple[Step, ...]
    ignored: tuple[Ignored, ...]
    initialised: tuple[Initialised, ...]
    problems: tuple[Problem, ...]
    target: Target
    signature: str
    source: str = ""
    warnings: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether it can be carried out."""
        return not self.problems

    def require_ok(self) -> Plan:
        """Return itself, or raise with every problem.

        Raises:
            PlanProblems: there are problems; ``.problems`` has all of them.
        """
        if self.problems:
            shown = "\n".join(str(p) for p in self.problems)
            raise PlanProblems(
                f"{len(self.problems)} problem(s), so nothing is written:\n{shown}",
                problems=self.problems,
            )
        return self

    def digest(self) -> str:
        """SHA-256 of the JSON form, for provenance."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """The stored form; sources are lists of path components.

        >>> empty = Plan((), (), (), (), Target(()), "")
        >>> Plan.from_json(empty.to_json()) == empty
        True
        """
        return json.dumps(
            {
                "version": PLAN_VERSION,
                "source": self.source,
                "signature": self.signature,
                "steps": [
                    {
                        "sources": [list(p) for p in s.sources],
                        "slots": [_ref_json(r) for r in s.slots],
                        "transforms": [t.to_json() for t in s.transforms],
                        "why": s.why,
                    }
                    for s in self.steps
                ],
                "ignored": [{"path": list(i.path), "rule": i.rule} for i in self.ignored],
                "initialised": [
                    {"slot": _ref_json(i.slot), "rule": i.rule, "how": i.how}
                    for i in self.initialised
                ],
                "problems": [
                    {
                        "kind": p.kind,
                        "message": p.message,
                        "sources": [list(s) for s in p.sources],
                        "slots": [_ref_json(r) for r in p.slots],
                        "candidates": list(p.candidates),
                        "rule": p.rule,
                    }
                    for p in self.problems
                ],
                "warnings": list(self.warnings),
                "target": self.target.to_json(),
            },
            ensure_ascii=False,
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a stored plan.

        Raises:
            BridgeError: the text is no plan of a version known here.
        """
        try:
            data = json.loads(text)
            version = data["version"]
        except (ValueError, KeyError, TypeError) as error:
            raise BridgeError(
                f"this is not a stored plan ({error!r}). Make one with `linen2nnx plan -o`."
            ) from error
        if version != PLAN_VERSION:
            raise BridgeError(
                f"the plan has version {version!r}; this release reads version {PLAN_VERSION}. "
                "Make it again with `linen2nnx plan -o`."
            )
        try:
            return cls(
                steps=tuple(
                    Step(
                        sources=tuple(tuple(p) for p in s["sources"]),
                        slots=tuple(_ref(r) for r in s["slots"]),
                        transforms=tuple(transform_from_json(t) for t in s["transforms"]),
                        why=s["why"],
                    )
                    for s in data["steps"]
                ),
                ignored=tuple(Ignored(tuple(i["path"]), i["rule"]) for i in data["ignored"]),
                initialised=tuple(
                    Initialised(_ref(i["slot"]), i["rule"], i["how"]) for i in data["initialised"]
                ),
                problems=tuple(
                    Problem(
                        kind=p["kind"],
                        message=p["message"],
                        sources=tuple(tuple(s) for s in p["sources"]),
                        slots=tuple(_ref(r) for r in p["slots"]),
                        candidates=tuple(p["candidates"]),
                        rule=p["rule"],
                    )
                    for p in data["problems"]
                ),
                target=Target.from_json(data["target"]),
                signature=data["signature"],
                source=data["source"],
                warnings=tuple(data["warnings"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise BridgeError(
                f"the stored plan is damaged ({error!r}). Make it again with `linen2nnx plan -o`."
            ) from error

    def __str__(self) -> str:
        from bridge.report import plan_text  # noqa: PLC0415 - the report needs Plan

        return plan_text(self)


def _ref_json(ref: SlotRef) -> dict[str, Any]:
    return {"item": ref.item, "path": list(ref.path)}


def _ref(data: Mapping[str, Any]) -> SlotRef:
    return SlotRef(str(data["item"]), tuple(str(p) for p in data["path"]))


def describe_sources(step: Step) -> str:
    """The sources of a step as text."""
    return " + ".join(format_path(p) for p in step.sources)


def read_plan(path: str | Path) -> Plan:
    """Read a stored plan from its file.

    Args:
        path: what ``linen2nnx plan -o`` wrote.

    Returns:
        The plan.

    Raises:
        BridgeError: the file cannot be read, or is no plan of a version known here.

    >>> read_plan("no/such/plan.json")
    Traceback (most recent call last):
    bridge.errors.BridgeError: no/such/plan.json: No such file or directory. Give the file that \
`linen2nnx plan -o` wrote.
    """
    try:
        return Plan.from_json(Path(path).read_text("utf-8"))
    except OSError as error:
        raise BridgeError(
            f"{path}: {error.strerror or error}. Give the file that `linen2nnx plan -o` wrote."
        ) from error
    except (BridgeError, ValueError) as error:  # no text at all is a ValueError, too
        raise BridgeError(f"{path}: {error}") from error
