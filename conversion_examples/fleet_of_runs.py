"""A folder of mixed runs, one of them damaged: everything else is converted, and a ledger says so.

Two formats, two models, four runs. One command finds them, plans once for each structure, and
converts in worker processes that never import jax. The damaged one is a row of the ledger, and the
same command tries it again when its backup is back.

    python conversion_examples/fleet_of_runs.py
"""

from __future__ import annotations

import io
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx, serialization
from flax.training.train_state import TrainState

import bridge
from bridge.cli import main as linen2nnx
from bridge.ledger import read_ledger


class LinenNet(nn.Module):
    """The old code."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(2)(x)


class Net(nnx.Module):
    """The new code of the narrow runs."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.inner = nnx.Linear(3, 8, rngs=rngs)
        self.outer = nnx.Linear(8, 2, rngs=rngs)


def model() -> Net:
    return Net(nnx.Rngs(0))


def tx() -> optax.GradientTransformation:
    return optax.adam(1e-3)


def new_state(width: int, seed: int) -> TrainState:
    linen = LinenNet(width)
    params = linen.init(jax.random.key(seed), jnp.ones((1, 3)))["params"]
    return TrainState.create(apply_fn=linen.apply, params=params, tx=tx())


def make_runs(runs: Path) -> bytes:
    """Two narrow runs by Orbax, and two wide ones by flax, of which one is cut in half."""
    for seed in range(2):
        with ocp.CheckpointManager(runs / "narrow" / f"seed{seed}") as manager:
            for step in (10, 20):
                manager.save(step, args=ocp.args.StandardSave(new_state(8, seed)))
    whole = serialization.to_bytes(new_state(64, 0))
    for name, content in (("whole", whole), ("cut", whole[: len(whole) // 2])):
        (runs / "wide" / name).mkdir(parents=True)
        (runs / "wide" / name / "checkpoint_500").write_bytes(content)
    return whole


CONFIG = f"""
[[group]]
match = "narrow/**"
model = "{Path(__file__).resolve()}:model"
tx = "{Path(__file__).resolve()}:tx"

[default]
unmatched = "structural"
"""


def convert(folder: Path) -> int:
    """``linen2nnx convert``; what it prints ends with what became of the checkpoints."""
    command = ["convert", "runs", "--out", "out", "--fleet", "fleet.toml", "--steps", "all"]
    print("> linen2nnx", *command)
    given = [
        str(folder / word) if word in ("runs", "out", "fleet.toml") else word for word in command
    ]
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(sys.stderr):
        code = linen2nnx(given)
    print(
        next(line for line in out.getvalue().splitlines() if " converted" in line),
        f"(exit code {code})",
    )
    for row in read_ledger(folder / "out"):
        print(f"  {row.run}/{row.step}: {row.state}")
    return code


def main(folder: Path) -> None:
    whole = make_runs(folder / "runs")
    (folder / "fleet.toml").write_text(CONFIG)

    assert convert(folder) == 1  # something is failed
    assert not (folder / "out" / "wide" / "cut" / "500").exists()

    print("\nthe backup of the damaged file is found:\n")
    (folder / "runs" / "wide" / "cut" / "checkpoint_500").write_bytes(whole)
    assert convert(folder) == 0

    target = nnx.eval_shape(model)
    with ocp.CheckpointManager(folder / "out" / "narrow" / "seed1") as manager:
        assert manager.all_steps() == [10, 20]
        found = manager.restore(
            20, args=ocp.args.Composite(model=ocp.args.StandardRestore(nnx.state(target)))
        )["model"]
    wanted = new_state(8, 1).params["Dense_1"]["kernel"]
    same = np.array_equal(found["outer"]["kernel"][...], wanted)
    print(f"\nplain Orbax restores narrow/seed1 with the weights of its source: {same}")
    assert same
    assert bridge.verify(folder / "runs/narrow/seed1", folder / "out/narrow/seed1").ok


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch))
