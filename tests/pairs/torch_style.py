"""Written after PyTorch: weights are (out, in), blocks are numbered attributes, BatchNorm last."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from .pair import Pair, sample, slots

DIM = 6


class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(self.features)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dropout(0.1, deterministic=not train)(nn.relu(x))


class Tabular(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        for _ in range(3):
            x = Block(DIM)(x, train=train)
        return nn.Dense(DIM, name="classifier")(x)


class Linear(nnx.Module):
    def __init__(self, n_in, n_out, rngs):
        init = nnx.initializers.lecun_normal()
        self.weight = nnx.Param(init(rngs.params(), (n_out, n_in)))
        self.bias = nnx.Param(jnp.zeros(n_out))

    def __call__(self, x):
        return x @ self.weight[...].T + self.bias[...]


class Net(nnx.Module):
    def __init__(self, rngs):
        self.fc = Linear(DIM, DIM, rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        for i in range(3, 0, -1):
            setattr(self, f"bn{i}", nnx.BatchNorm(DIM, rngs=rngs))
            setattr(self, f"fc{i}", Linear(DIM, DIM, rngs))

    def __call__(self, x):
        for i in range(1, 4):
            x = getattr(self, f"bn{i}")(getattr(self, f"fc{i}")(x))
            x = self.drop(nnx.relu(x))
        return self.fc(x)


def turned(tree):
    return {"weight": tree["kernel"].T, "bias": tree["bias"]}


def truth(v):
    p, s = v["params"], v["batch_stats"]
    places = {"fc": turned(p["classifier"])}
    for i in range(3):
        old, stats = p[f"Block_{i}"], s[f"Block_{i}"]
        places[f"fc{i + 1}"] = turned(old["Dense_0"])
        places[f"bn{i + 1}"] = (old["BatchNorm_0"], stats["BatchNorm_0"])
    return slots(places)


PAIRS = [
    Pair(
        "transposed",
        Tabular,
        lambda: Net(nnx.Rngs(0)),
        (sample(4, DIM),),
        truth,
        linen_kwargs={"train": False},
        tolerance=1e-5,
    )
]
