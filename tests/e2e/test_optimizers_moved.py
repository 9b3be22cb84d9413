"""Optimizer states of parameters that are transposed, stacked, split: what is carried is what the
new optimizer would have had, had it seen the gradients of the new parameters from the start.

Each case trains three eager steps on old parameters, and the same optimizer three steps on the new
ones with the same gradients, moved alike. The restored state must be the second one.
"""

from __future__ import annotations

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import bridge
from bridge import Map
from bridge.transforms import Join, Pad, Permute, Reshape, Scale, Split, Stack, Transpose, Unstack


class Bag(nnx.Module):
    """Parameters by name."""

    def __init__(self, shapes, buffers=()):
        for name, shape in shapes.items():
            kind = nnx.BatchStat if name in buffers else nnx.Param
            setattr(self, name, kind(jnp.zeros(shape)))


def values(shapes, seed):
    random = np.random.default_rng(seed)
    return {n: random.uniform(0.5, 1.5, s).astype("f4") for n, s in shapes.items()}


def trained(tx, params, all_grads):
    state = tx.init(params)
    for grads in all_grads:
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def save(params, state, folder):
    path = folder / "checkpoint_3"
    tree = {"step": 3, "params": params, "opt_state": state}
    path.write_bytes(flax.serialization.to_bytes(jax.tree.map(np.asarray, tree)))
    return path


def arrays(state):
    """Arrays by path, of an optax state over plain dicts."""
    found = {}
    for path, value in jax.tree_util.tree_flatten_with_path(state)[0]:
        names = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", None))) for k in path)
        found["/".join(map(str, names))] = np.asarray(value)
    return found


def restored(optimizer):
    found = {}
    for path, variable in nnx.to_flat_state(nnx.state(optimizer)):
        for below, value in jax.tree_util.tree_flatten_with_path(variable.get_value())[0]:
            inner = [getattr(k, "key", getattr(k, "idx", None)) for k in below]
            found["/".join(map(str, [*path[1:], *inner]))] = np.asarray(value)
    return found


def follows(tx, old, new, rule, move, folder, *, exact=True):
    """Restore old into new and hold the state against the one of moved gradients."""
    before, grads = values(old, 0), [values(old, n) for n in (1, 2, 3)]
    params, state = trained(tx, before, grads)
    path = save(params, state, folder)
    rules = bridge.Rules(tuple(rule))
    model, optimizer, _ = bridge.restore(path, model=lambda: Bag(new), tx=tx, rules=rules)
    _, wanted = trained(tx, move(before), [move(g) for g in grads])
    ours, theirs = restored(optimizer), arrays(wanted)
    ours.pop("", None)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-6 if exact else 2e-3, err_msg=name)
    for name, value in move(params).items():
        np.testing.assert_array_equal(getattr(model, name)[...], value)


def factored():
    return optax.scale_by_factored_rms(min_dim_size_to_factor=2)


ELEMENTWISE = {"adam": optax.scale_by_adam, "trace": lambda: optax.trace(0.9)}
BY_TENSOR = {
    "factored": factored,
    "unfactored": lambda: optax.scale_by_factored_rms(min_dim_size_to_factor=99),
    "sm3": optax.scale_by_sm3,
    "novograd": optax.scale_by_novograd,
}


@pytest.mark.parametrize("name", [*ELEMENTWISE, *BY_TENSOR])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((3, 4), (1, 0)),
        ((4, 3), (1, 0)),
        ((5, 5), (1, 0)),
        ((2, 5, 4), (0, 2, 1)),
        ((2, 5, 5), (0, 2, 1)),
        ((5, 2, 4), (1, 2, 0)),
        ((6, 2, 3, 4), (2, 0, 3, 1)),
    ],
)
def test_a_transpose_moves_rows_columns_and_axes(name, shape, axes, tmp_path):
    tx = (ELEMENTWISE | BY_TENSOR)[name]()
    new = tuple(shape[a] for a in axes)
    follows(tx, {"w": shape}, {"v": new}, [Map.of("params/w", "v", [Transpose(axes)])],
            lambda t: {"v": t["w"].transpose(axes)}, tmp_path)  # fmt: skip


def test_axes_of_adafactor_that_tie_are_refused_when_they_are_others_afterwards(tmp_path):
    # of three equal axes the means are along two, and after this transpose along two others
    with pytest.raises(bridge.PlanProblems, match="two largest axes"):
        follows(factored(), {"w": (4, 4, 4)}, {"v": (4, 4, 4)},
                [Map.of("params/w", "v", [Transpose((2, 0, 1))])],
                lambda t: {"v": t["w"].transpose(2, 0, 1)}, tmp_path)  # fmt: skip


@pytest.mark.parametrize("name", [*ELEMENTWISE, "factored"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_layers_are_stacked_and_unstacked(name, axis, tmp_path):
    tx = (ELEMENTWISE | BY_TENSOR)[name]()
    parts = {f"l_{i}": (4, 5) for i in range(3)}
    whole = {"ls": (*(4, 5)[:axis], 3, *(4, 5)[axis:])}
    # what Adafactor keeps of a matrix it keeps of each in a stack, but with other rounding
    follows(tx, parts, whole, [Map.of("params/l_{i}", "ls", [Stack(axis)])],
            lambda t: {"ls": np.stack([t[f"l_{i}"] for i in range(3)], axis)},
            tmp_path)  # fmt: skip
    follows(tx, whole, parts, [Map.of("params/ls", "l_{i}", [Unstack(axis)])],
            lambda t: {f"l_{i}": np.moveaxis(np.asarray(t["ls"]), axis, 0)[i] for i in range(3)},
            tmp_path)  # fmt: skip


def refused(tx, old, new, rule, folder, match):
    params, state = trained(tx, values(old, 0), [values(old, 1)])
    rules = bridge.Rules(tuple(rule))
    plan = bridge.plan(save(params, state, folder), model=lambda: Bag(new), tx=tx, rules=rules)
    assert not plan.ok
    assert any(match in p.message for p in plan.problems), str(plan)


@pytest.mark.parametrize("name", ["sm3", "novograd"])
def test_what_is_kept_by_tensor_is_not_stacked(name, tmp_path):
    parts, whole = {f"l_{i}": (4, 5) for i in range(3)}, {"ls": (3, 4, 5)}
    rule = Map.of("params/l_{i}", "ls", [Stack(0)])
    text = {"sm3": "one vector for each axis", "novograd": "factored or per-tensor"}[name]
    refused(BY_TENSOR[name](), parts, whole, [rule], tmp_path, text)


def test_a_stack_of_more_layers_than_a_layer_has_rows_is_refused_for_adafactor(tmp_path):
    parts, whole = {f"l_{i}": (4, 5) for i in range(6)}, {"ls": (6, 4, 5)}
    rule = Map.of("params/l_{i}", "ls", [Stack(0)])
    refused(factored(), parts, whole, [rule], tmp_path, "two largest axes")


@pytest.mark.parametrize(
    ("transform", "new"),
    [(Reshape((20,)), (20,)), (Permute(0, (1, 0, 2, 3)), (4, 5)), (Pad(0, 0, 1), (5, 5))],
)
def test_adafactor_follows_nothing_that_mixes_its_axes(transform, new, tmp_path):
    rule = Map.of("params/w", "v", [transform])
    refused(factored(), {"w": (4, 5)}, {"v": new}, [rule], tmp_path, "does not keep apart")


@pytest.mark.parametrize("name", list(ELEMENTWISE))
def test_joins_splits_and_reshapes_are_followed_element_by_element(name, tmp_path):
    tx = ELEMENTWISE[name]()
    gates = {"a": (3, 2), "b": (3, 4)}
    join = [Map.of(["params/a", "params/b"], "ab", [Join(1)])]
    follows(tx, gates, {"ab": (3, 6)}, join,
            lambda t: {"ab": np.concatenate([t["a"], t["b"]], 1)}, tmp_path)  # fmt: skip
    split = [Map.of("params/ab", ["a", "b"], [Split(1, (2, 4))])]
    follows(tx, {"ab": (3, 6)}, gates, split,
            lambda t: {"a": t["ab"][:, :2], "b": t["ab"][:, 2:]}, tmp_path)  # fmt: skip
    several = [Map.of(["params/a", "params/b"], ["ab"], [Reshape((-1,)), Join(0)])]
    follows(tx, gates, {"ab": (18,)}, several,
            lambda t: {"ab": np.concatenate([t["a"].ravel(), t["b"].ravel()])},
            tmp_path)  # fmt: skip


def test_a_scaled_parameter_has_gradients_scaled_the_other_way(tmp_path):
    """p -> p / 2 has gradients 2 g: mu is doubled, nu is fourfold."""
    tx = optax.scale_by_adam()
    params, state = trained(
        tx, values({"w": (3, 4)}, 0), [values({"w": (3, 4)}, n) for n in (1, 2)]
    )
    path = save(params, state, tmp_path)
    rules = bridge.Rules((Map.of("params/w", "v", [Scale(0.5)]),))
    _, optimizer, _ = bridge.restore(path, model=lambda: Bag({"v": (3, 4)}), tx=tx, rules=rules)
    found = restored(optimizer)
    np.testing.assert_array_equal(found["mu/v"], 2 * np.asarray(state.mu["w"]))
    np.testing.assert_array_equal(found["nu/v"], 4 * np.asarray(state.nu["w"]))
    plan = bridge.plan(path, model=lambda: Bag({"v": (3, 4)}), tx=tx, rules=rules)
    assert any("adamax" in w for w in plan.warnings)


@pytest.mark.parametrize("make", [optax.scale_by_sm3, optax.scale_by_novograd])
def test_updates_under_the_name_of_a_moment_are_not_scaled(make, tmp_path):
    rule = Map.of("params/w", "v", [Scale(0.5)])
    text = "cannot be told how it scales"
    refused(make(), {"w": (3, 4)}, {"v": (3, 4)}, [rule], tmp_path, text)


def test_moments_in_a_projection_do_not_follow(tmp_path):
    contrib = pytest.importorskip("optax.contrib")
    if not hasattr(contrib, "galore"):
        pytest.skip("not in this optax")
    tx = contrib.galore(1e-2, rank=3)
    rule = Map.of("params/w", "v", [Transpose((1, 0))])
    refused(tx, {"w": (3, 3)}, {"v": (3, 3)}, [rule], tmp_path, "in a projection")


def test_one_parameter_that_becomes_two_does_not_share_its_moments(tmp_path):
    tx = optax.adam(1e-2)
    params, state = trained(tx, values({"w": (3, 4)}, 0), [values({"w": (3, 4)}, 1)])
    path = save(params, state, tmp_path)
    rules = [Map.of("params/w", "a"), Map.of("params/w", "b")]
    plan = bridge.plan(path, model=lambda: Bag({"a": (3, 4), "b": (3, 4)}), tx=tx,
                       rules=bridge.Rules(tuple(rules)))  # fmt: skip
    assert {p.kind for p in plan.problems} == {"moments"}
    assert "sum of both gradients" in plan.problems[0].message
    text = "\n".join(f'[[map]]\nfrom = "params/w"\nto = "{to}"' for to in "ab")
    text += "\n" + "\n".join(p.rule for p in plan.problems)
    again = bridge.plan(path, model=lambda: Bag({"a": (3, 4), "b": (3, 4)}), tx=tx,
                        rules=bridge.Rules.from_toml(text))  # fmt: skip
    assert again.ok, str(again)


WRAPPERS = {
    "adam": lambda tx: tx,
    "clip": lambda tx: optax.chain(optax.clip(1.0), tx),
    "inject": lambda _: optax.inject_hyperparams(optax.adam)(learning_rate=1e-2),
    "steps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "finite": lambda tx: optax.apply_if_finite(tx, 2),
    "ema": lambda tx: optax.chain(tx, optax.ema(0.9)),
    "masked": lambda tx: optax.masked(tx, lambda p: jax.tree.map(lambda _: True, p)),
    "partition": lambda tx: optax.multi_transform(
        {"all": tx}, lambda p: jax.tree.map(lambda _: "all", p)
    ),
    "factored": lambda _: factored(),
    "sm3": lambda _: optax.sm3(1e-2),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_moments_of_a_table_that_became_a_buffer_are_dropped_by_name(name, tmp_path):
    tx = WRAPPERS[name](optax.adam(1e-2))
    shapes = {"table": (4, 5), "w": (5, 3)}
    params, state = trained(tx, values(shapes, 0), [values(shapes, 1)])
    path = save(params, state, tmp_path)

    def model():
        return Bag(shapes, buffers=("table",))

    rule = bridge.Rules((Map.of("params/table", "table"),))
    for words in ({"tx": tx}, {}):
        plan = bridge.plan(path, model=model, rules=rule, **words)
        assert plan.ok, str(plan)
        dropped = {i.path for i in plan.ignored if i.rule == "moments-of-a-buffer"}
        assert dropped
        assert all("table" in p for p in dropped)
        slots = {s.disk_path for s in plan.target.slots if s.item == "optimizer"}
        described = bridge.describe(model, tx).slots
        assert slots == {s.disk_path for s in described if s.item == "optimizer"}


@pytest.mark.parametrize("name", WRAPPERS)
def test_moments_of_a_new_parameter_start_at_zero(name, tmp_path):
    tx = WRAPPERS[name](optax.adam(1e-2))
    shapes = {"w": (5, 3)}
    params, state = trained(tx, values(shapes, 0), [values(shapes, 1)])
    path = save(params, state, tmp_path)
    rule = bridge.Rules((bridge.Init.of("key_bias", "zeros"),))
    plan = bridge.plan(path, model=lambda: Bag({**shapes, "key_bias": (3,)}), tx=tx, rules=rule)
    assert plan.ok, str(plan)
    fresh = {i.slot.path for i in plan.initialised if i.slot.item == "optimizer"}
    assert fresh
    assert all("key_bias" in p for p in fresh)


def test_of_lookahead_the_model_gets_the_fast_params_and_extras_the_slow_ones(tmp_path):
    tx = optax.lookahead(optax.adam(1e-2), 2, 0.5)
    shapes = {"w": (3, 4), "b": (4,)}
    params = optax.LookaheadParams.init_synced(values(shapes, 0))
    state = tx.init(params)
    for n in (1, 2, 3):
        updates, state = tx.update(values(shapes, n), state, params)
        params = optax.apply_updates(params, updates)
    path = save(params, state, tmp_path)
    new = {"v": (3, 4), "c": (4,)}
    rules = bridge.Rules((Map.of("params/w", "v"), Map.of("params/b", "c")))
    words = {"model": lambda: Bag(new), "tx": optax.adam(1e-2), "rules": rules}
    model, optimizer, extras = bridge.restore(path, **words)
    np.testing.assert_array_equal(model.v[...], params.fast["w"])
    np.testing.assert_array_equal(extras["params"]["slow"]["v"], params.slow["w"])
    found = restored(optimizer)
    np.testing.assert_array_equal(found["0/mu/c"], state.fast_state[0].mu["b"])
    assert int(optimizer.opt_state[0].count[...]) == 3
    assert any("lookahead" in w for w in bridge.plan(path, **words).warnings)
    plan = bridge.plan(path)
    assert plan.ok, str(plan)
    wanted = {s.disk_path for s in bridge.describe(lambda: Bag(shapes), optax.adam(1e-2)).slots}
    ours = {s.disk_path for s in plan.target.slots if s.item in ("model", "optimizer")}
    assert ours == wanted


@pytest.mark.parametrize("name", ["sm3", "partition", "masked", "inject", "steps", "factored"])
def test_a_converted_state_restores_into_an_optimizer_by_orbax_alone(name, tmp_path):
    """No optimizer was given to the conversion, and no bridge is there afterwards."""
    tx = WRAPPERS[name](optax.adam(1e-2))
    shapes = {"w": (4, 5), "b": (5,)}
    params, state = trained(tx, values(shapes, 0), [values(shapes, n) for n in (1, 2)])
    bridge.convert(save(params, state, tmp_path), tmp_path / "out")
    (step,) = [p for p in (tmp_path / "out").iterdir() if p.name.isdigit()]
    optimizer = nnx.Optimizer(Bag(shapes), tx, wrt=nnx.Param)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, nnx.state(optimizer))
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(step / "optimizer", abstract)
    nnx.update(optimizer, found)
    ours, theirs = restored(optimizer), arrays(state)
    assert int(optimizer.step[...]) == 3
    ours.pop("", None)
    for path, value in theirs.items():
        np.testing.assert_array_equal(ours[path], value, err_msg=path)
