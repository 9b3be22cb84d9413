"""Leaves that a gradient of one call in evaluation mode does not see, and biases that add up."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from .pair import Pair, sample, slots

DIM = 6


class Projector(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(DIM)(nn.relu(nn.LayerNorm()(nn.Dense(DIM)(x))))


class BYOL(nn.Module):
    """No gradient goes to the target network."""

    def setup(self):
        self.online = Projector()
        self.predictor = Projector()
        self.target = Projector()

    def __call__(self, x, y):
        z = jax.lax.stop_gradient(self.target(y))
        p = self.predictor(self.online(x))
        return jnp.sum((p - z) ** 2, -1), p


class Head(nnx.Module):
    def __init__(self, rngs):
        self.out = nnx.Linear(DIM, DIM, rngs=rngs)
        self.norm = nnx.LayerNorm(DIM, rngs=rngs)
        self.inp = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.norm(self.inp(x))))


class Bootstrap(nnx.Module):
    def __init__(self, rngs):
        self.ema = Head(rngs)
        self.g = Head(rngs)
        self.q = Head(rngs)

    def __call__(self, x, y):
        z = jax.lax.stop_gradient(self.ema(y))
        p = self.q(self.g(x))
        return jnp.sum((p - z) ** 2, -1), p


def byol(v):
    new = {"ema": "target", "g": "online", "q": "predictor"}
    places = {}
    for name, old in new.items():
        tree = v["params"][old]  # the outer layer is made first
        places[name] = {"out": tree["Dense_0"], "inp": tree["Dense_1"], "norm": tree["LayerNorm_0"]}
    return slots(places)


class Auxiliary(nn.Module):
    """As in Inception: a second head that only training has."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.Dense(DIM)(x))
        aux = nn.Dense(DIM, name="aux")(x) if train else None
        x = nn.relu(nn.Dense(DIM)(x))
        y = nn.Dense(DIM, name="head")(x)
        return y if aux is None else (y, aux)


class NNXAuxiliary(nnx.Module):
    def __init__(self, rngs):
        self.second_classifier = nnx.Linear(DIM, DIM, rngs=rngs)
        self.classifier = nnx.Linear(DIM, DIM, rngs=rngs)
        self.body = nnx.List([nnx.Linear(DIM, DIM, rngs=rngs) for _ in range(2)])

    def __call__(self, x, train: bool = False):
        h = nnx.relu(self.body[0](x))
        y = self.classifier(nnx.relu(self.body[1](h)))
        return (y, self.second_classifier(h)) if train else y


def auxiliary(v):
    p = v["params"]
    return slots(
        {
            "classifier": p["head"],
            "second_classifier": p["aux"],
            "body": {"0": p["Dense_0"], "1": p["Dense_1"]},
        }
    )


class GAN(nn.Module):
    """One module, two methods; the call runs only one of them."""

    def setup(self):
        self.g1, self.g2 = nn.Dense(DIM), nn.Dense(DIM)
        self.d1, self.d2 = nn.Dense(DIM), nn.Dense(DIM)

    def __call__(self, z):
        return nn.tanh(self.g2(nn.relu(self.g1(z))))

    def discriminate(self, x):
        return self.d2(nn.leaky_relu(self.d1(x)))

    def everything(self, z):
        return self.discriminate(self(z))


class NNXGAN(nnx.Module):
    def __init__(self, rngs):
        self.critic_out, self.critic_in = (nnx.Linear(DIM, DIM, rngs=rngs) for _ in range(2))
        self.maker_out, self.maker_in = (nnx.Linear(DIM, DIM, rngs=rngs) for _ in range(2))

    def __call__(self, z):
        return nnx.tanh(self.maker_out(nnx.relu(self.maker_in(z))))

    def discriminate(self, x):
        return self.critic_out(nnx.leaky_relu(self.critic_in(x)))


def gan(v):
    p = v["params"]
    new = {"maker_in": "g1", "maker_out": "g2", "critic_in": "d1", "critic_out": "d2"}
    return slots({name: p[old] for name, old in new.items()})


class Quantizer(nn.Module):
    """The code book and its statistics are a collection of their own."""

    @nn.compact
    def __call__(self, z):
        init = nn.initializers.normal()
        book = self.variable("vq", "embedding", lambda: init(self.make_rng("params"), (DIM, DIM)))
        self.variable("vq", "ema_sum", jnp.zeros, (DIM, DIM))
        self.variable("vq", "ema_count", jnp.ones, (DIM,))
        near = jnp.argmin(jnp.sum((z[:, None] - book.value) ** 2, -1), -1)
        return z + jax.lax.stop_gradient(book.value[near] - z)


class VQVAE(nn.Module):
    @nn.compact
    def __call__(self, x):
        z = nn.Dense(DIM, name="encode")(x)
        return nn.Dense(DIM, name="decode")(Quantizer(name="quantizer")(z))


class CodeBook(nnx.Variable):
    """What the optimizer does not train."""


nnx.register_variable_name("vq", CodeBook, overwrite=True)


class Codes(nnx.Module):
    def __init__(self, rngs):
        self.vectors = CodeBook(nnx.initializers.normal()(rngs.params(), (DIM, DIM)))
        self.running_total = CodeBook(jnp.zeros((DIM, DIM)))
        self.usage = CodeBook(jnp.ones((DIM,)))

    def __call__(self, z):
        book = self.vectors[...]
        near = jnp.argmin(jnp.sum((z[:, None] - book) ** 2, -1), -1)
        return z + jax.lax.stop_gradient(book[near] - z)


class NNXVQVAE(nnx.Module):
    def __init__(self, rngs):
        self.post = nnx.Linear(DIM, DIM, rngs=rngs)
        self.codes = Codes(rngs)
        self.pre = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x):
        return self.post(self.codes(self.pre(x)))


def vqvae(v):
    p, q = v["params"], v["vq"]["quantizer"]
    return slots(
        {
            "pre": p["encode"],
            "post": p["decode"],
            "codes/vectors": q["embedding"],
            "codes/running_total": q["ema_sum"],
            "codes/usage": q["ema_count"],
        }
    )


class Added(nn.Module):
    """Sums of layers with biases: the biases alone cannot be told apart, their kernels can."""

    @nn.compact
    def __call__(self, x, t):
        for _ in range(2):
            shortcut = nn.Dense(DIM)(x)
            h = nn.Dense(DIM)(nn.relu(x)) + nn.Dense(DIM)(t)
            x = nn.relu(nn.Dense(DIM)(nn.swish(h)) + shortcut)
        return x


class Sum(nnx.Module):
    def __init__(self, rngs):
        self.conv2, self.conv1 = (nnx.Linear(DIM, DIM, rngs=rngs) for _ in range(2))
        self.skip, self.emb = (nnx.Linear(DIM, DIM, rngs=rngs) for _ in range(2))

    def __call__(self, x, t):
        h = self.conv1(nnx.relu(x)) + self.emb(t)
        return nnx.relu(self.conv2(nnx.swish(h)) + self.skip(x))


class NNXAdded(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([Sum(rngs) for _ in range(2)])

    def __call__(self, x, t):
        for block in self.blocks:
            x = block(x, t)
        return x


def added(v):
    p = v["params"]
    order = ("skip", "conv1", "emb", "conv2")
    return slots(
        {f"blocks/{b}/{n}": p[f"Dense_{4 * b + i}"] for b in (0, 1) for i, n in enumerate(order)}
    )


X, Y = sample(3, DIM), sample(3, DIM, seed=1)
PAIRS = [
    Pair("stop-gradient", BYOL, lambda: Bootstrap(nnx.Rngs(0)), (X, Y), byol, tolerance=1e-4),
    Pair(
        "train-only-head",
        Auxiliary,
        lambda: NNXAuxiliary(nnx.Rngs(0)),
        (X,),
        auxiliary,
        linen_kwargs={"train": True},
        nnx_kwargs={"train": True},
    ),
    Pair(
        "two-methods",
        GAN,
        lambda: NNXGAN(nnx.Rngs(0)),
        (X,),
        gan,
        init_method="everything",
        more={"methods": ["discriminate"]},
    ),
    Pair("code-book", VQVAE, lambda: NNXVQVAE(nnx.Rngs(0)), (X,), vqvae),
    Pair("added-biases", Added, lambda: NNXAdded(nnx.Rngs(0)), (X, Y), added, tolerance=1e-5),
]
