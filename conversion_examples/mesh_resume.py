"""Resume training on a mesh of eight devices: each device reads only its own part.

The old run was saved on one device. The new model says by its sharding annotations where its
parameters live; ``bridge.restore`` under ``jax.set_mesh`` puts every array there, the moments of
the optimizer with their parameters, and training goes on at once. Eight CPU devices stand for
eight accelerators.

    python conversion_examples/mesh_resume.py
"""

from __future__ import annotations

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"  # before jax is imported
os.environ["JAX_PLATFORMS"] = "cpu"

import tempfile
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import bridge

WIDTH = 16
TX = optax.adam(1e-2)


class LinenMLP(nn.Module):
    """The old code."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(WIDTH)(x))
        return nn.Dense(1)(x)


class MLP(nnx.Module):
    """The new code: the wide axis is cut over ``model``."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        def cut(*names: str | None) -> nnx.initializers.Initializer:
            return nnx.with_partitioning(nnx.initializers.lecun_normal(), names)

        self.up = nnx.Linear(8, WIDTH, kernel_init=cut(None, "model"), rngs=rngs)
        self.down = nnx.Linear(WIDTH, 1, kernel_init=cut("model", None), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(nnx.relu(self.up(x)))


def data() -> tuple[jax.Array, jax.Array]:
    x = jax.random.normal(jax.random.key(0), (32, 8))
    return x, x[:, :1] * x[:, 1:2]


def train(folder: Path) -> TrainState:
    """A short run on one device."""
    linen, (x, y) = LinenMLP(), data()
    params = linen.init(jax.random.key(1), x)["params"]
    state = TrainState.create(apply_fn=linen.apply, params=params, tx=TX)
    for _ in range(3):
        state = linen_step(state, x, y)
    with ocp.CheckpointManager(folder) as manager:
        manager.save(3, args=ocp.args.StandardSave(state))
    return state


@jax.jit
def linen_step(state: TrainState, x: jax.Array, y: jax.Array) -> TrainState:
    grads = jax.grad(lambda p: ((state.apply_fn({"params": p}, x) - y) ** 2).mean())(state.params)
    return state.apply_gradients(grads=grads)


@nnx.jit
def nnx_step(model: MLP, opt: nnx.Optimizer, x: jax.Array, y: jax.Array) -> None:
    opt.update(model, nnx.grad(lambda m: ((m(x) - y) ** 2).mean())(model))


def main(folder: Path) -> None:
    state = train(folder / "run")
    x, y = data()
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    print(f"{jax.device_count()} devices, mesh {dict(mesh.shape)}")
    with jax.set_mesh(mesh):
        model, opt, _ = bridge.restore(folder / "run", model=lambda: MLP(nnx.Rngs(0)), tx=TX)
        kernel = model.up.kernel[...]
        moment = opt.opt_state[0].mu.up.kernel[...]
        print(f"up/kernel {kernel.shape}: {kernel.sharding.spec}, on each device", end=" ")
        print(kernel.addressable_shards[0].data.shape)
        assert moment.sharding.is_equivalent_to(kernel.sharding, kernel.ndim)
        print("its moments lie beside it")
        xs, ys = (jax.device_put(a, NamedSharding(mesh, P("data"))) for a in (x, y))
        for step in range(4, 7):
            state = linen_step(state, x, y)
            nnx_step(model, opt, xs, ys)
            near = np.allclose(model.up.kernel[...], state.params["Dense_0"]["kernel"], rtol=1e-5)
            print(f"step {step}: parameters as Linen's on one device: {near}")
            assert near
            assert int(opt.step[...]) == step
    assert jnp.isfinite(model.down.bias[...]).all()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch))
