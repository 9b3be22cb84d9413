"""Stay on Linen: ``legacy.restore`` brings old checkpoints back in your own types.

Nothing is migrated. A checkpoint of any era and format fills the ``TrainState`` that you hold, also
where today's flax and Orbax refuse it: the first one here was written by flax 0.7.5 with Orbax
0.4.2 (``tests/goldens``). What does not fit is an error that lists every difference.

    python conversion_examples/stay_on_linen.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training import checkpoints
from flax.training.train_state import TrainState

import legacy

GOLDENS = Path(__file__).resolve().parents[1] / "tests" / "goldens"


class MLP(nn.Module):
    """Your model."""

    width: int = 8

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(2)(nn.relu(nn.Dense(self.width)(x)))


def new_state(width: int = 8) -> TrainState:
    linen = MLP(width)
    params = linen.init(jax.random.key(0), jnp.zeros((1, 3)))["params"]
    return TrainState.create(apply_fn=linen.apply, params=params, tx=optax.adam(1e-3))


def main(folder: Path) -> None:
    path = GOLDENS / "flax075" / "cnn_state-ptc" / "ckpt"
    print(f"found: {legacy.detect(path)}")
    tree = legacy.restore(path, None)  # no target: plain dicts and numpy arrays
    print(f"without a target: {sorted(tree)}")
    with np.load(path.parent / "truth.npz") as truth:
        print(f"its truth has {len(truth.files)} arrays")

    # into your own types
    state = new_state()
    grads = jax.tree.map(jnp.ones_like, state.params)
    for step in range(3):
        state = state.apply_gradients(grads=grads)
        checkpoints.save_checkpoint(folder, state, step, keep=3)
    again = legacy.restore(folder, new_state())
    print(f"{type(again).__name__} at step {int(again.step)}, {type(again.opt_state[0]).__name__}")
    assert jax.tree.all(jax.tree.map(np.array_equal, again.params, state.params))
    assert jax.tree.all(jax.tree.map(np.array_equal, again.opt_state, state.opt_state))
    again.apply_gradients(grads=grads)  # ready to train on

    # a part of it, for fine-tuning
    params = legacy.restore(folder, new_state().params, at="params", step=0)
    print(f"params of step 0: {sorted(params)}")

    # what does not fit is said at once
    try:
        legacy.restore(folder, new_state(width=16))
    except legacy.TargetMismatch as error:
        print(
            f"another width: {len(error.problems)} differences, the first:\n  {error.problems[0]}"
        )
    else:
        raise AssertionError("nothing was noticed")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch))
