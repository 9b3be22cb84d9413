"""A CNN with BatchNorm, trained in Linen, becomes an NNX checkpoint.

Makes a real run (a TrainState with ``batch_stats``, three steps saved by a CheckpointManager),
plans the conversion into an NNX model whose attributes have other names, converts every step,
verifies it, and restores the result with plain Orbax.

    python conversion_examples/cnn_train_state.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from flax.training.train_state import TrainState

import bridge


class LinenCNN(nn.Module):
    """The old code."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(8, (3, 3))(x)))
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(16, (3, 3))(x)))
        return nn.Dense(10)(x.mean(axis=(1, 2)))


class CNN(nnx.Module):
    """The new code; nothing in it was named after the old one."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.stem_norm = nnx.BatchNorm(8, rngs=rngs)
        self.body = nnx.Conv(8, 16, (3, 3), rngs=rngs)
        self.body_norm = nnx.BatchNorm(16, rngs=rngs)
        self.head = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.stem_norm(self.stem(x)))
        x = nnx.relu(self.body_norm(self.body(x)))
        return self.head(x.mean(axis=(1, 2)))


class State(TrainState):
    """The usual subclass."""

    batch_stats: Any


def optimizer() -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def model() -> CNN:
    return CNN(nnx.Rngs(0))


@jax.jit
def train_step(state: State, x: jax.Array, y: jax.Array) -> State:
    def loss(params: Any) -> tuple[jax.Array, Any]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, new = state.apply_fn(variables, x, train=True, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return losses.mean(), new["batch_stats"]

    grads, stats = jax.grad(loss, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads, batch_stats=stats)


def make_old_run(folder: Path) -> State:
    """Train for three steps and save each, as a Linen script would."""
    linen = LinenCNN()
    variables = linen.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), train=False)
    state = State.create(apply_fn=linen.apply, tx=optimizer(), **variables)
    with ocp.CheckpointManager(folder) as manager:
        for step in range(1, 4):
            a, b = jax.random.split(jax.random.key(step))
            x, y = jax.random.normal(a, (8, 16, 16, 3)), jax.random.randint(b, (8,), 0, 10)
            state = train_step(state, x, y)
            manager.save(step, args=ocp.args.StandardSave(state))
    return state


def main(folder: Path) -> None:
    old, new = folder / "linen_run", folder / "nnx_run"
    state = make_old_run(old)
    print(f"made a Linen run of three steps in {old.name}\n")

    plan = bridge.plan(old, model=model, tx=optimizer())
    print(plan)

    for done in bridge.convert(old, new, plan=plan, steps="all"):
        print(f"\nstep {done.step}: {done.output.relative_to(folder)}\n{done.verdict}")

    # from here on it is an NNX checkpoint like any other
    target = nnx.eval_shape(model)
    with ocp.CheckpointManager(new) as manager:
        restored = manager.restore(
            3, args=ocp.args.Composite(model=ocp.args.StandardRestore(nnx.state(target)))
        )
    cnn = nnx.merge(nnx.graphdef(target), restored["model"])
    cnn.eval()
    x = jax.random.normal(jax.random.key(9), (4, 16, 16, 3))
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    same = np.array_equal(cnn(x), LinenCNN().apply(variables, x, train=False))
    print(f"\nlogits of the Linen model and of the NNX model are equal, bit for bit: {same}")
    assert same


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]).absolute())
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(Path(scratch))
