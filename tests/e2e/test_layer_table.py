"""Each Linen layer, with random values in every leaf: the same outputs in NNX, or a refusal."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx, serialization
from layer_table import FLAX, ROWS, Net, One

import bridge


def randomised(tree, zero=""):
    """Other values in every float leaf, so that no initial zero or one can hide a wrong map."""

    def change(path, x):
        name = "/".join(str(getattr(p, "key", p)) for p in path)
        if not np.issubdtype(np.asarray(x).dtype, np.floating) and x.dtype.name != "bfloat16":
            return x
        if zero and name.endswith(zero):
            return np.zeros_like(x)
        seed = sum(ord(c) * (n + 1) for n, c in enumerate(name))
        values = np.random.default_rng(seed).uniform(0.2, 1.1, np.shape(x))
        return np.asarray(values).astype(x.dtype)

    return jax.tree_util.tree_map_with_path(change, tree)


def checkpoint(row, folder):
    module = One(row.linen)
    variables = module.init(jax.random.key(0), *row.args, **row.linen_options)
    variables = randomised(jax.tree.map(np.asarray, dict(variables)), row.zero)
    path = folder / "checkpoint_1"
    path.write_bytes(serialization.msgpack_serialize(serialization.to_state_dict(variables)))
    mutable = [c for c in variables if c != "params"]
    out, _ = module.apply(variables, *row.args, **row.linen_options, mutable=mutable)
    return path, out


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_layer_computes_the_same_in_nnx_or_is_refused(row, tmp_path):
    path, expected = checkpoint(row, tmp_path)

    def model():
        return Net(row.nnx, nnx.Rngs(1))

    if row.name == "weight-norm" and FLAX < (0, 12, 8):  # its scales are no Variables there
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
    for code in row.codes:
        assert any(step.why == f"rule:{code}" for step in plan.steps), str(plan)
