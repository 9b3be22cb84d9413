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
        first: inputs of the initialisation, where they are not those of the call.
        bare: the two are the whole models, not layers in one.
        gradients: also those are equal in every bit.
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
    first: tuple[Any, ...] = ()
    bare: bool = False
    gradients: bool = False

    def linen_model(self):
        """The old model."""
        return self.linen() if self.bare else One(self.linen)

    def nnx_model(self):
        """The new model."""
        return self.nnx(nnx.Rngs(1)) if self.bare else Net(self.nnx, nnx.Rngs(1))


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


def half(name, linen, new, args=None, **more):
    """A layer that computes, or is stored, in half precision."""
    return Row(f"{name} in bfloat16", linen, new, args or (data(3, 5, 6),), **more)


def norm(name, linen, new, shape=(3, 5, 6), **more):
    """A normalisation."""
    return Row(name, linen, new, (data(*shape),), **more)


def attention(name, options=None, extra=None, width=16, **more):
    """Attention of four heads."""
    options = {"num_heads": 4, **(options or {})}
    fast = more.pop("within", 0.0)
    args = more.pop("args", (data(2, 5, width),))
    return Row(
        f"attention {name}",
        lambda: nn.MultiHeadDotProductAttention(**options),
        lambda r: nnx.MultiHeadAttention(
            in_features=width, decode=False, rngs=r, **options, **(extra or {})
        ),
        args,
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


class SetupParts(nn.Module):
    """Layers in a list, a dict and a tuple, by attribute."""

    def setup(self):
        self.layers = [nn.Dense(5), nn.Dense(5)]
        self.heads = {"mean": nn.Dense(2), "logvar": nn.Dense(3)}
        self.pair = (nn.Dense(5), nn.Dense(5))
        self.nest = [nn.Dense(5), [nn.Dense(5), nn.Dense(5)]]

    def __call__(self, x):
        for f in (*self.layers, *self.pair, self.nest[0], *self.nest[1]):
            x = f(x) * 0.3
        return jnp.concatenate([self.heads["mean"](x), self.heads["logvar"](x)], -1)


class NewParts(nnx.Module):
    """The same containers with the same names."""

    def __init__(self, rngs):
        def new(width=5):
            return nnx.Linear(5, width, rngs=rngs)

        self.heads = nnx.Dict(logvar=new(3), mean=new(2))
        self.pair = nnx.List([new(), new()])
        self.layers = nnx.List([new(), new()])
        self.nest = nnx.List([new(), nnx.List([new(), new()])])

    def __call__(self, x):
        for f in (*self.layers, *self.pair, self.nest[0], *self.nest[1]):
            x = f(x) * 0.3
        return jnp.concatenate([self.heads["mean"](x), self.heads["logvar"](x)], -1)


class Blk(nn.Module):
    """Two layers, one of which has statistics."""

    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=True)(nn.Dense(x.shape[-1])(x))


class Step(nn.Module):
    """The body of a scan."""

    @nn.compact
    def __call__(self, x, _):
        return Blk()(x), None


class NewBlk(nnx.Module):
    """The same block under other names."""

    def __init__(self, width, rngs):
        self.proj = nnx.Linear(width, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, use_running_average=True, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.proj(x))


class Stacked(nnx.Module):
    """Three blocks in one: applied side by side, or one after the other."""

    def __init__(self, width, rngs, call):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=0, out_axes=0)
        def make(rngs):
            return NewBlk(width, rngs)

        self.blocks = make(rngs)
        self.call = call

    def __call__(self, x):
        return self.call(self.blocks, x)


def apart(block, x):
    """Each block computes its own part."""
    return nnx.vmap(lambda b, y: b(y), in_axes=(0, 0), out_axes=0)(block, x)


def through(block, x):
    """All blocks, one after the other."""
    return nnx.scan(lambda y, b: b(y), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, block)


SPLIT = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True}}


class Through(nn.Module):
    """Three blocks in a scan."""

    @nn.compact
    def __call__(self, x):
        return nn.scan(Step, length=3, **SPLIT)()(x, None)[0]


class Hidden(nn.Module):
    """A layer that another module takes into its own scope."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(5)(x)


class Sharing(nn.Module):
    """Shares its scope with the module inside: the layer is stored as if it were its own."""

    def setup(self):
        self.inside = Hidden()
        nn.share_scope(self, self.inside)

    def __call__(self, x):
        return self.inside(x)


class counters(nnx.Variable):  # noqa: N801 - named like the collection
    """What ``nnx.bridge`` would make of a collection of this name."""


class Own(nn.Module):
    """Variables of the author's own, in the params and in another collection."""

    @nn.compact
    def __call__(self, x):
        temperature = self.param("temperature", nn.initializers.ones, (7,))
        seen = self.variable("counters", "seen", jnp.ones, (7,))
        return x * temperature + seen.value


class NewOwn(nnx.Module):
    """The same Variables."""

    def __init__(self, kind=counters):
        self.temperature = nnx.Param(jnp.ones((7,)))
        self.seen = kind(jnp.ones((7,)))

    def __call__(self, x):
        return x * self.temperature[...] + self.seen[...]


class Boxed(nn.Module):
    """A dense layer whose params say how they are partitioned."""

    box: Any

    @nn.compact
    def __call__(self, x):
        kernel = self.box(nn.initializers.lecun_normal(), ("in", "out"))
        bias = self.box(nn.initializers.zeros, ("out",))
        return nn.Dense(5, kernel_init=kernel, bias_init=bias)(x)


class Attend(nn.Module):
    """A table that is looked up and, turned around, gives the logits."""

    options: Any = None

    @nn.compact
    def __call__(self, query):
        return nn.Embed(11, 6, **(self.options or {})).attend(query)


class NewAttend(nnx.Module):
    """The same table."""

    def __init__(self, rngs, **options):
        self.table = nnx.Embed(11, 6, rngs=rngs, **options)

    def __call__(self, query):
        return self.table.attend(query)


class ConvStep(nn.Module):
    """One step of a convolutional cell."""

    @nn.compact
    def __call__(self, x):
        cell = nn.ConvLSTMCell(4, (2,))
        return cell(cell.initialize_carry(jax.random.key(0), x.shape), x)[1]


def decoding(rngs):
    """Attention that has begun to decode."""
    layer = nnx.MultiHeadAttention(num_heads=4, in_features=16, decode=True, rngs=rngs)
    layer.init_cache((2, 5, 16))
    return layer


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


def wrapped(name, old, new, options=None, build=None, **more):
    """A wrapper around a dense layer."""
    build = build or {}
    return Row(
        name,
        lambda: old(nn.Dense(5), **build),
        lambda r: new(nnx.Linear(7, 5, rngs=r), rngs=r, **build),
        (X,),
        linen_options=options or {},
        nnx_options=options or {},
        codes=more.pop("codes", (name.split(" ", maxsplit=1)[0],)),
        **more,
    )


ROWS = (
    Row("Dense", lambda: nn.Dense(5), lambda r: nnx.Linear(7, 5, rngs=r), (X,), gradients=True),
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
      for p in ("SAME", "VALID", "CIRCULAR", "REFLECT", "CAUSAL")),
    *(conv(f"2d {p}", 4, (3, 3), (2, 6, 6, 3), padding=p)
      for p in ("SAME", "VALID", "CIRCULAR", "REFLECT")),
    conv("3d", 4, (3, 3, 2), (2, 4, 5, 4, 3)),
    conv("unbatched", 4, (3, 3), (6, 6, 3)),
    conv("with two batch axes", 4, (3, 3), (2, 2, 6, 6, 3)),
    conv("without bias", 4, (3, 3), (2, 6, 6, 3), use_bias=False),
    conv("2d strided", 4, (3, 3), (2, 6, 6, 3), strides=(2, 2)),
    conv("grouped", 6, (3, 3), (2, 6, 6, 4), feature_group_count=2),
    conv("depthwise", 4, (3, 3), (2, 6, 6, 4), feature_group_count=4),
    conv("dilated, padded in pairs", 4, (3, 3), (2, 6, 6, 3),
         padding=((1, 2), (0, 1)), input_dilation=(2, 2), kernel_dilation=(1, 2)),
    conv("int kernel size", 4, 3, (2, 8, 3)),
    *(transposed(p, t) for p in ("SAME", "VALID", "CIRCULAR") for t in (False, True)),
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
    *(
        norm(f"{old.__name__} {name}",
             lambda old=old, options=options: old(**options),
             lambda r, new=new, options=options: new(6, rngs=r, **options))
        for old, new in ((nn.LayerNorm, nnx.LayerNorm), (nn.RMSNorm, nnx.RMSNorm))
        for name, options in {
            "with slow variance": {"use_fast_variance": False},
            "over two axes": {"reduction_axes": (-2, -1)},
        }.items()
    ),
    norm("LayerNorm of one feature", nn.LayerNorm, lambda r: nnx.LayerNorm(1, rngs=r),
         shape=(3, 5, 1)),
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
    Row("PReLU of half numbers", nn.PReLU, lambda r: nnx.PReLU(),  # noqa: ARG005 - as above
        (data(3, 7, dtype=jnp.bfloat16),)),
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
    Row("RNN backwards", lambda: nn.RNN(nn.LSTMCell(4), reverse=True, keep_order=True),
        lambda r: nnx.RNN(nnx.LSTMCell(3, 4, rngs=r), reverse=True, keep_order=True, rngs=r),
        (SEQUENCE,)),
    rnn("RNN of SimpleCell", lambda: nn.SimpleCell(4),
        lambda r: nnx.SimpleCell(3, 4, rngs=r), codes=("simple-cell",)),
    rnn("RNN of GRUCell", lambda: nn.GRUCell(4), lambda r: nnx.GRUCell(3, 4, rngs=r),
        zero="hn/bias", codes=("gru-fuse",)),
    Row("RNN alone", lambda: nn.RNN(nn.OptimizedLSTMCell(4)),
        lambda r: nnx.RNN(nnx.OptimizedLSTMCell(3, 4, rngs=r), rngs=r), (SEQUENCE,),
        bare=True, codes=("lstm-fuse",)),
    Row(
        "Bidirectional alone",
        lambda: nn.Bidirectional(nn.RNN(nn.LSTMCell(4)), nn.RNN(nn.LSTMCell(4))),
        lambda r: nnx.Bidirectional(
            *(nnx.RNN(nnx.LSTMCell(3, 4, rngs=r), rngs=r) for _ in range(2)), rngs=r
        ),
        (SEQUENCE,),
        bare=True,
    ),
    Row("ConvLSTMCell has no NNX class", ConvStep,
        lambda r: nnx.SimpleCell(3, 4, rngs=r), (data(2, 5, 3),), refused="nnx.bridge.ToNNX"),
    Row(
        "Sequential alone",
        lambda: nn.Sequential([nn.Dense(7), nn.relu, nn.Dense(7)]),
        lambda r: nnx.Sequential(
            nnx.Linear(7, 7, rngs=r), nnx.relu, nnx.Linear(7, 7, rngs=r)
        ),
        (X,),
        bare=True,
    ),
    Row("setup list, dict, tuple", SetupParts, NewParts, (data(3, 5),), bare=True,
        gradients=True),
    Row("share_scope", Sharing, lambda r: nnx.Linear(7, 5, rngs=r), (X,), gradients=True),
    Row("Variables of one's own", Own, lambda r: NewOwn(), (X,)),  # noqa: ARG005 - draws nothing
    Row("a collection that became a Param", Own,
        lambda r: NewOwn(nnx.Param), (X,), refused="counters/"),  # noqa: ARG005 - as above
    *(
        Row(f"{box.__name__} box", lambda box=box: Boxed(box),
            lambda r: nnx.Linear(7, 5, rngs=r), (X,))
        for box in (nn.with_partitioning, nn.with_logical_partitioning)
    ),
    Row("remat", nn.remat(Blk), lambda r: NewBlk(7, r), (X,)),
    Row("jit", nn.jit(Blk), lambda r: NewBlk(7, r), (X,), within=1e-6),
    Row("vmap", nn.vmap(Blk, in_axes=0, out_axes=0, **SPLIT),
        lambda r: Stacked(5, r, apart), (data(3, 2, 5),)),
    Row("scan", Through, lambda r: Stacked(7, r, through), (X,)),
    Row("attention decoding",
        lambda: nn.MultiHeadDotProductAttention(num_heads=4, decode=True), decoding,
        (data(2, 1, 16),), first=(data(2, 5, 16),), within=1e-6),
    attention("of two batch axes", SLOW, args=(data(2, 3, 5, 16),)),
    attention("unbatched", SLOW, args=(data(5, 16),)),
    attention("of other keys", SLOW, args=(data(2, 5, 16), data(2, 4, 16))),
    attention("in bfloat16", {"dtype": jnp.bfloat16, **SLOW}),
    Row("Embed of one entry", lambda: nn.Embed(1, 5), lambda r: nnx.Embed(1, 5, rngs=r),
        (jnp.zeros((2, 2), int),)),
    Row("Embed.attend", Attend, NewAttend, (data(3, 6),), gradients=True),
    half("Embed.attend", lambda: Attend({"param_dtype": jnp.bfloat16}),
         lambda r: NewAttend(r, param_dtype=jnp.bfloat16, dtype=jnp.float32), (data(3, 6),)),
    half("LayerNorm", lambda: nn.LayerNorm(dtype=jnp.bfloat16),
         lambda r: nnx.LayerNorm(6, dtype=jnp.bfloat16, rngs=r), within=5e-2),
    half("RMSNorm stored", lambda: nn.RMSNorm(param_dtype=jnp.bfloat16),
         lambda r: nnx.RMSNorm(6, param_dtype=jnp.bfloat16, rngs=r), within=5e-2),
    half("GroupNorm", lambda: nn.GroupNorm(num_groups=3, dtype=jnp.bfloat16),
         lambda r: nnx.GroupNorm(6, num_groups=3, dtype=jnp.bfloat16, rngs=r), within=5e-2),
    half("BatchNorm", lambda: nn.BatchNorm(use_running_average=True, dtype=jnp.bfloat16),
         lambda r: nnx.BatchNorm(6, use_running_average=True, dtype=jnp.bfloat16, rngs=r),
         within=5e-2),
    half("LayerNorm of numbers", nn.LayerNorm, lambda r: nnx.LayerNorm(6, rngs=r),
         (data(3, 5, 6, dtype=jnp.bfloat16),)),
    half("Conv", lambda: nn.Conv(4, (3,), dtype=jnp.bfloat16),
         lambda r: nnx.Conv(6, 4, (3,), dtype=jnp.bfloat16, rngs=r)),
    half("LSTMCell", Cells(lambda: nn.LSTMCell(4, dtype=jnp.bfloat16)).linen,
         lambda r: Stepped(nnx.LSTMCell(7, 4, dtype=jnp.bfloat16, rngs=r)), (X,)),
    half("SimpleCell", Cells(lambda: nn.SimpleCell(4)).linen,
         lambda r: Stepped(nnx.SimpleCell(7, 4, rngs=r)), (data(3, 7, dtype=jnp.bfloat16),),
         codes=("simple-cell",)),
    wrapped("weight-norm without scale", nn.WeightNorm, nnx.WeightNorm,
            build={"use_scale": False}, codes=()),
    wrapped("weight-norm of the whole", nn.WeightNorm, nnx.WeightNorm,
            build={"feature_axes": None}),
    wrapped("spectral-norm of three steps", nn.SpectralNorm, nnx.SpectralNorm,
            {"update_stats": True}, build={"n_steps": 3}),
    Row("LoRA is new", lambda: nn.Dense(5), lambda r: nnx.LoRALinear(7, 5, lora_rank=2, rngs=r),
        (X,), refused="lora_a"),
)  # fmt: skip
