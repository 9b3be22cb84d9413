"""Trains the NNX side: the restored model with its restored ``nnx.Optimizer``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bridge._describe import places
from bridge._plan import Plan
from bridge._verify_output import Output
from bridge.errors import BridgeError
from bridge.items import gather
from bridge.precision import Program, doubled
from bridge.probes import Model
from bridge.target import SlotPath, SlotRef
from bridge.twins import Twin, concrete, slot_values
from legacy import Checkpoint

__all__ = ["NnxTrainer"]


class NnxTrainer:
    """Model and optimizer with the values of a plan, and the step that changes them.

    Args:
        checkpoint: the source.
        plan: what becomes of it.
        twin: the item.
        model: its NNX side, in training mode.
        given: model and tx, as the user gave them.
        loss: from outputs to a scalar.
        output: a written checkpoint; None for what the plan would write.

    Raises:
        BridgeError: the plan has no optimizer for the item.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: Plan,
        twin: Twin,
        model: Model,
        given: tuple[Any, Any],
        loss: Any,
        output: Output | None,
    ) -> None:
        self.twin = twin
        self.loss = loss
        (self.call,) = model.calls
        self.inputs = concrete(self.call.inputs)
        objects = gather(*given).objects
        self.item = self._optimizer_item(objects)
        optimizer = objects[self.item]
        values = slot_values(checkpoint, plan, {twin.item, self.item}, output)
        n = len(twin.prefix)
        self.values = {p[n:]: x for p, x in values[twin.item].items() if p[n:] in model.specs}
        with nnx.use_eager_sharding(False):
            whole = nnx.eval_shape(
                lambda: (made := twin.make(), nnx.Optimizer(made, optimizer.tx, wrt=optimizer.wrt))
            )
        self.wrt = optimizer.wrt
        self.model = _Hollow(whole[0])
        self.optimizer = _Hollow(whole[1])
        lost = [p for p in self.optimizer.names if p not in values[self.item]]
        if lost:
            raise BridgeError(f"the plan gives no value to {SlotRef(self.item, lost[0])}")
        self.state = [values[self.item][p] for p in self.optimizer.names]
        trained = places(nnx.state(whole[0], self.wrt))
        self.trained = {p.path for p in trained if not p.empty and p.path in self.values}
        self._programs = {False: Program(self._step), True: Program(self._step)}

    def _optimizer_item(self, objects: Mapping[str, Any]) -> str:
        for name in (f"{self.twin.item}_optimizer", self.twin.item, "optimizer"):
            if isinstance(objects.get(name), nnx.Optimizer):
                return name
        raise BridgeError(f"item {self.twin.item!r} has no nnx.Optimizer; give tx=.")

    def _step(self, values: Any, leaves: Any, inputs: Any) -> Any:
        known = dict(zip(self.values, values, strict=True))
        params = {p: x for p, x in known.items() if p in self.trained}
        others = {p: x for p, x in known.items() if p not in self.trained}

        def loss(now: Any) -> Any:
            called = self.call.run({**others, **now}, inputs)
            return self.loss(called.outputs), called.updates

        grads, updates = jax.grad(loss, has_aux=True)(params)
        known |= updates  # what the forward pass has written, parameters too
        with nnx.use_eager_sharding(False):
            model = self.model.filled(known)
            optimizer = self.optimizer.filled(dict(zip(self.optimizer.names, leaves, strict=True)))
            slopes = nnx.state(self.model.filled({**known, **grads}), self.wrt)
            optimizer.update(model, slopes)
        after = {p.path: p.value for p in places(model) if p.path in known}
        state = {p.path: p.value for p in places(optimizer) if not p.empty}
        return [after[p] for p in self.values], [state[p] for p in self.optimizer.names]

    def _start(self, *, wide: bool) -> tuple[Any, ...]:
        state = (list(self.values.values()), self.state, self.inputs)
        return jax.tree.map(doubled, state) if wide else state

    def run(self, k: int, *, wide: bool = False) -> Iterator[dict[SlotRef, Any]]:
        """Train, and give all arrays by slot after each step."""
        values, leaves, inputs = self._start(wide=wide)
        for _ in range(k):
            values, leaves = self._programs[wide](values, leaves, inputs)
            found = {
                SlotRef(self.twin.item, (*self.twin.prefix, *p)): x
                for p, x in zip(self.values, values, strict=True)
            }
            found |= {
                SlotRef(self.item, p): x for p, x in zip(self.optimizer.names, leaves, strict=True)
            }
            yield {ref: _shown(x) for ref, x in found.items()}

    def wide(self) -> bool:
        """Whether the step computes in float64 when its values are float64."""
        return self._programs[True].wide(*self._start(wide=True))


class _Hollow:
    """An abstract object into which arrays are put."""

    def __init__(self, value: Any) -> None:
        self._graphdef, state = nnx.split(value)
        self._structs, self._tree = jax.tree.flatten(state)
        self.names = [p.path for p in places(state) if not p.empty]

    def filled(self, values: Mapping[SlotPath, Any]) -> Any:
        """A new object; what is not among the values is zero, and must not matter."""
        pairs = zip(self.names, self._structs, strict=True)
        leaves = [values[p] if p in values else jnp.zeros(x.shape, x.dtype) for p, x in pairs]
        return nnx.merge(self._graphdef, self._tree.unflatten(leaves))


def _shown(x: Any) -> Any:
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(x)
    return jnp.asarray(x)
