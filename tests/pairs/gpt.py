"""GPT: Linen's attention against 2-D projections, against a fused one, and a fused one split up."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from .pair import Pair, attention_2d, cat, slots, tokens

DIM = 8
HEADS = 2
LAYERS = 2
VOCAB = 11
LENGTH = 6


class Block(nn.Module):
    fused: bool = False

    @nn.compact
    def __call__(self, x, mask):
        h = nn.LayerNorm(name="ln_1")(x)
        if self.fused:
            q, k, v = jnp.split(nn.Dense(3 * DIM, name="c_attn")(h), 3, axis=-1)
            h = nn.Dense(DIM, name="c_proj")(attend(q, k, v))
        else:
            h = nn.MultiHeadDotProductAttention(HEADS, name="attn")(h, h, mask=mask)
        x = x + h
        h = nn.LayerNorm(name="ln_2")(x)
        h = nn.Dense(DIM, name="mlp_out")(nn.gelu(nn.Dense(DIM, name="mlp_in")(h)))
        return x + h


class GPT(nn.Module):
    fused: bool = False

    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(VOCAB, DIM, name="wte")(ids)
        x = x + nn.Embed(LENGTH, DIM, name="wpe")(jnp.arange(ids.shape[1]))
        for i in range(LAYERS):
            x = Block(self.fused, name=f"h_{i}")(x, nn.make_causal_mask(ids))
        return nn.Dense(VOCAB, use_bias=False, name="lm_head")(nn.LayerNorm(name="ln_f")(x))


def attend(q, k, v):
    """Causal attention of (batch, length, dim) arrays."""
    heads = (*q.shape[:-1], HEADS, -1)
    q, k, v = q.reshape(heads), k.reshape(heads), v.reshape(heads)
    q = q / jnp.sqrt(q.shape[-1]).astype(q.dtype)
    weights = jnp.einsum("bqhd,bkhd->bhqk", q, k)
    mask = jnp.tril(jnp.ones((q.shape[1], q.shape[1]), bool))
    weights = jax.nn.softmax(jnp.where(mask, weights, jnp.finfo(q.dtype).min))
    y = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
    return y.reshape(*y.shape[:2], -1)


class CausalSelfAttention(nnx.Module):
    def __init__(self, *, rngs):
        self.q_proj = nnx.Linear(DIM, DIM, rngs=rngs)
        self.k_proj = nnx.Linear(DIM, DIM, rngs=rngs)
        self.v_proj = nnx.Linear(DIM, DIM, rngs=rngs)
        self.o_proj = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x):
        return self.o_proj(attend(self.q_proj(x), self.k_proj(x), self.v_proj(x)))


class FusedSelfAttention(nnx.Module):
    def __init__(self, *, rngs):
        self.qkv = nnx.Linear(DIM, 3 * DIM, rngs=rngs)
        self.proj = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x):
        return self.proj(attend(*jnp.split(self.qkv(x), 3, axis=-1)))


class Layer(nnx.Module):
    def __init__(self, attention, *, rngs):
        self.norm_attention = nnx.LayerNorm(DIM, rngs=rngs)
        self.attention = attention(rngs=rngs)
        self.norm_mlp = nnx.LayerNorm(DIM, rngs=rngs)
        self.fc = nnx.Linear(DIM, DIM, rngs=rngs)
        self.out = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm_attention(x))
        return x + self.out(nnx.gelu(self.fc(self.norm_mlp(x))))


class NNXGPT(nnx.Module):
    def __init__(self, attention, *, rngs):
        self.token_embedding = nnx.Embed(VOCAB, DIM, rngs=rngs)
        self.position_embedding = nnx.Embed(LENGTH, DIM, rngs=rngs)
        self.layers = nnx.List([Layer(attention, rngs=rngs) for _ in range(LAYERS)])
        self.norm = nnx.LayerNorm(DIM, rngs=rngs)
        self.unembed = nnx.Linear(DIM, VOCAB, use_bias=False, rngs=rngs)

    def __call__(self, ids):
        x = self.token_embedding(ids) + self.position_embedding(jnp.arange(ids.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return self.unembed(self.norm(x))


def truth(v, attention):
    p = v["params"]
    places = {
        "token_embedding": p["wte"],
        "position_embedding": p["wpe"],
        "norm": p["ln_f"],
        "unembed": p["lm_head"],
    }
    for i in range(LAYERS):
        old, new = p[f"h_{i}"], f"layers/{i}"
        places[f"{new}/norm_attention"] = old["ln_1"]
        places[f"{new}/norm_mlp"] = old["ln_2"]
        places[f"{new}/fc"] = old["mlp_in"]
        places[f"{new}/out"] = old["mlp_out"]
        places[f"{new}/attention"] = attention(old)
    return slots(places)


def separate(old):
    return attention_2d(old["attn"], ("q_proj", "k_proj", "v_proj", "o_proj"))


def fused(old):
    parts = separate(old)
    return {"qkv": cat([parts[f"{n}_proj"] for n in "qkv"]), "proj": parts["o_proj"]}


def split(old):
    found = {"o_proj": old["c_proj"]}
    for i, name in enumerate("qkv"):
        cut = slice(i * DIM, (i + 1) * DIM)
        found[f"{name}_proj"] = {k: a[..., cut] for k, a in old["c_attn"].items()}
    return found


def pair(name, attention, convert, *, fused_source=False):
    return Pair(
        name,
        lambda: GPT(fused_source),
        lambda: NNXGPT(attention, rngs=nnx.Rngs(0)),
        (tokens(2, LENGTH, vocab=VOCAB),),
        lambda v: truth(v, convert),
        tolerance=1e-5,
    )


PAIRS = [
    pair("gpt-2d-qkv", CausalSelfAttention, separate),
    pair("gpt-fused-qkv", FusedSelfAttention, fused),
    pair("gpt-split-qkv", CausalSelfAttention, split, fused_source=True),
]
