"""Rung e: both models, called with the checkpoint's values, give the same outputs.

Linen reads the old leaves as they are and NNX what became of them, in evaluation mode, jitted and
(unless the model is large) eager. Where they are apart, float64 tells rounding from difference;
where they differ, :mod:`bridge.parting` says where and :mod:`bridge.behaviour` why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from bridge._plan import Plan
from bridge._verify_output import Output
from bridge.behaviour import behaviour_warnings
from bridge.behaviour_values import Compared, Forward, worst
from bridge.precision import EXACT, Program, compared, doubled, doubles, tolerance
from bridge.probes import Call, Model
from bridge.twins import Twin, concrete, slot_values, twins
from legacy import Checkpoint, LeafPath

__all__ = ["check", "forward_check"]

_EAGER_BYTES = 1 << 28
_EAGER_LEAVES = 400
"""Bytes and number of variables up to which a model is also run eagerly."""


def forward_check(
    checkpoint: Checkpoint,
    plan: Plan,
    *,
    model: Any,
    linen: Any,
    sample_input: Any,
    methods: Any = None,
    output: Output | None = None,
) -> tuple[Forward, ...]:
    """Compare what both models give for the values of a checkpoint.

    Args:
        checkpoint: the source.
        plan: what becomes of it.
        model: see :func:`bridge.describe`.
        linen: the Linen module, or several by item name.
        sample_input: how both are called, see :func:`bridge.probe.probes_of`; a
            ``jax.ShapeDtypeStruct`` stands for random values. Several by item name.
        methods: further methods to call.
        output: a written checkpoint to take the NNX side from; None for what the plan would write.

    Returns:
        One for each item that has a Linen module.

    Raises:
        BridgeError: a model cannot be called.
        TargetError: it is not clear which Linen module belongs to which item.
        LegacyError: the source or the output cannot be read.

    >>> forward_check(checkpoint, plan, model=make, linen=module, sample_input=x)  # doctest: +SKIP
    """
    table = checkpoint.leaves
    found = twins(table, plan, model=model, linen=linen, sample_input=sample_input, methods=methods)
    results = []
    for twin in found:
        ours, theirs = twin.models(table)
        values = slot_values(checkpoint, plan, [twin.item], output)[twin.item]
        n = len(twin.prefix)
        results.append(
            check(
                twin,
                (ours, theirs),
                twin.linen_values(table, ours.specs),
                {path[n:]: x for path, x in values.items() if path[n:] in theirs.specs},
            )
        )
    return tuple(results)


def check(
    twin: Twin,
    models: tuple[Model, Model],
    linen_values: Mapping[LeafPath, Any],
    nnx_values: Mapping[tuple[str, ...], Any],
) -> Forward:
    """Compare both models of one item.

    Args:
        twin: the item.
        models: what :meth:`bridge.twins.Twin.models` gives.
        linen_values: an array for each variable of the Linen side.
        nnx_values: an array for each slot of the NNX side.
    """
    pairs = zip(models[0].calls, models[1].calls, strict=True)
    sides = _Sides(dict(linen_values), dict(nnx_values), pairs)
    calls = range(len(sides.pairs))
    small = sum(getattr(x, "nbytes", 0) for x in linen_values.values()) <= _EAGER_BYTES
    eager = small and len(linen_values) <= _EAGER_LEAVES
    jitted = [sides.outputs(n, jit=True) for n in calls]
    direct = [sides.outputs(n, jit=False) for n in calls] if eager else jitted
    orders = [_order(jitted[n], sides.tolerance(n)) for n in calls]
    jitted = [_reordered(both, order) for both, order in zip(jitted, orders, strict=True)]
    direct = [_reordered(both, order) for both, order in zip(direct, orders, strict=True)]
    plain = all(c.state == "bit-equal" for both in (*jitted, *direct) for c in _all(both))
    exact = None if plain else sides.exact(orders)
    found: list[Compared] = []
    noise = 0.0
    for n in calls:
        name = _name(sides.pairs[n][0])
        own = max((c.relative for c in _all((jitted[n][0], direct[n][0]))), default=0.0)
        noise = max(noise, own)
        if exact is not None:
            limits = [np.inf if apart <= EXACT else 0.0 for apart in exact[n]]
        else:
            limits = [0.0 if plain else max(sides.tolerance(n), 2 * own)] * len(jitted[n][0])
        modes = zip(_all(jitted[n], name, limits), _all(direct[n], name, limits), strict=True)
        found += [a if worst([a.state, b.state]) == a.state else b for a, b in modes]
    last = None if exact is None else max((x for one in exact for x in one), default=0.0)
    reasons = behaviour_warnings(models[0], twin.make, twin.pairs())
    reasons += tuple(
        f"NNX gives {_name(pair[0])} parts in another order: {', '.join(map(str, order))}"
        for pair, order in zip(sides.pairs, orders, strict=True)
        if order != sorted(order)
    )
    result = Forward(twin.item, tuple(found), noise, last, "", reasons)
    if result.same:
        return result
    from bridge.parting import part  # noqa: PLC0415 - only where they differ

    at = next((n for n, p in enumerate(sides.pairs) if not _same(found, _name(p[0]))), 0)
    parted = part(
        twin.linen,
        twin.make,
        sides.pairs[at][0].probe,
        linen_values,
        nnx_values,
        pairs=twin.pairs(),
        slots=twin.slots,
        double=exact is not None,
    )
    return replace(result, parted=parted)


def _order(both: Sequence[Sequence[Any]], limit: float) -> list[int]:
    """Which NNX output is which Linen output: a dict on one side is sorted by its names.

    Only where they do not agree as they come, and one other order makes all of them agree.
    """
    ours, theirs = both
    plain = list(range(len(theirs)))
    if len(ours) != len(theirs) or all(
        c.state != "differs" for c in _all(both, "", [limit] * len(ours))
    ):
        return plain
    found: list[int] = []
    for a in ours:
        same = [k for k, b in enumerate(theirs) if compared("", a, b, limit).state != "differs"]
        if len(same) != 1 or same[0] in found:
            return plain
        found.append(same[0])
    return found


def _reordered(both: Sequence[Sequence[Any]], order: Sequence[int]) -> list[Sequence[Any]]:
    ours, theirs = both
    return [ours, [theirs[k] for k in order]]


def _same(found: Sequence[Compared], name: str) -> bool:
    return all(c.state != "differs" for c in found if c.name.startswith(name))


def _name(call: Call) -> str:
    method = call.probe.method
    name = method if isinstance(method, str) else getattr(method, "__name__", "")
    return f"{name} output" if name else "output"


def _all(
    both: Sequence[Sequence[Any]], name: str = "output", allowed: Sequence[float] = ()
) -> list[Compared]:
    """Output by output; one more on one side is a difference."""
    ours, theirs = both
    if len(ours) != len(theirs):
        from bridge._bits import Measure  # noqa: PLC0415 - rare

        note = f"{len(ours)} arrays in Linen and {len(theirs)} in NNX"
        return [Compared(f"{name}s", Measure(), 0.0, "differs", note)]
    one = len(ours) == 1
    return [
        compared(name if one else f"{name} {n}", a, b, allowed[n] if allowed else 0.0)
        for n, (a, b) in enumerate(zip(ours, theirs, strict=True))
    ]


class _Sides:
    """Both sides of every call, at the precision of the model and at twice it."""

    def __init__(
        self,
        linen_values: dict[LeafPath, Any],
        nnx_values: dict[tuple[str, ...], Any],
        pairs: Any,
    ) -> None:
        self._values = (linen_values, nnx_values)
        self.pairs: list[tuple[Call, Call]] = list(pairs)
        self._inputs = [tuple(concrete(c.inputs) for c in pair) for pair in self.pairs]
        self._programs = [
            [tuple(Program(_outputs_of(c)) for c in pair) for _ in range(2)] for pair in self.pairs
        ]

    def outputs(self, n: int, *, jit: bool) -> list[Sequence[Any]]:
        """The outputs of both in one call."""
        direct = [_outputs_of(c) for c in self.pairs[n]]
        functions: Sequence[Callable[..., Any]] = self._programs[n][0] if jit else direct
        return [f(*args) for f, args in zip(functions, self._arguments(n), strict=True)]

    def _arguments(self, n: int, *, wide: bool = False) -> list[tuple[Any, ...]]:
        found = list(zip(self._values, self._inputs[n], strict=True))
        return jax.tree.map(doubled, found) if wide else found

    def tolerance(self, n: int) -> float:
        """What the narrowest dtype on either side allows."""
        both = zip(self._programs[n][0], self._arguments(n), strict=True)
        return max(tolerance(program.narrowest(*args)) for program, args in both)

    def exact(self, orders: Sequence[Sequence[int]]) -> list[list[float]] | None:
        """How far each output of each call is apart in float64.

        None where the models do not compute in it.
        """
        apart = []
        with doubles():
            for n in range(len(self.pairs)):
                both = list(zip(self._programs[n][1], self._arguments(n, wide=True), strict=True))
                try:
                    if not all(program.wide(*args) for program, args in both):
                        return None
                    outputs = [program(*args) for program, args in both]
                    found = _all(_reordered(outputs, orders[n]))
                except Exception:  # noqa: BLE001 - the user's code need not take float64
                    return None
                if any(c.note or c.measure.nonfinite for c in found):
                    return None
                apart.append([c.relative for c in found])
        return apart


def _outputs_of(call: Call) -> Callable[..., tuple[Any, ...]]:
    return lambda values, inputs: call.run(values, inputs).outputs
