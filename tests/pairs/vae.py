"""VAE whose two heads have one shape, and whose new names sort the other way round."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from .pair import Pair, sample, slots

LATENT = 6


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(6, name="fc1")(x))
        mean = nn.Dense(LATENT, name="fc2_mean")(x)
        logvar = nn.Dense(LATENT, name="fc2_logvar")(x)
        return mean, logvar


class Decoder(nn.Module):
    @nn.compact
    def __call__(self, z):
        z = nn.relu(nn.Dense(6, name="fc1")(z))
        return nn.Dense(6, name="fc2")(z)


class VAE(nn.Module):
    def setup(self):
        self.encoder = Encoder()
        self.decoder = Decoder()

    def __call__(self, x, noise):
        mean, logvar = self.encoder(x)
        z = mean + noise * jnp.exp(0.5 * logvar)
        return nn.sigmoid(self.decoder(z)), mean, logvar


class Head(nnx.Module):
    """Both heads; `a_scale` sorts before `b_loc`, the mean before the scale in Linen."""

    def __init__(self, rngs):
        self.a_scale = nnx.Linear(6, LATENT, rngs=rngs)
        self.b_loc = nnx.Linear(6, LATENT, rngs=rngs)

    def __call__(self, h):
        return self.b_loc(h), self.a_scale(h)


class NNXVAE(nnx.Module):
    def __init__(self, rngs):
        self.recognition = nnx.Linear(6, 6, rngs=rngs)
        self.posterior = Head(rngs)
        self.generator = nnx.Sequential(
            nnx.Linear(LATENT, 6, rngs=rngs), nnx.relu, nnx.Linear(6, 6, rngs=rngs), nnx.sigmoid
        )

    def __call__(self, x, noise):
        mean, logvar = self.posterior(nnx.relu(self.recognition(x)))
        z = mean + noise * jnp.exp(0.5 * logvar)
        return self.generator(z), mean, logvar


def truth(v):
    e, d = v["params"]["encoder"], v["params"]["decoder"]
    return slots(
        {
            "recognition": e["fc1"],
            "posterior/b_loc": e["fc2_mean"],
            "posterior/a_scale": e["fc2_logvar"],
            "generator/layers/0": d["fc1"],
            "generator/layers/2": d["fc2"],
        }
    )


class LogStdVAE(nn.Module):
    @nn.compact
    def __call__(self, x, noise):
        h = nn.tanh(nn.Dense(6)(x))
        mean = nn.Dense(LATENT, name="mean")(h)
        logvar = nn.Dense(LATENT, name="logvar")(h)
        return nn.Dense(6, name="decode")(mean + noise * jnp.exp(0.5 * logvar))


class NNXLogStdVAE(nnx.Module):
    """Predicts log(std), half of log(variance): the head's weights are halved, not copied."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(6, 6, rngs=rngs)
        self.log_std = nnx.Linear(6, LATENT, rngs=rngs)
        self.mu = nnx.Linear(6, LATENT, rngs=rngs)
        self.to_pixels = nnx.Linear(LATENT, 6, rngs=rngs)

    def __call__(self, x, noise):
        h = nnx.tanh(self.hidden(x))
        return self.to_pixels(self.mu(h) + noise * jnp.exp(self.log_std(h)))


def halved(factor):
    def convert(v):
        p = v["params"]
        return slots(
            {
                "hidden": p["Dense_0"],
                "mu": p["mean"],
                "log_std": {k: (a * factor).astype(a.dtype) for k, a in p["logvar"].items()},
                "to_pixels": p["decode"],
            }
        )

    return convert


HALVED = """
[[map]]
from = "params/logvar/{leaf}"
to = "log_std/{leaf}"
transforms = [{op = "scale", factor = 0.5}]

[[map]]
from = "params/mean/{leaf}"
to = "mu/{leaf}"

[[map]]
from = "params/Dense_0/{leaf}"
to = "hidden/{leaf}"

[[map]]
from = "params/decode/{leaf}"
to = "to_pixels/{leaf}"
"""

PAIRS = [
    Pair(
        "vae-swapped-heads",
        VAE,
        lambda: NNXVAE(nnx.Rngs(0)),
        (sample(3, 6), sample(3, LATENT, seed=1)),
        truth,
    ),
    Pair(
        "vae-log-std",
        LogStdVAE,
        lambda: NNXLogStdVAE(nnx.Rngs(0)),
        (sample(3, 6), sample(3, LATENT, seed=1)),
        halved(0.5),
        mu=halved(2.0),
        nu=halved(4.0),
        tolerance=1e-5,
        needs="the log-std head holds half of the log-variance head",
        rules=HALVED,
    ),
]
