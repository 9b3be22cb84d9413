"""Training goes on: a TrainState of each optimizer, restored, then five jitted steps on both sides.

The Linen side trains three steps and is saved; the restored ``nnx.Optimizer`` and the Linen state
then see the same data. All names differ, once in the order of the old ones and once in another.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, traverse_util
from flax.training.train_state import TrainState
from optimizer_table import TABLE, Row

import bridge


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(5)(x)
        x = nn.BatchNorm(use_running_average=False, momentum=0.9, use_bias=False)(x)
        x = nn.LayerNorm(use_bias=False)(nn.relu(x))
        return nn.Dense(4, use_bias=False)(x)


SAME = {"BatchNorm_0": "across", "Dense_0": "begin", "Dense_1": "close", "LayerNorm_0": "evened"}
OTHER = {"BatchNorm_0": "whiten", "Dense_0": "tail", "Dense_1": "stem", "LayerNorm_0": "bound"}


class Net(nnx.Module):
    def __init__(self, names):
        rngs = nnx.Rngs(0)
        self.names = nnx.static(tuple(sorted(names.items())))
        setattr(self, names["Dense_0"], nnx.Linear(3, 5, rngs=rngs))
        setattr(
            self, names["BatchNorm_0"], nnx.BatchNorm(5, momentum=0.9, use_bias=False, rngs=rngs)
        )
        setattr(self, names["LayerNorm_0"], nnx.LayerNorm(5, use_bias=False, rngs=rngs))
        setattr(self, names["Dense_1"], nnx.Linear(5, 4, use_bias=False, rngs=rngs))

    def __call__(self, x):
        part = {old: getattr(self, new) for old, new in self.names}
        x = nnx.relu(part["BatchNorm_0"](part["Dense_0"](x), use_running_average=False))
        return part["Dense_1"](part["LayerNorm_0"](x))


def rules(names):
    return bridge.Rules(
        tuple(
            bridge.Map.of(f"{collection}/{old}/{{x}}", f"{new}/{{x}}")
            for collection in ("params", "batch_stats")
            for old, new in names.items()
            if collection == "params" or old == "BatchNorm_0"
        )
    )


def data(step):
    random = np.random.default_rng(step)
    return random.normal(size=(6, 3)).astype("f4"), random.normal(size=(6, 4)).astype("f4")


def loss_of(y, t):
    return jnp.mean((y - t) ** 2)


@jax.jit
def linen_grads(params, stats, x, t):
    def loss(params):
        y, changed = Linen().apply(
            {"params": params, "batch_stats": stats}, x, mutable=["batch_stats"]
        )
        return loss_of(y, t), changed["batch_stats"]

    (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return value, stats, grads


@nnx.jit
def nnx_grads(model, x, t):
    return nnx.value_and_grad(lambda m: loss_of(m(x), t))(model)


class State(TrainState):
    batch_stats: object


def start(tx):
    variables = Linen().init(jax.random.key(0), jnp.zeros((6, 3)))
    random = np.random.default_rng(7)
    filled = jax.tree.map(
        lambda x: jnp.asarray(random.uniform(0.2, 1.0, x.shape), x.dtype), variables
    )
    return State.create(
        apply_fn=None, params=filled["params"], tx=tx, batch_stats=filled["batch_stats"]
    )


def linen_update(row, tx):
    tx = tx if isinstance(tx, optax.MultiSteps) else optax.with_extra_args_support(tx)

    @jax.jit
    def update(params, opt_state, grads, value):
        extra = {"value": value} if row.value else {}
        updates, opt_state = tx.update(grads, opt_state, params, **extra)
        return optax.apply_updates(params, updates), opt_state

    def step(state, x, t):
        value, stats, grads = linen_grads(state.params, state.batch_stats, x, t)
        params, opt_state = update(state.params, state.opt_state, grads, value)
        return state.replace(
            step=state.step + 1, params=params, opt_state=opt_state, batch_stats=stats
        )

    return step


def nnx_step(row):
    @nnx.jit
    def update(model, optimizer, grads, value):
        optimizer.update(model, grads, **({"value": value} if row.value else {}))

    def step(model, optimizer, x, t):
        value, grads = nnx_grads(model, x, t)
        update(model, optimizer, grads, value)

    return step


def save(row, state, folder, *, orbax):
    if row.msgpack or not (orbax or row.orbax):
        (folder / "checkpoint_3").write_bytes(flax.serialization.to_bytes(state))
        return folder / "checkpoint_3"
    path = folder / "orbax"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(path, {
            "step": state.step, "params": state.params, "opt_state": state.opt_state,
            "batch_stats": state.batch_stats,
        })  # fmt: skip
    return path


def plain(tree):
    if jax.dtypes.issubdtype(tree.dtype, jax.dtypes.prng_key):
        tree = jax.random.key_data(tree)
    return np.asarray(tree)


def sorted_anew(value, params, names):
    """A vector over all parameters (optax.flatten) in the order of the new names."""
    flat = sorted(traverse_util.flatten_dict(params).items())
    if value.shape != (sum(p.size for _, p in flat),):
        return value
    blocks = np.split(value, np.cumsum([p.size for _, p in flat])[:-1])
    named = {(names[path[0]], *path[1:]): b for (path, _), b in zip(flat, blocks, strict=True)}
    return np.concatenate([named[path] for path in sorted(named)])


def linen_leaves(state, names):
    """Every array by where it must be in NNX; written independently of the bridge."""
    found = {}
    tree = {"params": state.params, "batch_stats": state.batch_stats, "opt_state": state.opt_state}
    for path, value in jax.tree_util.tree_flatten_with_path(tree)[0]:
        keys = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", None)))) for k in path]
        keys = [names.get(k, k) for k in keys]
        where = tuple(keys if keys[0] == "opt_state" else ["model", *keys[1:]])
        found[where] = sorted_anew(plain(value), state.params, names)
    found["step",] = np.asarray(state.step, np.uint32)
    return found


def nnx_leaves(model, optimizer):
    found = {}
    for kind, thing in (("model", model), ("", optimizer)):
        for path, variable in nnx.to_flat_state(nnx.state(thing)):
            for below, value in jax.tree_util.tree_flatten_with_path(variable.get_value())[0]:
                inner = [
                    str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", None))))
                    for k in below
                ]
                found[(*([kind] if kind else []), *map(str, path), *inner)] = plain(value)
    return found


def differences(ours, theirs):
    """The paths that are not byte-identical, with the largest difference, relative to the array."""
    assert ours.keys() == theirs.keys()
    return {
        "/".join(p): float(
            np.max(np.abs(ours[p].astype("f8") - theirs[p].astype("f8")))
            / max(1.0, float(np.max(np.abs(ours[p].astype("f8")))))
        )
        for p in ours
        if ours[p].tobytes() != theirs[p].tobytes()
        or ours[p].dtype != theirs[p].dtype
        or ours[p].shape != theirs[p].shape
    }


@functools.cache
def trained(row):
    """The Linen state after three steps, its step function, and the five states that follow."""
    try:
        tx = row.make()
    except (AttributeError, TypeError) as error:
        pytest.skip(f"not in optax {optax.__version__}: {error}")
    state, step = start(tx), linen_update(row, tx)
    for n in range(3):
        state = step(state, *data(n))
    later = [state]
    for n in range(3, 8):
        later.append(step(later[-1], *data(n)))
    return tx, later


@pytest.mark.parametrize("order", ["same", "other"])
@pytest.mark.parametrize("row", TABLE, ids=str)
def test_training_goes_on_as_if_nothing_had_happened(row: Row, order, tmp_path):
    names = SAME if order == "same" else OTHER
    tx, later = trained(row)
    path = save(row, later[0], tmp_path, orbax=order == "other")
    words = {"model": lambda: Net(names), "tx": tx, "rules": rules(names)}
    model, optimizer, extras = bridge.restore(path, **words)
    assert not extras
    assert differences(linen_leaves(later[0], names), nnx_leaves(model, optimizer)) == {}
    if row.noise and order == "other":
        plan = bridge.plan(path, **words)
        assert any("draws noise" in warning for warning in plan.warnings)
        return
    step = nnx_step(row)
    for n in range(3, 8):
        step(model, optimizer, *data(n))
        apart = differences(linen_leaves(later[n - 2], names), nnx_leaves(model, optimizer))
        if order == "same" or row.apart is None:
            assert apart == {}
        else:
            assert max(apart.values(), default=0) <= row.apart


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_without_an_optimizer_the_state_is_laid_out_as_nnx_saves_it(row: Row, tmp_path):
    if row.msgpack:
        pytest.skip("an optimizer that Orbax cannot save")
    try:
        tx = row.make()
    except (AttributeError, TypeError) as error:
        pytest.skip(f"not in optax {optax.__version__}: {error}")
    plan = bridge.plan(save(row, start(tx), tmp_path, orbax=False), rules=rules(OTHER))
    assert plan.ok, str(plan)
    wanted = bridge.describe(lambda: Net(OTHER), tx)

    def shown(target):
        slots = [s for s in target.slots if s.item == "optimizer"]
        places = {(s.disk_path, s.shape, s.dtype, s.key_impl, s.sequence_at) for s in slots}
        return places | {(e.disk_path, e.value_type) for e in target.empties}

    assert shown(plan.target) == shown(wanted)
