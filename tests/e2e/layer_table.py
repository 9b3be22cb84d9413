"""Every Linen layer with its NNX counterpart, as it stands in a model of other names.

A row is what two people would write for one layer. The Linen layer is made inside a compact
module, so that it has the name that Linen gives it; the NNX layer is an attribute of another name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx


class One(nn.Module):
    """A layer in a model."""

    make: Callable[[], nn.Module]

    @nn.compact
    def __call__(self, *args, **options):
        return self.make()(*args, **options)


class Net(nnx.Module):
    """The same layer in a rewritten model."""

    def __init__(self, make, rngs):
        self.inner = make(rngs)

    def __call__(self, *args, **options):
        return self.inner(*args, **options)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: of the row.
        linen: makes the Linen layer.
        nnx: makes the NNX layer.
        args: inputs.
        linen_options: further arguments of the Linen call.
        nnx_options: further arguments of the NNX call.
        within: how far outputs may be apart; 0 for equal in every bit.
        refused: what a problem must say; empty where everything is mapped.
        zero: name of leaves that are zero in the checkpoint.
        codes: layer rules that the plan must name.
    """

    name: str
    linen: Callable[[], nn.Module]
    nnx: Callable[[nnx.Rngs], Any]
    args: tuple[Any, ...]
    linen_options: Mapping[str, Any] = field(default_factory=dict)
    nnx_options: Mapping[str, Any] = field(default_factory=dict)
    within: float = 0.0
    refused: str = ""
    zero: str = ""
    codes: tuple[str, ...] = ()


def data(*shape, dtype="float32"):
    """Random numbers that are the same each time."""
    return jax.random.normal(jax.random.key(7), shape).astype(dtype)


def conv(name, features, size, shape, **options):
    """A convolution with the same options on both sides."""
    return Row(
        f"Conv {name}",
        lambda: nn.Conv(features, size, **options),
        lambda r: nnx.Conv(shape[-1], features, size, rngs=r, **options),
        (data(*shape),),
    )


def transposed(padding, transpose):
    """A transposed convolution."""
    options = {"strides": (2, 2), "padding": padding, "transpose_kernel": transpose}
    return Row(
        f"ConvTranspose {padding} {'out,in' if transpose else 'in,out'}",
        lambda: nn.ConvTranspose(5, (3, 3), **options),
        lambda r: nnx.ConvTranspose(3, 5, (3, 3), rngs=r, **options),
        (data(2, 6, 6, 3),),
    )


def norm(name, linen, new, shape=(3, 5, 6), **more):
    """A normalisation."""
    return Row(name, linen, new, (data(*shape),), **more)


def attention(name, options=None, extra=None, width=16, **more):
    """Attention of four heads."""
    options = {"num_heads": 4, **(options or {})}
    fast = more.pop("within", 0.0)
    return Row(
        f"attention {name}",
        lambda: nn.MultiHeadDotProductAttention(**options),
        lambda r: nnx.MultiHeadAttention(
            in_features=width, decode=False, rngs=r, **options, **(extra or {})
        ),
        (data(2, 5, width),),
        within=fast,
        **more,
    )


FLAX = tuple(int(n) for n in flax.__version__.split(".")[:3])
ROUNDING = 0.0 if FLAX >= (0, 12, 8) else 1e-6
"""Releases before 0.12.8 sum the gates of a cell in another order than Linen."""

X = data(3, 7)
IMAGE = data(2, 6, 6, 3)
SEQUENCE = data(2, 5, 3)
SLOW = {"dropout_rate": 0.1, "deterministic": True}
"""With dropout NNX computes attention as Linen does, with one einsum after the other."""


class TwoDimensional(nnx.Module):
    """Attention as people write it with plain linear layers."""

    def __init__(self, width, heads, rngs):
        self.q_proj = nnx.Linear(width, width, rngs=rngs)
        self.k_proj = nnx.Linear(width, width, rngs=rngs)
        self.v_proj = nnx.Linear(width, width, rngs=rngs)
        self.o_proj = nnx.Linear(width, width, rngs=rngs)
        self.heads = heads

    def __call__(self, x):
        split = (*x.shape[:-1], self.heads, -1)
        q, k, v = (f(x).reshape(split) for f in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(nnx.dot_product_attention(q, k, v).reshape(x.shape))


class OneKernel(nnx.Module):
    """Attention with one kernel for queries, keys and values, in an axis of its own."""

    def __init__(self, width, heads, rngs):
        self.qkv = nnx.LinearGeneral(width, (3, heads, width // heads), rngs=rngs)
        self.out = nnx.LinearGeneral((heads, width // heads), width, axis=(-2, -1), rngs=rngs)

    def __call__(self, x):
        q, k, v = jnp.moveaxis(self.qkv(x), -3, 0)
        return self.out(nnx.dot_product_attention(q, k, v))


class Cells:
    """A cell with a carry of zeros, as both libraries would start it."""

    def __init__(self, make):
        self.make = make

    def linen(self):
        cell = self.make()

        class Start(nn.Module):
            """Starts and takes one step; owns no variables."""

            def __call__(self, x):
                return cell(cell.initialize_carry(jax.random.key(0), x.shape), x)[1]

        return Start()


class Stepped(nnx.Module):
    """One step of an NNX cell."""

    def __init__(self, cell):
        self.cell = cell

    def __call__(self, x):
        carry = self.cell.initialize_carry(x.shape, rngs=nnx.Rngs(0))
        return self.cell(carry, x)[1]


def cell(name, old, new, **more):
    """One step of a recurrent cell from a carry of zeros."""
    return Row(name, Cells(old).linen, lambda r: Stepped(new(r)), (X,), within=ROUNDING, **more)


def rnn(name, old, new, **more):
    """A sequence through a recurrent cell."""
    return Row(name, lambda: nn.RNN(old()), lambda r: nnx.RNN(new(r), rngs=r), (SEQUENCE,), **more)


def wrapped(name, old, new, options=None, **more):
    """A wrapper around a dense layer."""
    return Row(
        name,
        lambda: old(nn.Dense(5)),
        lambda r: new(nnx.Linear(7, 5, rngs=r), rngs=r),
        (X,),
        linen_options=options or {},
        nnx_options=options or {},
        codes=(name.split(" ", maxsplit=1)[0],),
        **more,
    )


ROWS = (
    Row("Dense", lambda: nn.Dense(5), lambda r: nnx.Linear(7, 5, rngs=r), (X,)),
    Row(
        "Dense without bias",
        lambda: nn.Dense(5, use_bias=False),
        lambda r: nnx.Linear(7, 5, use_bias=False, rngs=r),
        (X,),
    ),
    Row(
        "Dense computing in bfloat16",
        lambda: nn.Dense(5, dtype=jnp.bfloat16),
        lambda r: nnx.Linear(7, 5, dtype=jnp.bfloat16, rngs=r),
        (X,),
    ),
    Row(
        "Dense stored in bfloat16",
        lambda: nn.Dense(5, param_dtype=jnp.bfloat16),
        lambda r: nnx.Linear(7, 5, param_dtype=jnp.bfloat16, rngs=r),
        (X,),
    ),
    Row("Dense to LinearGeneral", lambda: nn.Dense(5),
        lambda r: nnx.LinearGeneral(7, 5, rngs=r), (X,)),
    Row(
        "DenseGeneral (4, 5)",
        lambda: nn.DenseGeneral((4, 5)),
        lambda r: nnx.LinearGeneral(7, (4, 5), rngs=r),
        (X,),
    ),
    Row(
        "DenseGeneral over two axes",
        lambda: nn.DenseGeneral(4, axis=(1, -1)),
        lambda r: nnx.LinearGeneral((5, 3), 4, axis=(1, -1), rngs=r),
        (SEQUENCE,),
    ),
    Row(
        "DenseGeneral with batch axes",
        lambda: nn.DenseGeneral(4, batch_dims=(0,)),
        lambda r: nnx.LinearGeneral(7, 4, batch_axis={0: 3}, rngs=r),
        (X,),
    ),
    Row(
        "Einsum",
        lambda: nn.Einsum((7, 4, 5), "bi,ijk->bjk"),
        lambda r: nnx.Einsum("bi,ijk->bjk", (7, 4, 5), (4, 5), rngs=r),
        (X,),
    ),
    Row(
        "Einsum without bias",
        lambda: nn.Einsum((7, 4, 5), "bi,ijk->bjk", use_bias=False),
        lambda r: nnx.Einsum("bi,ijk->bjk", (7, 4, 5), None, rngs=r),
        (X,),
    ),
    *(conv(f"1d {p}", 4, (3,), (2, 8, 3), padding=p)
      for p in ("SAME", "VALID", "CIRCULAR", "CAUSAL")),
    conv("2d strided", 4, (3, 3), (2, 6, 6, 3), strides=(2, 2)),
    conv("grouped", 6, (3, 3), (2, 6, 6, 4), feature_group_count=2),
    conv("depthwise", 4, (3, 3), (2, 6, 6, 4), feature_group_count=4),
    conv("dilated, padded in pairs", 4, (3, 3), (2, 6, 6, 3),
         padding=((1, 2), (0, 1)), input_dilation=(2, 2), kernel_dilation=(1, 2)),
    conv("int kernel size", 4, 3, (2, 8, 3)),
    *(transposed(p, t) for p, t in (("SAME", False), ("VALID", True))),
    Row(
        "ConvLocal has no NNX class",
        lambda: nn.ConvLocal(4, (3,)),
        lambda r: nnx.Conv(3, 4, (3,), rngs=r),
        (data(2, 8, 3),),
        refused="nnx.bridge.ToNNX",
    ),
    Row("Embed", lambda: nn.Embed(11, 5), lambda r: nnx.Embed(11, 5, rngs=r),
        (jnp.array([[1, 4], [10, 0]]),)),
    *(
        norm(
            f"BatchNorm {name}",
            lambda options=options: nn.BatchNorm(**options),
            lambda r, options=options: nnx.BatchNorm(6, rngs=r, **options),
        )
        for name, options in {
            "training": {"use_running_average": False},
            "evaluating": {"use_running_average": True},
            "slow": {"use_running_average": False, "use_fast_variance": False},
            "without scale": {"use_running_average": True, "use_scale": False},
            "momentum": {"use_running_average": False, "momentum": 0.9},
        }.items()
    ),
    norm(
        "BatchNorm of axis 1",
        lambda: nn.BatchNorm(use_running_average=True, axis=1),
        lambda r: nnx.BatchNorm(5, use_running_average=True, axis=1, rngs=r),
    ),
    norm(
        "BatchNorm of two axes",
        lambda: nn.BatchNorm(use_running_average=True, axis=(1, -1)),
        lambda r: nnx.BatchNorm(6, use_running_average=True, rngs=r),
        refused="one axis of features",
    ),
    norm("LayerNorm", nn.LayerNorm, lambda r: nnx.LayerNorm(6, rngs=r)),
    norm(
        "LayerNorm without scale",
        lambda: nn.LayerNorm(use_scale=False),
        lambda r: nnx.LayerNorm(6, use_scale=False, rngs=r),
    ),
    norm(
        "LayerNorm of two axes",
        lambda: nn.LayerNorm(feature_axes=(-2, -1)),
        lambda r: nnx.LayerNorm(6, rngs=r),
        refused="one axis of features",
    ),
    norm("RMSNorm", nn.RMSNorm, lambda r: nnx.RMSNorm(6, rngs=r)),
    norm(
        "GroupNorm",
        lambda: nn.GroupNorm(num_groups=3),
        lambda r: nnx.GroupNorm(6, num_groups=3, rngs=r),
    ),
    norm(
        "GroupNorm by size",
        lambda: nn.GroupNorm(num_groups=None, group_size=2),
        lambda r: nnx.GroupNorm(6, num_groups=None, group_size=2, rngs=r),
    ),
    norm("InstanceNorm", nn.InstanceNorm, lambda r: nnx.InstanceNorm(6, rngs=r)),
    norm(
        "InstanceNorm of two axes",
        lambda: nn.InstanceNorm(feature_axes=(-2, -1)),
        lambda r: nnx.InstanceNorm(6, rngs=r),
        shape=(3, 4, 5, 6),
        refused="one axis of features",
    ),
    Row("PReLU", nn.PReLU, lambda r: nnx.PReLU(), (X,)),  # noqa: ARG005 - it draws nothing
    wrapped("weight-norm", nn.WeightNorm, nnx.WeightNorm),
    wrapped("spectral-norm", nn.SpectralNorm, nnx.SpectralNorm, {"update_stats": False}),
    wrapped("spectral-norm updating", nn.SpectralNorm, nnx.SpectralNorm, {"update_stats": True}),
    attention("fast", within=1e-6),
    attention("by einsum", SLOW),
    attention("other widths", {"qkv_features": 8, "out_features": 10, **SLOW}),
    attention("without bias", {"use_bias": False, **SLOW}),
    attention("normalised", {"normalize_qk": True, **SLOW}),
    Row(
        "attention with linear layers",
        lambda: nn.MultiHeadDotProductAttention(num_heads=2),
        lambda r: TwoDimensional(8, 2, r),
        (data(2, 5, 8),),
        within=1e-6,
        codes=("attention-reshape",),
    ),
    Row(
        "attention with one kernel",
        lambda: nn.MultiHeadDotProductAttention(num_heads=2),
        lambda r: OneKernel(8, 2, r),
        (data(2, 5, 8),),
        within=1e-5,
        codes=("attention-qkv",),
    ),
    cell("LSTMCell", lambda: nn.LSTMCell(4), lambda r: nnx.LSTMCell(7, 4, rngs=r)),
    cell(
        "OptimizedLSTMCell",
        lambda: nn.OptimizedLSTMCell(4),
        lambda r: nnx.OptimizedLSTMCell(7, 4, rngs=r),
        codes=("lstm-fuse",),
    ),
    cell(
        "MGUCell has no NNX class",
        lambda: nn.MGUCell(4),
        lambda r: nnx.SimpleCell(7, 4, rngs=r),
        refused="nnx.bridge.ToNNX",
    ),
    cell("OptimizedLSTMCell to LSTMCell",
         lambda: nn.OptimizedLSTMCell(4), lambda r: nnx.LSTMCell(7, 4, rngs=r)),
    cell(
        "LSTMCell to OptimizedLSTMCell",
        lambda: nn.LSTMCell(4),
        lambda r: nnx.OptimizedLSTMCell(7, 4, rngs=r),
        codes=("lstm-fuse",),
    ),
    cell(
        "SimpleCell",
        lambda: nn.SimpleCell(4),
        lambda r: nnx.SimpleCell(7, 4, rngs=r),
        codes=("simple-cell",),
    ),
    cell(
        "GRUCell",
        lambda: nn.GRUCell(4),
        lambda r: nnx.GRUCell(7, 4, rngs=r),
        refused="hn/bias",
    ),
    cell(
        "GRUCell without bias in hn",
        lambda: nn.GRUCell(4),
        lambda r: nnx.GRUCell(7, 4, rngs=r),
        zero="hn/bias",
        codes=("gru-fuse",),
    ),
    rnn(
        "RNN of OptimizedLSTMCell",
        lambda: nn.OptimizedLSTMCell(4),
        lambda r: nnx.OptimizedLSTMCell(3, 4, rngs=r),
        codes=("lstm-fuse",),
    ),
    rnn("RNN of LSTMCell", lambda: nn.LSTMCell(4), lambda r: nnx.LSTMCell(3, 4, rngs=r)),
    Row(
        "Bidirectional",
        lambda: nn.Bidirectional(nn.RNN(nn.LSTMCell(4)), nn.RNN(nn.LSTMCell(4))),
        lambda r: nnx.Bidirectional(
            *(nnx.RNN(nnx.LSTMCell(3, 4, rngs=r), rngs=r) for _ in range(2)), rngs=r
        ),
        (SEQUENCE,),
        refused="nothing proves which is which",
    ),
    Row(
        "Sequential",
        lambda: nn.Sequential([nn.Dense(5), nn.relu, nn.Dense(4)]),
        lambda r: nnx.Sequential(
            nnx.Linear(7, 5, rngs=r), nnx.relu, nnx.Linear(5, 4, rngs=r)
        ),
        (X,),
    ),
    Row(
        "Sequential of one width",
        lambda: nn.Sequential([nn.Dense(7), nn.relu, nn.Dense(7)]),
        lambda r: nnx.Sequential(
            nnx.Linear(7, 7, rngs=r), nnx.relu, nnx.Linear(7, 7, rngs=r)
        ),
        (X,),
        refused="nothing proves which is which",
    ),
    Row(
        "Dropout has nothing to map",
        lambda: nn.Sequential([nn.Dense(5), nn.Dropout(0.5, deterministic=True)]),
        lambda r: nnx.Sequential(
            nnx.Linear(7, 5, rngs=r), nnx.Dropout(0.5, deterministic=True, rngs=r)
        ),
        (X,),
    ),
)  # fmt: skip
