"""Writes checkpoints of a pair with random values, plans them, and runs both models."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import linen as nn
from flax import nnx, serialization
from flax.training import train_state

import bridge

from .pair import Pair, Path, Values, flat
from .scoring import same

OPTIMIZERS = {
    "adamw": lambda: optax.adamw(1e-3),
    "clip-adam": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(1e-3, 10))
    ),
    "momentum": lambda: optax.sgd(1e-2, momentum=0.9),
}
FORMATS = ("msgpack", "orbax")
_SHAPES: dict[str, Any] = {}
"""Linen variables by pair: tracing a model takes longer than all the rest."""


class TrainState(train_state.TrainState):
    """What people write: the example of Flax with its batch statistics."""

    batch_stats: Any = None


def random_like(shape, dtype, path, seed=0):
    """Values that no other leaf has, and that keep a model finite."""
    rng = np.random.default_rng([seed, zlib.crc32("/".join(path).encode())])
    dtype = np.dtype(dtype)
    if dtype.kind in "iu":
        return rng.integers(1, 1000, shape).astype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    values = rng.normal(size=shape)
    if path[-1] in ("var", "nu", "sigma") or path[-1].endswith("/sigma"):
        values = np.abs(values) + 0.5
    return np.asarray(values * 0.5).astype(dtype)


def randomised(tree, prefix, seed=0):
    """The same tree of plain dicts with random arrays."""
    if isinstance(tree, Mapping):
        return {k: randomised(v, (*prefix, str(k)), seed) for k, v in tree.items()}
    return random_like(tree.shape, tree.dtype, prefix, seed)


def variables(pair: Pair, seed=0) -> dict[str, Any]:
    """Random Linen variables."""
    if pair.name not in _SHAPES:
        _SHAPES[pair.name] = nn.meta.unbox(jax.eval_shape(lambda: _init(pair)))
    shapes = _SHAPES[pair.name]
    found = {c: randomised(t, (c,), seed) for c, t in shapes.items() if c != "intermediates"}
    for path in pair.zeros:
        node = found
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = np.zeros_like(node[path[-1]])
    return found


def _init(pair):
    keys = {"params": jax.random.key(0)}
    given = pair.linen_kwargs if pair.init_kwargs is None else pair.init_kwargs
    return pair.linen().init(keys, *pair.inputs, method=pair.init_method, **given)


@dataclass(frozen=True)
class Made:
    """A state in memory and what was written of it.

    Attributes:
        pair: whose state it is.
        variables: the Linen variables.
        opt_state: as ``to_state_dict`` gives it.
        step: the step.
        tx: the optimizer.
        state: the train state.
    """

    pair: Pair
    variables: dict[str, Any]
    opt_state: dict[str, Any]
    step: int
    tx: Any
    state: Any


def make(pair: Pair, optimizer="adamw", seed=0) -> Made:
    """A train state of a pair with every leaf random."""
    values = variables(pair, seed)
    tx = OPTIMIZERS[optimizer]()
    shapes = jax.eval_shape(tx.init, values["params"])
    named = jax.tree_util.tree_map_with_path(lambda p, x: _opt_leaf(p, x, pair, seed), shapes)
    others = {c: t for c, t in values.items() if c not in ("params", "batch_stats")}
    kind = TrainState if not others else _state_with(others)
    state = kind(
        step=7 + seed,
        apply_fn=None,
        params=values["params"],
        tx=tx,
        opt_state=named,
        batch_stats=values.get("batch_stats"),
        **others,
    )
    opt_state = serialization.to_state_dict(named)
    return Made(pair, values, opt_state, 7 + seed, tx, state)


def _state_with(others):
    from flax import struct

    fields = {"__annotations__": dict.fromkeys(others, Any), **dict.fromkeys(others)}
    return struct.dataclass(type("MyTrainState", (TrainState,), fields))


def _opt_leaf(path, x, pair, seed):
    names = tuple(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
    if any(names[-len(z) + 1 :] == z[1:] for z in pair.zeros):
        return np.zeros(x.shape, x.dtype)
    if "nu" in names:
        return np.abs(random_like(x.shape, x.dtype, names, seed)) + np.float32(0.01)
    return random_like(x.shape, x.dtype, names, seed)


def write(made: Made, folder: File, kind="msgpack") -> File:
    """Write the state as Flax or Orbax does."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"checkpoint_{made.step}"
    if kind == "msgpack":
        path.write_bytes(serialization.to_bytes(made.state))
    else:
        tree = {k: v for k, v in serialization.to_state_dict(made.state).items() if v is not None}
        tree["opt_state"] = made.state.opt_state
        with ocp.PyTreeCheckpointer() as saver:
            saver.save(path, tree)
    return path


def planned(made: Made, path: File, *, linen: bool, **more) -> bridge.Plan:
    """The plan of a written state; with ``linen`` both models are given, too."""
    pair = made.pair
    if linen:
        more = {"linen": pair.linen(), "sample_input": pair.probes(), **pair.more, **more}
    return bridge.plan(path, model=pair.nnx, tx=made.tx, **more)


# -- the models --------------------------------------------------------------------------------


def outputs(pair: Pair, seed=0):
    """What both models give, the NNX one with values by the truth."""
    values = variables(pair, seed)
    module = pair.linen()
    old = jax.jit(lambda v, args: module.apply(v, *args, **pair.linen_kwargs))(values, pair.inputs)

    @jax.jit
    def call(truth, args):
        # what the factory would initialise is never computed: the truth takes its place
        model = filled(pair.nnx(), pair, truth)
        model.eval()
        return model(*args, **pair.nnx_kwargs)

    new = call(pair.truth(values), pair.inputs)
    return jax.tree.leaves(old), jax.tree.leaves(new)


def filled(model: nnx.Module, pair: Pair, values: Values) -> nnx.Module:
    """The model with these values in its slots.

    Raises:
        AssertionError: a slot is neither in the truth nor said to have no source, or the truth
            names one that is not there, or one of another shape.
    """
    left, new = dict(values), []
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        at = tuple(str(getattr(p, "key", p)) for p in path)
        boxed = isinstance(leaf, nnx.Variable)  # older releases keep some arrays bare
        if at in left:
            value = jnp.asarray(left.pop(at))
            assert (leaf.get_value() if boxed else leaf).shape == value.shape, (at, value.shape)
            leaf = leaf.replace(value) if boxed else value  # noqa: PLW2901
        elif not isinstance(leaf, nnx.RngState):
            assert any(at[: len(u)] == u for u in pair.unfed), f"{at} is not in the truth"
        new.append((path, leaf))
    assert not left, f"slots of the truth that the model does not have: {list(left)}"
    nnx.update(model, nnx.from_flat_state(new))
    return model


def distinct(values: Values) -> bool:
    """Whether no two slots would agree by chance."""
    seen = [a.tobytes() for a in map(np.asarray, values.values()) if a.any()]
    return len(seen) == len(set(seen))


def unused_leaves(pair: Pair) -> list[Path]:
    """Variable leaves whose values do not reach any slot."""
    values = variables(pair)
    reached = []
    for path, leaf in flat(values).items():
        changed = {**values}
        node = changed
        for part in path[:-1]:
            node[part] = {**node[part]}
            node = node[part]
        node[path[-1]] = leaf + 1
        before, after = pair.truth(values), pair.truth(changed)
        if all(same(before[p], after[p]) for p in before):
            reached.append(path)
    return reached
