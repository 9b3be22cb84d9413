"""Vision transformer in the style of Google's, rewritten with nnx.MultiHeadAttention."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from .pair import Pair, sample, slots

DIM = 8
HEADS = 2
DEPTH = 3
PATCH = 4


class AddPositionEmbs(nn.Module):
    @nn.compact
    def __call__(self, x):
        init = nn.initializers.normal(0.02)
        return x + self.param("pos_embedding", init, (1, x.shape[1], x.shape[2]))


class MlpBlock(nn.Module):
    mlp_dim: int

    @nn.compact
    def __call__(self, x):
        out = x.shape[-1]
        x = nn.gelu(nn.Dense(self.mlp_dim)(x))
        return nn.Dense(out)(x)


class Encoder1DBlock(nn.Module):
    @nn.compact
    def __call__(self, inputs, *, deterministic):
        x = nn.LayerNorm()(inputs)
        x = nn.MultiHeadDotProductAttention(num_heads=HEADS, deterministic=deterministic)(x, x)
        x = x + inputs
        y = nn.LayerNorm()(x)
        return x + MlpBlock(DIM)(y)


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = AddPositionEmbs(name="posembed_input")(x)
        for lyr in range(DEPTH):
            x = Encoder1DBlock(name=f"encoderblock_{lyr}")(x, deterministic=not train)
        return nn.LayerNorm(name="encoder_norm")(x)


class VisionTransformer(nn.Module):
    @nn.compact
    def __call__(self, inputs, train: bool = False):
        x = nn.Conv(DIM, (PATCH, PATCH), (PATCH, PATCH), padding="VALID", name="embedding")(inputs)
        x = x.reshape(x.shape[0], -1, DIM)
        cls = self.param("cls", nn.initializers.zeros, (1, 1, DIM))
        x = jnp.concatenate([jnp.tile(cls, [x.shape[0], 1, 1]), x], axis=1)
        x = Encoder(name="Transformer")(x, train=train)
        return nn.Dense(3, name="head")(x[:, 0])


class TransformerBlock(nnx.Module):
    def __init__(self, rngs):
        self.norm1 = nnx.LayerNorm(DIM, rngs=rngs)
        self.norm2 = nnx.LayerNorm(DIM, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(HEADS, DIM, decode=False, rngs=rngs)
        self.mlp = nnx.Sequential(
            nnx.Linear(DIM, DIM, rngs=rngs),
            nnx.gelu,
            nnx.Dropout(0.1, rngs=rngs),
            nnx.Linear(DIM, DIM, rngs=rngs),
        )

    def __call__(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nnx.Module):
    def __init__(self, rngs):
        self.patch_embeddings = nnx.Conv(
            3, DIM, (PATCH, PATCH), strides=(PATCH, PATCH), padding="VALID", rngs=rngs
        )
        init = nnx.initializers.truncated_normal(0.02)
        self.position_embeddings = nnx.Param(init(rngs.params(), (1, 5, DIM), jnp.float32))
        self.cls_token = nnx.Param(jnp.zeros((1, 1, DIM)))
        self.encoder = nnx.Sequential(*[TransformerBlock(rngs) for _ in range(DEPTH)])
        self.final_norm = nnx.LayerNorm(DIM, rngs=rngs)
        self.classifier = nnx.Linear(DIM, 3, rngs=rngs)

    def __call__(self, x):
        patches = self.patch_embeddings(x)
        batch = patches.shape[0]
        patches = patches.reshape(batch, -1, DIM)
        cls = jnp.tile(self.cls_token[...], [batch, 1, 1])
        x = jnp.concat([cls, patches], axis=1) + self.position_embeddings[...]
        x = self.final_norm(self.encoder(x))
        return self.classifier(x[:, 0])


def truth(v):
    p = v["params"]
    encoder = p["Transformer"]
    places = {
        "patch_embeddings": p["embedding"],
        "position_embeddings": encoder["posembed_input"]["pos_embedding"],
        "cls_token": p["cls"],
        "final_norm": encoder["encoder_norm"],
        "classifier": p["head"],
    }
    for i in range(DEPTH):
        old, new = encoder[f"encoderblock_{i}"], f"encoder/layers/{i}"
        places[f"{new}/norm1"] = old["LayerNorm_0"]
        places[f"{new}/norm2"] = old["LayerNorm_1"]
        places[f"{new}/attn"] = old["MultiHeadDotProductAttention_0"]
        places[f"{new}/mlp/layers/0"] = old["MlpBlock_0"]["Dense_0"]
        places[f"{new}/mlp/layers/3"] = old["MlpBlock_0"]["Dense_1"]
    return slots(places)


PAIRS = [
    Pair(
        "vit",
        VisionTransformer,
        lambda: ViT(nnx.Rngs(0)),
        (sample(2, 8, 8, 3),),
        truth,
        tolerance=1e-5,
    )
]
