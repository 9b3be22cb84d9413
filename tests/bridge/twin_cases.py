"""Small models in both flavours, with other names on the NNX side, and their old checkpoints."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn
from flax import nnx, serialization
from flax.training import train_state

import bridge

IMAGES = np.random.default_rng(3).normal(size=(2, 8, 8, 1)).astype(np.float32)


class TrainState(train_state.TrainState):
    batch_stats: Any = None


class LinenCNN(nn.Module):
    epsilon: float = 1e-6
    act: Any = nn.gelu
    pool: Any = nn.max_pool
    rate: float = 0.1

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3), name="stem")(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = self.pool(self.act(x), (2, 2), (2, 2)).reshape(x.shape[0], -1)
        x = nn.Dense(8)(nn.LayerNorm(epsilon=self.epsilon)(x))
        x = nn.Dropout(self.rate, deterministic=not train)(x)
        return nn.Dense(3, name="head")(nn.relu(x))


class CNN(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.bn = nnx.BatchNorm(4, rngs=rngs)
        self.ln = nnx.LayerNorm(64, rngs=rngs)
        self.fc = nnx.Linear(64, 8, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.out = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.gelu(self.bn(self.conv(x)))
        x = nnx.max_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1)
        return self.out(nnx.relu(self.dropout(self.fc(self.ln(x)))))


CNN_NAMES = {
    "params/stem": "conv",
    "params/BatchNorm_0": "bn",
    "batch_stats/BatchNorm_0": "bn",
    "params/LayerNorm_0": "ln",
    "params/Dense_0": "fc",
    "params/head": "out",
}


def make_cnn():
    return CNN(nnx.Rngs(0))


def renames(names, extra=""):
    """Map rules for all leaves below pairs of paths."""
    text = [f'[[map]]\nfrom = "{a}/{{leaf}}"\nto = "{b}/{{leaf}}"' for a, b in names.items()]
    return bridge.Rules.from_toml("\n".join([*text, extra]))


def random_variables(module, *args, seed=0, **kwargs):
    """Variables of a module, every leaf random, none negative or small."""
    made = jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **kwargs))
    rng = np.random.default_rng(seed)

    def fill(x):
        return np.asarray(np.abs(rng.normal(size=x.shape)) * 0.3 + 0.1).astype(x.dtype)

    return jax.tree.map(fill, made)


def saved(folder, module, *args, tx=None, step=5, **kwargs):
    """A msgpack checkpoint of a train state."""
    variables = random_variables(module, *args, **kwargs)
    stats = {k: v for k, v in variables.items() if k == "batch_stats"}
    state = TrainState.create(
        apply_fn=None, params=variables["params"], tx=tx or optax.sgd(0.1), **stats
    )
    path = folder / f"checkpoint_{step}"
    path.write_bytes(serialization.to_bytes(state.replace(step=step)))
    return path
