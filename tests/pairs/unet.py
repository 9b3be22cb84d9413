"""U-Net with skip connections; the old one numbers everything, the new one nests."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from .pair import Pair, sample, slots

CH = 4
LEVELS = 2


class DoubleConv(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.silu(nn.GroupNorm(num_groups=2)(nn.Conv(CH, (3, 3))(x)))
        return nn.silu(nn.GroupNorm(num_groups=2)(nn.Conv(CH, (3, 3))(x)))


class UNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(CH, (3, 3))(x)
        skips = []
        for _ in range(LEVELS):
            x = DoubleConv()(x)
            skips.append(x)
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = DoubleConv(name="bottleneck")(x)
        for _ in range(LEVELS):
            x = nn.ConvTranspose(CH, (2, 2), strides=(2, 2))(x)
            x = jnp.concatenate([skips.pop(), x], -1)
            x = nn.Conv(CH, (1, 1))(x)
            x = DoubleConv()(x)
        return nn.Conv(1, (1, 1))(x)


class ConvBlock(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List(
            [
                nnx.Conv(CH, CH, (3, 3), rngs=rngs),
                nnx.GroupNorm(CH, num_groups=2, rngs=rngs),
                nnx.silu,
                nnx.Conv(CH, CH, (3, 3), rngs=rngs),
                nnx.GroupNorm(CH, num_groups=2, rngs=rngs),
                nnx.silu,
            ]
        )

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Up(nnx.Module):
    def __init__(self, rngs):
        self.conv = ConvBlock(rngs)
        self.squeeze = nnx.Conv(2 * CH, CH, (1, 1), rngs=rngs)
        self.up = nnx.ConvTranspose(CH, CH, (2, 2), strides=(2, 2), rngs=rngs)

    def __call__(self, x, skip):
        return self.conv(self.squeeze(jnp.concatenate([skip, self.up(x)], -1)))


class NNXUNet(nnx.Module):
    """`ups` is built from the deepest level down, and used from its end."""

    def __init__(self, rngs):
        self.ups = nnx.List([Up(rngs) for _ in range(LEVELS)])
        self.downs = nnx.List([ConvBlock(rngs) for _ in range(LEVELS)])
        self.middle = ConvBlock(rngs)
        self.inc = nnx.Conv(3, CH, (3, 3), rngs=rngs)
        self.outc = nnx.Conv(CH, 1, (1, 1), rngs=rngs)

    def __call__(self, x):
        x = self.inc(x)
        skips = []
        for down in self.downs:
            x = down(x)
            skips.append(x)
            x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        x = self.middle(x)
        for level in reversed(range(LEVELS)):
            x = self.ups[level](x, skips[level])
        return self.outc(x)


def block(old):
    return {
        "0": old["Conv_0"],
        "1": old["GroupNorm_0"],
        "3": old["Conv_1"],
        "4": old["GroupNorm_1"],
    }


def truth(v):
    p = v["params"]
    places = {
        "inc": p["Conv_0"],
        "outc": p[f"Conv_{LEVELS + 1}"],
        "middle/layers": block(p["bottleneck"]),
    }
    for i in range(LEVELS):
        up = LEVELS - 1 - i
        places[f"downs/{i}/layers"] = block(p[f"DoubleConv_{i}"])
        places[f"ups/{up}/up"] = p[f"ConvTranspose_{i}"]
        places[f"ups/{up}/squeeze"] = p[f"Conv_{i + 1}"]
        places[f"ups/{up}/conv/layers"] = block(p[f"DoubleConv_{LEVELS + i}"])
    return slots(places)


PAIRS = [
    Pair(
        "unet",
        UNet,
        lambda: NNXUNet(nnx.Rngs(0)),
        (sample(1, 8, 8, 3),),
        truth,
        tolerance=1e-5,
    )
]
