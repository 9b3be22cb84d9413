"""Rung f: both sides, trained from the restored state on the same batch, stay together.

Linen trains as it did: the old optimizer state in the old ``optax`` state, one jitted step after
the other. NNX trains what was restored. After each step everything that the plan maps is compared
through the plan's own transforms. What an optimizer makes of rounding noise cannot be told from a
difference by looking at it, so where the two are apart, both are trained again in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bridge._bits import Measure
from bridge._plan import Plan, Step
from bridge._verify_output import Output
from bridge.behaviour_values import Compared, State, Training, worst
from bridge.errors import BridgeError
from bridge.precision import EXACT, compared, doubles, tolerance
from bridge.training_linen import LinenTrainer
from bridge.training_nnx import NnxTrainer
from bridge.transforms import Cast
from bridge.twins import Twin, twins
from legacy import Checkpoint, LeafPath, format_path
from legacy.errors import LegacyError

__all__ = ["Loss", "training_check"]

Loss = Callable[[tuple[Any, ...]], Any]
"""From all arrays of a model's output, in the order of its tree, to a scalar."""

_IDLE = 1e-6
"""A gradient smaller than this part of the largest is taken for rounding noise."""


def training_check(
    checkpoint: Checkpoint,
    plan: Plan,
    *,
    model: Any,
    linen: Any,
    sample_input: Any,
    tx: Any,
    linen_tx: Any = None,
    steps: int = 3,
    loss: Loss | None = None,
    output: Output | None = None,
) -> tuple[Training, ...]:
    """Train both sides and compare them after every step.

    Args:
        checkpoint: the source.
        plan: what becomes of it.
        model: see :func:`bridge.describe`.
        linen: the Linen module, or several by item name.
        sample_input: how both are called; the first probe is trained on.
        tx: the optax transformation, or several by model name, as in :func:`bridge.plan`.
        linen_tx: the transformation of the old run, where it is spelled otherwise.
        steps: how many.
        loss: from the arrays of the output to a scalar; default: the mean square distance of the
            outputs from fixed random numbers.
        output: a written checkpoint to take the NNX side from; None for what the plan would write.

    Returns:
        One for each item that has a Linen module and an optimizer.

    Raises:
        BridgeError: a model cannot be called in training mode.
        LegacyError: the source or the output cannot be read.
    """
    found = twins(checkpoint.leaves, plan, model=model, linen=linen, sample_input=sample_input)
    results = []
    for twin in found:
        try:
            sides = _Sides(checkpoint, plan, twin, (model, tx, linen_tx), loss, output)
        except (BridgeError, LegacyError) as error:
            results.append(Training(twin.item, note=str(error)))
            continue
        results.append(sides.compare(steps))
    return tuple(results)


class _Sides:
    """Both trainers of one item."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: Plan,
        twin: Twin,
        given: tuple[Any, Any, Any],
        loss: Loss | None,
        output: Output | None,
    ) -> None:
        model, tx, linen_tx = given
        ours, theirs = twin.models(checkpoint.leaves, train=True)
        self.item = twin.item
        self.linen = LinenTrainer(checkpoint, plan, twin, ours, linen_tx or tx, loss or distance)
        self.nnx = NnxTrainer(checkpoint, plan, twin, theirs, (model, tx), loss or distance, output)
        items = {twin.item, self.nnx.item}
        self.steps = [s for s in plan.steps if s.slots[0].item in items]

    def compare(self, k: int) -> Training:
        """Train for k steps, and in float64 if need be."""
        pairs, left_out = self._run(k)
        idle = self.linen.idle(_IDLE)
        plain = [self._compared(p, 0.0) for p in pairs]
        states: list[State] = [worst(c.state for c in found) for found in plain]
        if all(s == "bit-equal" for s in states):
            return self._result(plain, states, None, (), left_out)
        exact = self._exact(k)
        if exact is None:
            limit = self.linen.noise(k) + tolerance(self.linen.width())
            plain = [self._compared(p, limit) for p in pairs]
            states = [worst(c.state for c in f if not _idle(c.name, idle)) for f in plain]
        else:
            apart = [e > EXACT for e in exact]
            plain = [
                self._compared(p, 0.0 if bad else np.inf)
                for p, bad in zip(pairs, apart, strict=True)
            ]
            states = [worst(c.state for c in found) for found in plain]
        last = None if exact is None else max(exact)
        return self._result(plain, states, last, idle if exact is None else (), left_out)

    def _result(
        self,
        found: Sequence[Sequence[Compared]],
        states: Sequence[State],
        exact: float | None,
        idle: tuple[str, ...],
        left_out: tuple[str, ...],
    ) -> Training:
        apart = tuple(tuple(c for c in one if c.state != "bit-equal") for one in found)
        count = len(found[0]) if found else 0
        return Training(self.item, apart, count, tuple(states), exact, idle, left_out)

    def _exact(self, k: int) -> list[float] | None:
        """How far both are apart after each step in float64; None where that cannot be."""
        with doubles():
            try:
                if not (self.linen.wide() and self.nnx.wide()):
                    return None
                pairs, _ = self._run(k, wide=True)
            except Exception:  # noqa: BLE001 - the user's code need not take float64
                return None
            found = [self._compared(p, EXACT) for p in pairs]
        if any(c.note or c.measure.nonfinite for one in found for c in one):
            return None
        return [max((c.relative for c in one), default=0.0) for one in found]

    def _run(
        self, k: int, *, wide: bool = False
    ) -> tuple[list[list[tuple[str, Any, Any]]], tuple[str, ...]]:
        """Name, Linen value and NNX value of every array after each step."""
        found = []
        left_out: dict[str, None] = {}
        both = zip(self.linen.run(k, wide=wide), self.nnx.run(k, wide=wide), strict=True)
        for ours, theirs in both:
            step, missing = self._pairs(ours, theirs)
            found.append(step)
            left_out |= dict.fromkeys(missing)
        return found, tuple(left_out)

    def _pairs(
        self, ours: Mapping[LeafPath, Any], theirs: Mapping[Any, Any]
    ) -> tuple[list[tuple[str, Any, Any]], list[str]]:
        found, missing = [], []
        for step in self.steps:
            name = " + ".join(map(format_path, step.sources))
            if not all(p in ours for p in step.sources) or not all(r in theirs for r in step.slots):
                missing.append(name)
                continue
            values = tuple(np.asarray(ours[p]) for p in step.sources)
            for transform in step.transforms:
                if not isinstance(
                    transform, Cast
                ):  # a counter, or a precision: compared as numbers
                    values = tuple(transform.apply(values))
            for ref, value in zip(step.slots, values, strict=True):
                found.append((str(ref), value, theirs[ref]))
        return found, missing

    @staticmethod
    def _compared(pairs: Sequence[tuple[str, Any, Any]], allowed: float) -> list[Compared]:
        found = []
        for name, a, b in pairs:
            if isinstance(a, str):
                found.append(Compared(name, Measure(), 0.0, "differs", a))
                continue
            ours, theirs = np.asarray(a), np.asarray(b)
            if ours.dtype != theirs.dtype and {ours.dtype.kind, theirs.dtype.kind} <= set("iu"):
                ours, theirs = ours.astype(np.int64), theirs.astype(np.int64)
            found.append(compared(name, ours, theirs, allowed))
        return found


def _carried(step: Step, ours: Mapping[LeafPath, Any]) -> tuple[Any, ...]:
    """What a step of the plan makes of the Linen side's arrays, at their own precision."""
    values = tuple(np.asarray(ours[p]) for p in step.sources)
    for transform in step.transforms:
        if not isinstance(transform, Cast):
            values = tuple(transform.apply(values))
    return values


def _idle(name: str, idle: Sequence[str]) -> bool:
    return any(name.endswith(path) for path in idle)


def distance(outputs: tuple[Any, ...]) -> Any:
    """The default loss: how far outputs are from fixed random numbers, squared, on the mean.

    Raises:
        BridgeError: no output is a float.
    """
    import jax.numpy as jnp  # noqa: PLC0415 - only while tracing

    floats = [x for x in outputs if jnp.issubdtype(x.dtype, jnp.inexact)]
    if not floats:
        raise BridgeError("no output is a float, so there is nothing to train on; give loss=.")
    total = jnp.zeros((), jnp.result_type(*floats, jnp.float32))
    for x in floats:
        # by shape, not by place: the other side may give its outputs in another order
        aim = np.random.default_rng(x.shape).normal(size=x.shape)
        total += jnp.mean(jnp.square(jnp.abs(x - aim.astype(x.dtype))).astype(total.dtype))
    return total
