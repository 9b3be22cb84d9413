"""Targets that hold more than one plain module: tied, listed, stacked, with metrics and streams."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from planning_cases import checkpoint, leaf, make, tree, went

import bridge
from bridge._describe import describe
from legacy import Leaf


def filled(leaves, seed=0):
    """The same leaves with values that can be read."""
    rng = np.random.default_rng(seed)

    def one(found):
        value = rng.normal(size=found.shape).astype(found.dtype)
        return replace(found, reader=lambda index: value if index is None else value[index])

    return [one(x) if x.kind == "array" else x for x in leaves]


class Tied(nnx.Module):
    def __init__(self, rngs):
        self.table = nnx.Embed(7, 4, rngs=rngs)
        self.body = nnx.Linear(4, 4, rngs=rngs)
        self.out = self.table


def test_a_shared_variable_is_one_slot_and_is_filled_in_both_places():
    leaves = filled(
        tree("params", {"table/embedding": (7, 4), "body/kernel": (4, 4), "body/bias": (4,)})
    )
    source = checkpoint(*leaves)
    plan = make(source, model=Tied)
    assert plan.ok, str(plan)
    assert sum(s.shape == (7, 4) for s in plan.target.slots) == 1
    model = bridge.restore(source, model=Tied).model
    assert model.out.embedding is model.table.embedding
    want = next(x for x in leaves if x.shape == (7, 4)).read()
    np.testing.assert_array_equal(model.out.embedding[...], want)


class Mixed(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(11)])
        self.heads = nnx.Dict(a=nnx.Linear(4, 2, rngs=rngs), b=nnx.Linear(4, 3, rngs=rngs))
        self.seq = nnx.Sequential(
            nnx.Linear(4, 5, rngs=rngs), nnx.relu, nnx.Linear(5, 6, rngs=rngs)
        )


def test_lists_dicts_and_sequences_are_filled_index_by_index():
    shapes = {f"layers_{i}/{n}": s for i in range(11)
              for n, s in (("kernel", (4, 4)), ("bias", (4,)))}  # fmt: skip
    for name, n in (("heads_a", (4, 2)), ("heads_b", (4, 3))):
        shapes |= {f"{name}/kernel": n, f"{name}/bias": n[1:]}
    for name, n in (("seq/layers_0", (4, 5)), ("seq/layers_2", (5, 6))):
        shapes |= {f"{name}/kernel": n, f"{name}/bias": n[1:]}
    leaves = filled(tree("params", shapes))
    source = checkpoint(*leaves)
    plan = make(source, model=Mixed)
    assert plan.ok, str(plan)
    model = bridge.restore(source, model=Mixed).model
    values = {"/".join(x.path[1:]): x.read() for x in leaves}
    for i in range(11):
        np.testing.assert_array_equal(model.layers[i].kernel[...], values[f"layers_{i}/kernel"])
    np.testing.assert_array_equal(model.seq.layers[2].bias[...], values["seq/layers_2/bias"])
    np.testing.assert_array_equal(model.heads["b"].kernel[...], values["heads_b/kernel"])


def test_metrics_and_streams_as_items_take_nothing_from_the_checkpoint():
    shapes = {"kernel": (2, 3), "bias": (3,)}
    source = checkpoint(
        *filled(tree("params", shapes)),
        *tree("opt_state/0/mu", shapes),
        *tree("opt_state/0/nu", shapes),
        leaf("opt_state/0/count", (), "int32"),
        leaf("step", (), "int32"),
    )
    several = {
        "model": lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)),
        "train_metrics": lambda: nnx.MultiMetric(loss=nnx.metrics.Average("loss")),
        "streams": lambda: nnx.Rngs(0, dropout=1),
    }
    plan = make(source, model=several, tx={"model": optax.adam(1e-3)})
    assert plan.ok, str(plan)
    filled_by = {(i.slot.item, i.rule) for i in plan.initialised}
    assert filled_by == {("train_metrics", "constant"), ("streams", "ephemeral")}
    assert set(went(plan, "model")) == {f"params/{p}" for p in shapes}


class Adapted(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.LoRALinear(4, 4, lora_rank=2, rngs=rngs)


def test_adapters_have_no_source_and_say_so():
    source = checkpoint(*tree("params", {"dense/kernel": (4, 4), "dense/bias": (4,)}))
    plan = make(source, model=Adapted)
    assert {r.path[-1] for p in plan.problems for r in p.slots} == {"lora_a", "lora_b"}
    rules = [
        bridge.Init.of("dense/lora/lora_a", "ones"),
        bridge.Init.of("dense/lora/lora_b", "zeros"),
    ]
    assert make(source, model=Adapted, rules=rules).ok


def test_a_stack_made_by_vmap_is_one_slot_for_each_leaf():
    def make_stack():
        keys = jax.random.split(jax.random.key(0), 4)
        return nnx.vmap(lambda k: nnx.Linear(2, 3, rngs=nnx.Rngs(k)))(keys)

    leaves = filled(tree("params", {"kernel": (4, 2, 3), "bias": (4, 3)}))
    source = checkpoint(*leaves)
    plan = make(source, model=make_stack)
    assert plan.ok, str(plan)
    model = bridge.restore(source, model=make_stack).model
    np.testing.assert_array_equal(model.kernel[...], leaves[0].read())


def test_a_model_and_its_optimizer_as_one_object_come_back_as_they_were():
    shapes = {"kernel": (2, 3), "bias": (3,)}
    source = checkpoint(
        *filled(tree("params", shapes)),
        *filled(tree("opt_state/0/mu", shapes), 1),
        *filled(tree("opt_state/0/nu", shapes), 2),
        Leaf(("opt_state", "0", "count"), "array", (), np.dtype("int32"), 4,
             reader=lambda _: np.int32(5)),
        Leaf(("step",), "array", (), np.dtype("int32"), 4, reader=lambda _: np.int32(9)),
    )  # fmt: skip
    got = bridge.restore(
        source,
        model=lambda: nnx.ModelAndOptimizer(
            nnx.Linear(2, 3, rngs=nnx.Rngs(0)), optax.adam(1e-3), wrt=nnx.Param
        ),
    )
    assert int(got.optimizer.step[...]) == 9
    assert got.optimizer.model is got.model
    got.optimizer.update(jax.tree.map(jnp.ones_like, nnx.state(got.model, nnx.Param)))
    assert int(got.optimizer.opt_state[0].count[...]) == 6


def test_keys_of_dicts_that_are_tuples_keep_their_spelling():
    spectral = describe(
        lambda: nnx.SpectralNorm(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
    )
    assert ("batch_stats", "('kernel', 'u')") in {s.path for s in spectral.slots}


def test_a_module_and_its_optimizer_as_a_pair_are_two_items():
    shapes = {"kernel": (2, 3), "bias": (3,)}

    def both(name):
        return [
            *filled(tree(f"{name}/params", shapes), len(name)),
            *filled(tree(f"{name}/opt_state/0/mu", shapes), len(name) + 1),
            *filled(tree(f"{name}/opt_state/0/nu", shapes), len(name) + 2),
            Leaf((name, "opt_state", "0", "count"), "array", (), np.dtype("int32"), 4,
                 reader=lambda _: np.int32(len(name))),
            Leaf((name, "step"), "array", (), np.dtype("int32"), 4,
                 reader=lambda _: np.int32(10 * len(name))),
        ]  # fmt: skip

    def pair():
        model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        return model, nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)

    leaves = [*both("actor"), *both("critics")]
    source = checkpoint(*leaves)
    for model in ({"actor": pair, "critics": pair}, lambda: {"actor": pair(), "critics": pair()}):
        got = bridge.restore(source, model=model)
        assert set(got.model) == {"actor", "critics"}
        assert set(got.optimizer) == {"actor_optimizer", "critics_optimizer"}
        for name in ("actor", "critics"):
            value = next(x for x in leaves if x.path == (name, "params", "kernel")).read()
            np.testing.assert_array_equal(got.model[name].kernel[...], value)
            optimizer = got.optimizer[f"{name}_optimizer"]
            assert int(optimizer.opt_state[0].count[...]) == len(name)
            assert int(optimizer.step[...]) == 10 * len(name)
