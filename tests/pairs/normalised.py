"""SpectralNorm and WeightNorm: Linen keeps one key with slashes, NNX one that is a tuple."""

from __future__ import annotations

from flax import linen as nn
from flax import nnx

from .pair import Pair, sample, slots

DIM = 6


class Discriminator(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        for _ in range(3):
            x = nn.SpectralNorm(nn.Dense(DIM))(x, update_stats=train)
            x = nn.leaky_relu(x)
        return nn.Dense(1)(x)


class Judge(nnx.Module):
    def __init__(self, rngs):
        self.body = nnx.List(
            [nnx.SpectralNorm(nnx.Linear(DIM, DIM, rngs=rngs), rngs=rngs) for _ in range(3)]
        )
        self.verdict = nnx.Linear(DIM, 1, rngs=rngs)

    def __call__(self, x):
        for layer in self.body:
            x = nnx.leaky_relu(layer(x, update_stats=False))
        return self.verdict(x)


def spectral(v):
    p, s = v["params"], v["batch_stats"]
    places = {"verdict": p["Dense_3"]}
    for i in range(3):
        places[f"body/{i}/layer_instance"] = p[f"Dense_{i}"]
        for name in ("u", "sigma"):
            place = ("body", str(i), "batch_stats", str(("kernel", name)))
            places[place] = s[f"SpectralNorm_{i}"][f"Dense_{i}/kernel/{name}"]
    return slots(places)


class WeightNormed(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.relu(nn.WeightNorm(nn.Dense(DIM))(x))
        return nn.Dense(DIM)(x)


class NNXWeightNormed(nnx.Module):
    def __init__(self, rngs):
        self.out = nnx.Linear(DIM, DIM, rngs=rngs)
        self.b = nnx.WeightNorm(nnx.Linear(DIM, DIM, rngs=rngs), rngs=rngs)
        self.c = nnx.WeightNorm(nnx.Linear(DIM, DIM, rngs=rngs), rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.b(nnx.relu(self.c(x)))))


def weight(v):
    p = v["params"]
    places = {"out": p["Dense_2"]}
    for i, name in enumerate("cb"):
        places[f"{name}/layer_instance"] = p[f"Dense_{i}"]
        place = (name, "scales", str(("kernel",)))
        places[place] = p[f"WeightNorm_{i}"][f"Dense_{i}/kernel/scale"]
    return slots(places)


X = (sample(4, DIM),)
PAIRS = [
    Pair("spectral-norm", Discriminator, lambda: Judge(nnx.Rngs(0)), X, spectral, tolerance=1e-5),
    Pair(
        "weight-norm", WeightNormed, lambda: NNXWeightNormed(nnx.Rngs(0)), X, weight, tolerance=1e-5
    ),
]
