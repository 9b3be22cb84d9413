"""A custom dataclass with EMA, keys and DynamicScale, in a msgpack file of flax.training.

Shows what becomes of things an NNX model has no place for: the EMA copy follows the mapping of
the parameters, into ``extras`` or into a model of its own; the dropout key and the loss scale of
half precision are kept; the config is carried as JSON; and nothing is dropped in silence.

    python conversion_examples/dataclass_with_ema.py
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.serialization
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.training.dynamic_scale import DynamicScale

import bridge


class LinenMLP(nn.Module):
    """The old code."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(3):
            x = nn.gelu(nn.Dense(32)(x))
        return nn.Dense(4)(x)


class MLP(nnx.Module):
    """The new code: a list where Linen had numbers."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        sizes = [8, 32, 32, 32, 4]
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers[:-1]:
            x = nnx.gelu(layer(x))
        return self.layers[-1](x)


@flax.struct.dataclass
class Everything:
    """What somebody once chose to save."""

    params: Any
    ema_params: Any
    opt_state: Any
    dropout_key: jax.Array
    dynamic_scale: DynamicScale
    step: int
    epoch: int
    config: dict[str, Any]


RULES = """
[[map]]
from = "params/Dense_{i}/{leaf}"
to = "layers/{i}/{leaf}"
reason = "the layers became a list"
"""


def model() -> MLP:
    return MLP(nnx.Rngs(0))


def save_old(path: Path) -> Everything:
    linen = LinenMLP()
    params = linen.init(jax.random.key(1), jnp.zeros((1, 8)))["params"]
    ema = jax.tree.map(lambda p: 0.9 * p, params)
    old = Everything(
        params=params,
        ema_params=ema,
        opt_state=optax.adam(1e-3).init(params),
        dropout_key=jax.random.PRNGKey(42),
        dynamic_scale=DynamicScale(scale=jnp.float32(2.0**15), fin_steps=jnp.int32(120)),
        step=700,
        epoch=7,
        config={"name": "mlp-ü", "lr": 1e-3},
    )
    path.write_bytes(flax.serialization.to_bytes(old))
    return old


def main(folder: Path) -> None:
    path = folder / "checkpoint_700"
    old = save_old(path)

    without_rules = bridge.plan(path, model=model, tx=optax.adam(1e-3))
    # two of the four layers have one shape, and nothing proves which is which
    print(f"without rules: {len(without_rules.problems)} problems; the first:\n")
    print(without_rules.problems[0])

    rules = folder / "rules.toml"
    rules.write_text(RULES)
    plan = bridge.plan(path, model=model, tx=optax.adam(1e-3), rules=rules)
    print("\nwith one rule:\n")
    print(plan)

    # the EMA copy as a live model: one more item, which finds its parameters by its name
    restored = bridge.restore(path, model={"model": model, "ema": model}, rules=rules)
    x = jax.random.normal(jax.random.key(2), (3, 8))
    ema = restored.model["ema"]
    same = np.array_equal(ema(x), LinenMLP().apply({"params": old.ema_params}, x))
    print(f"\nEMA model gives what Linen gives with ema_params, bit for bit: {same}")
    kept = restored.extras["dynamic_scale"]
    print(f"loss scale {kept['scale']:.0f} since {kept['fin_steps']} finite steps")
    print(f"dropout key: {np.array_equal(restored.extras['dropout_key'], old.dropout_key)}")
    print(f"carried: epoch {restored.extras['epoch']}, config {restored.extras['config']}")
    assert same


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch))
