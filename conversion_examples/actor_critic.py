"""An actor-critic with a target network: one old checkpoint, two live models and their optimizer.

Reinforcement learning code keeps a second copy of the parameters that follows the first. Asked for
by its name (``target``), the copy becomes a model of its own; else it is carried in ``extras``. The
replay step and a PRNG key have no home in a model, and are carried, too.

    python conversion_examples/actor_critic.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx

import bridge

ACTIONS, SIZE = 4, 6


class LinenAgent(nn.Module):
    """The old code: a policy and a value on one torso."""

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = nn.tanh(nn.Dense(16, name="torso")(x))
        return nn.Dense(ACTIONS, name="policy")(x), nn.Dense(1, name="value")(x)


class Agent(nnx.Module):
    """The new code."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.body = nnx.Linear(SIZE, 16, rngs=rngs)
        self.actor = nnx.Linear(16, ACTIONS, rngs=rngs)
        self.critic = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = nnx.tanh(self.body(x))
        return self.actor(x), self.critic(x)


@flax.struct.dataclass
class Learner:
    """What the old trainer saved."""

    params: Any
    target_params: Any
    opt_state: Any
    key: jax.Array
    frames: int


TX = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(3e-4))

RULES = bridge.Rules.from_toml("""
[[init]]
slot = "step"
item = "agent_optimizer"
value = 5
reason = "the old trainer counted frames, and no steps"
""")


def agent() -> Agent:
    return Agent(nnx.Rngs(0))


def train(folder: Path) -> Learner:
    """Some updates of the old code; the target network lags behind."""
    linen = LinenAgent()
    params = linen.init(jax.random.key(0), jnp.zeros((1, SIZE)))["params"]
    target, opt_state = params, TX.init(params)

    @jax.jit
    def update(params: Any, target: Any, opt_state: Any, x: jax.Array) -> tuple[Any, Any, Any]:
        def loss(params: Any) -> jax.Array:
            logits, value = linen.apply({"params": params}, x)
            _, wanted = linen.apply({"params": target}, x)
            gain = ((value - 0.9 * wanted - 1.0) ** 2).mean()
            return gain + (jax.nn.softmax(logits) * jax.nn.log_softmax(logits)).mean()

        updates, opt_state = TX.update(jax.grad(loss)(params), opt_state, params)
        params = optax.apply_updates(params, updates)
        return params, optax.incremental_update(params, target, 0.05), opt_state

    for n in range(5):
        x = jax.random.normal(jax.random.key(n), (32, SIZE))
        params, target, opt_state = update(params, target, opt_state, x)
    learner = Learner(params, target, opt_state, jax.random.PRNGKey(7), frames=160)
    ocp.PyTreeCheckpointer().save(folder, learner)
    return learner


def main(folder: Path) -> None:
    old = train(folder / "learner")

    models, tx = {"agent": agent, "target": agent}, {"agent": TX}
    (problem,) = bridge.plan(folder / "learner", model=models, tx=tx).problems
    print(f"without rules, one problem: {problem.message}\n")

    found = bridge.restore(folder / "learner", model=models, tx=tx, rules=RULES)
    x = jax.random.normal(jax.random.key(9), (8, SIZE))
    for name, params in (("agent", old.params), ("target", old.target_params)):
        wanted = LinenAgent().apply({"params": params}, x)
        got = found.model[name](x)
        same = all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True))
        print(f"{name}: policy and value equal Linen's, bit for bit: {same}")
        assert same
    apart = np.abs(found.model["agent"](x)[1] - found.model["target"](x)[1]).max()
    assert apart > 0
    print("the two models differ:", bool(apart > 0))
    moments = found.optimizer["agent_optimizer"].opt_state[1][0].mu.actor.kernel[...]
    same = np.array_equal(moments, old.opt_state[1][0].mu["policy"]["kernel"])
    print(f"Adam's moments followed policy to actor: {same}")
    assert same
    assert found.extras["frames"] == old.frames
    print(f"carried: {sorted(found.extras)}, frames {found.extras['frames']}")

    # asked for the agent alone, the target network is kept beside it, under the new names
    alone = bridge.restore(folder / "learner", model=agent)
    kept = alone.extras["target_params"]
    print(f"without a model of its own, target_params is kept as {sorted(kept)}")
    assert np.array_equal(kept["actor"]["kernel"], old.target_params["policy"]["kernel"])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch))
