"""Both models of an item, with the values of a checkpoint in them.

The Linen side gets the leaves of the checkpoint as they are; the NNX side gets what the plan makes
of them, or what a written checkpoint holds. What both then do is compared elsewhere.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridge._place import put
from bridge._plan import Plan, Step
from bridge._verify_output import Output
from bridge.apply import initial_value, step_values
from bridge.claims import canonical
from bridge.errors import BridgeError
from bridge.feeds import feeds, model_items
from bridge.items import live
from bridge.probe import Probe, by_item
from bridge.probes import (
    Model,
    leaf_specs,
    linen_model,
    linen_of,
    nnx_model,
    probes_for,
    require_calls,
)
from bridge.roles import find_roles
from bridge.target import SlotPath, SlotRef
from legacy import Checkpoint, LeafPath, LeafTable, format_path

__all__ = ["Twin", "concrete", "slot_values", "twins"]

_OPT_STATE = "opt_state"
_INTEGERS = 2
"""Random integers are 0 or 1: in range for every vocabulary."""


@dataclass(frozen=True, slots=True, eq=False)
class Twin:
    """One item with its two models.

    Attributes:
        item: its name.
        prefix: where the model lies in the item.
        full: the path in the checkpoint of each variable path (collection first).
        linen: the Linen module.
        make: what makes a live NNX module.
        probes: how both are called.
        steps: the steps of the plan that feed the model.
        slots: paths of its slots below the model.
    """

    item: str
    prefix: SlotPath
    full: Mapping[LeafPath, LeafPath]
    linen: Any
    make: Callable[[], Any]
    probes: tuple[Probe, ...]
    steps: tuple[Step, ...]
    slots: tuple[SlotPath, ...]

    def models(self, table: LeafTable, *, train: bool = False) -> tuple[Model, Model]:
        """Both models as functions; with ``train`` only the first probe, in training mode.

        Raises:
            BridgeError: one of them cannot be called with the sample input, or the Linen module
                is not that of the checkpoint.
        """
        probes = (replace(self.probes[0], train=True),) if train else self.probes
        ours = linen_model(self.linen, probes, leaf_specs(table, self.full))
        theirs = nnx_model(self.make, probes, self.slots)
        require_calls(ours, theirs)
        return ours, theirs

    def linen_values(self, table: LeafTable, paths: Iterable[LeafPath]) -> dict[LeafPath, Any]:
        """The leaves of the checkpoint by variable path."""
        return {path: jnp.asarray(table[self.full[path]].read()) for path in paths}

    def pairs(self) -> tuple[tuple[tuple[LeafPath, ...], tuple[SlotPath, ...]], ...]:
        """What is mapped to what: variable paths and slot paths below the model."""
        short = {full: path for path, full in self.full.items()}
        n = len(self.prefix)
        return tuple(
            (tuple(short[p] for p in s.sources), tuple(r.path[n:] for r in s.slots))
            for s in self.steps
            if all(p in short for p in s.sources)
        )


def twins(
    table: LeafTable, plan: Plan, *, model: Any, linen: Any, sample_input: Any, methods: Any = None
) -> tuple[Twin, ...]:
    """Bring both models of each item together.

    Args:
        table: the leaves of the source.
        plan: what feeds what.
        model: see :func:`bridge.describe`.
        linen: the Linen module, or several by item name.
        sample_input: see :func:`bridge.probe.probes_of`, or several by item name.
        methods: see the same.

    Returns:
        One for each item whose Linen module is known.

    Raises:
        BridgeError: nothing says how a model is called, or what feeds an item cannot be told.
        TargetError: it is not clear which Linen module belongs to which item.
    """
    makers = live(model)
    items = {i: p for i, p in model_items(plan.target).items() if i in makers}
    if not items:
        raise BridgeError(
            f"the plan has the items {', '.join(plan.target.items)}, and the model "
            f"{', '.join(makers)}: give the model= that the plan was made for."
        )
    modules = by_item(linen, tuple(items), "linen=")
    inputs = by_item(sample_input, tuple(modules), "sample_input=", shared=True)
    found = []
    for item, module in modules.items():
        if inputs.get(item) is None:
            raise BridgeError(
                f"item {item!r} has a Linen module and no sample input: how is it called? Give "
                "sample_input= (or --input), such as an example batch."
            )
        steps = _steps_of(plan, item)
        slots = tuple(
            s.path[len(items[item]) :]
            for s in plan.target.slots
            if s.item == item and s.collection != _OPT_STATE
        )
        probes = probes_for(module, inputs[item], methods)
        full = _variables(table, plan, item, steps)
        made = linen_of(module)
        found.append(Twin(item, items[item], full, made, makers[item], probes, steps, slots))
    return tuple(found)


def _steps_of(plan: Plan, item: str) -> tuple[Step, ...]:
    slots = {s.ref: s for s in plan.target.slots}
    return tuple(
        s
        for s in plan.steps
        if s.slots[0].item == item and slots[s.slots[0]].collection != _OPT_STATE
    )


def _variables(
    table: LeafTable, plan: Plan, item: str, steps: Sequence[Step]
) -> Mapping[LeafPath, LeafPath]:
    """What feeds an item; where the user said it by ``at=``, the plan's steps show it."""
    roles = find_roles(table, {s.collection for s in plan.target.slots})
    sources = {p for s in steps for p in s.sources}
    common = _common(sources)
    guesses: list[dict[str, LeafPath]] = [{}]
    guesses += [{item: common[:n]} for n in range(1, len(common) + 1)]
    for at in guesses:
        try:
            found, _ = feeds(table, roles, plan.target, at)
        except BridgeError:
            continue
        for feed in found:
            full = canonical(feed)
            if feed.item == item and sources <= set(full.values()):
                return full
    raise BridgeError(
        f"item {item!r}: its leaves ({format_path(next(iter(sorted(sources)), ()))}, ...) are not "
        "of one set of variables, so the Linen module cannot be run on them."
    )


def _common(paths: Iterable[LeafPath]) -> LeafPath:
    found = sorted(paths)
    if not found:
        return ()
    first, last = found[0], found[-1]
    n = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), None)
    return first[: min(len(first), len(last)) if n is None else n]


def slot_values(
    checkpoint: Checkpoint, plan: Plan, items: Iterable[str], output: Output | None
) -> dict[str, dict[SlotPath, Any]]:
    """What the slots of items hold.

    Args:
        checkpoint: the source.
        plan: the plan.
        items: names of items.
        output: a written checkpoint; None for what the plan would write.

    Returns:
        Live arrays (typed keys where they are keys) by item and slot path.
    """
    wanted = set(items)
    slots = {s.ref: s for s in plan.target.slots if s.item in wanted}
    found: dict[str, dict[SlotPath, Any]] = {item: {} for item in wanted}

    def keep(ref: SlotRef, value: Any) -> None:
        if ref in slots:
            found[ref.item][ref.path] = put(value, slots[ref], None)

    if output is None:
        for ref, value in _planned(checkpoint, plan, set(slots)):
            keep(ref, value)
        return found
    for ref in slots:
        leaf = output.leaf(ref)
        if leaf is not None:
            keep(ref, leaf.read())
    return found


def _planned(
    checkpoint: Checkpoint, plan: Plan, wanted: set[SlotRef]
) -> Iterator[tuple[SlotRef, Any]]:
    """What the plan would write."""
    slots = {s.ref: s for s in plan.target.slots}
    for step in plan.steps:
        if not wanted.isdisjoint(step.slots):
            yield from zip(step.slots, step_values(step, checkpoint.leaves, slots), strict=True)
    for init in plan.initialised:
        if init.slot in wanted:
            yield init.slot, initial_value(init, slots[init.slot])


def concrete(inputs: Sequence[Any], seed: int = 0) -> list[Any]:
    """Arrays for a call: what is only a shape becomes random.

    Floats are normal, integers 0 or 1 (so that they are in range for every vocabulary), booleans
    random. The same shape at the same place gives the same values.

    >>> concrete([jax.ShapeDtypeStruct((2,), "int32"), np.ones(1)])[1]
    Array([1.], dtype=float32)
    """
    return [_array(x, n, seed) for n, x in enumerate(inputs)]


def _array(x: Any, n: int, seed: int) -> Any:
    if not isinstance(x, jax.ShapeDtypeStruct):
        return jnp.asarray(x)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(seed), max(x.size, 1))[: x.size].reshape(x.shape)
    rng = np.random.default_rng([seed, n, zlib.crc32(repr(x.shape).encode())])
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.asarray(rng.normal(size=x.shape), x.dtype)
    return jnp.asarray(rng.integers(0, _INTEGERS, x.shape), x.dtype)
