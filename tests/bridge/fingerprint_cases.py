"""Small Linen models and their NNX rewrites, and how to take their fingerprints."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from bridge._describe import describe
from bridge.fingerprint import fingerprint
from bridge.probe import Probe
from bridge.probes import linen_model, nnx_model
from bridge.transforms import apply_all


def proof_of(linen, make, *args, train=(False,), **kwargs):
    """The proof for two models that are called with the same arguments."""
    probes = [Probe(args, train=t) for t in train]
    shapes = jax.eval_shape(lambda: linen.init(jax.random.key(0), *args))
    leaves = {
        tuple(k.key for k in path): (leaf.shape, leaf.dtype.name)
        for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]
    }
    names = {"Param": "params", "BatchStat": "batch_stats"}
    kinds = {
        s.path: names.get(s.variable_type, s.variable_type)
        for s in describe(make).slots
        if not s.ephemeral
    }
    ours = linen_model(linen, probes, leaves)
    theirs = nnx_model(make, probes, kinds)
    return fingerprint(ours, theirs, kinds, **kwargs)


def named(proof):
    """Pairings as text: slots by sources, both joined by spaces."""
    return {
        " ".join("/".join(p[1:]) for p in pairing.sources): " ".join(
            ".".join(p) for p in pairing.slots
        )
        for pairing in proof.pairings
    }


def moved(pairing, *arrays):
    """What a pairing makes of arrays."""
    return apply_all(pairing.transforms, [np.asarray(a) for a in arrays])


def pairing_for(proof, slot):
    """The pairing that feeds a slot, given as text."""
    (found,) = [p for p in proof.pairings if tuple(slot.split(".")) in p.slots]
    return found


class Nested(nn.Module):
    """Written in one line, which numbers the layers from the outside in."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(6)(nn.relu(nn.Dense(6)(nn.tanh(nn.Dense(6)(x)))))


class NestedNNX(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.one, self.two, self.three = (nnx.Linear(6, 6, rngs=rngs) for _ in range(3))

    def __call__(self, x):
        return self.three(nnx.relu(self.two(nnx.tanh(self.one(x)))))


class Attention(nn.Module):
    """Separate heads."""

    bias: bool = True

    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(2, use_bias=self.bias)(nn.LayerNorm()(x))


class FusedAttention(nnx.Module):
    """One matrix for query, key and value, per head or not."""

    def __init__(self, interleaved=False):
        rngs = nnx.Rngs(0)
        self.interleaved = interleaved
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.qkv = nnx.Linear(8, 24, rngs=rngs)
        self.out = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x):
        y = self.qkv(self.norm(x))
        if self.interleaved:
            q, k, v = jnp.split(y.reshape(*x.shape[:-1], 2, 12), 3, -1)
        else:
            q, k, v = (t.reshape(*x.shape[:-1], 2, 4) for t in jnp.split(y, 3, -1))
        return self.out(nnx.dot_product_attention(q, k, v).reshape(x.shape))


class LSTMs(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Bidirectional(nn.RNN(nn.OptimizedLSTMCell(4)), nn.RNN(nn.OptimizedLSTMCell(4)))(x)


class FusedLSTMs(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        first, second = (
            nnx.RNN(nnx.OptimizedLSTMCell(3, 4, rngs=rngs), rngs=rngs) for _ in range(2)
        )
        self.both = nnx.Bidirectional(first, second, rngs=rngs)

    def __call__(self, x):
        return self.both(x)


class GRU(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.RNN(nn.GRUCell(4))(x)


class FusedGRU(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.rnn = nnx.RNN(nnx.GRUCell(3, 4, rngs=rngs), rngs=rngs)

    def __call__(self, x):
        return self.rnn(x)


class Norms(nn.Module):
    """Three normalised layers; the last two are alike in every shape."""

    @nn.compact
    def __call__(self, x, train=False):
        for _ in range(3):
            x = nn.Dense(5, use_bias=False)(x)
            x = nn.gelu(nn.BatchNorm(use_running_average=not train)(x))
        return x


class NormsNNX(nnx.Module):
    """Its attributes sort the other way round."""

    def __init__(self, momentum=0.99, epsilon=1e-5, activation=nnx.gelu):
        rngs = nnx.Rngs(0)
        self.activation = activation
        self.layers = nnx.List([nnx.Linear(5, 5, use_bias=False, rngs=rngs) for _ in range(3)])
        self.norms = nnx.List([
            nnx.BatchNorm(5, momentum=momentum, epsilon=epsilon, rngs=rngs) for _ in range(3)
        ])  # fmt: skip

    def __call__(self, x):
        for layer, norm in zip(reversed(self.layers), self.norms, strict=True):
            x = self.activation(norm(layer(x)))
        return x


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return x + nn.Dense(4)(nn.gelu(nn.Dense(4)(nn.LayerNorm()(x)))), None


class Looped(nn.Module):
    depth: int = 3

    @nn.compact
    def __call__(self, x):
        for _ in range(self.depth):
            x, _ = Block()(x)
        return nn.Dense(2)(x)


class Scanned(nn.Module):
    depth: int = 3

    @nn.compact
    def __call__(self, x):
        scan = nn.scan(
            Block, variable_axes={"params": 1}, split_rngs={"params": True}, length=self.depth
        )
        return nn.Dense(2)(scan()(x, None)[0])


class BlockNNX(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.up, self.down = (nnx.Linear(4, 4, rngs=rngs) for _ in range(2))

    def __call__(self, x):
        return x + self.down(nnx.gelu(self.up(self.norm(x))))


class ListNNX(nnx.Module):
    def __init__(self, depth=3):
        rngs = nnx.Rngs(0)
        self.blocks = nnx.List([BlockNNX(rngs) for _ in range(depth)])
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class StackNNX(nnx.Module):
    def __init__(self, depth=3):
        rngs = nnx.Rngs(0)
        self.blocks = nnx.split_rngs(splits=depth)(nnx.vmap(BlockNNX))(rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        run = nnx.scan(lambda x, b: b(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return self.head(run(x, self.blocks))


class TorchLinear(nnx.Module):
    """A layer that keeps its matrix the other way round."""

    def __init__(self, n_in, n_out):
        self.weight = nnx.Param(jnp.ones((n_out, n_in)))
        self.bias = nnx.Param(jnp.ones((n_out,)))

    def __call__(self, x):
        return x @ self.weight[...].T + self.bias[...]


class TorchNested(nnx.Module):
    def __init__(self):
        self.one, self.two, self.three = (TorchLinear(6, 6) for _ in range(3))

    def __call__(self, x):
        return self.three(nnx.relu(self.two(nnx.tanh(self.one(x)))))


class Towers(nn.Module):
    @nn.compact
    def __call__(self, x):
        def tower(name):
            return nn.Dense(4, name=f"{name}2")(nn.relu(nn.Dense(4, name=f"{name}1")(x)))

        return nn.Dense(3)(tower("a") + tower("b"))


class TowersNNX(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.l1, self.l2, self.r1, self.r2 = (nnx.Linear(4, 4, rngs=rngs) for _ in range(4))
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.l2(nnx.relu(self.l1(x))) + self.r2(nnx.relu(self.r1(x))))


class Hidden(nn.Module):
    """Two tables without a gradient."""

    @nn.compact
    def __call__(self, x):
        one = self.param("one", nn.initializers.normal(), (4, 4))
        two = self.param("two", nn.initializers.normal(), (4, 4))
        away = jax.lax.stop_gradient(jnp.sin(x @ one) * jnp.cos(two).sum(0))
        return nn.Dense(3)(x + away)


class HiddenNNX(nnx.Module):
    """One of them is no parameter here."""

    def __init__(self):
        self.first = nnx.Param(jnp.ones((4, 4)))
        self.again = nnx.Variable(jnp.ones((4, 4)))
        self.constant = nnx.Variable(jnp.zeros((4, 4)))
        self.head = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        away = jnp.sin(x @ self.again[...]) * jnp.cos(self.first[...]).sum(0)
        return self.head(x + jax.lax.stop_gradient(away) + self.constant[...].sum())


class Codes(nn.Module):
    """Two code books that only choose: no gradient reaches them."""

    @nn.compact
    def __call__(self, x):
        books = [self.param(n, nn.initializers.normal(), (5, 4)) for n in ("first", "second")]
        near = [jax.nn.one_hot(jnp.argmax(x @ b.T, -1), 5) for b in books]
        return nn.tanh(nn.Dense(3)(near[0])) + nn.Dense(3)(near[1])


class CodesNNX(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.book_a, self.book_b = (nnx.Param(jnp.ones((5, 4))) for _ in range(2))
        self.out_a, self.out_b = (nnx.Linear(5, 3, rngs=rngs) for _ in range(2))

    def __call__(self, x):
        near = [jax.nn.one_hot(jnp.argmax(x @ b[...].T, -1), 5) for b in (self.book_b, self.book_a)]
        return nnx.tanh(self.out_a(near[0])) + self.out_b(near[1])


class Tied(nn.Module):
    def setup(self):
        self.embed = nn.Embed(7, 4)
        self.mix = nn.Dense(4)

    def __call__(self, tokens):
        return self.embed.attend(jnp.tanh(self.mix(self.embed(tokens))))


class Untied(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(7, 4, rngs=rngs)
        self.mix = nnx.Linear(4, 4, rngs=rngs)
        self.out = nnx.Param(jnp.ones((7, 4)))

    def __call__(self, tokens):
        return jnp.tanh(self.mix(self.embed(tokens))) @ self.out[...].T
