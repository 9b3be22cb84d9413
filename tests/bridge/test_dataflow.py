"""Both models as graphs: what is paired is right, and what differs is said."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from bridge._describe import describe
from bridge.dataflow import dataflow, differences
from bridge.probe import Probe
from bridge.probes import linen_model, nnx_model
from bridge.proof import Pairing
from bridge.transforms import Join, Reshape, Spec, Stack, Transpose, Unstack, infer_all

DIM = 12
X = jax.ShapeDtypeStruct((2, 5, DIM), jnp.float32)
IMAGE = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((2, 5), jnp.int32)


def rngs():
    return nnx.Rngs(0)


def both(module, make, *args, train=False, linen_kwargs=None, nnx_kwargs=None):
    """Both models, and the kinds of the slots."""
    given = Probe(args, linen_kwargs or {}, None, nnx_kwargs, train=train)
    key = {"params": jax.random.key(0)}
    mode = {"train": False} if train else {}
    made = jax.eval_shape(lambda *a: module.init(key, *a, **mode, **(linen_kwargs or {})), *args)
    leaves, _ = jax.tree_util.tree_flatten_with_path(nn.meta.unbox(made))
    spec = {tuple(k.key for k in p): (x.shape, x.dtype.name) for p, x in leaves}
    kinds = {s.path: s.collection for s in describe(make).slots if not s.ephemeral}
    return linen_model(module, [given], spec), nnx_model(make, [given], kinds), kinds


def by_slot(proof):
    """Leaf paths by slot path, as text, for plain copies."""
    return {"/".join(p.slots[0]): "/".join(p.sources[0]) for p in proof.pairings
            if len(p.slots) == len(p.sources) == 1}  # fmt: skip


def check_shapes(proof, linen, model):
    """Every pairing gives its slots' shapes, and each leaf and slot is in one."""
    for p in proof.pairings:
        got = infer_all(p.transforms, [Spec(linen.specs[s].shape, "float32") for s in p.sources])
        assert [g.shape for g in got] == [model.specs[s].shape for s in p.slots]
    sources = [s for p in proof.pairings for s in p.sources]
    slots = [s for p in proof.pairings for s in p.slots]
    assert (len(set(sources)), len(set(slots))) == (len(sources), len(slots))


ROWS = {
    "dense": (lambda: nn.Dense(7), lambda: nnx.Linear(DIM, 7, rngs=rngs()), X),
    "general": (
        lambda: nn.DenseGeneral((4, 5)),
        lambda: nnx.LinearGeneral(DIM, (4, 5), rngs=rngs()),
        X,
    ),
    "einsum": (
        lambda: nn.Einsum((DIM, 2, 3), "...i,ihd->...hd"),
        lambda: nnx.Einsum("...i,ihd->...hd", (DIM, 2, 3), (2, 3), rngs=rngs()),
        X,
    ),
    "conv": (lambda: nn.Conv(7, (3, 3)), lambda: nnx.Conv(3, 7, (3, 3), rngs=rngs()), IMAGE),
    "grouped": (
        lambda: nn.Conv(6, (3, 3), strides=2, feature_group_count=3),
        lambda: nnx.Conv(3, 6, (3, 3), strides=2, feature_group_count=3, rngs=rngs()),
        IMAGE,
    ),
    "circular": (
        lambda: nn.Conv(6, (3, 3), padding="CIRCULAR"),
        lambda: nnx.Conv(3, 6, (3, 3), padding="CIRCULAR", rngs=rngs()),
        IMAGE,
    ),
    "transposed conv": (
        lambda: nn.ConvTranspose(6, (3, 3)),
        lambda: nnx.ConvTranspose(3, 6, (3, 3), rngs=rngs()),
        IMAGE,
    ),
    "embed": (lambda: nn.Embed(7, 6), lambda: nnx.Embed(7, 6, rngs=rngs()), TOKENS),
    "layer norm": (nn.LayerNorm, lambda: nnx.LayerNorm(DIM, rngs=rngs()), X),
    "rms norm": (nn.RMSNorm, lambda: nnx.RMSNorm(DIM, rngs=rngs()), X),
    "group norm": (lambda: nn.GroupNorm(3), lambda: nnx.GroupNorm(DIM, 3, rngs=rngs()), X),
    "instance norm": (nn.InstanceNorm, lambda: nnx.InstanceNorm(DIM, rngs=rngs()), X),
    "prelu": (nn.PReLU, nnx.PReLU, X),
    "attention": (
        lambda: nn.MultiHeadDotProductAttention(2),
        lambda: nnx.MultiHeadAttention(2, DIM, decode=False, rngs=rngs()),
        X,
    ),
    "attention with norms": (
        lambda: nn.MultiHeadDotProductAttention(2, normalize_qk=True),
        lambda: nnx.MultiHeadAttention(2, DIM, decode=False, normalize_qk=True, rngs=rngs()),
        X,
    ),
    "lstm": (
        lambda: nn.RNN(nn.LSTMCell(9)),
        lambda: nnx.RNN(nnx.LSTMCell(DIM, 9, rngs=rngs()), rngs=rngs()),
        X,
    ),
    "simple cell": (
        lambda: nn.RNN(nn.SimpleCell(9)),
        lambda: nnx.RNN(nnx.SimpleCell(DIM, 9, rngs=rngs()), rngs=rngs()),
        X,
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_a_layer_is_the_same_graph_in_both_flavours(row):
    module, make, x = ROWS[row]
    linen, model, kinds = both(module(), make, x)
    proof = dataflow(linen, model, kinds)
    assert proof.same
    check_shapes(proof, linen, model)
    names = {t: s.removeprefix("params/").removeprefix("cell/") for t, s in by_slot(proof).items()}
    assert len(names) == len(linen.specs)
    for slot, leaf in names.items():
        assert slot.removeprefix("cell/").replace("if_", "if").replace("dense_", "") == leaf
    assert differences(linen, model) == ()


def test_fused_gates_are_joined_in_the_order_in_which_they_are_used():
    linen, model, kinds = both(
        nn.RNN(nn.OptimizedLSTMCell(9)),
        lambda: nnx.RNN(nnx.OptimizedLSTMCell(DIM, 9, rngs=rngs()), rngs=rngs()),
        X,
    )
    proof = dataflow(linen, model, kinds)
    assert proof.same
    found = {p.slots[0][-2:]: ([s[-2] for s in p.sources], p.transforms) for p in proof.pairings}
    assert found == {
        ("dense_i", "kernel"): (["ii", "if", "ig", "io"], (Join(1),)),
        ("dense_h", "kernel"): (["hi", "hf", "hg", "ho"], (Join(1),)),
        ("dense_h", "bias"): (["hi", "hf", "hg", "ho"], (Join(0),)),
    }


def test_a_bias_without_a_home_is_named_and_the_rest_paired():
    linen, model, kinds = both(
        nn.RNN(nn.GRUCell(9)), lambda: nnx.RNN(nnx.GRUCell(DIM, 9, rngs=rngs()), rngs=rngs()), X
    )
    proof = dataflow(linen, model, kinds)
    assert not proof.same
    assert "hn/bias is zero" in proof.parted
    sources = {p.slots[0][-2:]: [s[-2] for s in p.sources] for p in proof.pairings}
    assert sources == {
        ("dense_i", "kernel"): ["ir", "iz", "in"],
        ("dense_i", "bias"): ["ir", "iz", "in"],
        ("dense_h", "kernel"): ["hr", "hz", "hn"],
    }


class Fused(nnx.Module):
    """Attention whose query, key and value are one projection, key first."""

    def __init__(self):
        self.kqv = nnx.Linear(DIM, 3 * DIM, rngs=rngs())
        self.last = nnx.Linear(DIM, DIM, rngs=rngs())

    def __call__(self, x):
        k, q, v = (t.reshape(*t.shape[:-1], 2, -1) for t in jnp.split(self.kqv(x), 3, -1))
        return self.last(nnx.dot_product_attention(q, k, v).reshape(x.shape))


def test_three_projections_become_one():
    linen, model, kinds = both(nn.MultiHeadDotProductAttention(2), Fused, X)
    proof = dataflow(linen, model, kinds)
    assert proof.same
    check_shapes(proof, linen, model)
    fused = {p.slots[0]: p for p in proof.pairings}
    kernel, bias = fused["kqv", "kernel"], fused["kqv", "bias"]
    assert [s[1] for s in kernel.sources] == ["key", "query", "value"]
    assert kernel.transforms == (Reshape((DIM, DIM)), Join(1))
    assert bias.transforms == (Reshape((DIM,)), Join(0))
    assert fused["last", "kernel"].transforms == (Reshape((DIM, DIM)),)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        h = nn.Dense(2 * DIM)(nn.LayerNorm()(x))
        return x + nn.Dense(DIM)(nn.gelu(h)), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        scan = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return nn.Dense(4)(scan()(x, None)[0])


class Looped(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x, _ = Block()(x)
        return nn.Dense(4)(x)


class NewBlock(nnx.Module):
    def __init__(self):
        self.norm = nnx.LayerNorm(DIM, rngs=rngs())
        self.up = nnx.Linear(DIM, 2 * DIM, rngs=rngs())
        self.down = nnx.Linear(2 * DIM, DIM, rngs=rngs())

    def __call__(self, x):
        return x + self.down(nnx.gelu(self.up(self.norm(x))))


class NewLoop(nnx.Module):
    def __init__(self):
        self.head = nnx.Linear(DIM, 4, rngs=rngs())
        self.stages = nnx.List([NewBlock() for _ in range(3)])

    def __call__(self, x):
        for stage in self.stages[::-1]:
            x = stage(x)
        return self.head(x)


class Stacked(nnx.Module):
    """All kernels in arrays of one more axis, the first block last."""

    def __init__(self):
        self.up = nnx.Param(jnp.zeros((3, 2 * DIM, DIM)))
        self.up_bias = nnx.Param(jnp.zeros((3, 2 * DIM)))
        self.down = nnx.Param(jnp.zeros((2 * DIM, 3, DIM)))
        self.down_bias = nnx.Param(jnp.zeros((3, DIM)))
        self.norms = nnx.List([nnx.LayerNorm(DIM, rngs=rngs()) for _ in range(3)])
        self.head = nnx.Linear(DIM, 4, rngs=rngs())

    def __call__(self, x):
        for k, norm in enumerate(self.norms):
            h = norm(x) @ self.up[2 - k].T + self.up_bias[k]
            x = x + (nnx.gelu(h) @ self.down[:, k] + self.down_bias[k])
        return self.head(x)


def test_a_scan_becomes_a_list_in_the_order_of_use():
    linen, model, kinds = both(Scanned(), NewLoop, X)
    proof = dataflow(linen, model, kinds)
    assert proof.same
    check_shapes(proof, linen, model)
    kernel = next(p for p in proof.pairings if p.sources[0][-2:] == ("Dense_0", "kernel")
                  and len(p.slots) > 1)  # fmt: skip
    assert kernel.transforms == (Unstack(0),)
    assert [s[1] for s in kernel.slots] == ["2", "1", "0"]


def test_a_list_becomes_a_stack_along_any_axis_and_transposed():
    linen, model, kinds = both(Looped(), Stacked, X)
    proof = dataflow(linen, model, kinds)
    assert proof.same
    check_shapes(proof, linen, model)
    found = {p.slots[0][0]: p for p in proof.pairings}
    assert found["down"].transforms == (Stack(1),)
    assert found["up"].transforms == (Transpose((1, 0)), Stack(0))
    assert [s[1] for s in found["up"].sources] == ["Block_2", "Block_1", "Block_0"]
    assert [s[1] for s in found["up_bias"].sources] == ["Block_0", "Block_1", "Block_2"]


def test_a_square_kernel_that_is_used_transposed_is_transposed():
    class New(nnx.Module):
        def __init__(self):
            self.a, self.b = (nnx.Param(jnp.zeros((DIM, DIM))) for _ in range(2))

        def __call__(self, x):
            return nnx.relu(x @ self.b[...].T) @ self.a[...]

    class Old(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(DIM, use_bias=False)(
                nn.relu(nn.Dense(DIM, use_bias=False, name="first")(x))
            )

    linen, model, kinds = both(Old(), New, X)
    proof = dataflow(linen, model, kinds)
    assert proof.same
    assert set(proof.pairings) == {
        Pairing((("params", "Dense_0", "kernel"),), (("a",),)),
        Pairing((("params", "first", "kernel"),), (("b",),), (Transpose((1, 0)),)),
    }


class Towers(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(DIM, name="left")(x) + nn.Dense(DIM, name="right")(x)


class NewTowers(nnx.Module):
    def __init__(self):
        self.a, self.b = (nnx.Linear(DIM, DIM, rngs=rngs()) for _ in range(2))

    def __call__(self, x):
        return self.a(x) + self.b(x)


def test_a_true_symmetry_is_chosen_by_hint_and_reported():
    linen, model, kinds = both(Towers(), NewTowers, X)
    plain = dataflow(linen, model, kinds)
    hint = Pairing((("params", "left", "kernel"),), (("b", "kernel"),))
    hinted = dataflow(linen, model, kinds, hints=[hint])
    fixed = dataflow(linen, model, kinds, fixed=[hint])
    assert [p.same for p in (plain, hinted, fixed)] == [True] * 3
    assert all(p.ties for p in (plain, hinted))
    assert by_slot(plain)["a/kernel"] == "params/left/kernel"
    assert all(hint in p.pairings for p in (hinted, fixed))
    assert by_slot(fixed)["a/kernel"] == "params/right/kernel"


class Trained(nn.Module):
    momentum: float = 0.99

    @nn.compact
    def __call__(self, x, train):
        for _ in range(2):
            norm = nn.BatchNorm(use_running_average=not train, momentum=self.momentum)
            x = nn.relu(norm(nn.Conv(3, (3, 3))(x)))
        return nn.Dense(4)(x.mean((1, 2)))


class NewTrained(nnx.Module):
    def __init__(self):
        self.convs = nnx.List([nnx.Conv(3, 3, (3, 3), rngs=rngs()) for _ in range(2)])
        self.norms = nnx.List([nnx.BatchNorm(3, rngs=rngs()) for _ in range(2)])
        self.head = nnx.Linear(3, 4, rngs=rngs())

    def __call__(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.relu(norm(conv(x)))
        return self.head(x.mean((1, 2)))


def test_statistics_are_paired_by_their_updates():
    linen, model, kinds = both(Trained(), NewTrained, IMAGE, train=True)
    proof = dataflow(linen, model, kinds)
    assert proof.same
    assert by_slot(proof)["norms/1/var"] == "batch_stats/BatchNorm_1/var"
    assert len(proof.pairings) == len(linen.specs)


def test_another_momentum_shows_in_training():
    linen, model, kinds = both(Trained(0.9), NewTrained, IMAGE, train=True)
    assert not dataflow(linen, model, kinds).same
    assert any("momentum is 0.9 in Linen and 0.99 in NNX" in d for d in differences(linen, model))


class Changed(nnx.Module):
    def __init__(self, act=nnx.gelu, epsilon=1e-6):
        self.norm = nnx.LayerNorm(DIM, epsilon=epsilon, rngs=rngs())
        self.up = nnx.Linear(DIM, 2 * DIM, rngs=rngs())
        self.down = nnx.Linear(2 * DIM, DIM, rngs=rngs())
        self.act = act

    def __call__(self, x):
        return x + self.down(self.act(self.up(self.norm(x))))


class Original(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Block(name="block")(x)[0]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Changed(epsilon=1e-5), "the epsilon is 1e-06 in Linen and 1e-05 in NNX"),
        (lambda: Changed(nnx.relu), "Linen computes gelu by tanh, NNX relu"),
        (
            lambda: Changed(lambda x: nnx.gelu(x, approximate=False)),
            "Linen computes gelu by tanh, NNX the exact gelu",
        ),
        (lambda: Changed(nnx.silu), "Linen computes gelu by tanh, NNX silu"),
    ],
)
def test_a_small_difference_is_named_and_the_parameters_still_paired(make, text):
    linen, model, kinds = both(Original(), make, X)
    proof = dataflow(linen, model, kinds)
    assert not proof.same
    assert text in proof.parted
    assert by_slot(proof) == {
        "norm/scale": "params/block/LayerNorm_0/scale",
        "norm/bias": "params/block/LayerNorm_0/bias",
        "up/kernel": "params/block/Dense_0/kernel",
        "up/bias": "params/block/Dense_0/bias",
        "down/kernel": "params/block/Dense_1/kernel",
        "down/bias": "params/block/Dense_1/bias",
    }
    (told,) = differences(linen, model)
    assert text in told


def test_models_that_have_little_in_common_are_not_paired():
    linen, model, kinds = both(Looped(), lambda: nnx.Linear(DIM, 4, rngs=rngs()), X)
    proof = dataflow(linen, model, kinds)
    assert not proof.same
    assert proof.pairings == ()
    assert "Linen has" in proof.parted


def test_a_leaf_that_no_output_depends_on_is_paired_with_its_siblings_or_not_at_all():
    class Old(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.param("spare", nn.initializers.zeros, (3,))
            self.param("lost", nn.initializers.zeros, (4,))
            return x * self.param("scale", nn.initializers.ones, (DIM,))

    class New(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.zeros(DIM))
            self.unused = nnx.Param(jnp.zeros(3))
            self.one, self.two = (nnx.Param(jnp.zeros(4)) for _ in range(2))

        def __call__(self, x):
            return x * self.w

    linen, model, kinds = both(Old(), New, X)
    proof = dataflow(linen, model, kinds)
    assert proof.same
    assert by_slot(proof) == {"w": "params/scale", "unused": "params/spare"}
    assert proof.unproven == (("params", "spare"),)


def test_a_model_that_no_machine_holds_is_compared():
    width = 2**20

    class Old(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(3):
                x = nn.relu(nn.Dense(width, use_bias=False)(x))
            return x

    class New(nnx.Module):
        def __init__(self):
            made = [nnx.Linear(width, width, use_bias=False, rngs=rngs()) for _ in range(3)]
            self.layers = nnx.List(made)

        def __call__(self, x):
            for layer in reversed(self.layers):
                x = nnx.relu(layer(x))
            return x

    linen, model, kinds = both(Old(), New, jax.ShapeDtypeStruct((1, width), jnp.float32))
    proof = dataflow(linen, model, kinds)
    assert proof.same
    assert by_slot(proof)["layers/2/kernel"] == "params/Dense_0/kernel"
    assert sum(np.prod(s.shape) for s in linen.specs.values()) > 10**12
