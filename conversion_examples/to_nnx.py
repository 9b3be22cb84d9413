"""Keep the Linen module inside NNX: ``nnx.bridge.ToNNX`` as the target.

Who wants the NNX training loop now and the rewrite later wraps the old module. The wrapped module
is a target like any other: the paths are Linen's own, so everything is paired by path, and not one
rule is needed. Later, the same plan machinery moves the weights into the rewritten model.

    python conversion_examples/to_nnx.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.training import checkpoints
from flax.training.train_state import TrainState

import bridge


class LinenNet(nn.Module):
    """The old code; it stays."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x)))
        return nn.Dense(3)(x)


class State(TrainState):
    """The usual subclass."""

    batch_stats: Any


TX = optax.adam(1e-3)


def wrapped() -> nnx.Module:
    """The target: shapes come from a call, as ``nnx.bridge.lazy_init`` says."""
    return nnx.bridge.lazy_init(nnx.bridge.ToNNX(LinenNet(), rngs=nnx.Rngs(0)), jnp.ones((1, 4)))


def train(folder: Path) -> State:
    linen = LinenNet()
    x = jax.random.normal(jax.random.key(0), (16, 4))
    state = State.create(apply_fn=linen.apply, tx=TX, **linen.init(jax.random.key(1), x))

    def loss(params: Any, stats: Any) -> tuple[jax.Array, Any]:
        variables = {"params": params, "batch_stats": stats}
        out, new = linen.apply(variables, x, train=True, mutable=["batch_stats"])
        return (out**2).mean(), new["batch_stats"]

    for _ in range(3):
        grads, stats = jax.grad(loss, has_aux=True)(state.params, state.batch_stats)
        state = state.apply_gradients(grads=grads, batch_stats=stats)
    checkpoints.save_checkpoint(folder, state, 3)
    return state


def main(folder: Path) -> None:
    old = train(folder)

    plan = bridge.plan(folder, model=wrapped, tx=TX)
    whys = sorted({step.why for step in plan.steps})
    print(f"{len(plan.steps)} leaves mapped, {len(plan.problems)} problems; why: {whys}")
    model, optimizer, _ = bridge.restore(folder, model=wrapped, tx=TX, plan=plan)
    x = jax.random.normal(jax.random.key(2), (5, 4))
    variables = {"params": old.params, "batch_stats": old.batch_stats}
    same = np.array_equal(model(x), LinenNet().apply(variables, x))
    print(f"{type(model).__name__} gives what Linen gives, bit for bit: {same}")
    assert same

    before = float((model(x) ** 2).mean())
    for _ in range(3):
        grads = nnx.grad(lambda m: (m(x) ** 2).mean())(model)
        optimizer.update(model, grads)
    after = float((model(x) ** 2).mean())
    print(f"trained on in NNX to step {int(optimizer.step[...])}, loss fell: {after < before}")
    assert after < before


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch))
