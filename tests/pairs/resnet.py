"""ResNet v1 with BatchNorm; every stage has one width, so that most kernels share a shape."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from .pair import Pair, sample, slots

WIDTH = 4
STAGES = (2, 2, 1)


class ResNetBlock(nn.Module):
    filters: int
    strides: tuple[int, int] = (1, 1)
    train: bool = False

    @nn.compact
    def __call__(self, x):
        norm = partial(nn.BatchNorm, use_running_average=not self.train, momentum=0.9)
        residual = x
        y = nn.Conv(self.filters, (3, 3), self.strides, use_bias=False)(x)
        y = norm()(y)
        y = nn.relu(y)
        y = nn.Conv(self.filters, (3, 3), use_bias=False)(y)
        y = norm()(y)
        if residual.shape != y.shape:
            residual = nn.Conv(
                self.filters, (1, 1), self.strides, use_bias=False, name="conv_proj"
            )(residual)
            residual = norm(name="norm_proj")(residual)
        return nn.relu(residual + y)


class ResNet(nn.Module):
    num_classes: int = 5

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(WIDTH, (3, 3), use_bias=False, name="conv_init")(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn_init")(x)
        x = nn.relu(x)
        for i, blocks in enumerate(STAGES):
            for j in range(blocks):
                strides = (2, 2) if i > 0 and j == 0 else (1, 1)
                x = ResNetBlock(WIDTH, strides, train)(x)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_classes)(x)


class Shortcut(nnx.Module):
    def __init__(self, width, stride, rngs):
        self.norm = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        self.conv = nnx.Conv(
            width, width, (1, 1), strides=(stride, stride), use_bias=False, rngs=rngs
        )

    def __call__(self, x):
        return self.norm(self.conv(x))


class BasicBlock(nnx.Module):
    def __init__(self, width, stride, *, rngs):
        self.conv1 = nnx.Conv(
            width, width, (3, 3), strides=(stride, stride), use_bias=False, rngs=rngs
        )
        self.conv2 = nnx.Conv(width, width, (3, 3), use_bias=False, rngs=rngs)
        self.bn1 = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        self.bn2 = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        self.downsample = Shortcut(width, stride, rngs) if stride > 1 else None

    def __call__(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return nnx.relu(x + shortcut)


class NNXResNet(nnx.Module):
    def __init__(self, classes=5, *, rngs):
        self.stem = nnx.Conv(3, WIDTH, (3, 3), use_bias=False, rngs=rngs)
        self.stem_bn = nnx.BatchNorm(WIDTH, momentum=0.9, rngs=rngs)
        self.stages = nnx.List(
            [
                nnx.List(
                    [BasicBlock(WIDTH, 2 if i and not j else 1, rngs=rngs) for j in range(blocks)]
                )
                for i, blocks in enumerate(STAGES)
            ]
        )
        self.fc = nnx.Linear(WIDTH, classes, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.stem_bn(self.stem(x)))
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return self.fc(jnp.mean(x, axis=(1, 2)))


def truth(v):
    p, s = v["params"], v["batch_stats"]
    places = {
        "stem": p["conv_init"],
        "stem_bn": (p["bn_init"], s["bn_init"]),
        "fc": p["Dense_0"],
    }
    order = [(i, j) for i, blocks in enumerate(STAGES) for j in range(blocks)]
    for n, (i, j) in enumerate(order):
        old, stats, new = p[f"ResNetBlock_{n}"], s[f"ResNetBlock_{n}"], f"stages/{i}/{j}"
        for k in (0, 1):
            places[f"{new}/conv{k + 1}"] = old[f"Conv_{k}"]
            places[f"{new}/bn{k + 1}"] = (old[f"BatchNorm_{k}"], stats[f"BatchNorm_{k}"])
        if i and not j:
            places[f"{new}/downsample/conv"] = old["conv_proj"]
            places[f"{new}/downsample/norm"] = (old["norm_proj"], stats["norm_proj"])
    return slots(places)


PAIRS = [
    Pair(
        "resnet",
        ResNet,
        lambda: NNXResNet(rngs=nnx.Rngs(0)),
        (sample(2, 8, 8, 3),),
        truth,
        tolerance=1e-5,
    )
]
