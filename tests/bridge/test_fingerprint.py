"""Leaves are paired by what they do: right for every renamed pair, and never for other models."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fingerprint_cases import (
    GRU,
    Attention,
    Codes,
    CodesNNX,
    FusedAttention,
    FusedGRU,
    FusedLSTMs,
    Hidden,
    HiddenNNX,
    ListNNX,
    Looped,
    LSTMs,
    Nested,
    NestedNNX,
    Norms,
    NormsNNX,
    Scanned,
    StackNNX,
    Tied,
    TorchNested,
    Towers,
    TowersNNX,
    Untied,
    moved,
    named,
    pairing_for,
    proof_of,
)
from flax import linen as nn
from flax import nnx

from bridge.proof import Pairing
from bridge.transforms import Scale, Transpose

RNG = np.random.default_rng(0)
X4, X6, X8 = (RNG.normal(size=(3, n)).astype(np.float32) for n in (4, 6, 8))


def proven(proof):
    assert proof.same
    assert proof.verified
    return named(proof)


def test_layers_of_one_shape_are_found_by_where_they_are_in_the_computation():
    proof = proof_of(Nested(), NestedNNX, X6)
    for old, new in (("Dense_0", "three"), ("Dense_1", "two"), ("Dense_2", "one")):
        assert proven(proof)[f"{old}/kernel"] == f"{new}.kernel"
        assert proven(proof)[f"{old}/bias"] == f"{new}.bias"
    assert proof.apart < 1e-12


def test_the_same_seed_gives_the_same_proof_and_the_flags_of_jax_stay():
    first, second = (proof_of(Nested(), NestedNNX, X6, seed=3) for _ in range(2))
    assert first == second
    assert not jax.config.jax_enable_x64


def test_inputs_without_variety_are_replaced():
    assert proven(proof_of(Nested(), NestedNNX, np.zeros((3, 6), np.float32)))


@pytest.mark.parametrize("interleaved", [False, True])
def test_separate_heads_go_into_one_matrix_and_key_biases_by_exclusion(interleaved):
    x = RNG.normal(size=(2, 5, 8)).astype(np.float32)
    proof = proof_of(Attention(), lambda: FusedAttention(interleaved), x)
    assert len(proven(proof)) == 6
    mha = ("params", "MultiHeadDotProductAttention_0")
    assert proof.unproven == ((*mha, "key", "bias"),)
    kernel = pairing_for(proof, "qkv.kernel")
    assert [p[2] for p in kernel.sources] == ["query", "key", "value"]
    q, k, v = (RNG.normal(size=(8, 2, 4)) for _ in range(3))
    expected = np.concatenate([q, k, v], 2) if interleaved else np.concatenate([q, k, v], 1)
    assert np.array_equal(moved(kernel, q, k, v)[0], expected.reshape(8, 24))
    assert [p[2] for p in pairing_for(proof, "qkv.bias").sources] == ["query", "key", "value"]


def test_a_slot_without_source_and_influence_stays_alone():
    class Keyless(nn.Module):
        @nn.compact
        def __call__(self, x):
            q, v = (nn.DenseGeneral((2, 4), name=n)(x) for n in "qv")
            k = nn.DenseGeneral((2, 4), use_bias=False, name="k")(x)
            out = nn.DenseGeneral(8, axis=(-2, -1), name="o")
            return out(nn.dot_product_attention(q, k, v))

    def make():
        return nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0))

    found = proven(proof_of(Keyless(), make, RNG.normal(size=(2, 5, 8)).astype(np.float32)))
    assert found["k/kernel"] == "key.kernel"
    assert "key.bias" not in found.values()
    assert len(found) == 7


def test_gates_are_joined_in_the_order_of_the_cell():
    proof = proof_of(LSTMs(), FusedLSTMs, RNG.normal(size=(2, 5, 3)).astype(np.float32))
    found = proven(proof)
    assert len(found) == 6
    for n, side in enumerate(("forward", "backward")):
        gates = " ".join(f"OptimizedLSTMCell_{n}/h{g}/kernel" for g in "ifgo")
        assert found[gates] == f"both.{side}_rnn.cell.dense_h.kernel"


def test_what_has_no_place_is_named_and_the_rest_is_found():
    proof = proof_of(GRU(), FusedGRU, RNG.normal(size=(2, 5, 3)).astype(np.float32))
    assert proof.verified
    assert not proof.same
    assert "GRUCell_0/hn/bias" in proof.warnings[0]
    assert " ".join(f"GRUCell_0/i{g}/bias" for g in "rzn") in named(proof)
    assert not [p for p in named(proof) if "hn/bias" in p]


@pytest.mark.parametrize("train", [(False,), (True,), (False, True)])
def test_batch_statistics_are_found_in_either_mode(train):
    found = proven(proof_of(Norms(), NormsNNX, RNG.normal(size=(7, 5)), train=train))
    for n in range(3):
        assert found[f"Dense_{n}/kernel"] == f"layers.{2 - n}.kernel"
        for leaf in ("mean", "var", "scale", "bias"):
            assert found[f"BatchNorm_{n}/{leaf}"] == f"norms.{n}.{leaf}"


def test_layers_in_a_loop_are_stacked_and_a_scan_is_cut():
    stacked = proof_of(Looped(), StackNNX, X4)
    assert proven(stacked)[" ".join(f"Block_{n}/Dense_1/kernel" for n in range(3))] == (
        "blocks.up.kernel"
    )
    listed = proof_of(Scanned(), ListNNX, X4)
    assert proven(listed)["ScanBlock_0/Dense_0/kernel"] == (
        "blocks.0.down.kernel blocks.1.down.kernel blocks.2.down.kernel"
    )
    stack = RNG.normal(size=(4, 3, 4))
    parts = moved(pairing_for(listed, "blocks.1.down.kernel"), stack)
    assert np.array_equal(parts[1], stack[:, 1])


def test_a_stack_is_found_where_every_axis_has_the_same_length():
    proof = proof_of(Looped(4), lambda: StackNNX(4), X4)
    kernels = [RNG.normal(size=(4, 4)) for _ in range(4)]
    assert proven(proof)
    assert np.array_equal(moved(pairing_for(proof, "blocks.up.kernel"), *kernels)[0], kernels)


def test_transposed_square_kernels_are_found_and_turned():
    proof = proof_of(Nested(), TorchNested, X6)
    assert proven(proof)["Dense_2/kernel"] == "one.weight"
    assert pairing_for(proof, "one.weight").transforms == (Transpose((1, 0)),)


def test_a_fused_einsum_kernel_is_cut_and_turned():
    class Einsums(nn.Module):
        @nn.compact
        def __call__(self, x):
            w = self.param("qkv", nn.initializers.normal(), (3, 2, 8, 4))
            o = self.param("o", nn.initializers.normal(), (2, 4, 8))
            q, k, v = jnp.einsum("ble,shed->sblhd", x, w)
            return jnp.einsum("blhd,hde->ble", nn.dot_product_attention(q, k, v), o)

    class Heads(nnx.Module):
        def __init__(self):
            def layer():
                return nnx.LinearGeneral(8, (2, 4), use_bias=False, rngs=nnx.Rngs(0))

            self.c, self.b, self.a = layer(), layer(), layer()
            self.o = nnx.LinearGeneral((2, 4), 8, axis=(-2, -1), use_bias=False, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.o(nnx.dot_product_attention(self.b(x), self.c(x), self.a(x)))

    proof = proof_of(Einsums(), Heads, RNG.normal(size=(2, 5, 8)).astype(np.float32))
    assert proven(proof)["qkv"] == "b.kernel c.kernel a.kernel"
    fused = RNG.normal(size=(3, 2, 8, 4))
    assert np.array_equal(
        np.stack(moved(pairing_for(proof, "a.kernel"), fused)), fused.transpose(0, 2, 1, 3)
    )


def test_towers_that_no_input_tells_apart_are_paired_whole_and_said():
    found = proof_of(Towers(), TowersNNX, X4)
    assert proven(found)["a1/kernel"] == "l1.kernel"
    assert found.ties
    hint = Pairing((("params", "a1", "kernel"),), (("r1", "kernel"),))
    other = proven(proof_of(Towers(), TowersNNX, X4, hints=(hint,)))
    for n in (1, 2):
        for leaf in ("kernel", "bias"):
            assert other[f"a{n}/{leaf}"] == f"r{n}.{leaf}"
            assert other[f"b{n}/{leaf}"] == f"l{n}.{leaf}"


def test_a_bias_that_is_added_to_another_follows_its_kernel():
    class Sum(nn.Module):
        @nn.compact
        def __call__(self, x):
            prior = self.param("a_prior", nn.initializers.zeros, (4,))
            return nn.Dense(4)(x) + prior

    class SumNNX(nnx.Module):
        def __init__(self):
            self.linear = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
            self.b = nnx.Param(jnp.zeros(4))

        def __call__(self, x):
            return self.linear(x) + self.b[...]

    found = proven(proof_of(Sum(), SumNNX, X4))
    assert found["Dense_0/bias"] == "linear.bias"
    assert found["a_prior"] == "b"


def test_leaves_behind_stop_gradient_and_buffers_are_found_and_constants_left():
    found = proven(proof_of(Hidden(), HiddenNNX, X4))
    assert found["one"] == "again"
    assert found["two"] == "first"
    assert "constant" not in found.values()


def test_leaves_that_only_choose_are_found_by_changing_them():
    found = proven(proof_of(Codes(), CodesNNX, RNG.normal(size=(6, 4)).astype(np.float32)))
    assert found["first"] == "book_b"
    assert found["second"] == "book_a"


def test_a_leaf_that_is_shared_on_one_side_only_is_left_and_said():
    proof = proof_of(Tied(), Untied, RNG.integers(0, 7, (2, 5)))
    assert set(named(proof)) == {"mix/kernel", "mix/bias"}
    assert "the sum of those of embed/embedding, out" in proof.warnings[0]


def test_what_a_user_has_settled_is_taken_as_true():
    class Doubled(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.a, self.b, self.c = (nnx.Linear(6, 6, rngs=rngs) for _ in range(3))

        def __call__(self, x):
            x = nnx.relu(self.b(nnx.tanh(self.a(x))))
            return x @ (2 * self.c.kernel[...]) + self.c.bias[...]

    fixed = Pairing((("params", "Dense_0", "kernel"),), (("c", "kernel"),), (Scale(0.5),))
    proof = proof_of(Nested(), Doubled, X6, fixed=(fixed,))
    assert proven(proof)["Dense_1/kernel"] == "b.kernel"
    assert len(named(proof)) == 5
    assert not proof_of(Nested(), Doubled, X6).verified


@pytest.mark.parametrize("number", [0.0, 3.0])
def test_a_slot_that_a_rule_fills_has_that_number_in_the_model(number):
    class Shifted(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.a, self.b, self.c = (nnx.Linear(6, 6, rngs=rngs) for _ in range(3))
            self.shift = nnx.Param(jnp.ones(6))

        def __call__(self, x):
            return self.c(nnx.relu(self.b(nnx.tanh(self.a(x))))) + self.shift[...]

    start = {("shift",): np.full(6, number, np.float32)}
    proof = proof_of(Nested(), Shifted, X6, fixed=(Pairing((), (("shift",),)),), initial=start)
    if number:
        assert not proof.same
    else:
        assert proven(proof)["Dense_1/kernel"] == "b.kernel"
        assert "shift" not in named(proof).values()


def test_an_ignored_leaf_of_no_influence_does_not_hinder_the_rest():
    class Spare(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.param("spare", nn.initializers.ones, (6,))
            return Nested(name="body")(x)

    proof = proof_of(Spare(), NestedNNX, X6, fixed=(Pairing((("params", "spare"),), ()),))
    assert proven(proof)["body/Dense_1/kernel"] == "two.kernel"


def test_leaves_of_modules_that_are_not_called_are_left():
    class Aside(nn.Module):
        @nn.compact
        def __call__(self, x):
            for n in range(2):
                self.param(f"spare{n}", nn.initializers.normal(), (4, 4))
            return nn.Dense(4)(x)

    class AsideNNX(nnx.Module):
        def __init__(self):
            self.linear = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
            self.x, self.y = (nnx.Param(jnp.ones((4, 4))) for _ in range(2))

        def __call__(self, x):
            return self.linear(x)

    proof = proof_of(Aside(), AsideNNX, X4)
    assert set(named(proof)) == {"Dense_0/kernel", "Dense_0/bias"}
    hint = Pairing((("params", "spare1"),), (("x",),))
    hinted = proof_of(Aside(), AsideNNX, X4, hints=(hint,))
    assert hinted.unproven == (("params", "spare1"),)


class Behaves(nn.Module):
    """What the negative controls change something of."""

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(8)(x)
        a = nn.gelu(nn.Dense(8)(nn.LayerNorm()(h)))
        return nn.Dense(3)(nn.gelu(nn.Dense(8)(a)) + h)


class BehavesNNX(nnx.Module):
    def __init__(self, activation=nnx.gelu, epsilon=1e-6, bias=True, skip=False):
        rngs = nnx.Rngs(0)
        self.activation, self.skip = activation, skip
        self.a = nnx.Linear(8, 8, rngs=rngs)
        self.b, self.c = nnx.Linear(8, 8, rngs=rngs), nnx.Linear(8, 8, use_bias=bias, rngs=rngs)
        self.norm = nnx.LayerNorm(8, epsilon=epsilon, rngs=rngs)
        self.out = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        h = self.c(x)
        a = self.activation(self.b(self.norm(h)))
        return self.out(self.activation(self.a(a)) + (a if self.skip else h))


def test_the_model_of_the_controls_is_proven():
    assert len(proven(proof_of(Behaves(), BehavesNNX, X8))) == 10


@pytest.mark.parametrize(
    ("change", "least"),
    [
        ({"activation": nnx.relu}, 1e-3),
        ({"activation": lambda x: nnx.gelu(x, approximate=False)}, 1e-6),
        ({"epsilon": 1e-5}, 1e-7),
        ({"epsilon": 1e-12}, 1e-8),
        ({"skip": True}, 1e-3),
    ],
    ids=["relu", "exact gelu", "epsilon 1e-5", "epsilon 1e-12", "skip"],
)
def test_another_function_is_never_proven(change, least):
    proof = proof_of(Behaves(), lambda: BehavesNNX(**change), X8)
    assert not proof.same
    assert not proof.verified
    assert proof.apart > least


def test_a_lost_bias_is_no_same_function():
    proof = proof_of(Behaves(), lambda: BehavesNNX(bias=False), X8)
    assert not proof.same
    assert "Dense_0/bias" in proof.warnings[0]
    assert "Dense_0/bias" not in named(proof)


def test_another_pooling_is_never_proven():
    class Pooled(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.avg_pool(nn.Conv(3, (3, 3))(x), (2, 2), (2, 2)).mean((1, 2)))

    class PooledNNX(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.conv = nnx.Conv(1, 3, (3, 3), rngs=rngs)
            self.head = nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.max_pool(self.conv(x), (2, 2), (2, 2)).mean((1, 2)))

    proof = proof_of(Pooled(), PooledNNX, RNG.normal(size=(2, 6, 6, 1)).astype(np.float32))
    assert not proof.same
    assert not proof.verified


def test_another_momentum_shows_in_training_mode_only():
    x = RNG.normal(size=(7, 5))
    assert proof_of(Norms(), lambda: NormsNNX(momentum=0.9), x).same
    for train in ((True,), (False, True)):
        proof = proof_of(Norms(), lambda: NormsNNX(momentum=0.9), x, train=train)
        assert not proof.same
        assert "BatchNorm_0/mean" in proof.parted


class TwoHeads(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="mean")(x), nn.Dense(4, name="spread")(x)


class TwoHeadsNNX(nnx.Module):
    def __init__(self, give):
        self.give = give
        self.spread, self.mean = (nnx.Linear(4, 4, rngs=nnx.Rngs(0)) for _ in range(2))

    def __call__(self, x):
        return self.give(self.mean(x), self.spread(x))


def test_heads_are_found_by_the_place_of_their_output():
    found = proven(proof_of(TwoHeads(), lambda: TwoHeadsNNX(lambda a, b: (a, b)), X4))
    assert found["mean/kernel"] == "mean.kernel"


@pytest.mark.parametrize(
    "give", [lambda a, b: {"z": a, "b": b}, lambda a, _: a, lambda _, b: b, lambda a, b: (a, b, a)]
)
def test_heads_are_not_guessed_where_outputs_have_other_places(give):
    proof = proof_of(TwoHeads(), lambda: TwoHeadsNNX(give), X4)
    assert not proof.verified
    assert not proof.same


def test_models_that_are_too_big_are_not_run():
    class Big(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(20_000)(nn.Dense(20_000)(x))

    def make():
        return nnx.Linear(4, 4, rngs=nnx.Rngs(0))

    proof = proof_of(Big(), make, X4)
    assert not proof.pairings
    assert "too big" in proof.warnings[0]
