"""Names of axes in Linen's boxes and in NNX's metadata, and arrays that came in boxes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx, serialization

import bridge
from bridge._boxes import axis_names, box_differences, box_names
from bridge._describe import describe
from bridge.target import SlotRef

NAMES = ("embed", "mlp")


class Boxed(linen.Module):
    logical: bool = False

    @linen.compact
    def __call__(self, x):
        boxed = linen.with_logical_partitioning if self.logical else linen.with_partitioning
        kernel = boxed(linen.initializers.lecun_normal(), NAMES)
        return linen.Dense(4, kernel_init=kernel, name="up")(x)


class Model(nnx.Module):
    def __init__(self, names=NAMES):
        kernel = nnx.with_partitioning(nnx.initializers.lecun_normal(), names)
        self.up = nnx.Linear(3, 4, kernel_init=kernel, rngs=nnx.Rngs(0))


def abstract(names=NAMES):
    with nnx.use_eager_sharding(False):
        return nnx.eval_shape(lambda: Model(names))


@pytest.mark.parametrize("logical", [False, True])
def test_boxes_are_taken_off_and_their_names_compared(logical, tmp_path):
    module = Boxed(logical)
    x = jnp.ones((2, 3))
    variables = module.init(jax.random.key(3), x)
    path = tmp_path / "checkpoint_1"
    path.write_bytes(serialization.msgpack_serialize(serialization.to_state_dict(variables)))
    plan = bridge.plan(path, model=Model)
    assert plan.ok, str(plan)
    full = next(s.sources[0] for s in plan.steps if s.slots[0].path == ("up", "kernel"))
    assert full == ("params", "up", "kernel", "value")
    with nnx.use_eager_sharding(False):
        got = bridge.restore(path, model=Model).model
    np.testing.assert_array_equal(got.up.kernel[...], variables["params"]["up"]["kernel"].value)
    assert got.up.kernel.get_metadata()["out_sharding"] == NAMES

    assert box_names(module, x) == {full[:-1]: NAMES}
    ours = {full: NAMES}
    for names, differ in ((NAMES, 0), (("mlp", "embed"), 1), (("embed", None), 1)):
        theirs = {SlotRef("model", p): n for p, n in axis_names(abstract(names)).items()}
        found = box_differences(plan.steps, ours, theirs)
        assert len(found) == differ
    assert "named ('embed', 'mlp') in the Linen module, slot model:up/kernel named" in found[0]


def test_a_model_without_names_where_linen_had_some_is_told():
    ours = {("params", "up", "kernel", "value"): NAMES}
    step = bridge.Step(((*next(iter(ours)),),), (SlotRef("model", ("up", "kernel")),))
    (said,) = box_differences([step], ours, {})
    assert said.endswith("slot model:up/kernel without names: it will be sharded otherwise")
    assert not box_differences([step], {}, {})


def test_names_come_from_the_target_alone():
    assert {s.path for s in describe(Model).slots} == {("up", "kernel"), ("up", "bias")}
    assert axis_names(abstract()) == {("up", "kernel"): NAMES}
