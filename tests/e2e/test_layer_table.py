"""Each Linen layer, with random values in every leaf: the same outputs in NNX, or a refusal."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, serialization
from layer_table import FLAX, ROWS

import bridge


def randomised(tree, zero=""):
    """Other values in every float leaf, so that no initial zero or one can hide a wrong map."""

    def change(path, x):
        name = "/".join(str(getattr(p, "key", p)) for p in path)
        if not jnp.issubdtype(x.dtype, jnp.floating) or (zero and name.endswith(zero)):
            return np.zeros(x.shape, x.dtype)
        seed = sum(ord(c) * (n + 1) for n, c in enumerate(name))
        values = np.random.default_rng(seed).uniform(0.2, 1.1, x.shape)
        return np.asarray(values).astype(x.dtype)

    return jax.tree_util.tree_map_with_path(change, tree)


def checkpoint(row, folder):
    module = row.linen_model()
    shapes = jax.eval_shape(
        lambda: module.init(jax.random.key(0), *(row.first or row.args), **row.linen_options)
    )
    variables = randomised(dict(shapes), row.zero)
    path = folder / "checkpoint_1"
    path.write_bytes(serialization.msgpack_serialize(serialization.to_state_dict(variables)))
    mutable = [c for c in variables if c != "params"]
    out, updated = module.apply(variables, *row.args, **row.linen_options, mutable=mutable)
    return path, out, variables, updated


def by_path(tree):
    """Leaves by the path that a plan gives them."""
    tree = serialization.to_state_dict(jax.tree.map(np.asarray, dict(tree)))
    return {
        tuple(str(k.key) for k in path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def same_as(state, leaves, plan):
    """How many leaves are in the slots that the plan gives them, in every bit."""
    state = by_path(nnx.to_pure_dict(state))
    count = 0
    for step in plan.steps:
        (source, *others), (slot, *more) = step.sources, step.slots
        if others or more or step.transforms or source not in leaves:
            continue
        if slot.path in state:
            assert state[slot.path].tobytes() == leaves[source].tobytes(), source
            count += 1
    return count


def gradients(row, variables, model):
    """Of the same loss on both sides: with respect to all params."""
    module = row.linen_model()
    variables = dict(variables)
    params = variables.pop("params")

    def loss(y):
        return jnp.sum(jnp.sin(y) + y**2)

    old = jax.grad(lambda p: loss(module.apply({"params": p, **variables}, *row.args)))(params)
    return {"params": old}, nnx.grad(lambda m: loss(m(*row.args)))(model)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_layer_computes_the_same_in_nnx_or_is_refused(row, tmp_path):
    path, expected, variables, updated = checkpoint(row, tmp_path)
    model = row.nnx_model
    if "weight-norm" in row.codes and FLAX < (0, 12, 8):  # its scales are no Variables there
        with pytest.raises(bridge.TargetError, match="WeightNorm"):
            bridge.plan(path, model=model)
        return
    plan = bridge.plan(path, model=model)
    if row.refused:
        text = "\n".join((str(plan), *(f"{p.message} {p.rule}" for p in plan.problems)))
        assert not plan.ok
        assert row.refused in text
        return
    assert plan.ok, str(plan)
    restored, _, _ = bridge.restore(path, model=model, plan=plan)
    got = restored(*row.args, **row.nnx_options)
    assert got.dtype == expected.dtype
    if row.within:
        np.testing.assert_allclose(got, expected, rtol=0, atol=row.within)
    else:
        assert np.asarray(got).tobytes() == np.asarray(expected).tobytes()
    if "batch_stats" in updated and "scan" not in row.name:
        state = nnx.state(restored, nnx.BatchStat)
        same = same_as(state, by_path(updated), plan)
        assert same == len(jax.tree.leaves(updated["batch_stats"]))
    if row.gradients:
        old, new = gradients(row, variables, bridge.restore(path, model=model, plan=plan).model)
        assert same_as(new, by_path(old), plan) == len(jax.tree.leaves(old))
    for code in row.codes:
        assert any(step.why == f"rule:{code}" for step in plan.steps), str(plan)
