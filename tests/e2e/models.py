"""The CNN of the goldens: in Linen as it was written, and in NNX as somebody would rewrite it.

The NNX names were chosen without a look at the Linen names; that is the point of the tests.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx


class LinenCNN(nn.Module):
    """As in tests/goldens/make/contents.py, with dropout told apart from training mode."""

    @nn.compact
    def __call__(self, x, *, train=False):
        for features in (8, 12):
            x = nn.Conv(features, (3, 3))(x)
            x = nn.BatchNorm(use_running_average=not train)(x)
            x = nn.relu(x)
        x = nn.avg_pool(x, (4, 4), strides=(4, 4))
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(16)(x))
        # the streams of Linen and NNX never agree; without dropout both sides can be compared
        x = nn.Dropout(0.3)(x, deterministic=True)
        return nn.Dense(10)(x)


class Stage(nnx.Module):
    """Convolution, normalisation, activation."""

    def __init__(self, n_in, n_out, *, rngs):
        self.filters = nnx.Conv(n_in, n_out, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(n_out, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.norm(self.filters(x)))


class Classifier(nnx.Module):
    """The same network, grouped into stages and with names of its own."""

    def __init__(self, rngs):
        self.stages = nnx.List([Stage(3, 8, rngs=rngs), Stage(8, 12, rngs=rngs)])
        self.hidden = nnx.Linear(48, 16, rngs=rngs)
        self.drop = nnx.Dropout(0.3, rngs=rngs)
        self.head = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x):
        for stage in self.stages:
            x = stage(x)
        x = nnx.avg_pool(x, (4, 4), strides=(4, 4))
        x = nnx.relu(self.hidden(x.reshape((x.shape[0], -1))))
        return self.head(self.drop(x))


RULES = """
[[map]]
from = "params/Conv_{i}/{leaf}"
to = "stages/{i}/filters/{leaf}"

[[map]]
from = "*/BatchNorm_{i}/{leaf}"
to = "stages/{i}/norm/{leaf}"

[[map]]
from = "params/Dense_0/{leaf}"
to = "hidden/{leaf}"

[[map]]
from = "params/Dense_1/{leaf}"
to = "head/{leaf}"
"""


def classifier():
    return Classifier(nnx.Rngs(0))


def optimizer():
    """The transformation of the goldens."""
    schedule = optax.exponential_decay(1e-2, transition_steps=2, decay_rate=0.9)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-4))


def loss_of(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@jax.jit
def linen_step(params, batch_stats, opt_state, x, y):
    """One step of training in Linen, written out."""

    def loss(p):
        logits, new = LinenCNN().apply(
            {"params": p, "batch_stats": batch_stats}, x, train=True, mutable=["batch_stats"]
        )
        return loss_of(logits, y), new["batch_stats"]

    grads, stats = jax.grad(loss, has_aux=True)(params)
    updates, opt_state = optimizer().update(grads, opt_state, params)
    return optax.apply_updates(params, updates), stats, opt_state


@nnx.jit
def nnx_step(model, opt, x, y):
    """The same step in NNX."""
    grads = nnx.grad(lambda m: loss_of(m(x), y))(model)
    opt.update(model, grads)


def batches(n):
    key = jax.random.key(7)
    for i in range(n):
        a, b = jax.random.split(jax.random.fold_in(key, i))
        yield jax.random.normal(a, (4, 8, 8, 3)), jax.random.randint(b, (4,), 0, 10)


__all__ = [
    "RULES",
    "Classifier",
    "LinenCNN",
    "batches",
    "classifier",
    "jnp",
    "linen_step",
    "nnx_step",
    "optimizer",
]
