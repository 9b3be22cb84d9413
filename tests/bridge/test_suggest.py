"""What is suggested for what is left, and a file of suggestions that nobody edited."""

from __future__ import annotations

import tomllib

from planning_cases import checkpoint, kinds, leaf, make, pasted, slot, target, tree, went

import bridge
from bridge import Target
from bridge.suggest_file import suggestions


def rules_of(plan):
    return list(dict.fromkeys(p.rule for p in plan.problems))


def unedited(plan):
    return bridge.Rules.from_toml(suggestions(plan))


def uncommented(plan):
    """The file with every rule in it made active."""
    lines = suggestions(plan).splitlines()
    return bridge.Rules.from_toml("\n".join(line.removeprefix("# ") for line in lines))


def dense(*names, shape=(4, 4)):
    return {f"{n}/{k}": s for n in names for k, s in (("kernel", shape), ("bias", shape[-1:]))}


def planned(ours, theirs, **more):
    return make(checkpoint(*tree("params", ours)), model=target(theirs), **more)


# -- guesses ------------------------------------------------------------------------------------


def test_the_leaves_of_a_module_stay_together():
    # by names alone the bias of a norm is as near to the one of a layer of the same width
    ours = {f"h_{i}/{p}": s for i in range(3) for p, s in {
        "ln_1/scale": (4,), "ln_1/bias": (4,), "ln_2/scale": (4,), "ln_2/bias": (4,),
        "proj/kernel": (8, 4), "proj/bias": (4,), "out/kernel": (8, 4), "out/bias": (4,),
    }.items()}  # fmt: skip
    theirs = {f"layers/{i}/{p}": s for i in range(3) for p, s in {
        "down/kernel": (8, 4), "down/bias": (4,), "up/kernel": (8, 4), "up/bias": (4,),
        "norm_attn/scale": (4,), "norm_attn/bias": (4,),
        "norm_mlp/scale": (4,), "norm_mlp/bias": (4,),
    }.items()}  # fmt: skip
    plan = planned(ours, theirs)
    fixed = planned(ours, theirs, rules=pasted(plan))
    assert fixed.ok
    modules = {a.rpartition("/")[0]: set() for a in went(fixed)}
    for a, b in went(fixed).items():
        modules[a.rpartition("/")[0]].add(b.rpartition("/")[0])
    assert all(len(found) == 1 for found in modules.values())
    assert {a.split("_")[1][0] == b.split("/")[1] for a, b in _places(went(fixed))} == {True}
    assert len(rules_of(plan)) == 4


def _places(pairs):
    return [(a.removeprefix("params/"), b) for a, b in pairs.items()]


def test_statistics_stay_with_their_norm():
    names = ("a", "b")
    params = {f"{n}/{k}": (4,) for n in names for k in ("scale", "bias")}
    moving = {f"{n}/{k}": (4,) for n in names for k in ("mean", "var")}
    source = checkpoint(*tree("params", params), *tree("batch_stats", moving))
    stats = {"mean": "BatchStat", "var": "BatchStat", "scale": "Param", "bias": "Param"}
    model = Target(tuple(
        slot(f"{n}/{k}", (4,), kind=v, collection="params" if v == "Param" else "batch_stats")
        for n in ("x", "y") for k, v in stats.items()
    ))  # fmt: skip
    fixed = make(source, model=model, rules=pasted(make(source, model=model)))
    assert fixed.ok
    places = {(a.split("/")[1], b.split("/")[0]) for a, b in went(fixed).items()}
    assert len(places) == 2


def test_names_of_two_roles_are_never_a_guess():
    plan = planned({"a/bias": (4,), "b/scale": (4,)}, {"x/mean": (4,), "y/var": (4,)})
    assert not any("[[map]]" in rule for rule in rules_of(plan))


def test_what_is_mapped_holds_the_rest_of_its_module():
    ours = {"a/kernel": (4, 6), "a/bias": (6,), "b/kernel": (4, 8), "b/gate": (6,)}
    theirs = {"a/kernel": (4, 6), "b/kernel": (4, 8), "b/shift": (6,)}
    plan = planned(ours, theirs)
    for rule in rules_of(plan):
        assert not ("a/bias" in rule and "b/shift" in rule), rule


# -- the shortest rule ----------------------------------------------------------------------------


def test_layers_with_one_numbering_are_one_rule():
    ours, theirs = dense(*(f"dense_{i}" for i in range(3))), dense(*(f"fcs/{i}" for i in range(3)))
    assert len(rules_of(planned(ours, theirs))) == 1


def test_an_offset_in_the_numbering_is_one_rule_for_each_layer():
    ours, theirs = dense("fc1", "fc2", "fc3"), dense("lin0", "lin1", "lin2")
    plan = planned(ours, theirs)
    assert len(rules_of(plan)) == 3
    fixed = planned(ours, theirs, rules=pasted(plan))
    assert went(fixed)["params/fc1/bias"] == "lin0/bias"
    assert went(fixed)["params/fc3/kernel"] == "lin2/kernel"


def test_an_offset_inside_of_blocks_is_one_rule_for_each_layer_of_a_block():
    ours = dense(*(f"Block_{i}/Dense_{j}" for i in range(4) for j in range(2)))
    theirs = dense(*(f"blocks/{i}/fc{j}" for i in range(4) for j in (1, 2)))
    plan = planned(ours, theirs)
    assert len(rules_of(plan)) == 2
    fixed = planned(ours, theirs, rules=pasted(plan))
    assert went(fixed)["params/Block_2/Dense_0/kernel"] == "blocks/2/fc1/kernel"


# -- the file -------------------------------------------------------------------------------------


def test_a_guess_among_several_is_written_as_a_comment():
    ours, theirs = dense("a", "b"), dense("x", "y")
    plan = planned(ours, theirs)
    assert not unedited(plan).rules
    assert len(uncommented(plan).rules) == len(pasted(plan).rules) == 2
    assert planned(ours, theirs, rules=uncommented(plan)).ok


def test_what_has_no_counterpart_is_ignored_or_initialised():
    ours = {**dense("a"), "old/kernel": (7, 7)}
    theirs = {**dense("a"), "new/scale": (9,)}
    plan = planned(ours, theirs)
    fixed = planned(ours, theirs, rules=unedited(plan))
    assert fixed.ok
    assert [(i.slot.path, i.how) for i in fixed.initialised] == [(("new", "scale"), "ones")]


def test_a_start_value_that_must_be_chosen_is_left_to_the_user():
    plan = planned(dense("a"), {**dense("a"), "new/table": (9, 7)})
    assert not unedited(plan).rules
    assert 'value = "zeros"' in suggestions(plan)


def test_an_axis_of_length_one_is_no_choice():
    ours, theirs = {"at/pos": (1, 4, 6)}, {"at/pos": (4, 6)}
    plan = planned(ours, theirs)
    fixed = planned(ours, theirs, rules=unedited(plan))
    # the names agree, so the plan knows the slot; how it is reshaped, the user says
    assert not fixed.ok
    assert kinds(plan) == ["shape"]


def test_a_layer_that_only_grew_is_neither_dropped_nor_new():
    ours, theirs = dense("head", shape=(4, 10)), dense("out", shape=(4, 12))
    assert not unedited(planned(ours, theirs)).rules


def test_nothing_is_lost_by_dropping_the_parts_of_a_whole():
    ours = {"q/kernel": (4, 4), "k/kernel": (4, 4), "v/kernel": (4, 4)}
    assert not unedited(planned(ours, {"qkv/kernel": (4, 12)})).rules


def test_a_part_is_only_remarked_where_the_other_axes_agree():
    plan = planned({"a/bias": (8,), "b/kernel": (8, 24)}, {"c/kernel": (5, 24)})
    (problem,) = [p for p in plan.problems if p.sources == (("params", "a", "bias"),)]
    assert problem.rule.startswith("[[ignore]]")
    plan = planned({"a/bias": (8,)}, {"b/bias": (24,)})
    assert "may be a part of it" in plan.problems[0].rule


def test_losses_and_casts_are_for_the_user_to_allow():
    source = checkpoint(*tree("params", dense("a")), leaf("params/b/kernel", kind="unreadable"))
    plan = make(source, model=target(dense("a", "b"), dtype="bfloat16"))
    assert not unedited(plan).rules


def test_an_optimizer_state_that_nobody_wants_is_ignored_unless_something_is_open():
    state = [*tree("params", dense("a")), *tree("opt_state/0/trace", dense("a"))]
    plan = make(checkpoint(*state), model=target(dense("a")))
    assert make(checkpoint(*state), model=target(dense("a")), rules=unedited(plan)).ok
    plan = make(checkpoint(*state), model=target(dense("a", "b")))
    assert not unedited(plan).rules


def test_lines_are_short_and_everything_is_toml():
    ours = {
        f"encoder/layers_{i}/attention_block_with_a_name/q_{i * i}/kernel": (4, 5) for i in range(6)
    }
    theirs = {"decoder/stacked_attention_blocks/kernel": (6, 4, 5), **dense("x", "y")}
    text = suggestions(planned(ours, theirs))
    assert max(map(len, text.splitlines())) <= 100
    tomllib.loads(text)
    tomllib.loads("\n".join(line.removeprefix("# ") for line in text.splitlines()))
