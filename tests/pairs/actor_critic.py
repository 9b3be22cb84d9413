"""Actor and critic on one torso; Atari style, with everything as wide as everything else."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from .pair import Pair, sample, slots

DIM = 8


class ActorCritic(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(DIM, (3, 3), (2, 2), name="conv1")(x))
        x = nn.relu(nn.Conv(DIM, (3, 3), (2, 2), name="conv2")(x))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(DIM, name="hidden")(x))
        logits = nn.Dense(DIM, name="logits")(nn.tanh(nn.Dense(DIM, name="actor_fc")(x)))
        value = nn.Dense(1, name="value")(nn.tanh(nn.Dense(DIM, name="critic_fc")(x)))
        log_std = self.param("log_std", nn.initializers.zeros, (DIM,))
        return nn.log_softmax(logits * jnp.exp(log_std)), value


class Agent(nnx.Module):
    """`actor` and `critic` are sequences; the torso is a list of plain layers."""

    def __init__(self, rngs):
        self.critic = nnx.Sequential(
            nnx.Linear(DIM, DIM, rngs=rngs), nnx.tanh, nnx.Linear(DIM, 1, rngs=rngs)
        )
        self.actor = nnx.Sequential(
            nnx.Linear(DIM, DIM, rngs=rngs), nnx.tanh, nnx.Linear(DIM, DIM, rngs=rngs)
        )
        self.entropy = nnx.Param(jnp.zeros((DIM,)))
        self.torso = nnx.List(
            [
                nnx.Conv(DIM, DIM, (3, 3), strides=(2, 2), rngs=rngs),
                nnx.Conv(DIM, DIM, (3, 3), strides=(2, 2), rngs=rngs),
                nnx.Linear(4 * DIM, DIM, rngs=rngs),
            ]
        )

    def __call__(self, x):
        for layer in self.torso:
            if isinstance(layer, nnx.Linear):
                x = x.reshape(x.shape[0], -1)
            x = nnx.relu(layer(x))
        logits = self.actor(x) * jnp.exp(self.entropy[...])
        return nnx.log_softmax(logits), self.critic(x)


def truth(v):
    p = v["params"]
    return slots(
        {
            "torso/0": p["conv1"],
            "torso/1": p["conv2"],
            "torso/2": p["hidden"],
            "actor/layers/0": p["actor_fc"],
            "actor/layers/2": p["logits"],
            "critic/layers/0": p["critic_fc"],
            "critic/layers/2": p["value"],
            "entropy": p["log_std"],
        }
    )


class TwinCritic(nn.Module):
    """Two critics that start alike: which is which, only the order of the outputs tells."""

    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Dense(DIM)(x))
        q1 = nn.Dense(1)(nn.relu(nn.Dense(DIM)(h)))
        q2 = nn.Dense(1)(nn.relu(nn.Dense(DIM)(h)))
        return q1, q2


class Critics(nnx.Module):
    def __init__(self, rngs):
        def head():
            return nnx.Sequential(
                nnx.Linear(DIM, DIM, rngs=rngs), nnx.relu, nnx.Linear(DIM, 1, rngs=rngs)
            )

        self.second = head()
        self.primary = head()
        self.trunk = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x):
        h = nnx.relu(self.trunk(x))
        return self.primary(h), self.second(h)


def twin_truth(v):
    p = v["params"]  # in a nested call the outer layer is made first
    return slots(
        {
            "trunk": p["Dense_0"],
            "primary/layers/0": p["Dense_2"],
            "primary/layers/2": p["Dense_1"],
            "second/layers/0": p["Dense_4"],
            "second/layers/2": p["Dense_3"],
        }
    )


class Offset(nn.Module):
    """What is added to a bias does what the bias does: only the names of the leaves differ."""

    @nn.compact
    def __call__(self, x):
        prior = self.param("log_prior", nn.initializers.zeros, (DIM,))
        return nn.log_softmax(nn.Dense(DIM)(nn.tanh(nn.Dense(DIM)(x))) + prior)


class NNXOffset(nnx.Module):
    def __init__(self, rngs):
        self.body = nnx.Linear(DIM, DIM, rngs=rngs)
        self.class_prior = nnx.Param(jnp.zeros((DIM,)))
        self.output = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x):
        return nnx.log_softmax(self.output(nnx.tanh(self.body(x))) + self.class_prior[...])


def offset_truth(v):
    p = v["params"]  # the outer layer is made first
    return slots({"body": p["Dense_1"], "output": p["Dense_0"], "class_prior": p["log_prior"]})


PAIRS = [
    Pair(
        "actor-critic",
        ActorCritic,
        lambda: Agent(nnx.Rngs(0)),
        (sample(2, 8, 8, DIM),),
        truth,
        tolerance=1e-5,
    ),
    Pair("offset", Offset, lambda: NNXOffset(nnx.Rngs(0)), (sample(3, DIM),), offset_truth),
    Pair("twin-critic", TwinCritic, lambda: Critics(nnx.Rngs(0)), (sample(3, DIM),), twin_truth),
]
