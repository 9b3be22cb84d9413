"""Says of a finished plan how its models behave: the same, or where and why they do not.

What fingerprints proved needs no second look, only a word on constructor arguments that outputs in
evaluation mode do not show. What names or rules said is tried out: random numbers in every leaf,
carried over as the plan says, must give both models the same outputs. The plan stands either way;
a rewrite may behave otherwise on purpose, and that is for its author to know.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bridge._boxes import axis_names, box_differences, names_in
from bridge._plan import Plan
from bridge.apply import initial_value
from bridge.behaviour import behaviour_warnings
from bridge.forward import check
from bridge.probes import Model, linen_variables
from bridge.target import SlotRef
from bridge.transforms import DropZero, apply_all
from bridge.twins import Twin, twins
from legacy import LeafPath, LeafTable

__all__ = ["confirm"]

_MOST_BYTES = 1 << 29
"""Of parameters; above this a look at constructor arguments has to do."""


def confirm(
    plan: Plan,
    table: LeafTable,
    *,
    model: Any,
    linen: Any,
    sample_input: Any,
    methods: Any,
    proven: Collection[str],
    uncompared: Collection[str] = (),
) -> tuple[str, ...]:
    """What there is to know about the behaviour of the models of a plan.

    Args:
        plan: a finished plan; problems are no hindrance, but an item that has some is not run.
        table: the leaves of the source; none is read.
        model: see :func:`bridge.plan`.
        linen: see :func:`bridge.plan`.
        sample_input: see :func:`bridge.plan`.
        methods: see :func:`bridge.plan`.
        proven: items whose whole mapping fingerprints have proven.
        uncompared: items that cannot be run on the same footing.

    Returns:
        Sentences for ``Plan.warnings``.
    """
    told: list[str] = []
    open_items = {ref.item for problem in plan.problems for ref in problem.slots}
    open_leaves = {path for problem in plan.problems for path in problem.sources}
    found = twins(table, plan, model=model, linen=linen, sample_input=sample_input, methods=methods)
    for twin in found:
        models = twin.models(table)
        told += _boxes(twin)
        whole = twin.item not in open_items and open_leaves.isdisjoint(twin.full.values())
        small = sum(s.size * s.dtype.itemsize for s in models[0].specs.values()) <= _MOST_BYTES
        if twin.item in {*proven, *uncompared} or not whole or not small:
            told += behaviour_warnings(models[0], twin.make, twin.pairs())
            continue
        values = _random(models[0], _zeros(twin))
        forward = check(twin, models, values, _carried(twin, plan, values))
        name = "" if len(found) == 1 else f"{twin.item}: "
        verdict = "mapped, same behaviour" if forward.same else "mapped, behaviour differs"
        told.append(f"{name}{verdict} (both models run with random parameters): {forward}")
    return tuple(dict.fromkeys(told))


def _boxes(twin: Twin) -> list[str]:
    """Axes that the two models name differently."""
    names = names_in(linen_variables(twin.linen, twin.probes[0]))
    ours = {twin.full[path]: found for path, found in names.items() if path in twin.full}
    with nnx.use_eager_sharding(False):
        model = nnx.eval_shape(lambda: twin.make())  # noqa: PLW0108 - as in bridge.behaviour
    theirs = {
        SlotRef(twin.item, (*twin.prefix, *path)): found
        for path, found in axis_names(model).items()
    }
    return box_differences(twin.steps, ours, theirs) if ours or theirs else []


def _zeros(twin: Twin) -> frozenset[LeafPath]:
    """Variables that the plan leaves behind because they are zero."""
    short = {full: path for path, full in twin.full.items()}
    dropping = (s for s in twin.steps if any(isinstance(t, DropZero) for t in s.transforms))
    return frozenset(short[s.sources[-1]] for s in dropping if s.sources[-1] in short)


def _random(model: Model, zeros: Collection[LeafPath]) -> dict[LeafPath, Any]:
    """Numbers of a likely size in every leaf, so that a deep model neither dies nor explodes."""
    found = {}
    for path, spec in model.specs.items():
        rng = np.random.default_rng(zlib.crc32(repr(path).encode()))
        if path in zeros or not jnp.issubdtype(spec.dtype, jnp.inexact):
            found[path] = jnp.zeros(spec.shape, spec.dtype)
            continue
        width = np.prod(spec.shape[:-1]) if len(spec.shape) > 1 else 1.0
        value = rng.normal(size=spec.shape) / max(float(width), 1.0) ** 0.5
        if path[-1] in ("var", "scale"):
            value = 1.0 + 0.1 * np.tanh(value)
        elif len(spec.shape) <= 1:
            value = 0.1 * value
        found[path] = jnp.asarray(value, spec.dtype)
    return found


def _carried(twin: Twin, plan: Plan, values: Mapping[LeafPath, Any]) -> dict[tuple[str, ...], Any]:
    """The same numbers where the plan puts them."""
    n = len(twin.prefix)
    short = {full: path for path, full in twin.full.items()}
    found: dict[tuple[str, ...], Any] = {}
    for step in twin.steps:
        names = [short.get(path) for path in step.sources]
        if all(name in values for name in names):
            arrays = [np.asarray(values[name]) for name in names if name is not None]
            made = apply_all(step.transforms, arrays)
            found |= {ref.path[n:]: x for ref, x in zip(step.slots, made, strict=True)}
    slots = {s.ref: s for s in plan.target.slots if s.item == twin.item}
    for init in plan.initialised:
        slot = slots.get(init.slot)
        if slot is not None and slot.key_impl is None and not slot.ephemeral:
            found[slot.path[n:]] = initial_value(init, slot)
    return {path: jax.device_put(x) for path, x in found.items()}
