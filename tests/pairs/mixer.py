"""MLP-mixer with as many tokens as channels, so that both kinds of mixing share their shapes."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from .pair import Pair, sample, slots

DIM = 4
DEPTH = 3


class MlpBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(DIM)(nn.gelu(nn.Dense(DIM)(x)))


class MixerBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = jnp.swapaxes(nn.LayerNorm()(x), 1, 2)
        y = MlpBlock(name="token_mixing")(y)
        x = x + jnp.swapaxes(y, 1, 2)
        return x + MlpBlock(name="channel_mixing")(nn.LayerNorm()(x))


class MlpMixer(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(DIM, (2, 2), strides=(2, 2), name="stem")(x)
        x = x.reshape(x.shape[0], -1, DIM)
        for _ in range(DEPTH):
            x = MixerBlock()(x)
        x = jnp.mean(nn.LayerNorm(name="pre_head_layer_norm")(x), axis=1)
        return nn.Dense(DIM, name="head")(x)


class Mixing(nnx.Module):
    """Made by a function; `out` sorts after `in_`, but `fc_b` is used first."""

    def __init__(self, rngs):
        self.fc_a = nnx.Linear(DIM, DIM, rngs=rngs)
        self.fc_b = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x):
        return self.fc_a(nnx.gelu(self.fc_b(x)))


class Block(nnx.Module):
    def __init__(self, rngs):
        self.across_channels = Mixing(rngs)
        self.across_tokens = Mixing(rngs)
        self.norm_channels = nnx.LayerNorm(DIM, rngs=rngs)
        self.norm_tokens = nnx.LayerNorm(DIM, rngs=rngs)

    def __call__(self, x):
        y = self.across_tokens(self.norm_tokens(x).swapaxes(1, 2))
        x = x + y.swapaxes(1, 2)
        return x + self.across_channels(self.norm_channels(x))


class Mixer(nnx.Module):
    def __init__(self, rngs):
        self.patchify = nnx.Conv(3, DIM, (2, 2), strides=(2, 2), rngs=rngs)
        for i in range(DEPTH):
            setattr(self, f"layer{i + 1}", Block(rngs))
        self.norm = nnx.LayerNorm(DIM, rngs=rngs)
        self.classify = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x):
        x = self.patchify(x)
        x = x.reshape(x.shape[0], -1, DIM)
        for i in range(DEPTH):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.classify(jnp.mean(self.norm(x), axis=1))


def mlp(old):
    # the outer layer of a nested call is made first
    return {"fc_a": old["Dense_0"], "fc_b": old["Dense_1"]}


def truth(v):
    p = v["params"]
    places = {"patchify": p["stem"], "norm": p["pre_head_layer_norm"], "classify": p["head"]}
    for i in range(DEPTH):
        old, new = p[f"MixerBlock_{i}"], f"layer{i + 1}"
        places[f"{new}/norm_tokens"] = old["LayerNorm_0"]
        places[f"{new}/norm_channels"] = old["LayerNorm_1"]
        places[f"{new}/across_tokens"] = mlp(old["token_mixing"])
        places[f"{new}/across_channels"] = mlp(old["channel_mixing"])
    return slots(places)


PAIRS = [
    Pair(
        "mixer",
        MlpMixer,
        lambda: Mixer(nnx.Rngs(0)),
        (sample(2, 4, 4, 3),),
        truth,
        tolerance=1e-5,
    )
]
