"""Roles: every leaf has one, and the usual layouts have the right ones."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from bridge.roles import find_roles
from legacy import Leaf, LeafTable

PARAMS = {"Dense_0/kernel": (3, 4), "Dense_0/bias": (4,), "Dense_1/kernel": (4, 2)}


def array(path, shape=(), dtype="float32"):
    dtype = np.dtype(dtype)
    return Leaf(tuple(path.split("/")), "array", shape, dtype, 4)


def params(prefix):
    return [array(f"{prefix}/{p}", s) for p, s in PARAMS.items()]


def roles(*leaves):
    table = LeafTable(leaves)
    found = find_roles(table)
    assert sorted(p for g in found.groups for p in g.full()) == sorted(table)
    return {
        "/".join(p): (g.collection if g.role == "collection" else g.role)
        for g in found.groups
        for p in g.full()
    }, found


def test_a_bare_tree_is_params():
    got, _ = roles(array("Dense_0/kernel", (3, 4)))
    assert got == {"Dense_0/kernel": "params"}


def test_variables_with_a_doubled_params():
    got, found = roles(
        *params("params/params"), array("params/batch_stats/Dense_0/mean", (4,)), array("step")
    )
    assert got["params/params/Dense_0/kernel"] == "params"
    assert got["params/batch_stats/Dense_0/mean"] == "batch_stats"
    assert found.states[0].params == ("params", "params")


def test_a_train_state_at_any_depth_with_all_that_belongs_to_it():
    at = "run/0/state"
    got, found = roles(
        *params(f"{at}/params"),
        *params(f"{at}/opt_state/0/mu"),
        array(f"{at}/opt_state/0/count", (), "int32"),
        *params(f"{at}/ema_params"),
        array(f"{at}/step", (), "int32"),
        array(f"{at}/dropout_rng", (2,), "uint32"),
        array("run/0/best_loss"),
    )
    assert got[f"{at}/params/Dense_0/kernel"] == "params"
    assert got[f"{at}/opt_state/0/mu/Dense_0/kernel"] == "opt_state"
    assert got[f"{at}/ema_params/Dense_1/kernel"] == "copy"
    assert got[f"{at}/step"] == "step"
    assert got[f"{at}/dropout_rng"] == "rng"
    assert got["run/0/best_loss"] == "rest"
    assert found.states[0].prefix == ("run", "0", "state")


def test_an_ema_copy_inside_its_own_variables_is_a_copy_and_not_a_second_model():
    got, found = roles(*params("params"), *params("ema/params"))
    assert got["ema/params/Dense_0/kernel"] == "copy"
    assert len(found.states) == 1


def test_two_models_of_one_shape_are_two_states():
    _, found = roles(*params("actor/params"), *params("critic/params"))
    assert {s.prefix for s in found.states} == {("actor",), ("critic",)}


def test_flax_optim_is_params_and_an_optimizer():
    got, _ = roles(
        *params("optimizer/target"),
        *[array(f"optimizer/state/param_states/{p}/grad_ema", s) for p, s in PARAMS.items()],
        array("optimizer/state/step", (), "int32"),
    )
    assert got["optimizer/target/Dense_0/kernel"] == "params"
    assert got["optimizer/state/param_states/Dense_0/kernel/grad_ema"] == "opt_state"
    assert got["optimizer/state/step"] == "opt_state"


def test_an_optimizer_state_under_an_odd_name_is_found_by_what_is_in_it():
    got, _ = roles(*params("params"), *params("sgd/0/trace"))
    assert got["sgd/0/trace/Dense_0/bias"] == "opt_state"


def test_a_normaliser_beside_the_params_is_the_rest():
    got, _ = roles(*params("params"), array("normaliser/mean", (3,)))
    assert got["normaliser/mean"] == "rest"


def test_a_number_that_looks_like_a_key_is_none():
    got, _ = roles(*params("params"), array("sizes", (2,), "uint32"))
    assert got["sizes"] == "rest"


words = st.sampled_from(
    ["params", "opt_state", "step", "ema", "0", "mu", "kernel", "batch_stats", "target", "state",
     "param_states", "rng", "x"]
)  # fmt: skip
trees = st.lists(st.lists(words, min_size=1, max_size=5).map("/".join), max_size=14, unique=True)


@settings(max_examples=400, deadline=None)
@given(trees)
def test_every_leaf_has_exactly_one_role_whatever_the_tree(texts):
    chosen = []
    for text in sorted(texts):
        parts = tuple(text.split("/"))
        if not any(parts[: len(c)] == c or c[: len(parts)] == parts for c in chosen):
            chosen.append(parts)
    roles(*[array("/".join(c), (2,), "float32") for c in chosen])
