"""The inputs of the benchmarks: an adamw ``TrainState`` in the formats of old, and its NNX model.

Run as a script it makes one input in a process of its own: ``states.py KIND FOLDER MEGABYTES``.
Arrays hold random numbers, since moments of a real run are not zeros, which compress to nothing.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from common import ROOT

LAYERS = 20
KINDS = ("ocdbt", "zarr", "msgpack")
RULES = """
[[map]]
from = "params/Dense_{i}/{leaf}"
to = "layers/{i}/{leaf}"
"""


def width_for(megabytes: float) -> int:
    """The width of square layers whose params, mu and nu have so many megabytes of float32."""
    return round((megabytes * 1e6 / (3 * LAYERS * 4)) ** 0.5)


def make(kind: str, folder: Path, megabytes: float) -> Path:
    """Make an input in a process of its own.

    Args:
        kind: ``ocdbt`` and ``zarr`` are folders of ``PyTreeCheckpointer``; ``msgpack`` is a file of
            ``flax.training.checkpoints``.
        folder: gets it.
        megabytes: of its arrays.

    Returns:
        The checkpoint; beside it lie the stored plan (``<name>.plan.json``) and the new model.
    """
    name = folder / f"{kind}-{megabytes:g}"
    subprocess.run(
        [sys.executable, __file__, kind, str(name), str(megabytes)],
        check=True,
        env={"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin"},
    )
    return name


def plan_of(source: Path) -> Path:
    """Where the stored plan of an input lies."""
    return source.with_name(source.name + ".plan.json")


def store_plan(source: Path, width: int, rules: str = RULES) -> Any:
    """Plan an input onto the new model, store the plan beside it, and return it."""
    import optax

    import bridge

    plan = bridge.plan(
        source,
        model=lambda: nnx_model(width),
        tx=optax.adamw(1e-3),
        rules=bridge.Rules.from_toml(rules),
    ).require_ok()
    plan_of(source).write_text(plan.to_json())
    return plan


def linen_state(width: int) -> Any:
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from flax.training.train_state import TrainState

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(LAYERS):
                x = nn.relu(nn.Dense(width)(x))
            return x

    net = Net()
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.ones((1, width)))["params"]
    rng = np.random.default_rng(0)

    def noise(x):
        return rng.standard_normal(x.shape, np.float32)

    params = jax.tree.map(noise, shapes)
    state = TrainState.create(apply_fn=net.apply, params=params, tx=optax.adamw(1e-3))
    noisy = jax.tree.map(lambda x: noise(x) if x.ndim else x, state.opt_state)
    return state.replace(opt_state=noisy, step=1000)


def nnx_model(width: int) -> Any:
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(LAYERS)])

    return Net(nnx.Rngs(0))


def nnx_objects(width: int) -> Any:
    """Model and optimizer, as a user's new code makes them."""
    import optax
    from flax import nnx

    model = nnx_model(width)
    return model, nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Param)


def _write(kind: str, path: Path, state: Any) -> None:
    import orbax.checkpoint as ocp
    from flax import serialization

    if kind == "msgpack":
        path.write_bytes(serialization.to_bytes(state))
    else:
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=kind == "ocdbt")
        ocp.Checkpointer(handler).save(path, state)


def _main(kind: str, name: str, megabytes: str) -> None:
    path, width = Path(name), width_for(float(megabytes))
    _write(kind, path, linen_state(width))
    store_plan(path, width)


if __name__ == "__main__":
    _main(*sys.argv[1:])
