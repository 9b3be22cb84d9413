"""Planning with the Linen module: what is proven, what names say against it, what is refused."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, serialization

import bridge
from bridge.apply import step_values
from bridge.errors import BridgeError, TargetError

WIDTH = 6


class Chain(nn.Module):
    """Three layers of one shape; constructed from the outside in, so Dense_0 comes last."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(WIDTH)(nn.relu(nn.Dense(WIDTH)(jnp.tanh(nn.Dense(WIDTH)(x)))))


class Rewritten(nnx.Module):
    """The same, in the order in which it computes and under the names of the Linen module."""

    def __init__(self, rngs):
        self.Dense_0 = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.Dense_1 = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.Dense_2 = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        return self.Dense_2(nnx.relu(self.Dense_1(jnp.tanh(self.Dense_0(x)))))


X = np.random.default_rng(0).normal(size=(2, WIDTH)).astype("f4")


def written(tmp_path, module, *args, name="checkpoint_3", **kwargs):
    """A checkpoint of a module whose every number is random."""
    variables = module.init(jax.random.key(0), *args, **kwargs)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(a.dtype), variables)
    path = tmp_path / name
    path.write_bytes(serialization.msgpack_serialize(serialization.to_state_dict(variables)))
    return path, variables


def given(plan, path):
    """Slot values by path."""
    import legacy

    leaves = legacy.open(path).leaves
    slots = {s.ref: s for s in plan.target.slots}
    return {
        ref.path: value
        for step in plan.steps
        for ref, value in zip(step.slots, step_values(step, leaves, slots), strict=True)
    }


def test_names_that_mislead_are_overruled_by_what_the_models_do(tmp_path):
    path, variables = written(tmp_path, Chain(), X)
    plain = bridge.plan(path, model=lambda: Rewritten(nnx.Rngs(0)))
    assert plain.ok, "without the Linen module equal names are believed"
    plan = bridge.plan(path, model=lambda: Rewritten(nnx.Rngs(0)), linen=Chain(), sample_input=X)
    assert plan.ok
    values = given(plan, path)
    kernels = variables["params"]
    np.testing.assert_array_equal(values["Dense_0", "kernel"], kernels["Dense_2"]["kernel"])
    np.testing.assert_array_equal(values["Dense_1", "kernel"], kernels["Dense_1"]["kernel"])
    assert any("names mislead" in w and "Dense_0" in w for w in plan.warnings)
    model, _, _ = bridge.restore(
        path, model=lambda: Rewritten(nnx.Rngs(0)), linen=Chain(), sample_input=X
    )
    np.testing.assert_array_equal(model(X), Chain().apply(variables, X))


def test_a_shape_is_as_good_as_an_example(tmp_path):
    path, variables = written(tmp_path, Chain(), X)
    shape = jax.ShapeDtypeStruct(X.shape, X.dtype)
    plan = bridge.plan(path, model=lambda: Rewritten(nnx.Rngs(0)), linen=Chain, sample_input=shape)
    values = given(plan, path)
    np.testing.assert_array_equal(values["Dense_0", "bias"], variables["params"]["Dense_2"]["bias"])


def test_a_module_of_another_checkpoint_is_refused_with_both_shapes(tmp_path):
    path, _ = written(tmp_path, Chain(), X)

    class Wider(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(WIDTH)(nn.Dense(WIDTH + 1)(x))

    with pytest.raises(BridgeError) as caught:
        bridge.plan(path, model=lambda: Rewritten(nnx.Rngs(0)), linen=Wider(), sample_input=X)
    assert "params/Dense_0/kernel has shape [7, 6] in the module and [6, 6]" in str(caught.value)


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        ({"linen": Chain()}, BridgeError, "without sample_input="),
        ({"sample_input": X}, BridgeError, "give it, too"),
        ({"linen": 3, "sample_input": X}, TargetError, "linen is of type int"),
        ({"linen": {"critic": Chain()}, "sample_input": X}, TargetError, "there are model"),
        ({"linen": Chain(), "sample_input": (X, X)}, BridgeError, "sample input"),
    ],
)
def test_what_cannot_be_run_is_said(tmp_path, more, error, said):
    path, _ = written(tmp_path, Chain(), X)
    with pytest.raises(error, match=said):
        bridge.plan(path, model=lambda: Rewritten(nnx.Rngs(0)), **more)


def test_a_model_that_takes_other_arguments_is_called_by_a_probe(tmp_path):
    class Scaled(nnx.Module):
        def __init__(self, rngs):
            self.inner = Rewritten(rngs)

        def forward(self, x, gain):
            return self.inner(x) * gain

    path, variables = written(tmp_path, Chain(), X)
    probe = bridge.Probe((X,), nnx_args=(X, 1.0), nnx_method="forward")
    plan = bridge.plan(path, model=lambda: Scaled(nnx.Rngs(0)), linen=Chain(), sample_input=probe)
    values = given(plan, path)
    np.testing.assert_array_equal(
        values["inner", "Dense_0", "kernel"], variables["params"]["Dense_2"]["kernel"]
    )


def test_a_batch_that_is_a_dict_is_one_argument(tmp_path):
    class OnBatch(nn.Module):
        @nn.compact
        def __call__(self, batch):
            return nn.Dense(WIDTH)(nn.relu(nn.Dense(WIDTH)(batch["x"])))

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
            self.second = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

        def __call__(self, batch):
            return self.second(nnx.relu(self.first(batch["x"])))

    path, variables = written(tmp_path, OnBatch(), {"x": X})
    plan = bridge.plan(path, model=lambda: Net(nnx.Rngs(0)), linen=OnBatch(), sample_input={"x": X})
    assert plan.ok
    values = given(plan, path)
    np.testing.assert_array_equal(
        values["first", "kernel"], variables["params"]["Dense_1"]["kernel"]
    )
    assert {s.why for s in plan.steps} == {"fingerprint"}


def test_a_users_rule_stands_even_where_it_is_wrong_and_that_is_said(tmp_path):
    path, _ = written(tmp_path, Chain(), X)
    rule = bridge.Map.of("params/Dense_0/{leaf}", "Dense_0/{leaf}")
    plan = bridge.plan(
        path, model=lambda: Rewritten(nnx.Rngs(0)), linen=Chain(), sample_input=X, rules=[rule]
    )
    ruled = [s for s in plan.steps if s.why == "rule:map-1"]
    assert {s.slots[0].path for s in ruled} == {("Dense_0", "kernel"), ("Dense_0", "bias")}
    assert any("behaviour differs" in w for w in plan.warnings), plan.warnings
