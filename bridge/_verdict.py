"""What a verification says: a value that can be stored with the output and printed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from bridge.behaviour_values import Forward, Training, worst
from bridge.errors import BridgeError, VerifyFailed
from bridge.target import SlotRef
from legacy import LeafPath

__all__ = ["LEVELS", "RUNGS", "Behaviour", "Difference", "Level", "Verdict", "check_level"]

Level = Literal["full", "values", "fast", "none"]
"""``full`` climbs to rung d; ``values`` reads everything and stops before Orbax; ``fast`` reads a
part of the arrays; ``none`` looks at nothing."""

Behaviour = Literal["same", "noise", "differs", "unchecked"]
"""``same``: bit for bit; ``noise``: apart by rounding only."""

LEVELS: tuple[str, ...] = get_args(Level)

RUNGS: Mapping[str, str] = {
    "a": "structure",
    "b": "shapes and dtypes",
    "c": "every value bit for bit",
    "d": "restored by Orbax",
    "e": "same outputs",
    "f": "same training",
}
"""The ladder; each rung stands on the ones before."""


def check_level(level: str) -> None:
    """Refuse a level that does not exist.

    Raises:
        BridgeError: ``level`` is none of :data:`LEVELS`.

    >>> check_level("full")
    """
    if level not in LEVELS:
        raise BridgeError(f"verify level {level!r}: expected one of {', '.join(LEVELS)}.")


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that the output holds otherwise than the plan promised.

    Attributes:
        rung: the rung that found it.
        message: one sentence with the place and both values.
        slot: the slot concerned; None for something that no slot of the plan names.
        sources: the source leaves that feed it.
    """

    rung: str
    message: str
    slot: SlotRef | None = None
    sources: tuple[LeafPath, ...] = ()

    def __str__(self) -> str:
        return f"({self.rung}) {self.message}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far an output was verified, and everything that was found.

    Attributes:
        level: what was asked for.
        rung: the last rung of the ladder that holds; empty when nothing was checked or the
            structure is already wrong.
        problems: every difference.
        slots: slots of the plan.
        compared: slots whose values were compared bit for bit with the source.
        sampled: further slots that are stored as they were in the source, and of whose stored
            bytes a part was compared (level ``fast``).
        nbytes: bytes so compared.
        seconds: how long it took.
        digest: SHA-256 over the SHA-256 of every compared value, by slot.
        forward: what both models gave, for each item whose Linen module was given (rung e).
        training: how both trained, for each item that was trained (rung f).
    """

    level: str
    rung: str
    problems: tuple[Difference, ...] = ()
    slots: int = 0
    compared: int = 0
    nbytes: int = 0
    seconds: float = 0.0
    digest: str = ""
    forward: tuple[Forward, ...] = ()
    training: tuple[Training, ...] = ()
    sampled: int = 0

    @property
    def ok(self) -> bool:
        """Whether the output holds what the plan promised; true for level ``none``.

        Rungs a to d decide: a model that was rewritten otherwise takes nothing from the values.
        """
        return not self.problems

    @property
    def behaviour(self) -> Behaviour:
        """Whether both models do the same with these values: rungs e and f together."""
        states = [f.state for f in self.forward] + [t.state for t in self.training]
        if states and all(s == "unchecked" for s in states):
            return "unchecked"
        state = worst(s for s in states if s != "unchecked")
        return "same" if state == "bit-equal" else state

    def with_behaviour(
        self, forward: tuple[Forward, ...], training: tuple[Training, ...] = ()
    ) -> Verdict:
        """The same verdict with what running both models said; it may climb to rung f.

        >>> Verdict("full", "d").with_behaviour((Forward("model"),)).rung
        'd'
        """
        rung = self.rung
        if rung == "d" and forward and all(f.same for f in forward):
            rung = "e"
        if rung == "e" and training and all(t.same for t in training):
            rung = "f"
        return replace(self, rung=rung, forward=forward, training=training)

    def behaviour_lines(self) -> list[str]:
        """What rungs e and f said, a line for each item and rung."""
        head = "mapped, behaviour differs: " if self.behaviour == "differs" else ""
        both: list[Forward | Training] = [*self.forward, *self.training]
        return [f"{head if f.state == 'differs' else ''}{f.item}: {f}" for f in both]

    def require_ok(self) -> Verdict:
        """Return itself, or raise with every difference.

        Raises:
            VerifyFailed: there are differences.

        >>> Verdict("none", "").require_ok().rung
        ''
        """
        if self.problems:
            raise VerifyFailed(str(self), problems=self.problems)
        return self

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as they are stored with the output."""
        return {
            "ok": self.ok,
            "level": self.level,
            "rung": self.rung,
            "slots": self.slots,
            "compared": self.compared,
            "sampled": self.sampled,
            "nbytes": self.nbytes,
            "seconds": round(self.seconds, 3),
            "digest": self.digest,
            "problems": [
                {
                    "rung": p.rung,
                    "message": p.message,
                    "slot": None if p.slot is None else [p.slot.item, *p.slot.path],
                    "sources": [list(s) for s in p.sources],
                }
                for p in self.problems
            ],
            "behaviour": self.behaviour,
            "forward": [f.to_json() for f in self.forward],
            "training": [t.to_json() for t in self.training],
        }

    def __str__(self) -> str:
        from bridge.report_outcome import verdict_text  # noqa: PLC0415 - the report needs Verdict

        return verdict_text(self)
