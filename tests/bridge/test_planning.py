"""plan(): what feeds what, what is carried, and what is said when it does not come out even."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from planning_cases import (
    check,
    checkpoint,
    kinds,
    leaf,
    make,
    opt_slots,
    pasted,
    slot,
    target,
    tree,
    went,
    whys,
)

import bridge
import legacy
from bridge import BridgeError, Target, TargetError
from legacy import LeafTable
from legacy.leaves import unreadable
from legacy.orbax_eras import INDEX_LOST

CNN = {"Conv_0/kernel": (3, 3, 1, 4), "Conv_0/bias": (4,), "Dense_0/kernel": (4, 2)}
NEW = {"stem/kernel": (3, 3, 1, 4), "stem/bias": (4,), "head/kernel": (4, 2)}


def train_state(at="", shapes=CNN, *, copies=()):
    pre = f"{at}/" if at else ""
    leaves = [
        *tree(f"{pre}params", shapes),
        *tree(f"{pre}opt_state/0/mu", shapes),
        *tree(f"{pre}opt_state/0/nu", shapes),
        leaf(f"{pre}opt_state/0/count", (), "int32"),
        leaf(f"{pre}step", (), "int32"),
    ]
    for name in copies:
        leaves += tree(f"{pre}{name}", shapes)
    return leaves


def with_optimizer(shapes=NEW, item="model", optimizer="optimizer"):
    return Target(
        (*target(shapes, item=item).slots, *opt_slots(["0/mu", "0/nu"], shapes, optimizer))
    )


def test_a_train_state_becomes_a_model_and_its_optimizer_and_no_array_is_read():
    plan = make(checkpoint(*train_state()), model=with_optimizer())
    assert plan.ok
    assert went(plan)["params/Conv_0/kernel"] == "stem/kernel"
    assert went(plan, "optimizer")["opt_state/0/nu/Dense_0/kernel"] == "opt_state/0/nu/head/kernel"
    assert went(plan, "optimizer")["step"] == "step"
    assert whys(plan)["params/Dense_0/kernel"] == "unique"


def test_a_path_is_a_path_and_not_a_guess():
    plan = make(checkpoint(*train_state()), model=with_optimizer(CNN))
    assert set(whys(plan).values()) == {"path", "rule:step"}


def test_plans_are_the_same_whenever_they_are_made():
    source = checkpoint(*train_state(copies=["ema_params"]))
    plans = [bridge.plan(source, model=with_optimizer()) for _ in range(2)]
    assert plans[0] == plans[1]
    assert plans[0].digest() == plans[1].digest()


# -- several models -----------------------------------------------------------------------------

ACTOR, CRITIC = {"Dense_0/kernel": (3, 4)}, {"Dense_0/kernel": (3, 1)}


def test_an_actor_and_a_critic_are_told_apart_by_their_names():
    source = checkpoint(*train_state("actor", ACTOR), *train_state("critic", ACTOR))
    model = Target(
        (
            *with_optimizer(ACTOR, "actor", "actor_optimizer").slots,
            *with_optimizer(ACTOR, "critic", "critic_optimizer").slots,
        )
    )
    plan = make(source, model=model)
    assert plan.ok
    assert went(plan, "critic") == {"critic/params/Dense_0/kernel": "Dense_0/kernel"}
    assert went(plan, "critic_optimizer")["critic/step"] == "step"


def test_a_model_and_its_ema_copy_share_the_batch_statistics():
    stats = {"BatchNorm_0/mean": (4,)}
    source = checkpoint(*train_state(copies=["ema_params"]), *tree("batch_stats", stats))
    both = [
        s
        for item in ("model", "ema")
        for s in (
            *target(NEW, item=item).slots,
            slot("bn/mean", (4,), kind="BatchStat", collection="batch_stats", item=item),
        )
    ]
    plan = make(source, model=Target(tuple(both)), rules=[bridge.Ignore.of("opt_state/**")])
    assert plan.ok
    assert went(plan, "ema")["ema_params/Conv_0/bias"] == "stem/bias"
    assert went(plan, "ema")["batch_stats/BatchNorm_0/mean"] == "bn/mean"


def test_a_target_network_does_not_feed_the_network():
    source = checkpoint(*train_state("actor", ACTOR), *tree("target_critic_params", ACTOR))
    model = Target((*target(ACTOR, item="actor").slots, *target(ACTOR, item="critic").slots))
    plan = make(source, model=model)
    assert not went(plan, "critic")


@pytest.mark.parametrize("at", ["ema_params", ("ema_params",), {"model": "ema_params"}])
def test_at_chooses_the_copy(at):
    source = checkpoint(*train_state(copies=["ema_params"]))
    plan = make(source, model=with_optimizer(), at=at)
    assert plan.ok
    assert went(plan)["ema_params/Conv_0/kernel"] == "stem/kernel"
    assert went(plan, "extras")["params/Conv_0/kernel"] == "params/stem/kernel"


def test_at_names_an_item_that_is_not_there():
    with pytest.raises(BridgeError, match=r"at= names item\(s\) modl; the target has model"):
        bridge.plan(checkpoint(*train_state()), model=target(NEW), at={"modl": "params"})
    with pytest.raises(BridgeError, match="which was not given"):
        bridge.plan(checkpoint(*train_state()), at="params")


def test_models_that_no_name_tells_apart_are_one_problem_each_and_nothing_else():
    source = checkpoint(*train_state("a", ACTOR), *train_state("b", ACTOR))
    plan = make(source, model=with_optimizer(ACTOR))
    assert kinds(plan) == ["ambiguous"]
    (problem,) = plan.problems
    assert "2 set(s), and 2 have its names and shapes, so none can be chosen" in problem.message
    fits = ("at={'model': 'a/params'} (fits)", "at={'model': 'b/params'} (fits)")
    assert problem.candidates == fits
    assert problem.rule.startswith("#")
    at = {"model": "a", "optimizer": "a/opt_state"}
    rules = [bridge.Ignore.of("b/**")]
    assert make(source, model=with_optimizer(ACTOR), at=at, rules=rules).ok


def test_a_model_that_nobody_asks_for_is_one_problem_for_each_part():
    source = checkpoint(*train_state("actor", CNN), *train_state("critic", CRITIC))
    plan = make(source, model=Target(target(NEW, item="actor").slots), at={"actor": "actor"})
    assert [p.rule for p in plan.problems if "critic/params" in p.message] == [
        '[[ignore]]\nsource = "critic/params/Dense_0/kernel"'
    ]
    fixed = make(source, model=Target(target(NEW, item="actor").slots), at={"actor": "actor"},
                 rules=[bridge.Ignore.of("critic/**")])  # fmt: skip
    assert fixed.ok


# -- what has no home ---------------------------------------------------------------------------


def test_what_has_no_home_is_carried_to_extras_and_metadata():
    source = checkpoint(
        *train_state(copies=["ema_params"]),
        leaf("dropout_key", (2,), "uint32"),
        leaf("scale/factor", (), "float32"),
        leaf("best", (), "float64", "scalar"),
        leaf("epoch", kind="number"),
        leaf("name", kind="str"),
        leaf("blob", kind="bytes"),
        leaf("done", kind="bool"),
        leaf("nothing", (0, 3)),
        leaf("hole", kind="none"),
    )
    plan = make(source, model=with_optimizer())
    assert plan.ok
    assert went(plan, "extras") == {
        "dropout_key": "dropout_key",
        "scale/factor": "scale/factor",
        **{f"ema_params/{a}": f"ema_params/{b}" for a, b in zip(CNN, NEW, strict=True)},
    }
    assert set(went(plan, "metadata")) == {"best", "epoch", "name", "blob", "done", "nothing"}
    assert [(i.path, i.rule) for i in plan.ignored] == [(("hole",), "empty")]


def test_a_cast_of_the_model_does_not_touch_the_copy():
    source = checkpoint(*train_state(copies=["ema_params"]))
    model = target(NEW, dtype="bfloat16")
    rules = [bridge.CastRule.of("**", "bfloat16", item="model"), bridge.Ignore.of("opt_state/**")]
    plan = make(source, model=model, rules=rules)
    assert plan.ok
    assert {s.dtype for s in plan.target.slots if s.item == "extras"} == {"float32"}


def test_names_that_orbax_would_join_are_a_problem():
    source = checkpoint(*train_state(), leaf(("a.b",), (2,)), leaf(("a", "b"), (2,)))
    plan = make(source, model=with_optimizer())
    assert kinds(plan) == ["ambiguous"]
    assert "would be saved as extras:" in plan.problems[0].message


def test_params_and_collections_without_a_slot_are_problems():
    source = checkpoint(*train_state(), *tree("batch_stats", {"BatchNorm_0/mean": (4,)}))
    plan = make(source, model=with_optimizer())
    assert [p.sources for p in plan.problems] == [(("batch_stats", "BatchNorm_0", "mean"),)]
    assert make(source, model=with_optimizer(), rules=pasted(plan)).ok


def test_ephemeral_slots_are_initialised_unasked_and_reported():
    rng = [
        slot("rngs/key", (2,), "uint32", "RngKey", "rngs", key_impl="fry", ephemeral=True),
        slot("rngs/count", (), "uint32", "RngCount", "rngs", ephemeral=True),
    ]  # fmt: skip
    source = checkpoint(*tree("params", CNN))
    plan = make(source, model=Target((*target(NEW).slots, *rng)), seed=7)
    assert plan.ok
    assert [(i.rule, i.how) for i in plan.initialised] == [
        ("ephemeral", "rng:7"),
        ("ephemeral", "zeros"),
    ]


def test_an_array_without_elements_cannot_be_saved():
    source = checkpoint(*tree("params", {**CNN, "e/kernel": (0, 3)}))
    for model in (None, target({**NEW, "e/kernel": (0, 3)})):
        plan = make(source, model=model)
        assert kinds(plan) == ["shape"]
        assert "without elements" in plan.problems[0].message


# -- what is said -------------------------------------------------------------------------------


def test_a_shape_that_differs_says_both_and_how_to_bring_it_across():
    source = checkpoint(*tree("params", {"a/kernel": (2, 3), "b/kernel": (4, 6)}))
    plan = make(source, model=target({"a/kernel": (3, 2), "b/kernel": (4, 2, 3)}))
    first, second = plan.problems
    assert first.message == "params/a/kernel gives shape [2, 3], slot model:a/kernel has [3, 2]"
    assert "transpose" in first.rule
    assert "reshape" in second.rule
    assert make(
        source, model=target({"a/kernel": (3, 2), "b/kernel": (4, 2, 3)}), rules=pasted(plan)
    ).ok


def test_a_dtype_that_differs_needs_a_cast_rule_whatever_the_names():
    source = checkpoint(*train_state())
    for names in (CNN, NEW):
        model = target(names, dtype="bfloat16")
        ignore = bridge.Ignore.of("opt_state/**")
        assert not make(source, model=model, rules=[ignore]).ok
        plan = make(source, model=model, rules=[ignore, bridge.CastRule.of("**", "bfloat16")])
        assert plan.ok
    plan = make(
        source, model=target(CNN, dtype="bfloat16"), rules=[bridge.Ignore.of("opt_state/**")]
    )
    assert plan.problems[0].message == (
        "params/Conv_0/bias has dtype float32, slot model:Conv_0/bias has bfloat16"
    )
    rules = bridge.Rules((*pasted(plan).rules, bridge.Ignore.of("opt_state/**")))
    assert make(source, model=target(CNN, dtype="bfloat16"), rules=rules).ok


def test_renamed_blocks_are_settled_by_pasting_one_rule_for_each_submodule():
    parts = {"Dense_0/kernel": (4, 4), "Dense_0/bias": (4,), "LayerNorm_0/scale": (4,)}
    other = {"fc/kernel": (4, 4), "fc/bias": (4,), "norm/scale": (4,)}
    ours = {f"Block_{i}/{p}": s for i in range(12) for p, s in parts.items()}
    theirs = {f"blocks/{i}/{p}": s for i in range(12) for p, s in other.items()}
    source = checkpoint(*tree("params", ours), *tree("ema_params", ours))
    plan = make(source, model=target(theirs))
    assert len(plan.problems) == 2 * 36
    rules = pasted(plan)
    assert len(rules.rules) == 2
    fixed = make(source, model=target(theirs), rules=rules)
    assert fixed.ok
    assert went(fixed)["params/Block_11/Dense_0/kernel"] == "blocks/11/fc/kernel"


def test_a_general_rule_is_not_suggested_where_it_would_say_more():
    ours = {f"Block_{i}/kernel": (4, 4) for i in (0, 1, 2)} | {"Block_9/kernel": (5, 5)}
    theirs = {f"blocks/{i}/kernel": (4, 4) for i in (0, 1, 2)} | {"last/kernel": (5, 5)}
    source = checkpoint(*tree("params", ours))
    plan = make(source, model=target(theirs))
    fixed = make(source, model=target(theirs), rules=pasted(plan))
    assert fixed.ok
    assert went(fixed)["params/Block_9/kernel"] == "last/kernel"


def test_stacks_and_reshapes_are_suggested():
    ours = {f"layer_{i}/kernel": (4, 5) for i in range(3)} | {
        "q/kernel": (4, 2, 3),
        "q/bias": (2, 3),
    }
    theirs = {"layers/kernel": (3, 4, 5), "wq/kernel": (4, 6), "wq/bias": (6,)}
    source = checkpoint(*tree("params", ours))
    plan = make(source, model=target(theirs))
    assert not plan.steps
    fixed = make(source, model=target(theirs), rules=pasted(plan))
    assert fixed.ok, str(fixed)
    assert [str(t) for s in fixed.steps for t in s.transforms] != []
    back = checkpoint(*tree("params", {"layers/kernel": (3, 4, 5)}))
    model = target({f"layer_{i}/kernel": (4, 5) for i in range(3)})
    assert make(back, model=model, rules=pasted(make(back, model=model))).ok


def test_dropped_and_new_layers_are_settled_by_pasting():
    source = checkpoint(*tree("params", {**CNN, "old/kernel": (7, 7)}))
    model = target({**NEW, "new/scale": (9,)})
    plan = make(source, model=model)
    fixed = make(source, model=model, rules=pasted(plan))
    assert fixed.ok
    assert [(i.slot.path, i.how) for i in fixed.initialised] == [(("new", "scale"), "ones")]


def test_candidates_of_siblings_are_shown_on_both_sides():
    source = checkpoint(*tree("params", {"Dense_0/kernel": (4, 4), "Dense_1/kernel": (4, 4)}))
    plan = make(source, model=target({"mean/kernel": (4, 4), "logvar/kernel": (4, 4)}))
    assert kinds(plan) == ["ambiguous"] * 2 + ["unfilled-slot"] * 2
    assert len(plan.problems[0].candidates) == 2
    assert "nothing proves which is which" in plan.problems[0].message
    assert len(pasted(plan).rules) == 2


def test_a_tx_needs_a_model():
    with pytest.raises(TargetError, match="tx= was given without model="):
        bridge.plan(checkpoint(*train_state()), tx=object())
    with pytest.raises(TargetError, match="tx= was given with a target spec"):
        bridge.plan(checkpoint(*tree("params", {"k": (2,)})), model=Target(()), tx=object())


# -- without a model ----------------------------------------------------------------------------


def test_without_a_model_collections_become_variable_types_and_paths_stay():
    source = checkpoint(*train_state(), *tree("batch_stats", {"BatchNorm_0/mean": (4,)}))
    plan = make(source)
    assert plan.ok
    assert plan.target.structural
    types = {s.path: s.variable_type for s in plan.target.slots if s.item == "model"}
    assert types["BatchNorm_0", "mean"] == "BatchStat"
    assert types["Conv_0", "kernel"] == "Param"


def test_one_name_in_two_collections_is_a_problem_with_a_rule():
    source = checkpoint(*tree("params", {"a/w": (4,)}), *tree("batch_stats", {"a/w": (4,)}))
    plan = make(source)
    assert kinds(plan) == ["ambiguous"]
    assert make(source, rules=pasted(plan)).ok


def test_a_box_is_taken_off_where_it_is_an_only_child():
    source = checkpoint(
        *tree("params", {"d/kernel/value": (4, 4), "attn/value": (4,), "attn/key": (4,)})
    )
    assert went(make(source)) == {
        "params/d/kernel/value": "d/kernel",
        "params/attn/value": "attn/value",
        "params/attn/key": "attn/key",
    }


def test_several_states_become_several_items():
    source = checkpoint(*train_state("actor", ACTOR), *train_state("critic", CRITIC))
    plan = make(source)
    assert plan.ok
    assert set(plan.target.items) == {"actor", "critic", "actor_optimizer", "critic_optimizer"}


def test_a_cast_rule_changes_dtypes_without_a_model():
    plan = make(checkpoint(*tree("params", CNN)), rules=[bridge.CastRule.of("**", "bfloat16")])
    assert plan.ok
    assert {s.dtype for s in plan.target.slots} == {"bfloat16"}


def test_items_of_a_checkpoint_are_read_together():
    items = {"state": LeafTable(train_state()), "data": LeafTable([leaf("index", kind="number")])}
    plan = make(checkpoint(items=items), model=with_optimizer())
    assert plan.ok
    assert went(plan, "metadata") == {"data/index": "data/index"}


# -- live objects ---------------------------------------------------------------------------------


def test_factories_live_objects_and_dicts_of_them_are_targets():
    import optax
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self):
            self.stem = nnx.Conv(1, 4, (3, 3), rngs=nnx.Rngs(0))
            self.head = nnx.Linear(4, 2, use_bias=False, rngs=nnx.Rngs(0))

    source = checkpoint(*train_state(copies=["ema_params"]))
    plan = make(source, model=Net, tx=optax.adam(1e-3))
    assert plan.ok, str(plan)
    plan = make(source, model={"model": Net, "ema": Net}, tx={"model": optax.adam(1e-3)})
    assert plan.ok, str(plan)
    assert "model_optimizer" in plan.target.items
    both = nnx.eval_shape(lambda: nnx.ModelAndOptimizer(Net(), optax.adam(1e-3)))
    plan = make(source, model=both)
    assert plan.ok, str(plan)
    assert {s.path[0] for s in plan.target.slots if s.item != "extras"} == {
        "model",
        "opt_state",
        "step",
    }
    only = nnx.eval_shape(lambda: nnx.Optimizer(Net(), optax.adam(1e-3), wrt=nnx.Param))
    plan = make(source, model=only)
    assert plan.ok, str(plan)
    assert went(plan, "optimizer")["opt_state/0/mu/Conv_0/kernel"] == "opt_state/0/mu/stem/kernel"
    assert set(went(plan, "extras")) > {"params/Conv_0/kernel"}


def test_a_step_and_the_path_of_a_file_are_taken(tmp_path):
    import msgpack

    state = {"params": {"d": {"kernel": msgpack.ExtType(1, _array())}}, "step": 3}
    (tmp_path / "checkpoint_3").write_bytes(msgpack.packb(state))
    plan = bridge.plan(tmp_path, model=target({"d/kernel": (2,)}), step=3)
    check(plan, legacy.open(tmp_path, step=3))
    assert plan.ok


def _array():
    import msgpack

    data = np.zeros(2, np.float32)
    return msgpack.packb((data.shape, data.dtype.name, data.tobytes()))


# -- several models in one tree -------------------------------------------------------------------


def test_two_models_of_one_params_tree_are_named_by_their_paths():
    source = checkpoint(
        *tree("params", {"actor/hid/kernel": (4, 4), "critic/hid/kernel": (4, 4)}),
        *tree("batch_stats", {"actor/hid/mean": (4,)}),
    )
    actor = [slot("hid/kernel", (4, 4), item="actor"), slot("hid/mean", (4,), "float32",
             "BatchStat", "batch_stats", item="actor")]  # fmt: skip
    model = Target((*actor, slot("hid/kernel", (4, 4), item="critic")))
    plan = make(source, model=model, at={"actor": "params/actor", "critic": "params/critic"})
    assert plan.ok, str(plan)
    assert {s.sources[0][:2]: s.slots[0].item for s in plan.steps} == {
        ("params", "actor"): "actor",
        ("params", "critic"): "critic",
        ("batch_stats", "actor"): "actor",
    }


def test_params_beside_the_chosen_ones_are_a_problem_and_no_crash():
    source = checkpoint(
        *tree("actor_params", {"hid/kernel": (4, 4)}),
        *tree("critic_params", {"out/kernel": (4, 2)}),
    )
    plan = make(source, model=target({"hid/kernel": (4, 4)}), at="actor_params")
    (problem,) = plan.problems
    assert problem.sources == (("critic_params", "out", "kernel"),)


def test_an_array_of_a_dtype_that_orbax_refuses_is_a_problem():
    source = checkpoint(*tree("params", {"k": (2,)}), leaf("when", (1,), "datetime64[s]"))
    (problem,) = make(source).problems
    assert "when has dtype datetime64[s], which Orbax refuses" in problem.message


def test_what_a_lost_index_hides_is_a_warning_of_the_plan():
    source = checkpoint(*tree("params", {"k": (2,)}))
    lost = replace(source, format=replace(source.format, evidence=(INDEX_LOST,)))
    assert make(lost).warnings == (INDEX_LOST,)
    assert make(source).warnings == ()


def test_a_source_that_is_an_nnx_state_is_a_warning_of_the_plan():
    source = checkpoint(*tree("layer", {"kernel/raw_value": (2,)}))
    found = replace(source.format, era="orbax 0.5, an NNX state of flax 0.8.2-0.8.5")
    assert "an NNX state itself" in make(replace(source, format=found)).warnings[0]


def lost(path):
    path = legacy.parse_path(path)
    return unreadable(path, legacy.DamagedCheckpoint("ckpt/d/07: cut"))


@pytest.mark.parametrize("model", [None, target({"a": (2,), "b": (2, 3)})])
@pytest.mark.parametrize("where", ["params/b", "opt_state/0/mu/b", "key", "step"])
def test_a_leaf_that_cannot_be_read_is_a_problem_with_its_reason(model, where):
    leaves = [leaf("params/a", (2,)), leaf("params/b", (2, 3)), lost(where)]
    table = {at.path: at for at in leaves}  # the lost leaf takes the place of a good one
    plan = make(checkpoint(*table.values()), model=model)
    found = next(p for p in plan.problems if p.kind == "loss")
    assert found.sources == (legacy.parse_path(where),)
    assert "cannot be read: ckpt/d/07: cut" in found.message
    assert f'"{where}"' in found.rule or where.split("/")[-1] in found.rule


def test_a_leaf_that_cannot_be_read_may_be_left_behind_by_a_rule_but_not_mapped():
    source = checkpoint(leaf("params/a", (2,)), lost("params/b"))
    model = target({"a": (2,), "b": (2, 3)})
    rule = '[[ignore]]\nsource = "params/b"\n'
    init = '[[init]]\nslot = "b"\nvalue = "zeros"\n'
    assert make(source, model=model, rules=bridge.Rules.from_toml(rule + init)).ok
    mapped = '[[map]]\nfrom = "params/b"\nto = "b"\n'
    plan = make(source, model=model, rules=bridge.Rules.from_toml(mapped))
    assert [p.kind for p in plan.problems] == ["loss"]
