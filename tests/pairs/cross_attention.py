"""Encoder-decoder with cross-attention; NNX names query, key and value otherwise, and reversed."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from .pair import Pair, slots, tokens

DIM = 8
HEADS = 2
DEPTH = 2
VOCAB = 9


class FeedForward(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(DIM, name="wo")(nn.relu(nn.Dense(DIM, name="wi")(x)))


class EncoderLayer(nn.Module):
    @nn.compact
    def __call__(self, x, mask):
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS, use_bias=False)(h, mask=mask)
        return x + FeedForward()(nn.LayerNorm()(x))


class DecoderLayer(nn.Module):
    @nn.compact
    def __call__(self, x, memory, mask, memory_mask):
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS, use_bias=False)(h, mask=mask)
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS, use_bias=False)(h, memory, mask=memory_mask)
        return x + FeedForward()(nn.LayerNorm()(x))


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, source, target):
        mask = nn.make_attention_mask(source > 0, source > 0)
        x = nn.Embed(VOCAB, DIM, name="source_embed")(source)
        for i in range(DEPTH):
            x = EncoderLayer(name=f"encoder_{i}")(x, mask)
        memory = nn.LayerNorm(name="encoder_norm")(x)
        causal = nn.make_causal_mask(target)
        across = nn.make_attention_mask(target >= 0, source > 0)
        y = nn.Embed(VOCAB, DIM, name="target_embed")(target)
        for i in range(DEPTH):
            y = DecoderLayer(name=f"decoder_{i}")(y, memory, causal, across)
        y = nn.LayerNorm(name="decoder_norm")(y)
        return nn.Dense(VOCAB, name="logits")(y)


class Attention(nnx.Module):
    """Own attention; `to_kv` first, and the names sort against those of Linen."""

    def __init__(self, rngs):
        shape = (HEADS, DIM // HEADS)
        self.a_values = nnx.LinearGeneral(DIM, shape, use_bias=False, rngs=rngs)
        self.b_keys = nnx.LinearGeneral(DIM, shape, use_bias=False, rngs=rngs)
        self.c_queries = nnx.LinearGeneral(DIM, shape, use_bias=False, rngs=rngs)
        self.merge = nnx.LinearGeneral(shape, DIM, axis=(-2, -1), use_bias=False, rngs=rngs)

    def __call__(self, x, memory, mask):
        q, k, v = self.c_queries(x), self.b_keys(memory), self.a_values(memory)
        return self.merge(nnx.dot_product_attention(q, k, v, mask=mask))


class MLP(nnx.Module):
    def __init__(self, rngs):
        self.down = nnx.Linear(DIM, DIM, rngs=rngs)
        self.up = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x):
        return self.down(nnx.relu(self.up(x)))


class Layer(nnx.Module):
    def __init__(self, rngs, *, cross):
        self.mlp = MLP(rngs)
        self.mlp_norm = nnx.LayerNorm(DIM, rngs=rngs)
        if cross:
            self.cross = Attention(rngs)
            self.cross_norm = nnx.LayerNorm(DIM, rngs=rngs)
        self.own = Attention(rngs)
        self.own_norm = nnx.LayerNorm(DIM, rngs=rngs)

    def __call__(self, x, mask, memory=None, memory_mask=None):
        h = self.own_norm(x)
        x = x + self.own(h, h, mask)
        if memory is not None:
            x = x + self.cross(self.cross_norm(x), memory, memory_mask)
        return x + self.mlp(self.mlp_norm(x))


class Seq2Seq(nnx.Module):
    def __init__(self, rngs):
        self.decoder = nnx.List([Layer(rngs, cross=True) for _ in range(DEPTH)])
        self.encoder = nnx.List([Layer(rngs, cross=False) for _ in range(DEPTH)])
        self.embed_out = nnx.Embed(VOCAB, DIM, rngs=rngs)
        self.embed_in = nnx.Embed(VOCAB, DIM, rngs=rngs)
        self.norm_out = nnx.LayerNorm(DIM, rngs=rngs)
        self.norm_in = nnx.LayerNorm(DIM, rngs=rngs)
        self.project = nnx.Linear(DIM, VOCAB, rngs=rngs)

    def __call__(self, source, target):
        mask = nnx.make_attention_mask(source > 0, source > 0)
        x = self.embed_in(source)
        for layer in self.encoder:
            x = layer(x, mask)
        memory = self.norm_in(x)
        causal = nnx.make_causal_mask(target)
        across = nnx.make_attention_mask(target >= 0, source > 0)
        y = self.embed_out(target)
        for layer in self.decoder:
            y = layer(y, causal, memory, across)
        return self.project(self.norm_out(y))


def attention(old):
    return {
        "a_values": old["value"],
        "b_keys": old["key"],
        "c_queries": old["query"],
        "merge": old["out"],
    }


def truth(v):
    p = v["params"]
    places = {
        "embed_in": p["source_embed"],
        "embed_out": p["target_embed"],
        "norm_in": p["encoder_norm"],
        "norm_out": p["decoder_norm"],
        "project": p["logits"],
    }
    for i in range(DEPTH):
        for side in ("encoder", "decoder"):
            old, new = p[f"{side}_{i}"], f"{side}/{i}"
            last = 2 if side == "decoder" else 1
            places[f"{new}/own_norm"] = old["LayerNorm_0"]
            places[f"{new}/own"] = attention(old["MultiHeadDotProductAttention_0"])
            places[f"{new}/mlp_norm"] = old[f"LayerNorm_{last}"]
            places[f"{new}/mlp/up"] = old["FeedForward_0"]["wi"]
            places[f"{new}/mlp/down"] = old["FeedForward_0"]["wo"]
        places[f"{new}/cross_norm"] = old["LayerNorm_1"]
        places[f"{new}/cross"] = attention(old["MultiHeadDotProductAttention_1"])
    return slots(places)


def inputs():
    source, target = tokens(2, 5, vocab=VOCAB), tokens(2, 4, vocab=VOCAB, seed=1)
    return jnp.asarray(source + (source == 0)), jnp.asarray(target)


PAIRS = [
    Pair(
        "cross-attention",
        Transformer,
        lambda: Seq2Seq(nnx.Rngs(0)),
        inputs(),
        truth,
        tolerance=1e-5,
    )
]
