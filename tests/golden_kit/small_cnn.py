"""The CNN of the matrix of goldens (tests/goldens/make/matrix_contents_states.py), both ways."""

from __future__ import annotations

import flax.linen as nn
import optax
from flax import nnx


class LinenCNN(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        for features in (2, 3):
            x = nn.Conv(features, (3, 3))(x)
            x = nn.BatchNorm(use_running_average=not train)(x)
            x = nn.relu(x)
        return nn.Dense(4)(x.reshape((x.shape[0], -1)))


class CNN(nnx.Module):
    def __init__(self, rngs):
        self.early = nnx.Conv(2, 2, (3, 3), rngs=rngs)
        self.early_norm = nnx.BatchNorm(2, rngs=rngs)
        self.late = nnx.Conv(2, 3, (3, 3), rngs=rngs)
        self.late_norm = nnx.BatchNorm(3, rngs=rngs)
        self.classes = nnx.Linear(48, 4, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.early_norm(self.early(x)))
        x = nnx.relu(self.late_norm(self.late(x)))
        return self.classes(x.reshape((x.shape[0], -1)))


def model():
    return CNN(nnx.Rngs(0))


def optimizer():
    schedule = optax.exponential_decay(1e-2, transition_steps=2, decay_rate=0.9)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-4))
