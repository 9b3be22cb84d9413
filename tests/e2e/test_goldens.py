"""Real old runs, end to end: every golden reads as its truth, and every CNN run goes on living."""

from __future__ import annotations

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from models import (
    RULES,
    LinenCNN,
    batches,
    classifier,
    linen_step,
    nnx_step,
    optimizer,
)
from truth import Truth, checkpoint_path, goldens

import bridge
import legacy

# where Orbax keeps no difference: Python and numpy numbers are scalars, EmptyState is None
ORBAX_KINDS = {
    "number": {"number", "scalar", "array"},
    "bool": {"bool", "scalar", "array"},
    "scalar": {"scalar", "array"},
    "empty": {"empty", "none"},
}


def same_bits(a, b) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_there_are_goldens_of_every_era():
    eras = {name.split("/")[0] for name in goldens()}
    assert {"flax034", "flax061", "flax0610", "flax072", "flax085", "latest"} <= eras


@pytest.mark.parametrize("name", goldens())
def test_every_leaf_reads_as_its_truth(name):
    truth = Truth(name)
    checkpoint = legacy.open(checkpoint_path(name), step=3 if "mgr" in name else None)
    item = truth.info.get("item", "default")
    table = checkpoint.items[item]
    wanted = truth.leaves()
    assert set(table) == set(wanted)
    orbax = checkpoint.format.name != "flax-msgpack"
    for path, entry in wanted.items():
        leaf = table[path]
        kinds = ORBAX_KINDS.get(entry["kind"], {entry["kind"]}) if orbax else {entry["kind"]}
        assert leaf.kind in kinds, path
        value = truth.value(entry)
        if entry["kind"] in ("array", "scalar", "key"):
            assert same_bits(leaf.read(), value), path
            assert leaf.shape == np.shape(value), path
            assert leaf.key_impl == entry.get("key_impl"), path
        elif entry["kind"] not in ("empty", "none"):
            assert leaf.read() == value, path


def plain_restore(out, step, abstract):
    """What any Orbax user would write."""
    with ocp.CheckpointManager(out) as manager:
        args = {k: ocp.args.StandardRestore(v) for k, v in abstract.items()}
        return manager.restore(step, args=ocp.args.Composite(**args))


def abstract_model():
    model = nnx.eval_shape(classifier)
    opt = nnx.eval_shape(lambda: nnx.Optimizer(classifier(), optimizer(), wrt=nnx.Param))
    return model, opt


@pytest.mark.parametrize("rules", [None, RULES], ids=["unique", "rules"])
@pytest.mark.parametrize("name", goldens("cnn_state"))
def test_an_old_run_gives_the_same_logits_from_its_nnx_checkpoint(name, rules, tmp_path):
    truth = Truth(name)
    given = None
    if rules is not None:
        given = tmp_path / "rules.toml"
        given.write_text(rules)
    path = checkpoint_path(name)
    plan = bridge.plan(path, model=classifier, tx=optimizer(), rules=given)
    assert not plan.problems, str(plan)
    whys = {s.why for s in plan.steps if s.slots[0].item == "model"}
    assert all(w.startswith("rule:map") for w in whys) if rules else whys == {"unique"}

    bridge.convert(path, tmp_path / "out", plan=plan)

    model, opt = abstract_model()
    step = legacy.open(path).step or 0  # a single save has no number
    restored = plain_restore(
        tmp_path / "out", step, {"model": nnx.state(model), "optimizer": nnx.state(opt)}
    )
    model = nnx.merge(nnx.graphdef(model), restored["model"])
    model.eval()
    logits = model(truth.arrays["inputs"])
    variables = {"params": truth.tree("params"), "batch_stats": truth.tree("batch_stats")}
    expected = LinenCNN().apply(variables, truth.arrays["inputs"])
    assert same_bits(logits, expected)
    # the old release on the old jax rounds in another order
    np.testing.assert_allclose(logits, truth.arrays["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", goldens("cnn_state"))
def test_training_goes_on_as_it_would_have_in_linen(name):
    truth = Truth(name)
    params, stats = truth.tree("params"), truth.tree("batch_stats")
    template = optimizer().init(params)
    state = flax.serialization.to_state_dict(template)
    opt_state = flax.serialization.from_state_dict(template, _merge(state, truth.tree("opt_state")))
    params, stats, opt_state = jax.tree.map(jnp.asarray, (params, stats, opt_state))

    model, opt, extras = bridge.restore(checkpoint_path(name), model=classifier, tx=optimizer())
    model.train()
    model.drop.deterministic = True
    for x, y in batches(3):
        params, stats, opt_state = linen_step(params, stats, opt_state, x, y)
        nnx_step(model, opt, x, y)

    assert int(opt.step[...]) == truth.info["step"] + 3
    got = {
        "Conv_1": model.stages[1].filters.kernel[...],
        "Dense_0": model.hidden.kernel[...],
        "Dense_1": model.head.kernel[...],
    }
    for layer, value in got.items():
        np.testing.assert_allclose(value, params[layer]["kernel"], rtol=2e-4, atol=1e-6)
    # not the mean: it moves with the bias before it, whose gradient is zero but for rounding,
    # and Adam makes steps of that rounding
    np.testing.assert_allclose(
        model.stages[0].norm.var[...], stats["BatchNorm_0"]["var"], rtol=1e-4, atol=1e-6
    )
    assert same_bits(extras["dropout_key"], truth.tree()["dropout_key"])


def _merge(template, values):
    """Old optax states have no entry where today's have an empty one, and the reverse."""
    if not isinstance(template, dict):
        return values
    return {k: _merge(v, values.get(k, {})) for k, v in template.items()}


def test_ema_params_become_a_second_model_when_asked_for():
    name = "flax085/cnn_state-mgr_args"
    truth = Truth(name)
    path = checkpoint_path(name)
    restored = bridge.restore(path, model={"model": classifier, "ema": classifier}, tx=None)
    ema = restored.model["ema"]
    ema.eval()
    logits = ema(truth.arrays["inputs"])
    np.testing.assert_allclose(logits, truth.arrays["ema_logits"], rtol=1e-4, atol=1e-5)


def test_ema_params_follow_the_mapping_into_extras():
    name = "latest/cnn_state-mgr_args"
    truth = Truth(name)
    *_, extras = bridge.restore(checkpoint_path(name), model=classifier, tx=optimizer())
    kernel = extras["ema_params"]["stages"]["1"]["filters"]["kernel"]
    assert same_bits(kernel, truth.tree("ema_params")["Conv_1"]["kernel"])


@pytest.mark.parametrize("name", ["flax085/cnn_state-mgr_args", "latest/cnn_state-mgr_args"])
def test_all_steps_of_a_run_keep_their_numbers_and_values(name, tmp_path):
    bridge.convert(
        checkpoint_path(name), tmp_path / "out", model=classifier, tx=optimizer(), steps="all"
    )
    with ocp.CheckpointManager(tmp_path / "out") as manager:
        assert list(manager.all_steps()) == [1, 2, 3]
    model, opt = abstract_model()
    for step in (1, 2, 3):
        restored = plain_restore(tmp_path / "out", step, {"model": nnx.state(model)})
        truth = Truth(name, None if step == 3 else step)
        kernel = restored["model"]["hidden"]["kernel"][...]
        assert same_bits(kernel, truth.tree("params")["Dense_0"]["kernel"])
    del opt
