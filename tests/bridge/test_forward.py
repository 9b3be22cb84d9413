"""Rung e: both models are run, and what differs is found, measured and named."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx, serialization
from twin_cases import CNN_NAMES, IMAGES, LinenCNN, make_cnn, random_variables, renames, saved

import bridge
import legacy
from bridge.errors import BridgeError, TargetError
from bridge.forward import forward_check
from bridge.parting import part
from bridge.probe import Probe

X = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def cnn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cnn")
    path = saved(folder, LinenCNN(), IMAGES)
    checkpoint = legacy.open(path)
    return checkpoint, bridge.plan(checkpoint, model=make_cnn, rules=renames(CNN_NAMES))


def checked(case, linen, **more):
    given = {"model": make_cnn, "sample_input": IMAGES, **more}
    (found,) = forward_check(*case, linen=linen, **given)
    return found


def test_the_same_function_is_bit_equal(cnn):
    found = checked(cnn, LinenCNN)
    assert (found.state, found.same, found.parted, found.reasons) == ("bit-equal", True, "", ())
    assert str(found) == "the output bit-equal, jitted and eager"


def test_an_epsilon_that_float32_hides_is_found_and_named(cnn):
    found = checked(cnn, LinenCNN(epsilon=1e-5))
    assert found.state == "differs"
    assert found.outputs[0].relative < 1e-5
    assert 1e-9 < found.exact < 1e-5
    assert "they part in Linen LayerNorm_0 (LayerNorm) / NNX ln (LayerNorm)" in found.parted
    (reason,) = found.reasons
    assert "epsilon is 1e-05 in Linen and 1e-06 in NNX" in reason


@pytest.mark.parametrize(
    "change", [{"act": nn.relu}, {"pool": nn.avg_pool}], ids=lambda c: next(iter(c))
)
def test_a_difference_without_parameters_lies_between_two_layers(cnn, change):
    found = checked(cnn, LinenCNN(**change))
    assert found.state == "differs"
    assert "between Linen BatchNorm_0 (BatchNorm) / NNX bn (BatchNorm)" in found.parted
    assert "and Linen LayerNorm_0 (LayerNorm) / NNX ln (LayerNorm), whose inputs" in found.parted


def test_without_a_map_tied_values_show_where_models_part(cnn):
    def tied(path, shape):
        values = np.random.default_rng([len(path[-1]), *shape]).normal(size=shape)
        return (np.abs(values) + 0.2 if path[-1] == "var" else values).astype(np.float32)

    checkpoint, plan = cnn
    leaves = checkpoint.leaves
    ours = {p: tied(p, leaves[p].shape) for p in leaves if len(p) == 3}
    slots = [s for s in plan.target.slots if s.collection in ("params", "batch_stats")]
    theirs = {s.path: tied(s.path, s.shape) for s in slots}
    probe = Probe((IMAGES,))
    assert part(LinenCNN(), make_cnn, probe, ours, theirs) == ""
    said = part(LinenCNN(act=nn.relu), make_cnn, probe, ours, theirs)
    assert said.startswith("they part before Linen LayerNorm_0 (LayerNorm) / NNX ln (LayerNorm)")
    assert "after Linen BatchNorm_0 (BatchNorm), whose outputs agree" in said


def test_a_module_of_another_checkpoint_is_refused(cnn):
    class Other(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(x)

    with pytest.raises(BridgeError, match="not the one whose variables the checkpoint holds"):
        checked(cnn, Other())


def test_an_input_that_the_models_do_not_take_is_refused(cnn):
    with pytest.raises(BridgeError, match="could not be traced with the sample input"):
        checked(cnn, LinenCNN(), sample_input=(IMAGES, IMAGES, IMAGES))


class LinenTwo(nn.Module):
    """Two methods, and an output of two parts."""

    def setup(self):
        self.enc = nn.Dense(3)
        self.dec = nn.Dense(4)

    def __call__(self, x):
        z = self.encode(x)
        return {"z": z, "x": self.dec(z), "class": jnp.argmax(z, -1)}

    def encode(self, x):
        return nn.tanh(self.enc(x))

    def decode(self, z):
        return nn.sigmoid(self.dec(z))


class Two(nnx.Module):
    def __init__(self, rngs):
        self.down = nnx.Linear(4, 3, rngs=rngs)
        self.up = nnx.Linear(3, 4, rngs=rngs)

    def __call__(self, x):
        z = self.encode(x)
        return {"z": z, "x": self.up(z), "class": jnp.argmax(z, -1)}

    def encode(self, x):
        return jnp.tanh(self.down(x * 3.0) / 3.0 + self.down.bias * (1 - 1 / 3.0))

    def decode(self, z):
        return jnp.tanh(self.up(z))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    path = saved(tmp_path_factory.mktemp("two"), LinenTwo(), X)
    checkpoint = legacy.open(path)
    rules = renames({"params/enc": "down", "params/dec": "up"})
    return checkpoint, bridge.plan(checkpoint, model=Two, rules=rules)


def test_rounding_is_told_from_difference_in_float64(two):
    (found,) = forward_check(*two, model=Two, linen=LinenTwo(), sample_input=X)
    assert found.state == "noise"
    assert found.exact < 1e-12
    assert [o.state for o in found.outputs if o.name == "output 0"] == ["bit-equal"]
    assert "equal up to rounding" in str(found)


def test_each_method_is_compared(two):
    sample = [Probe((X,)), Probe((X[:, :3],), method="decode")]
    (found,) = forward_check(*two, model=Two, linen=LinenTwo(), sample_input=sample)
    states = {o.name: o.state for o in found.outputs}
    assert states["decode output"] == "differs"
    assert states["output 1"] == "noise"
    assert "dec (Dense)" in found.parted


def test_shapes_stand_for_random_values(two):
    shape = jax.ShapeDtypeStruct((2, 4), np.float32)
    (found,) = forward_check(
        *two, model=Two, linen=LinenTwo(), sample_input=shape, methods=["encode"]
    )
    assert [o.name for o in found.outputs][-1] == "encode output"
    assert found.state == "noise"


class LinenBatch(nn.Module):
    @nn.compact
    def __call__(self, batch):
        x = nn.Embed(5, 4)(batch["id"]) + nn.Dense(4, use_bias=True)(batch["x"])
        return nn.LayerNorm(dtype=jnp.bfloat16)(x)


class Batch(nnx.Module):
    def __init__(self, rngs):
        self.table = nnx.Embed(5, 4, rngs=rngs)
        self.lin = nnx.Linear(4, 4, use_bias=False, rngs=rngs)
        self.norm = nnx.LayerNorm(4, dtype=jnp.bfloat16, rngs=rngs)

    def __call__(self, batch):
        return self.norm(self.table(batch["id"]) + self.lin(batch["x"]))


def test_a_dropped_bias_is_named_and_so_is_what_bfloat16_does(tmp_path):
    batch = {"id": np.array([0, 4, 2]), "x": X}
    path = saved(tmp_path, LinenBatch(), batch)
    names = {"params/Embed_0": "table", "params/LayerNorm_0": "norm"}
    kernel = '[[map]]\nfrom = "params/Dense_0/kernel"\nto = "lin/kernel"'
    rules = renames(names, f'{kernel}\n[[ignore]]\nsource = "params/Dense_0/bias"')
    checkpoint = legacy.open(path)
    plan = bridge.plan(checkpoint, model=Batch, rules=rules)
    (found,) = forward_check(checkpoint, plan, model=Batch, linen=LinenBatch(), sample_input=batch)
    assert found.state == "differs"
    assert found.exact is None  # the model asks for bfloat16, so float64 says nothing
    assert "they part in Linen Dense_0 (Dense) / NNX lin (Linear)" in found.parted
    assert any("use_bias is True in Linen and False in NNX" in r for r in found.reasons)
    assert any("computes in bfloat16" in r for r in found.reasons)


def test_mixed_precision_alone_is_within_what_its_dtype_allows(tmp_path):
    module = nn.LayerNorm(dtype=jnp.bfloat16)
    checkpoint = legacy.open(saved(tmp_path, module, X))
    make = lambda: nnx.LayerNorm(4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))  # noqa: E731
    plan = bridge.plan(checkpoint, model=make)
    (found,) = forward_check(checkpoint, plan, model=make, linen=module, sample_input=X)
    assert found.state == "noise"
    assert found.outputs[0].relative > 1e-4


def test_several_models_are_each_compared_with_their_own(tmp_path):
    trees = {n: random_variables(nn.Dense(2), X, seed=k) for k, n in enumerate(("actor", "critic"))}
    path = tmp_path / "checkpoint_1"
    path.write_bytes(serialization.to_bytes(trees))
    model = {n: lambda: nnx.Linear(4, 2, rngs=nnx.Rngs(0)) for n in trees}
    checkpoint = legacy.open(path)
    plan = bridge.plan(checkpoint, model=model)
    linen = {"actor": nn.Dense(2), "critic": nn.Sequential([nn.Dense(2)])}
    with pytest.raises(TargetError, match="linen= is one for the items actor, critic"):
        forward_check(checkpoint, plan, model=model, linen=nn.Dense(2), sample_input=X)
    sample = dict.fromkeys(trees, X)
    with pytest.raises(BridgeError, match="not the one whose variables"):
        forward_check(checkpoint, plan, model=model, linen=linen, sample_input=sample)
    linen = {n: nn.Dense(2) for n in trees}
    found = forward_check(checkpoint, plan, model=model, linen=linen, sample_input=sample)
    assert [(f.item, f.state) for f in found] == [("actor", "bit-equal"), ("critic", "bit-equal")]


class LinenHeads(nn.Module):
    @nn.compact
    def __call__(self, x):
        return {"value": nn.Dense(1, name="v")(x), "logits": nn.Dense(1, name="l")(x)}


class Heads(nnx.Module):
    def __init__(self, rngs):
        self.v = nnx.Linear(4, 1, rngs=rngs)
        self.l = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        return self.v(x), self.l(x)


def test_a_tuple_for_a_dict_has_its_parts_in_another_order(tmp_path):
    checkpoint = legacy.open(saved(tmp_path, LinenHeads(), X))
    plan = bridge.plan(checkpoint, model=Heads)
    (found,) = forward_check(checkpoint, plan, model=Heads, linen=LinenHeads(), sample_input=X)
    assert found.state == "bit-equal"
    assert found.reasons == ("NNX gives output parts in another order: 1, 0",)
