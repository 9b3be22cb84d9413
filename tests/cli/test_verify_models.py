"""``linen2nnx verify --linen``: both models are run, and the exit code says whether they agree."""

from __future__ import annotations

import json

import numpy as np
import optax
import pytest
from flax import serialization
from flax.training import train_state

from bridge.cli import main

CODE = """
import optax
from flax import linen as nn, nnx

class Wrapped(nn.Module):
    loud: bool = False

    @nn.compact
    def __call__(self, x):
        return (2 if self.loud else 1) * nn.Dense(3, name="lin")(x)

def quiet_model():
    return Wrapped()

def loud_model():
    return Wrapped(loud=True)

class Model(nnx.Module):
    def __init__(self, rngs):
        self.lin = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.lin(x)

def tx():
    return optax.adam(1e-3)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    code = folder / "models_of_a_verify_test.py"
    code.write_text(CODE)
    rng = np.random.default_rng(0)
    params = {"lin": {"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=3)}}
    params = {"lin": {k: v.astype(np.float32) for k, v in params["lin"].items()}}
    state = train_state.TrainState.create(apply_fn=None, params=params, tx=optax.adam(1e-3))
    source = folder / "checkpoint_4"
    source.write_bytes(serialization.to_bytes(state))
    flags = ["--model", f"{code}:Model", "--tx", f"{code}:tx"]
    assert main(["convert", str(source), "--out", str(folder / "new"), "--no-sync", *flags]) == 0
    start = ["verify", str(source), str(folder / "new"), *flags, "--input", "f32[2,4]"]
    return lambda name, *more: main([*start, "--linen", f"{code}:{name}", *more])


def test_the_same_behaviour_is_exit_code_0(run, capsys):
    assert run("quiet_model", "--steps", "2") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "verified to rung f (same training)" in said
    assert "2 training steps" in said


def test_another_behaviour_is_exit_code_1_though_all_values_are_right(run, capsys):
    assert run("loud_model", "--json", "--steps", "1") == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["rung"], told["behaviour"]) == (True, "d", "differs")
    assert told["forward"][0]["state"] == "differs"
    assert "Linen the model (Wrapped)" in told["forward"][0]["parted"]


@pytest.mark.parametrize(
    "flags",
    [["--model", "m:f"], ["--linen", "m:f"], ["--linen", "m:f", "--input", "f32[1]"]],
    ids=["model alone", "linen alone", "no model"],
)
def test_flags_that_belong_together_are_asked_for(flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["verify", "a", "b", *flags])
    assert stopped.value.code == 2
    assert "--linen" in capsys.readouterr().err
