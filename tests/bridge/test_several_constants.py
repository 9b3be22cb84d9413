"""Variables that the model's own code gives their value, and those that only look like it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from planning_cases import checkpoint, kinds, leaf, make, tree

import bridge
from bridge import Plan, Target
from bridge._constants import constants
from bridge._describe import describe
from bridge.apply import initial_value
from bridge.errors import BridgeError
from legacy import Leaf

W = {"lin/kernel": (4, 4), "lin/bias": (4,)}


class Table(nnx.Variable):
    pass


def table():
    position = np.arange(6)[:, None] / 10000 ** (np.arange(4) / 4)
    return np.sin(position).astype(np.float32)


class Net(nnx.Module):
    """What people write: a position table, a causal mask, an index, and a raw array."""

    def __init__(self, rngs):
        self.lin = nnx.Linear(4, 4, rngs=rngs)
        self.pos = Table(jnp.sin(jnp.arange(6.0)[:, None] / 10000 ** (jnp.arange(4) / 4)))
        self.mask = nnx.Variable(jnp.tril(jnp.ones((5, 5), bool)))
        self.index = nnx.Variable(np.arange(7))
        self.window = nnx.data(jnp.hanning(9).astype(jnp.bfloat16))


class Doubtful(nnx.Module):
    """Values that start from something random or learned."""

    def __init__(self, rngs):
        self.lin = nnx.Linear(4, 4, rngs=rngs)
        self.codes = Table(jax.random.normal(rngs.params(), (8, 2)))
        self.shadow = Table(self.lin.kernel[...] * 1)
        self.zero = Table(self.lin.bias[...])
        self.guess = Table(np.random.default_rng().normal(size=(3,)).astype(np.float32))
        self.jitted = Table(jax.jit(lambda k: jax.random.uniform(k, (2, 3)))(jax.random.key(1)))
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.copy = Table(self.norm.var[...] + 0)


def test_constants_are_what_the_model_holds():
    model = Net(nnx.Rngs(0))
    found = constants(Net)
    assert {str(r): v.tobytes() for r, v in found.items()} == {
        "model:pos": np.asarray(model.pos[...]).tobytes(),
        "model:mask": np.asarray(model.mask[...]).tobytes(),
        "model:index": np.asarray(model.index[...]).astype(found_dtype(found)).tobytes(),
        "model:window": np.asarray(model.window).tobytes(),
    }


def found_dtype(found):
    return next(v.dtype for r, v in found.items() if r.path == ("index",))


def test_what_is_random_or_learned_is_no_constant():
    assert constants(Doubtful) == {}


def test_a_large_model_is_not_made_for_a_small_constant():
    class Huge(nnx.Module):
        def __init__(self, rngs):
            self.lin = nnx.Linear(1 << 20, 1 << 20, rngs=rngs)
            self.mask = nnx.Variable(jnp.ones(3))

    (found,) = constants(Huge).values()
    assert found.tolist() == [1, 1, 1]


def test_constants_that_are_too_large_are_none():
    class Wide(nnx.Module):
        def __init__(self):
            self.table = Table(jnp.zeros((1 << 22, 2)))

    assert constants(Wide) == {}


def source():
    return checkpoint(*tree("params", W))


def test_a_plan_fills_constants_by_name_and_stores_their_values():
    plan = make(source(), model=Net)
    assert plan.ok, str(plan)
    filled = {i.slot.path[0]: i for i in plan.initialised}
    assert {(i.rule, i.how) for i in filled.values()} == {("constant", "constant")}
    assert set(filled) == {"pos", "mask", "index", "window"}
    stored = Plan.from_json(plan.to_json())
    slots = {s.ref: s for s in stored.target.slots}
    value = initial_value(filled["pos"], slots[filled["pos"].slot])
    assert value.dtype == np.float32
    np.testing.assert_allclose(value, table(), atol=1e-6)
    assert initial_value(filled["mask"], slots[filled["mask"].slot]).sum() == 15
    spec = Target.from_json(describe(Net).to_json())
    assert make(source(), model=spec).initialised == plan.initialised
    assert "constant" in str(plan)
    assert slots[filled["pos"].slot].constant not in str(plan)


def test_a_doubtful_value_is_a_problem_for_each():
    stats = {"norm/mean": (4,), "norm/var": (4,)}
    full = checkpoint(*tree("params", {**W, "norm/scale": (4,), "norm/bias": (4,)}),
                      *tree("batch_stats", stats))  # fmt: skip
    plan = make(full, model=Doubtful)
    assert {p.slots[0].path[0] for p in plan.problems} == {
        "codes", "copy", "guess", "jitted", "shadow", "zero"
    }  # fmt: skip
    assert set(kinds(plan)) == {"unfilled-slot"}


def test_a_leaf_that_could_be_meant_is_no_reason_to_take_the_constant():
    extra = checkpoint(*tree("params", {**W, "embed/positions": (6, 4)}))
    plan = make(extra, model=Net)
    assert not plan.ok
    assert ("pos",) in {r.path for p in plan.problems for r in p.slots}


def test_a_parameter_that_became_a_buffer_is_mapped_by_path_and_its_moments_are_dropped():
    import optax

    shapes = {**W, "pos": (6, 4)}
    full = checkpoint(
        *tree("params", shapes),
        *tree("opt_state/0/mu", shapes),
        *tree("opt_state/0/nu", shapes),
        leaf("opt_state/0/count", (), "int32"),
        leaf("step", (), "int32"),
    )
    plan = make(full, model=Net, tx=optax.adam(1e-3))
    assert plan.ok, str(plan)
    (step,) = [s for s in plan.steps if s.sources == (("params", "pos"),)]
    assert (step.slots[0].path, step.why) == (("pos",), "rule:buffer")
    assert {i.path: i.rule for i in plan.ignored} == {
        ("opt_state", "0", f, "pos"): "moments-of-a-buffer" for f in ("mu", "nu")
    }


def test_a_live_model_keeps_its_values():
    model = Net(nnx.Rngs(0))
    model.pos[...] = jnp.full((6, 4), 2.5)
    data = {p: np.ones(s, np.float32) for p, s in W.items()}
    leaves = [
        Leaf(
            ("params", *p.split("/")), "array", v.shape, v.dtype, v.nbytes, reader=lambda _, v=v: v
        )
        for p, v in data.items()
    ]
    restored = bridge.restore(checkpoint(*leaves), model=model).model
    assert (restored.pos[...] == 2.5).all()
    assert (restored.mask[...] == model.mask[...]).all()
    assert restored.window.dtype == jnp.bfloat16
    assert (restored.lin.kernel[...] == 1).all()


def test_a_constant_without_a_stored_value_is_an_error():
    plan = make(source(), model=Net)
    init = plan.initialised[0]
    from dataclasses import replace

    slot = next(s for s in plan.target.slots if s.ref == init.slot)
    with pytest.raises(BridgeError, match="Make the plan again"):
        initial_value(init, replace(slot, constant=None))
    with pytest.raises(BridgeError, match="constant is damaged"):
        initial_value(init, replace(slot, constant="AAAA"))
