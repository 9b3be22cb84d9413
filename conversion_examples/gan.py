"""A GAN: two TrainStates in one checkpoint become two models, each with its own optimizer.

The items of the target are named as the states are named in the checkpoint; steps, moments and
batch statistics follow each its own model. The output has an item for each.

    python conversion_examples/gan.py
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
import orbax.checkpoint as ocp
from flax import nnx
from flax.training.train_state import TrainState

import bridge

NOISE, PIXELS = 4, 12


class LinenGenerator(nn.Module):
    """The old code."""

    @nn.compact
    def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:
        h = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(z)))
        return nn.tanh(nn.Dense(PIXELS)(h))


class LinenDiscriminator(nn.Module):
    """The old code."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(1)(nn.leaky_relu(nn.Dense(8)(x)))


class Generator(nnx.Module):
    """The new code."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.widen = nnx.Linear(NOISE, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.paint = nnx.Linear(8, PIXELS, rngs=rngs)

    def __call__(self, z: jax.Array) -> jax.Array:
        return nnx.tanh(self.paint(nnx.relu(self.norm(self.widen(z)))))


class Discriminator(nnx.Module):
    """The new code."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.look = nnx.Linear(PIXELS, 8, rngs=rngs)
        self.judge = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.judge(nnx.leaky_relu(self.look(x)))


class State(TrainState):
    """With statistics, which only the generator has."""

    batch_stats: Any = None


TX = {"generator": optax.adam(1e-4, b1=0.5), "discriminator": optax.sgd(1e-3, momentum=0.9)}
MODELS = {
    "generator": lambda: Generator(nnx.Rngs(0)),
    "discriminator": lambda: Discriminator(nnx.Rngs(0)),
}


def train(folder: Path) -> dict[str, State]:
    """The discriminator learns twice as often, so the steps of the two differ."""
    g, d = LinenGenerator(), LinenDiscriminator()
    z, x = jax.random.normal(jax.random.key(0), (16, NOISE)), jnp.ones((16, PIXELS))
    gen = State.create(
        apply_fn=g.apply, tx=TX["generator"], **g.init(jax.random.key(1), z, train=False)
    )
    dis = State.create(apply_fn=d.apply, tx=TX["discriminator"], **d.init(jax.random.key(2), x))

    def wrong(params: Any, images: jax.Array, label: float) -> jax.Array:
        logits = d.apply({"params": params}, images)
        return optax.sigmoid_binary_cross_entropy(logits, jnp.full_like(logits, label)).mean()

    def fakes(params: Any, stats: Any) -> tuple[jax.Array, Any]:
        variables = {"params": params, "batch_stats": stats}
        return g.apply(variables, z, train=True, mutable=["batch_stats"])

    def fooled(params: Any, stats: Any, judge: Any) -> tuple[jax.Array, Any]:
        images, new = fakes(params, stats)
        return wrong(judge, images, 1.0), new["batch_stats"]

    for n in range(4):
        images, _ = fakes(gen.params, gen.batch_stats)
        grads = jax.grad(lambda p, i: wrong(p, x, 1.0) + wrong(p, i, 0.0))(dis.params, images)
        dis = dis.apply_gradients(grads=grads)
        if n % 2:
            grads, stats = jax.grad(fooled, has_aux=True)(gen.params, gen.batch_stats, dis.params)
            gen = gen.apply_gradients(grads=grads, batch_stats=stats)
    states = {"generator": gen, "discriminator": dis}
    ocp.PyTreeCheckpointer().save(folder / "4", states)
    return states


def main(folder: Path) -> None:
    states = train(folder / "run")

    plan = bridge.plan(folder / "run", model=MODELS, tx=TX)
    assert plan.ok, plan
    items = sorted({slot.item for slot in plan.target.slots})
    print(f"{len(plan.steps)} leaves mapped, {len(plan.problems)} problems; items {items}")
    (done,) = bridge.convert(folder / "run", folder / "out", plan=plan)
    print(f"step {done.step}: {done.verdict.compared} of {done.verdict.slots} values verified")

    found = bridge.restore(folder / "run", model=MODELS, tx=TX, plan=plan)
    for name, opt in found.optimizer.items():
        print(f"{name}: at step {int(opt.step[...])}")
        assert int(opt.step[...]) == int(states[name.removesuffix("_optimizer")].step)
    z = jax.random.normal(jax.random.key(5), (3, NOISE))
    old = states["generator"]
    variables = {"params": old.params, "batch_stats": old.batch_stats}
    images = LinenGenerator().apply(variables, z, train=False)
    judged = LinenDiscriminator().apply({"params": states["discriminator"].params}, images)
    found.model["generator"].eval()
    ours = found.model["generator"](z)
    same = np.array_equal(ours, images), np.array_equal(found.model["discriminator"](ours), judged)
    print(f"images and judgements equal Linen's, bit for bit: {same}")
    assert all(same)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch))
