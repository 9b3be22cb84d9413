"""A migration script: restore an old Linen run into live NNX objects, and go on training.

No new checkpoint is written; ``bridge.restore`` reads only what the model needs.

    python conversion_examples/restore_and_train.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from flax import nnx
from flax.training.train_state import TrainState

import bridge
import legacy


class LinenRegressor(nn.Module):
    """The old code."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(1)(nn.tanh(nn.Dense(16)(x)))


class Regressor(nnx.Module):
    """The new code."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.inner = nnx.Linear(2, 16, rngs=rngs)
        self.outer = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.outer(nnx.tanh(self.inner(x)))


def data() -> tuple[jax.Array, jax.Array]:
    x = jax.random.normal(jax.random.key(0), (64, 2))
    return x, (x[:, :1] * x[:, 1:]) ** 2


def new_state() -> TrainState:
    linen = LinenRegressor()
    params = linen.init(jax.random.key(1), jnp.zeros((1, 2)))["params"]
    return TrainState.create(apply_fn=linen.apply, params=params, tx=optax.adam(1e-2))


@jax.jit
def linen_step(state: TrainState, x: jax.Array, y: jax.Array) -> tuple[TrainState, jax.Array]:
    def loss_of(params: object) -> jax.Array:
        return ((state.apply_fn({"params": params}, x) - y) ** 2).mean()

    loss, grads = jax.value_and_grad(loss_of)(state.params)
    return state.apply_gradients(grads=grads), loss


@nnx.jit
def nnx_step(model: Regressor, opt: nnx.Optimizer, x: jax.Array, y: jax.Array) -> jax.Array:
    loss, grads = nnx.value_and_grad(lambda m: ((m(x) - y) ** 2).mean())(model)
    opt.update(model, grads)
    return loss


def main(folder: Path) -> None:
    x, y = data()
    state = new_state()
    for _ in range(20):
        state, _ = linen_step(state, x, y)
    ocp.PyTreeCheckpointer().save(folder / "old", state)

    model, opt, _ = bridge.restore(
        folder / "old", model=lambda: Regressor(nnx.Rngs(0)), tx=optax.adam(1e-2)
    )
    print(f"restored at step {int(opt.step[...])}")
    print("step   loss in Linen   loss in NNX")
    for step in range(21, 26):
        state, old_loss = linen_step(state, x, y)
        loss = nnx_step(model, opt, x, y)
        print(f"{step:4d}   {old_loss:13.4f}   {loss:11.4f}")
        assert jnp.allclose(loss, old_loss, rtol=1e-5)

    # those who stay on Linen get their own types back, from any readable format
    again = legacy.restore(folder / "old", new_state())
    print(f"legacy.restore gives back a {type(again).__name__} at step {int(again.step)}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch))
