"""A transformer is rewritten under new names: the models themselves prove which weight is which.

The Linen side is a stack made by ``nn.scan`` with Linen's attention; the NNX side is a list of
blocks with plain matrices and other names. Names alone settle little of that. With ``linen=`` and
``sample_input=`` both models are run with tied random values, every pairing is proven and checked,
no rule is written by hand, and the optimizer's moments follow. A rewrite that computes something
else is told apart: the plan says where the two part.

    python conversion_examples/renamed_transformer.py
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from flax.training.train_state import TrainState

import bridge

DIM, HEADS, LAYERS, VOCAB = 16, 4, 3, 32


class LinenBlock(nn.Module):
    """The old block, in the form that ``nn.scan`` wants."""

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS)(h, h)
        h = nn.LayerNorm()(x)
        return x + nn.Dense(DIM)(nn.gelu(nn.Dense(4 * DIM)(h))), None


class LinenModel(nn.Module):
    """The old code."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(VOCAB, DIM)(tokens)
        stack = nn.scan(
            LinenBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS
        )
        x, _ = stack()(x, None)
        return nn.Dense(VOCAB)(nn.LayerNorm()(x))


class Attention(nnx.Module):
    """Four matrices instead of one kernel for each head."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.wq = nnx.Linear(DIM, DIM, rngs=rngs)
        self.wk = nnx.Linear(DIM, DIM, rngs=rngs)
        self.wv = nnx.Linear(DIM, DIM, rngs=rngs)
        self.wo = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = (w(x).reshape(*x.shape[:-1], HEADS, -1) for w in (self.wq, self.wk, self.wv))
        return self.wo(nnx.dot_product_attention(q, k, v).reshape(x.shape))


class Block(nnx.Module):
    """The new block."""

    def __init__(self, rngs: nnx.Rngs, epsilon: float) -> None:
        self.attn_norm = nnx.LayerNorm(DIM, epsilon=epsilon, rngs=rngs)
        self.attn = Attention(rngs)
        self.mlp_norm = nnx.LayerNorm(DIM, epsilon=epsilon, rngs=rngs)
        self.up = nnx.Linear(DIM, 4 * DIM, rngs=rngs)
        self.down = nnx.Linear(4 * DIM, DIM, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attn(self.attn_norm(x))
        return x + self.down(nnx.gelu(self.up(self.mlp_norm(x))))


class Model(nnx.Module):
    """The new code; nothing in it was named after the old one."""

    def __init__(self, rngs: nnx.Rngs, epsilon: float = 1e-6) -> None:
        self.tokens = nnx.Embed(VOCAB, DIM, rngs=rngs)
        self.blocks = nnx.List([Block(rngs, epsilon) for _ in range(LAYERS)])
        self.final = nnx.LayerNorm(DIM, epsilon=epsilon, rngs=rngs)
        self.logits = nnx.Linear(DIM, VOCAB, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.tokens(tokens)
        for block in self.blocks:
            x = block(x)
        return self.logits(self.final(x))


TX = optax.adamw(1e-3)
ROUNDING = 1e-5
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, 8)).astype(np.int32)


def train(folder: Path) -> TrainState:
    """A short run of the old code, saved as it always was."""
    module = LinenModel()
    params = module.init(jax.random.key(0), TOKENS)["params"]
    state = TrainState.create(apply_fn=module.apply, params=params, tx=TX)

    @jax.jit
    def step(state: TrainState) -> TrainState:
        def loss(params: dict[str, jax.Array]) -> jax.Array:
            logits = module.apply({"params": params}, TOKENS[:, :-1])
            labels = TOKENS[:, 1:]
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    for _ in range(3):
        state = step(state)
    with ocp.CheckpointManager(folder) as manager:
        manager.save(3, args=ocp.args.StandardSave(state))
    return state


def main() -> None:
    """Train, plan twice, restore, and compare."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "run")
        state = train(folder)

        def factory() -> Model:
            return Model(nnx.Rngs(0))

        without = bridge.plan(folder, model=factory, tx=TX)
        print(f"by names alone: {len(without.problems)} problems, so nothing would be written")
        plan = bridge.plan(folder, model=factory, tx=TX, linen=LinenModel(), sample_input=TOKENS)
        print(plan)
        model, _, _ = bridge.restore(folder, model=factory, tx=TX, plan=plan)
        before = LinenModel().apply({"params": state.params}, TOKENS)
        apart = float(jnp.abs(model(TOKENS) - before).max())
        print("outputs as before, up to rounding:", apart < ROUNDING)
        assert apart < ROUNDING

        other = bridge.plan(
            folder,
            model=lambda: Model(nnx.Rngs(0), epsilon=1e-5),
            linen=LinenModel(),
            sample_input=TOKENS,
        )
        said = re.search(r"epsilon is \S+ in Linen and \S+ in NNX", " ".join(other.warnings))
        assert said is not None
        print("with another epsilon the plan warns:", said[0])


if __name__ == "__main__":
    main()
