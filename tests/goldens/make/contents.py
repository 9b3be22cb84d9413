"""The trees that the golden checkpoints hold: real states, made by really training.

Each function returns a `Content`. Everything is seeded and made with the libraries of the era the
script runs in, so a golden's optimizer state has the classes and field names of its own optax.

Runs on Python 3.8 - 3.12 and on every release of flax since 0.3.4.
"""
import dataclasses
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState

tree_map = jax.tree_util.tree_map


@dataclasses.dataclass
class Content:
    """What is saved: the tree at each step (the last is the golden), and arrays for the truth."""

    trees: dict
    arrays: dict = dataclasses.field(default_factory=dict)

    @property
    def step(self):
        """The last step."""
        return max(self.trees)

    @property
    def tree(self):
        """The tree at the last step."""
        return self.trees[self.step]


class CNN(nn.Module):
    """The small image classifier of many a Linen example, with the names flax gives by itself."""

    @nn.compact
    def __call__(self, x, train):
        """Give logits for a batch of images."""
        for features in (8, 12):
            x = nn.Conv(features, (3, 3))(x)
            x = nn.BatchNorm(use_running_average=not train)(x)
            x = nn.relu(x)
        x = nn.avg_pool(x, (4, 4), strides=(4, 4))
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(16)(x))
        x = nn.Dropout(0.3)(x, deterministic=not train)
        return nn.Dense(10)(x)


class CNNState(TrainState):
    """The usual subclass: statistics, a slow copy of the parameters, and a raw dropout key."""

    batch_stats: Any
    ema_params: Any
    dropout_key: Any


def cnn_state():
    """The CNN after 1, 2 and 3 steps of clipped AdamW, and what the last one answers."""
    data = np.random.RandomState(0)
    batches = [(data.randn(4, 8, 8, 3).astype(np.float32), data.randint(0, 10, 4))
               for _ in range(3)]
    state, trees = _new_cnn_state(), {}
    for step, (images, labels) in enumerate(batches, start=1):
        state = _train_step(state, images, labels)
        trees[step] = state
    inputs = data.randn(4, 8, 8, 3).astype(np.float32)
    arrays = {"inputs": inputs, "labels": data.randint(0, 10, 4).astype(np.int32),
              "logits": _answer(state, state.params, inputs),
              "ema_logits": _answer(state, state.ema_params, inputs)}
    return Content(trees, arrays)


def _new_cnn_state():
    model = CNN()
    variables = model.init(jax.random.PRNGKey(0), jnp.zeros((1, 8, 8, 3)), train=False)
    schedule = optax.exponential_decay(1e-2, transition_steps=2, decay_rate=0.9)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-4))
    params = variables["params"]
    return CNNState.create(
        apply_fn=model.apply, params=params, tx=tx, batch_stats=variables["batch_stats"],
        ema_params=params, dropout_key=jax.random.PRNGKey(42))


@jax.jit
def _train_step(state, images, labels):
    dropout = jax.random.fold_in(state.dropout_key, state.step)

    def loss_of(params):
        logits, new = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats}, images, train=True,
            rngs={"dropout": dropout}, mutable=["batch_stats"])
        chosen = jax.nn.log_softmax(logits) * jax.nn.one_hot(labels, 10)
        return -chosen.sum(axis=-1).mean(), new["batch_stats"]

    grads, batch_stats = jax.grad(loss_of, has_aux=True)(state.params)
    state = state.apply_gradients(grads=grads)
    ema = tree_map(lambda slow, new: 0.9 * slow + 0.1 * new, state.ema_params, state.params)
    return state.replace(batch_stats=batch_stats, ema_params=ema)


def _answer(state, params, inputs):
    variables = {"params": params, "batch_stats": state.batch_stats}
    return np.asarray(state.apply_fn(variables, inputs, train=False))


class MLP(nn.Module):
    """Two dense layers; with `boxed`, parameters carry partitioning boxes."""

    boxed: bool = False

    @nn.compact
    def __call__(self, x):
        """Give three numbers for each row."""
        first = second = nn.initializers.lecun_normal()
        if self.boxed:
            second = nn.with_logical_partitioning(first, ("embed", "mlp"))
            first = nn.with_partitioning(first, (None, "model"))
        x = nn.relu(nn.Dense(5, kernel_init=first)(x))
        return nn.Dense(3, kernel_init=second)(x)


def _mlp_params(**options):
    return MLP(**options).init(jax.random.PRNGKey(1), jnp.ones((1, 4)))["params"]


def bundle():
    """A dict as people save it: a small state, a config, odd key names and odd leaf types."""
    tx, params = optax.adam(1e-3), _mlp_params()
    _, opt_state = tx.update(tree_map(jnp.ones_like, params), tx.init(params), params)
    return Content({3: {
        "state": {"params": params, "opt_state": opt_state},
        "config": {"name": "run-ü", "lr": 0.001, "layers": [16, 16], "flag": True, "none": None,
                   "empty": {}},
        "key with/slash": jnp.arange(6, dtype=jnp.float32).reshape(2, 3),
        "key.with.dot": np.linspace(0, 1, 5, dtype=np.float32),
        "bf16": jnp.linspace(-2, 2, 7).astype(jnp.bfloat16),
        "i8": np.array([-128, 0, 127], np.int8),
        "scalar": np.float32(2.5),
        "zero_d": jnp.asarray(7, jnp.int32),
        "count": 12345,
    }})


def chunked():
    """Arrays on both sides of a chunk limit of 256 bytes (see `writers.flax_msgpack_chunked`)."""
    data = np.random.RandomState(1)
    return Content({3: {
        "params": {
            "below": data.randn(8, 7).astype(np.float32),
            "exact": data.randn(8, 8).astype(np.float32),
            "above": data.randn(5, 13).astype(np.float32),
            "many": data.randn(3, 5, 20).astype(np.float32),
            "bf16": jnp.asarray(data.randn(20, 10), jnp.bfloat16),
        },
        "bytes": data.randint(0, 255, 1000).astype(np.uint8),
        "step": 3,
    }})


def typed_key():
    """New-style PRNG keys of two implementations beside an ordinary array."""
    return Content({3: {
        "key": jax.random.key(0),
        "batch": jax.random.split(jax.random.key(1), 3),
        "rbg": jax.random.key(2, impl="rbg"),
        "raw": jax.random.PRNGKey(3),
        "array": jnp.arange(4, dtype=jnp.float32),
    }})


def boxed():
    """Parameters inside `nn.Partitioned` and `nn.LogicallyPartitioned` boxes."""
    return Content({3: {"params": flax.core.unfreeze(_mlp_params(boxed=True))}})
