"""Trains the Linen side from an old checkpoint, as its own code would have gone on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization

from bridge._plan import Plan
from bridge.errors import BridgeError
from bridge.feeds import feeds, optimizer_groups
from bridge.precision import Program, doubled
from bridge.probes import Model
from bridge.roles import PARAMS, find_roles
from bridge.twins import Twin, concrete
from legacy import Checkpoint, LeafPath, format_path
from legacy import restore as legacy_restore
from legacy.errors import LegacyError

__all__ = ["LinenTrainer"]

Tree = dict[str, Any]


class LinenTrainer:
    """Params, collections and optax state of a checkpoint, and the step that changes them.

    Args:
        checkpoint: the source.
        plan: says which optimizer state belongs to the item.
        twin: the item.
        model: its Linen side, in training mode.
        tx: the optax transformation, or several by model name.
        loss: from outputs to a scalar.

    Raises:
        BridgeError: the checkpoint has no state for this optimizer.
    """

    def __init__(
        self, checkpoint: Checkpoint, plan: Plan, twin: Twin, model: Model, tx: Any, loss: Any
    ) -> None:
        self.twin = twin
        self.tx = optimizer_of(tx, twin.item)
        self.loss = loss
        (self.call,) = model.calls
        self.inputs = concrete(self.call.inputs)
        values = twin.linen_values(checkpoint.leaves, model.specs)
        self.params = {p: x for p, x in values.items() if p[0] == PARAMS and _floating(x)}
        self.others = {p: x for p, x in values.items() if p not in self.params}
        self.prefix, self.step_path, self.step = self._places(checkpoint, plan)
        self.opt_state = self._restored(checkpoint)
        self.gradients: dict[LeafPath, float] = {}
        self._programs = {False: Program(self._step), True: Program(self._step)}

    def _places(
        self, checkpoint: Checkpoint, plan: Plan
    ) -> tuple[LeafPath | None, LeafPath | None, int]:
        """Where the optimizer state and the step are in the checkpoint."""
        table = checkpoint.leaves
        slots = {s.ref: s for s in plan.target.slots}
        roles = find_roles(table, {s.collection for s in plan.target.slots})
        found, _ = feeds(table, roles, plan.target, {})
        names = {f"{self.twin.item}_optimizer", self.twin.item, "optimizer"}
        groups = [
            one.group
            for one in optimizer_groups(plan.target, roles, found, {})
            if one.item in names and one.group is not None
        ]
        step = next(
            (
                s.sources[0]
                for s in plan.steps
                if s.slots[0].item in names
                and slots[s.slots[0]].collection == "opt_state"
                and s.slots[0].path[-1:] == ("step",)
            ),
            None,
        )
        number = 0 if step is None else int(np.asarray(table[step].read()))
        return (groups[0].prefix if groups else None), step, number

    def _restored(self, checkpoint: Checkpoint) -> Any:
        template = jax.tree.map(np.asarray, self.tx.init(self._tree(self.params)))
        if not jax.tree.leaves(template):
            return template
        if self.prefix is None:
            raise BridgeError("it is not clear which optimizer state of the checkpoint is this one")
        if not isinstance(template, tuple | dict) and not hasattr(template, "_fields"):
            raise BridgeError(f"optimizer states of type {type(template).__name__} are not read")
        try:
            made = legacy_restore(checkpoint, template, at=self.prefix)
        except LegacyError as error:
            raise BridgeError(
                f"the optimizer state at {format_path(self.prefix)} is not that of linen_tx= (or "
                f"tx=), so the old training cannot be gone on with: {error}"
            ) from error
        return jax.tree.map(jnp.asarray, made)

    def _tree(self, values: Mapping[LeafPath, Any]) -> Tree:
        """Nested params, as the old code had them."""
        tree: Tree = {}
        for path, value in values.items():
            node = tree
            for part in path[1:-1]:
                node = node.setdefault(part, {})
            node[path[-1]] = value
        return tree

    def _flat(self, tree: Any) -> dict[LeafPath, Any]:
        return {p: _get(tree, p[1:]) for p in self.params}

    def _step(self, params: Any, others: Any, opt_state: Any, inputs: Any) -> Any:
        def loss(tree: Any) -> Any:
            called = self.call.run({**others, **self._flat(tree)}, inputs)
            return self.loss(called.outputs), called.updates

        grads, updates = jax.grad(loss, has_aux=True)(self._tree(params))
        changes, opt_state = self.tx.update(grads, opt_state, self._tree(params))
        new = self._flat(optax.apply_updates(self._tree(params), changes))
        others = {p: updates.get(p, x) for p, x in others.items()}
        size = {p: jnp.max(jnp.abs(g), initial=0.0) for p, g in self._flat(grads).items()}
        return new, others, opt_state, size

    def _start(self, *, wide: bool) -> tuple[Any, ...]:
        state = (self.params, self.others, self.opt_state, self.inputs)
        return jax.tree.map(doubled, state) if wide else state

    def run(self, k: int, *, wide: bool = False) -> Iterator[dict[LeafPath, Any]]:
        """Train, and give all arrays by their path in the checkpoint after each step."""
        params, others, opt_state, inputs = self._start(wide=wide)
        for n in range(k):
            params, others, opt_state, size = self._programs[wide](
                params, others, opt_state, inputs
            )
            if not self.gradients:
                self.gradients = {p: float(x) for p, x in size.items()}
            yield self._named(params, others, opt_state, self.step + n + 1)

    def _named(self, params: Any, others: Any, opt_state: Any, step: int) -> dict[LeafPath, Any]:
        found = {self.twin.full[p]: x for p, x in {**others, **params}.items()}
        prefix = self.prefix or ()
        state = serialization.to_state_dict(opt_state)
        found |= {(*prefix, *path): x for path, x in _leaves(state, ())}
        if self.step_path is not None:
            found[self.step_path] = np.asarray(step)
        return found

    def idle(self, limit: float) -> tuple[str, ...]:
        """Slots of parameters whose gradient is nothing but rounding noise."""
        largest = max(self.gradients.values(), default=0.0)
        still = {p for p, size in self.gradients.items() if size <= limit * largest}
        return tuple(
            format_path(slot)
            for sources, slots in self.twin.pairs()
            for slot in slots
            if still.issuperset(sources)
        )

    def width(self) -> Any:
        """The narrowest dtype of the step."""
        return self._programs[False].narrowest(*self._start(wide=False))

    def wide(self) -> bool:
        """Whether the step computes in float64 when its values are float64."""
        return self._programs[True].wide(*self._start(wide=True))

    def noise(self, k: int) -> float:
        """How far training is apart, relative, when all parameters are moved by one rounding."""
        dtype = self.width()
        eps = float(jnp.finfo(dtype).eps) if dtype is not None else 0.0
        before = list(self.run(k))[-1]
        kept = self.params
        rng = np.random.default_rng(0)
        try:
            self.params = {
                p: x * (1 + eps * rng.choice([-1.0, 1.0], x.shape)).astype(x.dtype)
                for p, x in kept.items()
            }
            after = list(self.run(k))[-1]
        finally:
            self.params = kept
        apart = 0.0
        for path, x in before.items():
            a, b = np.asarray(x, np.complex128), np.asarray(after[path], np.complex128)
            scale = np.abs(a).max(initial=0.0) or 1.0
            apart = max(apart, float(np.abs(a - b).max(initial=0.0) / scale))
        return apart


def optimizer_of(tx: Any, item: str) -> Any:
    """The transformation of an item, called if it is what makes one.

    Raises:
        BridgeError: there is none for it.
    """
    found = tx.get(item) if isinstance(tx, Mapping) else tx
    if callable(found) and not hasattr(found, "init"):
        found = found()
    if found is None:
        raise BridgeError(f"tx has no transformation for item {item!r}")
    return found


def _floating(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.inexact))


def _get(tree: Any, path: LeafPath) -> Any:
    for part in path:
        tree = tree[part]
    return tree


def _leaves(node: Any, path: LeafPath) -> Iterator[tuple[LeafPath, Any]]:
    if isinstance(node, Mapping):
        for key, below in node.items():
            yield from _leaves(below, (*path, str(key)))
    elif isinstance(node, list | tuple):
        for n, below in enumerate(node):
            yield from _leaves(below, (*path, str(n)))
    elif node is not None and hasattr(node, "dtype"):
        yield path, node
