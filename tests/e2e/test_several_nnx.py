"""NNX states that old releases wrote come back in today's NNX models, path by path."""

from __future__ import annotations

import tarfile
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import bridge
import legacy

ERAS = Path(__file__).parents[1] / "goldens" / "eras"


class Block(nnx.Module):
    def __init__(self, dropout, rngs):
        self.linear = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        if dropout:
            self.drop = nnx.Dropout(0.5, rngs=rngs)


class Net(nnx.Module):
    """The model of the goldens, as its author would write it today."""

    def __init__(self, layers=2, *, dropout=False):
        rngs = nnx.Rngs(params=0, dropout=1)
        self.block = Block(dropout, rngs)
        self.scale = nnx.Param(jax.numpy.ones((2,)))
        self.head = nnx.Linear(4, 2, use_bias=False, rngs=rngs)
        if layers:
            self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(layers)])


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    root = tmp_path_factory.mktemp("nnx")

    def opened(name):
        era = name.split("/")[0]
        if not (root / era).exists():
            with tarfile.open(ERAS / f"{era}.tar.xz") as archive:
                archive.extractall(root, filter="data")
        folder = root / name
        with np.load(folder / "truth.npz") as truth:
            values = {k: truth[k] for k in truth.files}
        place = next(p for p in (folder / "ckpt", folder / "mgr") if p.exists())
        return legacy.open(place), values

    return opened


def stored(checkpoint):
    """Every array of a checkpoint by its path without what a Variable added."""
    found = {}
    for path, leaf in checkpoint.leaves.items():
        if leaf.kind in ("array", "scalar", "key"):
            found[path[:-1] if path[-1] in ("value", "raw_value") else path] = leaf.read()
    return found


def held(module, of=...):
    """Every array of a module by path."""
    flat = nnx.to_flat_state(nnx.state(module, of))
    return {
        tuple(map(str, path)): np.asarray(v.get_raw_value())
        for path, v in flat
        if not isinstance(v, nnx.RngState)
    }


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("flax081/nnx_model-std", 0),
        ("flax081/nnx_split-std", 0),
        ("flax090/nnx_model-ptc", 2),
        ("flax090/nnx_split-ptc", 2),
        ("flax0102/nnx_pure-std", 2),
    ],
)
def test_a_model_comes_back_at_its_own_paths_whatever_its_types(golden, name, layers):
    checkpoint, _ = golden(name)
    plan = bridge.plan(checkpoint, model=lambda: Net(layers))
    assert plan.ok, str(plan)
    assert {s.why for s in plan.steps} == {"path"}
    model = bridge.restore(checkpoint, model=lambda: Net(layers)).model
    want = {p[1:] if p[0] in ("params", "rest") else p: v for p, v in stored(checkpoint).items()}
    got = held(model)
    assert got.keys() == want.keys()
    for path, value in want.items():
        np.testing.assert_array_equal(got[path], value)


@pytest.mark.parametrize("name", ["flax084/nnx_dropout-std", "flax0106/nnx_dropout-std"])
@pytest.mark.parametrize("policy", ["keep", "reseed", "drop"])
def test_old_random_streams_follow_the_policy(golden, name, policy):
    checkpoint, _ = golden(name)
    layers = 2 if ("layers", "0", "bias") in stored(checkpoint) else 0
    plan = bridge.plan(checkpoint, model=lambda: Net(layers, dropout=True), rngs=policy)
    assert plan.ok, str(plan)
    old = {p for p in checkpoint.leaves if "rngs" in p}
    assert len(old) == 4
    extras = {p for s in plan.steps for p in s.sources if s.slots[0].item == "extras"}
    ignored = {i.path for i in plan.ignored if i.rule == "drop-rng"}
    assert (extras, ignored) == ((set(), old) if policy == "drop" else (old, set()))
    seeded = [s for s in plan.steps if s.why == "rule:reseed"]
    assert [s.sources[0][-3:-1] for s in seeded] == (
        [("dropout", "key")] if policy == "reseed" else []
    )
    got = bridge.restore(checkpoint, model=lambda: Net(layers, dropout=True), rngs=policy)
    want = {p: v for p, v in stored(checkpoint).items() if "rngs" not in p}
    for path, value in want.items():
        np.testing.assert_array_equal(held(got.model)[path], value)


@pytest.mark.parametrize("name", ["flax084/nnx_optimizer-std", "flax085/nnx_optimizer-std",
                                  "flax090/nnx_optimizer-ptc"])  # fmt: skip
def test_an_optimizer_that_held_its_model_feeds_both(golden, name):
    checkpoint, _ = golden(name)
    plan = bridge.plan(checkpoint, model=Net, tx=optax.adam(1e-3))
    assert plan.ok, str(plan)
    got = bridge.restore(checkpoint, model=Net, tx=optax.adam(1e-3))
    want = stored(checkpoint)
    ours = held(got.model)
    assert ours.keys() == {p[1:] for p in want if p[0] == "model"}
    for path, value in ours.items():
        np.testing.assert_array_equal(value, want["model", *path])
    state = got.optimizer.opt_state[0]
    for head, tree in (("mu", state.mu), ("nu", state.nu)):
        for path, v in nnx.to_flat_state(tree):
            key = ("opt_state", "0", head, *map(str, path))
            np.testing.assert_array_equal(np.asarray(v.get_raw_value()), want[key])
    assert int(got.optimizer.step[...]) == int(want["step",])
    # the model alone: the optimizer state is laid out as nnx.Optimizer has it today
    alone = bridge.plan(checkpoint, model=Net)
    assert alone.ok, str(alone)
    assert ("step",) in {s.path for s in alone.target.slots if s.item == "optimizer"}


def test_a_renamed_attribute_of_an_old_state_is_matched_or_refused(golden):
    class Renamed(nnx.Module):
        def __init__(self):
            old = Net(0)
            self.trunk, self.scale, self.out = old.block, old.scale, old.head

    checkpoint, _ = golden("flax081/nnx_model-std")
    plan = bridge.plan(checkpoint, model=Renamed)
    names = {"block": "trunk", "head": "out"}
    for step in plan.steps:
        source = step.sources[0][:-1]
        assert step.slots[0].path == (names.get(source[0], source[0]), *source[1:])
    assert plan.ok, str(plan)
