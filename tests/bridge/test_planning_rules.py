"""User rules in a plan: what they claim, what follows, and what is said when they are wrong."""

from __future__ import annotations

import re

import pytest
from planning_cases import (
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
from bridge import CastRule, Ignore, Init, Map, Rules, Target
from bridge.transforms import Cast, Join, Reshape, Scale, Stack, Transpose

OLD = {"Dense_0/kernel": (4, 4), "Dense_1/kernel": (4, 4), "Dense_1/bias": (4,)}
NEW = {"mean/kernel": (4, 4), "logvar/kernel": (4, 4), "logvar/bias": (4,)}
BOTH = [
    Map.of("params/Dense_0/kernel", "mean/kernel", code="mean"),
    Map.of("params/Dense_1/{x}", "logvar/{x}", code="logvar"),
]


def state(shapes=OLD, at=""):
    return checkpoint(
        *tree(f"{at}params", shapes),
        *tree(f"{at}opt_state/0/mu", shapes),
        *tree(f"{at}ema_params", shapes),
        leaf(f"{at}step", (), "int32"),
    )


def model(shapes=NEW):
    return Target((*target(shapes).slots, *opt_slots(["0/mu"], shapes, scalars=())))


@pytest.mark.parametrize("at", ["", "run/state/"])
def test_a_variable_path_serves_every_layout_and_what_follows_follows(at):
    plan = make(state(at=at), model=model(), rules=BOTH)
    assert plan.ok, str(plan)
    assert went(plan)[f"{at}params/Dense_0/kernel"] == "mean/kernel"
    assert (
        went(plan, "optimizer")[f"{at}opt_state/0/mu/Dense_1/bias"] == "opt_state/0/mu/logvar/bias"
    )
    assert went(plan, "extras")[f"{at}ema_params/Dense_1/bias"] == f"{at}ema_params/logvar/bias"
    assert whys(plan)[f"{at}opt_state/0/mu/Dense_0/kernel"] == "rule:mean"


def test_a_full_path_serves_as_well():
    rules = [
        Map.of("run/state/params/Dense_0/kernel", "mean/kernel"),
        Map.of("run/state/params/Dense_1/{x}", "logvar/{x}"),
    ]
    assert make(state(at="run/state/"), model=model(), rules=rules).ok


def test_one_rule_may_make_the_rest_unique():
    plan = make(state(), model=model(), rules=BOTH[:1])
    assert plan.ok
    assert whys(plan)["params/Dense_1/kernel"] == "unique"


def test_a_rule_wins_over_a_path():
    source = checkpoint(*tree("params", {"a/kernel": (4, 4), "b/kernel": (4, 4)}))
    rules = [Map.of("params/a/kernel", "b/kernel"), Map.of("params/b/kernel", "a/kernel")]
    plan = make(source, model=target({"a/kernel": (4, 4), "b/kernel": (4, 4)}), rules=rules)
    assert went(plan) == {"params/a/kernel": "b/kernel", "params/b/kernel": "a/kernel"}


def test_ignored_parameters_take_their_moments_and_copies_along():
    shapes = {p: s for p, s in NEW.items() if "logvar" not in p}
    plan = make(state(), model=model(shapes), rules=[Ignore.of("params/Dense_1/**", code="no-var")])
    assert plan.ok
    assert {i.rule for i in plan.ignored} == {"no-var"}
    assert len(plan.ignored) == 6


def test_initialised_slots_start_their_moments_at_zero():
    shapes = {**NEW, "scale/scale": (9,)}
    for pattern in ("scale/*", "**/scale"):
        plan = make(
            state(), model=model(shapes), rules=[*BOTH, Init.of(pattern, "ones", code="new")]
        )
        assert plan.ok, str(plan)
        found = {(i.slot.item, i.how, i.rule) for i in plan.initialised}
        assert found == {("model", "ones", "new"), ("optimizer", "zeros", "new")}


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (
            Map.of("params/Dens_0/kernel", "mean/kernel", code="x"),
            "x: params/Dens_0/kernel matches nothing",
        ),
        (Map.of("params/Dense_0/kernel", "men/kernel", code="x"), "x: there is no slot men/kernel"),
        (
            Ignore.of("params/head/**", code="x"),
            "x ignores params/head/.*, and no leaf has such a path",
        ),
        (Init.of("head/**", "zeros", code="x"), "x fills head/.*, and no slot has such a path"),
        (CastRule.of("head/**", "bfloat16", code="x"), "x casts head/.* no slot has such a path"),
        (CastRule.of("**", "bfloat16", code="x"), "the slots of such a path are float32"),
    ],
)
def test_a_rule_that_finds_nothing_is_a_problem(rule, says):
    rules = [*BOTH, rule] if not isinstance(rule, Map) else [BOTH[1], rule]
    plan = make(state(), model=model(), rules=rules)
    found = [p for p in plan.problems if p.kind == "rule"]
    assert found
    assert re.search(says, found[0].message), found[0].message


def test_two_rules_on_one_slot_name_each_other():
    rules = [*BOTH, Map.of("params/Dense_1/kernel", "mean/kernel", code="again")]
    plan = make(state(), model=model(), rules=rules)
    (problem,) = [p for p in plan.problems if p.kind == "rule"]
    assert "slot model:mean/kernel is fed twice: by rule:" in problem.message
    assert "rule:mean" in problem.message
    assert "rule:again" in problem.message
    rules = [*BOTH, Init.of("mean/kernel", "zeros", code="fresh")]
    assert "rule:fresh" in make(state(), model=model(), rules=rules).problems[0].message
    rules = [*BOTH, Init.of("mean/*", 1.0, code="a"), Init.of("mean/*", 2.0, code="b")]
    assert (
        "rules a and b both fill" in make(state(), model=model(), rules=rules).problems[0].message
    )


def test_a_leaf_that_is_ignored_and_mapped_is_a_problem():
    rules = [*BOTH, Ignore.of("params/Dense_0/kernel", code="gone")]
    plan = make(state(), model=model(), rules=rules)
    (problem,) = [p for p in plan.problems if p.kind == "rule"]
    assert problem.message == (
        "rule mean maps params/Dense_0/kernel, which rule gone ignores, too; narrow one of the two"
    )
    assert problem.slots[0].path == ("mean", "kernel")


def test_a_rule_for_one_of_several_items_does_not_complain_about_the_others():
    source = checkpoint(
        *tree("actor/params", {"a/kernel": (4, 4)}), *tree("critic/params", {"c/kernel": (4, 4)})
    )
    both = Target(
        (
            *target({"x/kernel": (4, 4)}, "actor").slots,
            *target({"y/kernel": (4, 4)}, "critic").slots,
        )
    )
    for order in (("a", "x", "c", "y"), ("c", "y", "a", "x")):
        a, x, c, y = order
        rules = [
            Map.of(f"params/{a}/kernel", f"{x}/kernel"),
            Map.of(f"params/{c}/kernel", f"{y}/kernel"),
        ]
        assert make(source, model=both, rules=rules).ok


def test_items_keep_rules_of_one_name_apart():
    source = checkpoint(*tree("actor/params", OLD), *tree("critic/params", OLD))
    both = Target((*target(NEW, "actor").slots, *target(NEW, "critic").slots))
    plan = make(source, model=both)
    fixed = make(source, model=both, rules=pasted(plan))
    assert fixed.ok, str(fixed)
    assert all(r.item in ("actor", "critic") for r in pasted(plan).rules)


def test_casts_happen_by_rule_only_and_moments_keep_their_dtype():
    half = Target((*target(OLD, dtype="bfloat16").slots, *opt_slots(["0/mu"], OLD, scalars=())))
    assert set(kinds(make(state(), model=half))) == {"dtype"}
    plan = make(state(), model=half, rules=[CastRule.of("**", "bfloat16", item="model")])
    assert plan.ok, str(plan)
    casts = {s.slots[0].item for s in plan.steps if any(isinstance(t, Cast) for t in s.transforms)}
    assert casts == {"model", "optimizer"}  # the optimizer's is the step
    assert {s.dtype for s in plan.target.slots if "mu" in s.path} == {"float32"}


def test_copies_follow_transforms():
    source = checkpoint(*tree("params", {"k": (4, 3)}), *tree("ema", {"k": (4, 3)}))
    for transform, shape in (
        (Transpose((1, 0)), (3, 4)),
        (Scale(2.0), (4, 3)),
        (Reshape((12,)), (12,)),
    ):
        plan = make(
            source, model=target({"w": shape}), rules=[Map.of("params/k", "w", [transform])]
        )
        assert plan.ok
        (copy,) = [s for s in plan.steps if s.slots[0].item == "extras"]
        assert copy.transforms == (transform,)


def test_a_copy_of_half_of_what_is_joined_is_a_problem():
    shapes = {"a": (2,), "b": (2,), "c": (3,), "d": (5,)}
    source = checkpoint(
        *tree("params", shapes), *tree("ema", {k: s for k, s in shapes.items() if k != "b"})
    )
    wanted = target({"ab": (4,), "c": (3,), "d": (5,)})
    plan = make(source, model=wanted, rules=[Map.of(["params/a", "params/b"], "ab", [Join(0)])])
    assert kinds(plan) == ["shape"]
    rules = [Map.of(["params/a", "params/b"], "ab", [Join(0)]), *pasted(plan).rules]
    assert make(source, model=wanted, rules=rules).ok


def test_a_transform_that_does_not_fit_says_so():
    rules = [Map.of("params/Dense_0/kernel", "mean/kernel", [Reshape((5, 5))]), BOTH[1]]
    plan = make(state(), model=model(), rules=rules)
    assert "shape" in kinds(plan)
    assert "params/Dense_0/kernel" in plan.problems[0].message


def test_a_stack_with_a_gap_is_refused():
    source = checkpoint(*tree("params", {f"l_{i}": (2,) for i in (0, 1, 3)}))
    plan = make(
        source, model=target({"ls": (3, 2)}), rules=[Map.of("params/l_{i}", "ls", [Stack(0)])]
    )
    assert not plan.ok
    assert not plan.steps
    assert "2 is missing" in plan.problems[0].message


def test_keys_of_another_algorithm_do_not_mix():
    source = checkpoint(
        *tree("params", {"k": (2,)}), leaf("key", (4,), "uint32", "key", key_impl="rbg")
    )
    wanted = Target(
        (
            slot("k", (2,)),
            slot("key", (4,), "uint32", "RngKey", "rngs", key_impl="unsafe_rbg", ephemeral=True),
        )
    )
    plan = make(source, model=wanted, rules=[Map.of("key", "key")])
    assert kinds(plan) == ["dtype"]
    assert "rbg keys" in plan.problems[0].message


def test_moments_and_counts_may_be_mapped_one_by_one():
    source = state()
    odd = Target((*target(NEW).slots, *opt_slots(["0/m1"], NEW, scalars=())))
    rules = [*BOTH, Map.of("opt_state/0/mu/{x...}", "opt_state/0/m1/{x...}", item="optimizer")]
    plan = make(source, model=odd, rules=rules)
    assert not plan.ok  # names of parameters are the user's business here
    rules[-1:] = [
        Map.of("opt_state/0/mu/Dense_0/{x}", "opt_state/0/m1/mean/{x}", item="optimizer"),
        Map.of("opt_state/0/mu/Dense_1/{x}", "opt_state/0/m1/logvar/{x}", item="optimizer"),
    ]
    assert make(source, model=odd, rules=rules).ok


def test_renaming_works_without_a_model():
    plan = make(state(), rules=[Map.of("params/Dense_{i}/{x}", "layers/{i}/{x}")])
    assert plan.ok, str(plan)
    assert went(plan, "optimizer")["opt_state/0/mu/Dense_1/bias"] == "opt_state/0/mu/layers/1/bias"


def test_rules_come_as_a_file_as_values_and_as_orbax_transforms(tmp_path):
    import orbax.checkpoint as ocp

    (tmp_path / "r.toml").write_text(Rules(tuple(BOTH)).to_toml())
    assert make(state(), model=model(), rules=tmp_path / "r.toml").ok
    transforms = {
        r"mean/(.*)": ocp.Transform(original_key=r"params/Dense_0/\1"),
        r"logvar/(.*)": ocp.Transform(original_key=r"params/Dense_1/\1"),
    }
    plan = make(state(), model=model(), transforms=transforms)
    assert plan.ok, str(plan)
    with pytest.raises(bridge.RuleError):
        bridge.plan(state(), model=model(), rules=3)
