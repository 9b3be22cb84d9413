"""A run of 2020, saved by ``flax.optim`` of flax 0.1.0, trains on under the optax of today.

``flax.optim`` is gone since 2022, and no flax of today reads its states into anything. The bytes
are those of ``tests/goldens/optim/flax010``: written by the real release, which also recorded
where its own next three steps led. The example brings the state into an ``nnx.Optimizer``, gives it
the same gradients, and arrives at the same place.

    python conversion_examples/flax_optim_2020.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import bridge
import legacy

GOLDEN = (
    Path(__file__).resolve().parents[1] / "tests" / "goldens" / "optim" / "flax010" / "steps.npz"
)
LAYERS = {"Dense_0": (4, 5), "Dense_1": (5, 5)}
ROUNDING = 2e-5  # of a step; the old release added up in another order

RULES = bridge.Rules.from_toml("""
[[map]]
from = "params/Dense_{i}/{leaf}"
to = "layers/{i}/{leaf}"
""")


class Net(nnx.Module):
    """The new code."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(*shape, rngs=rngs) for shape in LAYERS.values()])

    def flat(self) -> np.ndarray:
        """All parameters, in the order of the recording."""
        each = [layer.__getattribute__(n)[...] for layer in self.layers for n in ("kernel", "bias")]
        return np.concatenate([np.ravel(a) for a in each]).astype("f8")


def gradients(seed: int) -> nnx.State:
    """The gradients that the old release was given."""
    random = np.random.RandomState(seed)
    layers = {}
    for n, (rows, columns) in enumerate(LAYERS.values()):
        kernel = random.uniform(-1, 1, (rows, columns)).astype(np.float32)
        bias = random.uniform(-1, 1, (columns,)).astype(np.float32)
        layers[n] = {"kernel": nnx.Param(jnp.asarray(kernel)), "bias": nnx.Param(jnp.asarray(bias))}
    return nnx.State({"layers": layers})


def train_on(path: Path, tx: optax.GradientTransformation, recorded: np.ndarray) -> None:
    """Restore, take the three steps, and compare."""
    model, optimizer, _ = bridge.restore(path, model=lambda: Net(nnx.Rngs(0)), tx=tx, rules=RULES)
    print(f"  restored at step {int(optimizer.step[...])}")
    length = np.abs(recorded[-1] - recorded[0]).max()
    for n, wanted in enumerate(recorded):
        optimizer.update(model, gradients(13 + n))
        apart = np.abs(model.flat() - wanted).max() / length
        near = bool(apart < ROUNDING)
        print(f"  step {int(optimizer.step[...])} leads where flax 0.1.0 went: {near}")
        assert near


def main(folder: Path) -> None:
    with np.load(GOLDEN) as file:
        recorded = dict(file)
    for name, tx in {
        "Adam": optax.adam(0.01),
        "Momentum": optax.sgd(0.1, 0.9),
        "LAMB": optax.lamb(0.01, weight_decay=0.1),
    }.items():
        path = folder / name / "checkpoint_3"
        path.parent.mkdir()
        path.write_bytes(recorded[f"{name}/state"].tobytes())
        print(f"{name}: {legacy.detect(path)}")
        train_on(path, tx, recorded[f"{name}/next"].astype("f8"))

    # the state does not name its optimizer, and where that matters, nothing is guessed
    path = folder / "LARS" / "checkpoint_3"
    path.parent.mkdir()
    path.write_bytes(recorded["LARS/state"].tobytes())
    plan = bridge.plan(path, model=lambda: Net(nnx.Rngs(0)), tx=optax.lars(0.1), rules=RULES)
    (problem,) = plan.problems
    print(f"\nLARS is refused:\n{problem}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch))
