"""What running both models said: values that can be stored with a verdict and printed. No JAX."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from bridge._bits import Measure

__all__ = ["Compared", "Forward", "State", "Training", "worst"]

State: TypeAlias = Literal["bit-equal", "noise", "differs", "unchecked"]
"""``noise``: apart by no more than the rounding of one more run would be."""

_ORDER: tuple[State, ...] = ("bit-equal", "noise", "unchecked", "differs")


def worst(states: Iterable[State]) -> State:
    """The state of all together; of none, ``unchecked``.

    >>> worst(["bit-equal", "noise"]), worst([])
    ('noise', 'unchecked')
    """
    found = list(states)
    return max(found, key=_ORDER.index) if found else "unchecked"


@dataclass(frozen=True, slots=True)
class Compared:
    """One array of both sides.

    Attributes:
        name: which: an output of a call, or a path.
        measure: how far the two are apart.
        scale: the largest magnitude on the Linen side; ``measure.max_abs / scale`` is relative.
        state: the verdict on it.
        note: what else there is to say, such as unequal dtypes.
    """

    name: str
    measure: Measure
    scale: float
    state: State
    note: str = ""

    @property
    def relative(self) -> float:
        """The largest difference in relation to the largest value."""
        return self.measure.max_abs / self.scale if self.scale else self.measure.max_abs

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "state": self.state,
            "relative": self.relative,
            "note": self.note,
            **self.measure.to_json(),
        }

    def __str__(self) -> str:
        said = f"{self.name}: {self.note}" if self.note else self.name
        if not self.measure.differing:
            return said
        text = f"{said} {'; ' if self.note else ''}max abs {self.measure.max_abs:.2g}"
        if self.measure.max_ulp is not None:
            text += f", {self.measure.max_ulp:,} ulp"
        text += f", {self.relative:.2g} of the largest value"
        return text + (f", {self.measure.nonfinite:,} not finite" if self.measure.nonfinite else "")


@dataclass(frozen=True, slots=True)
class Forward:
    """What came of calling both models of one item with the checkpoint's values.

    Attributes:
        item: the item.
        outputs: every output of every call.
        noise: how far Linen's own jitted outputs are from its eager ones, in relation to the
            largest value.
        exact: the relative difference in float64, where everything could be computed in it: what
            is rounding shrinks there, what is not stays.
        parted: where the models first part; empty when they do not.
        reasons: constructor arguments that differ, as sentences.
        note: why there is nothing to say, for ``unchecked``.
    """

    item: str
    outputs: tuple[Compared, ...] = ()
    noise: float = 0.0
    exact: float | None = None
    parted: str = ""
    reasons: tuple[str, ...] = ()
    note: str = ""

    @property
    def state(self) -> State:
        """The worst of all outputs."""
        return worst(o.state for o in self.outputs)

    @property
    def same(self) -> bool:
        """Whether both compute the same, up to rounding."""
        return self.state in ("bit-equal", "noise")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "item": self.item,
            "state": self.state,
            "outputs": [o.to_json() for o in self.outputs],
            "noise": self.noise,
            "exact": self.exact,
            "parted": self.parted,
            "reasons": list(self.reasons),
            "note": self.note,
        }

    def __str__(self) -> str:
        if self.note:
            return f"outputs not compared: {self.note}"
        n = len(self.outputs)
        all_of = "the output" if n == 1 else f"all {n} outputs"
        because = "".join(f". {reason}" for reason in self.reasons)
        if self.state == "bit-equal":
            return f"{all_of} bit-equal, jitted and eager{because}"
        bad = [o for o in self.outputs if o.state == self.state]
        far = max(bad, key=lambda o: (bool(o.note), o.relative))
        if self.state == "noise":
            text = f"{all_of} equal up to rounding ({far}"
            text += f"; {self.exact:.1g} in float64)" if self.exact is not None else ")"
            return text + because
        text = f"outputs differ: {far}"
        text += f"; {self.exact:.2g} in float64" if self.exact else ""
        text += f"; Linen's own noise {self.noise:.1g}"
        text += f". {self.parted[0].upper()}{self.parted[1:]}" if self.parted else ""
        return text + because


@dataclass(frozen=True, slots=True)
class Training:
    """What came of training both sides from the restored state.

    Attributes:
        item: the model's item.
        steps: for each step, the arrays that are not bit-equal; parameters, other collections and
            optimizer state alike.
        compared: arrays compared in each step.
        states: the verdict on each step.
        exact: as in :class:`Forward`, after the last step.
        idle: parameters without effect on the loss: their gradient is rounding noise, which an
            adaptive optimizer makes large, so they are reported and not judged.
        left_out: what could not be compared, and why.
        note: why there is nothing to say, for ``unchecked``.
    """

    item: str
    steps: tuple[tuple[Compared, ...], ...] = ()
    compared: int = 0
    states: tuple[State, ...] = ()
    exact: float | None = None
    idle: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    note: str = ""

    @property
    def state(self) -> State:
        """The worst of all steps."""
        return worst(self.states)

    @property
    def same(self) -> bool:
        """Whether both trained alike, up to rounding."""
        return self.state in ("bit-equal", "noise")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "item": self.item,
            "state": self.state,
            "steps": [
                {"state": state, "apart": [c.to_json() for c in step]}
                for state, step in zip(self.states, self.steps, strict=True)
            ],
            "compared": self.compared,
            "exact": self.exact,
            "idle": list(self.idle),
            "left_out": list(self.left_out),
            "note": self.note,
        }

    def __str__(self) -> str:
        if self.note:
            return f"training not compared: {self.note}"
        k = len(self.steps)
        head = f"{k} training step{'s' if k > 1 else ''}, {self.compared:,} arrays each"
        text = f"{head}: {self._said()}"
        if self.idle:
            text += f"; without effect on the loss, not judged: {_some(self.idle)}"
        return text + (f"; not compared: {_some(self.left_out)}" if self.left_out else "")

    def _said(self) -> str:
        if self.state == "bit-equal":
            return "bit-equal"
        at = next(n for n, s in enumerate(self.states) if s == self.state)
        bad = [c for c in self.steps[at] if c.state == self.state]
        far = max(bad, key=lambda c: c.relative)
        if self.state == "noise":
            exact = f"; {self.exact:.1g} in float64" if self.exact is not None else ""
            return f"equal up to rounding ({far}{exact})"
        shown = f"{len(bad)} arrays differ from step {at + 1} on, most of all {far}"
        return shown + (f"; {self.exact:.2g} in float64" if self.exact else "")


_SHOWN = 3


def _some(names: tuple[str, ...]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
