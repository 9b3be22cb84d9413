"""Rung f: both sides are trained from the restored state and compared after every step."""

from __future__ import annotations

import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from twin_cases import CNN_NAMES, IMAGES, LinenCNN, TrainState, make_cnn, renames, saved

import bridge
import legacy
from bridge._plan import Step
from bridge.errors import BridgeError
from bridge.forward import forward_check
from bridge.target import SlotRef
from bridge.training import training_check
from bridge.transforms import Cast

X = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)


def trained(path, model, linen, sample, tx, rules=None, **more):
    checkpoint = legacy.open(path)
    plan = bridge.plan(checkpoint, model=model, tx=tx, rules=rules)
    (found,) = training_check(
        checkpoint, plan, model=model, linen=linen, sample_input=sample, tx=tx, **more
    )
    return found


def test_batch_statistics_dropout_and_optimizer_go_on_bit_for_bit(tmp_path):
    tx = optax.adamw(optax.cosine_decay_schedule(1e-2, 20))
    path = saved(tmp_path, LinenCNN(), IMAGES, tx=tx)
    found = trained(path, make_cnn, LinenCNN(), IMAGES, tx, renames(CNN_NAMES))
    assert (found.state, found.states, found.left_out) == ("bit-equal", ("bit-equal",) * 3, ())
    assert found.compared > 30
    assert "3 training steps" in str(found)


def test_another_dropout_rate_shows_from_the_first_step(tmp_path):
    tx = optax.sgd(0.1)
    path = saved(tmp_path, LinenCNN(), IMAGES, tx=tx)
    found = trained(path, make_cnn, LinenCNN(rate=0.5), IMAGES, tx, renames(CNN_NAMES), steps=1)
    assert found.states == ("differs",)
    assert found.exact > 1e-6
    assert "1 training step," in str(found)


class LinenNormed(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.SpectralNorm(nn.Dense(3, name="d"))(x, update_stats=train)


class Normed(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.SpectralNorm(nnx.Linear(4, 3, rngs=rngs), rngs=rngs)

    def __call__(self, x, train=False):
        return self.norm(x, update_stats=train)


def test_spectral_norm_that_overwrites_its_kernel_differs_from_step_2(tmp_path):
    tx = optax.sgd(0.1)
    checkpoint = legacy.open(saved(tmp_path, LinenNormed(), X, tx=tx))
    target = bridge.describe(Normed, tx)
    stats = {"u": "('kernel', 'u')", "sigma": "('kernel', 'sigma')"}
    feeds = {("params", "d", n): ("norm", "layer_instance", n) for n in ("kernel", "bias")}
    feeds |= {
        ("batch_stats", "SpectralNorm_0", f"d/kernel/{n}"): ("norm", "batch_stats", slot)
        for n, slot in stats.items()
    }
    steps = tuple(Step((p,), (SlotRef("model", slot),)) for p, slot in feeds.items())
    cast = Cast("uint32", exact=True)
    counter = Step((("step",),), (SlotRef("optimizer", ("step",)),), (cast,))
    plan = bridge.Plan((*steps, counter), (), (), (), target, checkpoint.leaves.signature())
    given = {"model": Normed, "linen": LinenNormed(), "sample_input": X}
    (found,) = forward_check(checkpoint, plan, **given)
    assert found.same  # u and sigma are one power iteration old on both sides
    (found,) = training_check(checkpoint, plan, **given, tx=tx)
    assert found.states[1:] == ("differs", "differs")
    assert found.exact > 1e-3


class LinenAttention(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=16)(x, x, x)


class Attention(nnx.Module):
    def __init__(self, rngs):
        self.mha = nnx.MultiHeadAttention(2, 4, 16, decode=False, rngs=rngs)

    def __call__(self, x):
        return self.mha(x, x, x)


def test_key_biases_that_adam_lets_drift_are_no_difference(tmp_path):
    x = np.random.default_rng(2).normal(size=(2, 6, 4)).astype(np.float32)
    tx = optax.adam(1e-2)
    path = saved(tmp_path, LinenAttention(), x, tx=tx)
    names = {
        f"params/MultiHeadDotProductAttention_0/{p}": f"mha/{p}"
        for p in ("query", "key", "value", "out")
    }
    found = trained(path, Attention, LinenAttention(), x, tx, renames(names), steps=4)
    assert found.same
    assert found.exact is None or found.exact < 1e-9


def test_mixed_precision_is_held_to_the_noise_of_its_dtype(tmp_path):
    module = nn.Dense(3, dtype="bfloat16")
    tx = optax.adam(1e-2)
    path = saved(tmp_path, module, X, tx=tx)

    class Scaled(nnx.Linear):
        def __call__(self, x):
            return super().__call__(x * 3) / 3 + self.bias.astype("bfloat16") * np.float32(2 / 3)

    make = lambda: Scaled(4, 3, dtype="bfloat16", rngs=nnx.Rngs(0))  # noqa: E731
    found = trained(path, make, module, X, tx)
    assert found.state == "noise"
    assert found.exact is None


def test_a_loss_of_the_user_is_what_both_descend(tmp_path):
    tx = optax.sgd(1.0)
    path = saved(tmp_path, nn.Dense(3), X, tx=tx)
    make = lambda: nnx.Linear(4, 3, rngs=nnx.Rngs(0))  # noqa: E731
    seen = []

    def loss(outputs):
        seen.append(len(outputs))
        return outputs[0][:, 0].sum()

    found = trained(path, make, nn.Dense(3), X, tx, steps=1, loss=loss)
    assert found.state == "bit-equal"
    assert set(seen) == {1}
    assert len(seen) >= 2  # on both sides


def test_an_optimizer_that_is_not_the_old_one_is_said(tmp_path):
    path = saved(tmp_path, nn.Dense(3), X, tx=optax.sgd(0.1, momentum=0.9))
    make = lambda: nnx.Linear(4, 3, rngs=nnx.Rngs(0))  # noqa: E731
    checkpoint = legacy.open(path)
    plan = bridge.plan(checkpoint, model=make, tx=optax.sgd(0.1, momentum=0.9))
    given = {"model": make, "linen": nn.Dense(3), "sample_input": X}
    (found,) = training_check(
        checkpoint, plan, **given, tx=optax.sgd(0.1, momentum=0.9), linen_tx=optax.adam(0.1)
    )
    assert found.state == "unchecked"
    assert "the optimizer state at opt_state is not that of linen_tx=" in str(found)


def test_verify_climbs_to_rung_f(tmp_path):
    tx = optax.adam(1e-3)
    path = saved(tmp_path, nn.Dense(3), X, tx=tx)
    make = lambda: nnx.Linear(4, 3, rngs=nnx.Rngs(0))  # noqa: E731
    bridge.convert(path, tmp_path / "new", model=make, tx=tx, verify="none", sync=False)
    given = {"model": make, "sample_input": X, "tx": tx, "train_steps": 2}
    verdict = bridge.verify(path, tmp_path / "new", linen=nn.Dense(3), **given)
    assert (verdict.ok, verdict.rung, verdict.behaviour) == (True, "f", "same")
    assert "verified to rung f (same training)" in str(verdict)
    assert "2 training steps" in str(verdict)
    assert verdict.to_json()["training"][0]["state"] == "bit-equal"
    verdict = bridge.verify(path, tmp_path / "new", linen=Loud, **given)
    assert (verdict.ok, verdict.rung, verdict.behaviour) == (True, "d", "differs")
    assert "mapped, behaviour differs: model: outputs differ" in str(verdict)


class Loud(nn.Dense):
    features: int = 3

    @nn.compact
    def __call__(self, inputs):
        return 2 * super().__call__(inputs)


def test_verify_says_what_is_missing_to_run_models(tmp_path):
    with pytest.raises(BridgeError, match="give model, sample_input="):
        bridge.verify(tmp_path, tmp_path, linen=nn.Dense(3))
    with pytest.raises(BridgeError, match=r"tx= say how linen= is compared"):
        bridge.verify(tmp_path, tmp_path, tx=optax.sgd(0.1))


def test_train_states_of_the_user_have_their_statistics_trained():
    assert "batch_stats" in TrainState.__dataclass_fields__
