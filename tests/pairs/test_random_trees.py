"""Random models, renamed at random: every leaf that is mapped is mapped right.

``PAIRS_EXAMPLES=2000 pytest tests/pairs/test_random_trees.py`` looks longer.
"""

from __future__ import annotations

import os

import hypothesis.strategies as st
import jax
import numpy as np
import optax
import pytest
from flax import serialization
from hypothesis import HealthCheck, given, settings

import bridge
import legacy
from bridge.apply import step_values

from .harness import filled, random_like
from .pair import Pair, sample
from .trees import DIM, NewModel, OldBlock, blocks, nested, rows

LONG = int(os.environ.get("PAIRS_EXAMPLES", "0"))
X = sample(2, DIM, DIM)


def examples(short):
    """Few in a normal run, as many as asked for in a long one."""
    return settings(
        max_examples=LONG or short,
        deadline=None,
        derandomize=not LONG,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("trees") / "checkpoint_5"


def written(block, file):
    """A train state of random values; the trees in it by name."""
    trees = {
        name: nested({old: random_like(s, "float32", (name, *old)) for old, _, s in rows(block)})
        for name in ("params", "mu", "nu")
    }
    count = np.asarray(3, np.int32)
    state = {
        "step": 5,
        "params": trees["params"],
        "opt_state": {"0": {"count": count, "mu": trees["mu"], "nu": trees["nu"]}, "1": {}},
    }
    file.write_bytes(serialization.msgpack_serialize(state))
    return trees


def pairings(plan):
    """Slots of the model by source, and those of each moment, as paths below the params."""
    found = {"params": {}, "mu": {}, "nu": {}}
    for step in plan.steps:
        for source in step.sources:
            for ref in step.slots:
                if source[0] == "params":
                    found["params"].setdefault(source[1:], set()).add(ref.path)
                elif source[0] == "opt_state" and source[2] in ("mu", "nu"):
                    assert ref.path[:3] == ("opt_state", "0", source[2])
                    found[source[2]].setdefault(source[3:], set()).add(ref.path[3:])
    return found


def planned(block, seed, file, **more):
    return bridge.plan(file, model=lambda: NewModel(block, seed), tx=optax.adam(1e-3), **more)


def account(plan, block):
    """Every leaf is mapped or in a problem."""
    mapped = {p for s in plan.steps for p in s.sources}
    stuck = {p for problem in plan.problems for p in problem.sources}
    for old, _, _ in rows(block):
        for prefix in (("params",), ("opt_state", "0", "mu"), ("opt_state", "0", "nu")):
            assert ((*prefix, *old) in mapped) != ((*prefix, *old) in stuck), old
    assert plan.ok != bool(stuck)


def outputs(block, seed, params, values):
    """What both models give."""
    old = OldBlock(block).apply({"params": params}, X)
    pair = Pair("tree", lambda: OldBlock(block), lambda: NewModel(block, seed), (X,), lambda v: v)
    return old, filled(pair.nnx(), pair, values)(X)


@given(blocks(depth=1), st.integers(0, 99))
@examples(4)
def test_the_truth_of_random_trees_is_true(block, seed):
    values = {old: random_like(s, "float32", old) for old, _, s in rows(block)}
    shapes = jax.eval_shape(lambda: OldBlock(block).init(jax.random.key(0), X))["params"]
    assert jax.tree.structure(shapes) == jax.tree.structure(nested(values))
    old, new = outputs(
        block, seed, nested(values), {new: values[old] for old, new, _ in rows(block)}
    )
    np.testing.assert_allclose(old, new, atol=1e-5, rtol=0)


@given(blocks(), st.integers(0, 99))
@examples(30)
def test_without_the_linen_module_what_is_mapped_is_right(file, block, seed):
    written(block, file)
    plan = planned(block, seed, file)
    truth = {old: {new} for old, new, _ in rows(block)}
    for name, found in pairings(plan).items():
        assert found == {old: truth[old] for old in found}, name
    account(plan, block)
    assert all(s.why != "order" for s in plan.steps)


@given(blocks(depth=1, symmetric=False), st.integers(0, 99))
@examples(6)
def test_with_the_linen_module_all_is_right(file, block, seed):
    written(block, file)
    plan = planned(block, seed, file, linen=OldBlock(block), sample_input=X)
    truth = {old: {new} for old, new, _ in rows(block)}
    assert not plan.problems
    for name, found in pairings(plan).items():
        assert found == truth, name
    account(plan, block)


@given(blocks(depth=1), st.integers(0, 99))
@examples(6)
def test_what_is_symmetric_may_change_places_but_only_whole(file, block, seed):
    trees = written(block, file)
    plan = planned(block, seed, file, linen=OldBlock(block), sample_input=X)
    account(plan, block)
    found = pairings(plan)
    assert found["mu"] == found["nu"] == found["params"]
    if plan.ok:
        leaves = legacy.open(file).leaves
        slots = {s.ref: s for s in plan.target.slots}
        values = {}
        for step in plan.steps:
            for ref, value in zip(step.slots, step_values(step, leaves, slots), strict=True):
                if ref.item == "model":
                    values[ref.path] = value
        old, new = outputs(block, seed, trees["params"], values)
        np.testing.assert_allclose(old, new, atol=1e-5, rtol=0)
