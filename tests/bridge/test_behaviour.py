"""Constructor arguments that differ between paired layers are told; equal ones are not."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from bridge._plan import Step
from bridge.behaviour import behaviour_warnings
from bridge.behaviour_fields import Unknown, plain
from bridge.items import gather
from bridge.paired import module_pairs
from bridge.probe import Probe
from bridge.probes import linen_model
from bridge.target import SlotRef
from bridge.target_traps import per_tensor_parts, target_warnings
from bridge.transforms import Stack

ROWS = jax.ShapeDtypeStruct((2, 8), np.float32)
WORDS = jax.ShapeDtypeStruct((2, 5, 8), np.float32)
IMAGES = jax.ShapeDtypeStruct((2, 9, 9, 8), np.float32)
RENAMED = {"if": "if_"}


def leaves_of(module, *args):
    average = {"use_running_average": True} if isinstance(module, nn.BatchNorm) else {}
    made = jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **average))
    found, _ = jax.tree_util.tree_flatten_with_path(made)
    return {tuple(k.key for k in p): (x.shape, x.dtype.name) for p, x in found}


def told(module, make, sample, homes=None):
    """Warnings when each Linen module's leaves go to the NNX module of ``homes``."""
    sample = sample if isinstance(sample, tuple) else (sample,)
    leaves = leaves_of(module, *sample)
    homes = homes or {(): ()}
    pairs = []
    for path in leaves:
        home = next(path[1:n] for n in range(len(path), 0, -1) if path[1:n] in homes)
        below = tuple(RENAMED.get(p, p) for p in path[1 + len(home) :])
        pairs.append(((path,), ((*homes[home], *below),)))
    ours = linen_model(module, [Probe(sample)], leaves)
    return behaviour_warnings(ours, lambda: make(nnx.Rngs(0)), pairs)


def of(kind, *args, **kwargs):
    return lambda rngs: kind(*args, **kwargs, rngs=rngs)


SAME = {
    "Dense": (nn.Dense(3), of(nnx.Linear, 8, 3), ROWS),
    "DenseGeneral": (nn.DenseGeneral(3), of(nnx.LinearGeneral, 8, 3), ROWS),
    "Conv": (nn.Conv(4, (3, 3)), of(nnx.Conv, 8, 4, (3, 3)), IMAGES),
    "Conv spelled out": (
        nn.Conv(4, (3, 3), strides=2, padding=((1, 1), (1, 1)), kernel_dilation=1),
        of(nnx.Conv, 8, 4, (3, 3), strides=(2, 2), padding=1),
        IMAGES,
    ),
    "ConvTranspose": (nn.ConvTranspose(4, (3, 3)), of(nnx.ConvTranspose, 8, 4, (3, 3)), IMAGES),
    "Embed": (nn.Embed(5, 4), of(nnx.Embed, 5, 4), jax.ShapeDtypeStruct((2,), np.int32)),
    "BatchNorm": (nn.BatchNorm(), of(nnx.BatchNorm, 8), ROWS),
    "LayerNorm": (nn.LayerNorm(), of(nnx.LayerNorm, 8), ROWS),
    "RMSNorm": (nn.RMSNorm(), of(nnx.RMSNorm, 8), ROWS),
    "GroupNorm": (nn.GroupNorm(4), of(nnx.GroupNorm, 8, 4), ROWS),
    "GroupNorm by size": (
        nn.GroupNorm(num_groups=None, group_size=2),
        of(nnx.GroupNorm, 8, num_groups=None, group_size=2),
        ROWS,
    ),
    "InstanceNorm": (nn.InstanceNorm(), of(nnx.InstanceNorm, 8), WORDS),
    "PReLU": (nn.PReLU(), lambda _: nnx.PReLU(), ROWS),
    "LSTMCell": (nn.LSTMCell(4), of(nnx.LSTMCell, 8, 4), ((jnp.zeros((2, 4)),) * 2, ROWS)),
    "GRUCell": (nn.GRUCell(4), of(nnx.GRUCell, 8, 4), (jnp.zeros((2, 4)), ROWS)),
    "SimpleCell": (nn.SimpleCell(4), of(nnx.SimpleCell, 8, 4), (jnp.zeros((2, 4)), ROWS)),
}


@pytest.mark.parametrize("name", SAME)
def test_what_is_the_same_is_not_told(name):
    module, make, sample = SAME[name]
    arrays = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sample)
    assert told(module, make, arrays if isinstance(arrays, tuple) else (arrays,)) == ()


ZEROS = nn.initializers.zeros_init()
NORM = nn.BatchNorm(momentum=0.9)
OTHER = {
    "epsilon": (nn.LayerNorm(epsilon=1e-5), of(nnx.LayerNorm, 8), ROWS, "epsilon is 1e-05"),
    "momentum": (NORM, of(nnx.BatchNorm, 8), ROWS, "momentum is 0.9 in Linen and 0.99 in NNX"),
    "variance": (
        nn.RMSNorm(use_fast_variance=False), of(nnx.RMSNorm, 8), ROWS,
        "use_fast_variance is False in Linen and True in NNX",
    ),
    "dtype": (
        nn.Dense(3, dtype=jnp.bfloat16), of(nnx.Linear, 8, 3), ROWS,
        "dtype is bfloat16 in Linen and None in NNX",
    ),
    "use_bias": (
        nn.Dense(3), of(nnx.Linear, 8, 3, use_bias=False), ROWS, "use_bias is True in Linen",
    ),
    "strides": (
        nn.Conv(4, (3, 3), strides=2), of(nnx.Conv, 8, 4, (3, 3)), IMAGES,
        "strides is 2 in Linen and 1 in NNX",
    ),
    "padding": (
        nn.Conv(4, (3, 3), padding="VALID"), of(nnx.Conv, 8, 4, (3, 3)), IMAGES,
        "padding is VALID in Linen and SAME in NNX",
    ),
    "dilation": (
        nn.Conv(4, (3, 3), kernel_dilation=(2, 1)), of(nnx.Conv, 8, 4, (3, 3)), IMAGES,
        "kernel_dilation is (2, 1) in Linen and 1 in NNX",
    ),
    "transpose_kernel": (
        nn.ConvTranspose(8, (3, 3), transpose_kernel=True), of(nnx.ConvTranspose, 8, 8, (3, 3)),
        IMAGES, "transpose_kernel is True in Linen and False in NNX",
    ),
    "groups": (
        nn.GroupNorm(4), of(nnx.GroupNorm, 8, 2), ROWS, "num_groups is 4 in Linen and 2 in NNX",
    ),
    "force_float32": (
        nn.LayerNorm(force_float32_reductions=False), of(nnx.LayerNorm, 8), ROWS,
        "force_float32_reductions is False in Linen; NNX has no such argument",
    ),
    "half norm": (
        nn.LayerNorm(dtype=jnp.bfloat16), of(nnx.LayerNorm, 8, dtype=jnp.bfloat16), ROWS,
        "computes in bfloat16; NNX casts",
    ),
    "gate": (
        nn.LSTMCell(4, gate_fn=nn.hard_sigmoid), of(nnx.LSTMCell, 8, 4),
        ((jnp.zeros((2, 4)),) * 2, ROWS), "gate_fn is hard_sigmoid in Linen and sigmoid in NNX",
    ),
    "bf16 table": (
        nn.Embed(5, 4, param_dtype=jnp.bfloat16), of(nnx.Embed, 5, 4, param_dtype=jnp.bfloat16),
        jax.ShapeDtypeStruct((2,), np.int32), "dtype is None in Linen and bfloat16 in NNX",
    ),
    "bf16 cell": (
        nn.SimpleCell(4, param_dtype=jnp.bfloat16, recurrent_kernel_init=ZEROS),
        of(nnx.SimpleCell, 8, 4, param_dtype=jnp.bfloat16, recurrent_kernel_init=ZEROS),
        (jnp.zeros((2, 4)), ROWS),
        "dtype is None in Linen and float32 in NNX",
    ),
    "attention": (
        nn.MultiHeadDotProductAttention(2), of(nnx.MultiHeadAttention, 2, 8, decode=False),
        (WORDS, WORDS), "uses another kernel in NNX",
    ),
    "normalize_qk": (
        nn.MultiHeadDotProductAttention(2, normalize_qk=True),
        of(nnx.MultiHeadAttention, 2, 8, decode=False), (WORDS, WORDS),
        "normalize_qk is True in Linen and False in NNX",
    ),
    "softmax": (
        nn.MultiHeadDotProductAttention(2, force_fp32_for_softmax=True),
        of(nnx.MultiHeadAttention, 2, 8, decode=False), (WORDS, WORDS),
        "force_fp32_for_softmax is True in Linen",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER)
def test_what_differs_is_told_with_both_values(name):
    module, make, sample, text = OTHER[name]
    arrays = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sample)
    found = told(module, make, arrays if isinstance(arrays, tuple) else (arrays,))
    assert any(text in warning for warning in found), found


class LinenBlock(nn.Module):
    epsilon: float = 1e-6
    heads: int = 4
    act: object = nn.gelu
    rate: float = 0.2

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(nn.LayerNorm(epsilon=self.epsilon)(x))
        return nn.Dropout(self.rate, deterministic=True)(self.act(x))


class LinenStack(nn.Module):
    arguments: tuple = ()

    @nn.compact
    def __call__(self, x):
        for n in range(3):
            x = LinenBlock(**dict(self.arguments), name=f"block_{n}")(x)
        return x


class Block(nnx.Module):
    def __init__(self, rngs):
        self.epsilon, self.heads, self.act = 1e-6, 4, functools.partial(nnx.gelu, approximate=True)
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.fc = nnx.Linear(8, 8, rngs=rngs)
        self.drop = nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.act(self.fc(self.norm(x))))


class Blocks(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([Block(rngs) for _ in range(3)])


HOMES = {(f"block_{n}", a): ("layers", str(n), b) for n in range(3)
         for a, b in (("LayerNorm_0", "norm"), ("Dense_0", "fc"))}  # fmt: skip


def of_blocks(**arguments):
    return told(LinenStack(tuple(arguments.items())), Blocks, (jnp.zeros((2, 8)),), HOMES)


def test_layers_of_the_user_are_compared_by_arguments_of_one_name():
    assert of_blocks() == ()
    act, *rest = of_blocks(act=functools.partial(nn.gelu, approximate=False))
    assert rest == []
    assert "act is gelu(approximate=False) in Linen and gelu in NNX" in act
    assert "Linen block_0 (LinenBlock) / NNX layers/0 (Block) and 2 more" in act


def test_a_difference_in_every_block_is_told_once():
    own, norm = of_blocks(epsilon=1e-3)
    assert "block_0 (LinenBlock)" in own
    assert (
        "Linen block_0/LayerNorm_0 (LayerNorm) / NNX layers/0/norm (LayerNorm) and 2 more" in norm
    )


def test_dropout_rates_are_compared_though_dropout_has_no_parameters():
    (found,) = of_blocks(rate=0.5)
    assert "dropout rates are 0.5 in Linen and 0.2 in NNX; training differs" in found


def test_functions_that_cannot_be_compared_are_taken_for_equal():
    assert isinstance(plain("act", lambda x: x), Unknown)
    assert plain("act", nn.relu) == plain("act", jax.jit(jax.nn.relu))
    assert plain("act", nn.silu) == plain("act", nnx.swish)
    assert plain("act", functools.partial(nn.gelu, approximate=False)) != plain("act", nn.gelu)


def test_fused_gates_pair_by_their_cell():
    gates = tuple(("params", "cell", f"i{g}", "kernel") for g in "ifgo")
    pairs = [(gates, (("lstm", "dense_i", "kernel"),))]
    kinds = {(): "M", ("cell",): "OptimizedLSTMCell", **{g[1:3]: "DenseParams" for g in gates}}
    others = {(): "N", ("lstm",): "OptimizedLSTMCell", ("lstm", "dense_i"): "Linear"}
    assert (("cell",), ("lstm",)) in module_pairs(pairs, kinds, others)


def test_traps_of_the_target_are_told():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.weight = nnx.SpectralNorm(nnx.Linear(2, 2, rngs=rngs), rngs=rngs)
            self.group = nnx.GroupNorm(4, 2, reduction_axes=(-1,), rngs=rngs)
            self.plain = nnx.GroupNorm(4, 2, rngs=rngs)

    weight, group = target_warnings(gather(Model).objects)
    assert weight.startswith("model:weight: WeightNorm")
    assert group.startswith("model:group: GroupNorm of NNX computes wrong numbers")


@pytest.mark.parametrize(
    ("tx", "parts"),
    [
        (optax.lamb(1e-3), 1),
        (optax.lars(1e-3), 1),
        (optax.adafactor(1e-3), 3),
        (optax.novograd(1e-3), 1),
        (optax.MultiSteps(optax.lamb(1e-3), 2).gradient_transformation(), 1),
        (optax.masked(optax.lamb(1e-3), {"a": True}), 1),
        (optax.adamw(1e-3), 0),
        (optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1e-3, momentum=0.9)), 0),
    ],
    ids="lamb lars adafactor novograd MultiSteps masked adamw clip".split(),
)
def test_optimizers_that_look_at_a_tensor_as_a_whole_are_known(tx, parts):
    assert len(per_tensor_parts(tx)) == parts


def test_stacked_parameters_under_such_an_optimizer_are_told():
    objects = gather(lambda: nnx.Linear(2, 2, rngs=nnx.Rngs(0)), optax.lamb(1e-3)).objects
    slots = (SlotRef("model", ("kernel",)),)
    stacked = Step((("params", "a"), ("params", "b")), slots, (Stack(0),))
    (found,) = target_warnings(objects, [stacked])
    assert "the trust ratio (lamb, lars, fromage), which act on a tensor as a whole" in found
    assert target_warnings(objects, [Step((("params", "a"),), slots)]) == ()
