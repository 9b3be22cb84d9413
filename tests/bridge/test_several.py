"""Several models in one checkpoint: which of them feeds which item, and what follows it."""

from __future__ import annotations

import pytest
from planning_cases import checkpoint, kinds, leaf, make, opt_slots, slot, target, tree, went

from bridge import Target
from bridge.words import copy_words, name_words

A = {"Dense_0/kernel": (3, 4), "Dense_0/bias": (4,)}
C = {"Dense_0/kernel": (3, 4), "Dense_0/bias": (4,), "Dense_1/kernel": (4, 1)}
STEP = leaf("step", (), "int32")


def adam(at, shapes):
    return [
        *tree(f"{at}/0/mu", shapes),
        *tree(f"{at}/0/nu", shapes),
        leaf(f"{at}/0/count", (), "int32"),
    ]


def state(at, shapes, *copies):
    """A TrainState with copies of its params."""
    pre = f"{at}/" if at else ""
    return [
        *tree(f"{pre}params", shapes),
        *adam(f"{pre}opt_state", shapes),
        leaf(f"{pre}step", (), "int32"),
        *(found for name in copies for found in tree(f"{pre}{name}", shapes)),
    ]


def below(name, shapes):
    return {f"{name}/{p}": s for p, s in shapes.items()}


def items(alone=(), **shapes):
    """A target: models by item, with an Adam each unless they are alone."""
    slots = []
    for item, ours in shapes.items():
        slots += target(ours, item=item).slots
        if item not in alone:
            name = "optimizer" if item == "model" else f"{item}_optimizer"
            slots += opt_slots(["0/mu", "0/nu"], ours, name)
    return Target(tuple(slots))


TREES = [
    pytest.param(
        [*state("actor", A), *state("critic", A)],
        {"actor": A, "critic": A},
        {"actor": "actor/params", "critic": "critic/params"},
        {"actor": "actor/opt_state", "critic": "critic/opt_state"},
        id="a-dict-of-train-states",
    ),
    pytest.param(
        [x for i in range(4) for x in state(f"agents_{i}", A)],
        {f"agents_{i}": A for i in range(4)},
        {f"agents_{i}": f"agents_{i}/params" for i in range(4)},
        {f"agents_{i}": f"agents_{i}/opt_state" for i in range(4)},
        id="agents",
    ),
    pytest.param(
        [x for i in range(4) for x in state(f"agents/{i}", A)],
        {f"agent{i}": A for i in range(4)},
        {f"agent{i}": f"agents/{i}/params" for i in range(4)},
        {f"agent{i}": f"agents/{i}/opt_state" for i in range(4)},
        id="a-list-below-a-name",
    ),
    pytest.param(
        [*state("0", A), *state("1", C)],
        {"critic": C, "actor": A},
        {"actor": "0/params", "critic": "1/params"},
        {"actor": "0/opt_state", "critic": "1/opt_state"},
        id="a-list-of-train-states-by-content",
    ),
    pytest.param(
        [*state("gen_state", A), *state("disc_state", A)],
        {"generator": A, "discriminator": A},
        {"generator": "gen_state/params", "discriminator": "disc_state/params"},
        {"generator": "gen_state/opt_state", "discriminator": "disc_state/opt_state"},
        id="short-names",
    ),
    pytest.param(
        [
            *tree("actor_params", A),
            *tree("critic_params", A),
            *adam("actor_opt_state", A),
            *adam("critic_opt_state", A),
            *tree("target_critic_params", A),
            STEP,
        ],
        {"critic": A, "actor": A, "target_critic": A},
        {
            "actor": "actor_params",
            "critic": "critic_params",
            "target_critic": "target_critic_params",
        },
        {"actor": "actor_opt_state", "critic": "critic_opt_state"},
        id="a-bundle-without-params",
    ),
    pytest.param(
        [
            *tree("params_actor/params", A),
            *tree("params_critic/params", C),
            *adam("opt_state_critic", below("params", C)),
            *adam("opt_state_actor", below("params", A)),
            STEP,
        ],
        {"actor": A, "critic": C},
        {"actor": "params_actor/params", "critic": "params_critic/params"},
        {"actor": "opt_state_actor", "critic": "opt_state_critic"},
        id="a-bundle-of-variables",
    ),
    pytest.param(
        [
            *tree("actor", A),
            *tree("critic", A),
            *adam("actor_opt", A),
            *adam("critic_opt", A),
            STEP,
        ],
        {"critic": A, "actor": A},
        {"actor": "actor", "critic": "critic"},
        {"actor": "actor_opt", "critic": "critic_opt"},
        id="plain-names-with-their-optimizers",
    ),
    pytest.param(
        [
            *tree("params/actor", A),
            *tree("params/critic", A),
            *adam("opt_states/actor", A),
            *adam("opt_states/critic", A),
            STEP,
        ],
        {"critic": A, "actor": A},
        {"actor": "params/actor", "critic": "params/critic"},
        {"actor": "opt_states/actor", "critic": "opt_states/critic"},
        id="one-params-tree-and-a-dict-of-optimizers",
    ),
    pytest.param(
        [
            *tree("params/0", A),
            *tree("params/1", C),
            *adam("opt_state/0", A),
            *adam("opt_state/1", C),
            STEP,
        ],
        {"critic": C, "actor": A},
        {"actor": "params/0", "critic": "params/1"},
        {"actor": "opt_state/0", "critic": "opt_state/1"},
        id="tuples-by-content",
    ),
    pytest.param(
        [
            *tree("params/critic", A),
            *tree("params/actor", A),
            *adam("opt_state", {**below("actor", A), **below("critic", A)}),
            STEP,
        ],
        {"critic": A, "actor": A},
        {"actor": "params/actor", "critic": "params/critic"},
        None,
        id="one-optimizer-over-both",
    ),
    pytest.param(
        [*state("critic", A, "target_params"), *state("actor", A, "target_params")],
        {"target_actor": A, "actor": A, "critic": A, "target_critic": A},
        {
            "actor": "actor/params",
            "critic": "critic/params",
            "target_actor": "actor/target_params",
            "target_critic": "critic/target_params",
        },
        {"actor": "actor/opt_state", "critic": "critic/opt_state"},
        id="targets-inside",
    ),
    pytest.param(
        state("", A, "ema_params"),
        {"student": A, "teacher": A},
        {"student": "params", "teacher": "ema_params"},
        {"student": "opt_state"},
        id="an-ema-teacher",
    ),
    pytest.param(
        [*tree("online_params", A), *tree("target_params", A), *adam("opt_state", A), STEP],
        {"model": A, "target": A},
        {"model": "online_params", "target": "target_params"},
        {"model": "opt_state"},
        id="online-and-target",
    ),
    pytest.param(
        [*tree("0", A), *adam("1", A), STEP],
        {"model": A},
        {"model": "0"},
        {"model": "1"},
        id="params-and-state-as-a-tuple",
    ),
    pytest.param(
        [*state("", A), *tree("critic_params", C), *adam("critic_opt_state", C)],
        {"critic": C, "actor": A},
        {"actor": "params", "critic": "critic_params"},
        {"actor": "opt_state", "critic": "critic_opt_state"},
        id="another-model-in-the-train-state",
    ),
]


@pytest.mark.parametrize(("leaves", "shapes", "params", "moments"), TREES)
@pytest.mark.parametrize("turn", [1, -1])
def test_each_item_is_fed_whole_from_its_own_model(leaves, shapes, params, moments, turn):
    source = checkpoint(*leaves[::turn])
    joint = moments is None
    moments = dict.fromkeys(params, "opt_state") if joint else moments
    plan = make(source, model=items([i for i in shapes if i not in moments], **shapes))
    assert plan.ok, str(plan)
    for item, home in params.items():
        pairs = went(plan, item)
        inner = {p: f"{home}/{p}" for p in shapes[item]}
        assert {t: s for s, t in pairs.items()} == inner
    for item, home in moments.items():
        optimizer = "optimizer" if item == "model" else f"{item}_optimizer"
        pairs = {
            "/".join(r.path): "/".join(s.sources[0])
            for s in plan.steps
            for r in s.slots
            if r.item == optimizer
        }
        assert pairs["opt_state/0/count"] == f"{home}/0/count"
        for field in ("mu", "nu"):
            for p in shapes[item]:
                got = pairs[f"opt_state/0/{field}/{p}"]
                assert got.startswith(f"{home}/0/{field}/")
                assert got.endswith(f"/{p}")
                assert not joint or f"/{item}/" in got


def test_what_was_chosen_by_content_is_a_warning_and_what_a_name_says_is_none():
    named = make(
        checkpoint(*state("actor", A), *state("critic", C)), model=items(actor=A, critic=C)
    )
    assert not [w for w in named.warnings if "is fed from" in w]
    plan = make(checkpoint(*state("pi", A), *state("vf", C)), model=items(actor=A, critic=C))
    assert plan.ok
    why = "the only params whose leaf names and shapes are those of the model"
    assert [w.split(";")[0] for w in plan.warnings] == [
        f"item 'actor' is fed from pi/params, {why}",
        f"item 'critic' is fed from vf/params, {why}",
    ]


@pytest.mark.parametrize("names", [("0", "1"), ("pi", "vf"), ("models/x", "models/y")])
def test_two_that_fit_are_a_problem_that_lists_them(names):
    source = checkpoint(*state(names[0], A), *state(names[1], A))
    plan = make(source, model=items(actor=A, critic=A))
    assert set(kinds(plan)) == {"ambiguous"}
    assert plan.problems[0].candidates == tuple(
        f"at={{'actor': '{n}/params'}} (fits)" for n in names
    )
    at = {"actor": names[1], "critic": names[0]}
    chosen = make(source, model=items(actor=A, critic=A), at=at)
    assert chosen.ok, str(chosen)
    assert set(went(chosen, "actor")) == {f"{names[1]}/params/{p}" for p in A}
    assert f"{names[1]}/opt_state/0/count" in went(chosen, "actor_optimizer")


def test_a_copy_never_feeds_the_original_and_the_original_never_a_copy():
    plan = make(checkpoint(*state("actor", A), *tree("target_critic_params", C)),
                model=items(["critic"], actor=A, critic=C))  # fmt: skip
    assert not went(plan, "critic")
    plan = make(checkpoint(*state("", A)), model=items(["ema"], model=A, ema=A))
    assert not went(plan, "ema")
    assert "ambiguous" in kinds(plan)


def test_an_optimizer_that_no_name_gives_to_one_of_two_equal_models_is_not_guessed():
    source = checkpoint(
        *tree("models/a/params", A),
        *tree("models/b/params", A),
        *adam("first", A),
        *adam("other", A),
    )
    plan = make(source, model=items(a=A, b=A))
    assert not went(plan, "a_optimizer")
    assert not went(plan, "b_optimizer")
    assert len(plan.problems) >= 2
    at = {"a_optimizer": "other", "b_optimizer": "first"}
    plan = make(source, model=items(a=A, b=A), at=at)
    assert "other/0/count" in went(plan, "a_optimizer")
    assert "first/0/mu/Dense_0/bias" in went(plan, "b_optimizer")


def test_the_optimizer_of_a_model_that_could_not_be_fed_never_feeds_another():
    source = checkpoint(*state("x", A), *state("y", A), *tree("target_critic_params", A))
    plan = make(source, model=items(["target_critic"], target_critic=A, actor=A, critic=A))
    assert not went(plan, "actor_optimizer")
    assert not went(plan, "critic_optimizer")


def test_one_step_for_all_feeds_each_optimizer_and_says_so():
    leaves = [*tree("a_params", A), *adam("a_opt_state", A), *tree("b_params", A),
              *adam("b_opt_state", A), STEP]  # fmt: skip
    plan = make(checkpoint(*leaves), model=items(a=A, b=A))
    assert plan.ok
    for item in ("a_optimizer", "b_optimizer"):
        assert "step" in {"/".join(s.sources[0]) for s in plan.steps for r in s.slots
                          if r.item == item and r.path == ("step",)}  # fmt: skip
    assert any("step feeds a_optimizer:step and b_optimizer:step" in w for w in plan.warnings)


def test_collections_of_a_bundle_go_with_the_model_that_they_are_named_after():
    mean = {"bn/mean": (4,)}
    source = checkpoint(
        *tree("gen_params", A),
        *tree("gen_batch_stats", mean),
        *tree("disc_params", A),
        *tree("batch_stats_disc", mean),
    )
    stats = [
        slot("bn/mean", (4,), kind="BatchStat", collection="batch_stats", item=i)
        for i in ("gen", "disc")
    ]
    both = items(["gen", "disc"], gen=A, disc=A)
    plan = make(source, model=Target((*both.slots, *stats)))
    assert plan.ok, str(plan)
    assert went(plan, "gen")["gen_batch_stats/bn/mean"] == "bn/mean"
    assert went(plan, "disc")["batch_stats_disc/bn/mean"] == "bn/mean"


def test_a_copy_saved_with_an_optimizer_keeps_it_to_itself():
    source = checkpoint(*state("critic", C), *state("target_critic", C))
    plan = make(source, model=items(["target_critic"], critic=C, target_critic=C))
    assert plan.ok, str(plan)
    assert "critic/opt_state/0/count" in went(plan, "critic_optimizer")
    assert "target_critic/opt_state/0/count" in went(plan, "extras")


def test_one_optimizer_over_models_that_are_separate_now_is_a_warning():
    source = checkpoint(
        *tree("params/a", A), *tree("params/b", A), *adam("opt_state", {**below("a", A),
        **below("b", A)}), STEP)  # fmt: skip
    plan = make(source, model=items(a=A, b=A))
    assert any("one optimizer over the params of a_optimizer and b_optimizer" in w
               for w in plan.warnings)  # fmt: skip


def test_what_stands_beside_a_model_is_no_model():
    source = checkpoint(
        *state("", A),
        leaf("env_params/gravity", ()),
        leaf("env_params/mass", (3,)),
        leaf("dynamic_scale/scale", ()),
        leaf("dynamic_scale/fin_steps", (), "int32"),
        leaf("metrics/loss/total", ()),
        leaf("metrics/loss/count", (), "int32"),
        leaf("obs_normalizer/mean", (3,)),
        leaf("config/name", kind="str"),
        leaf("config/lr", kind="number"),
    )
    plan = make(source, model=items(model=A))
    assert plan.ok, str(plan)
    assert {s.split("/")[0] for s in went(plan, "extras")} == {
        "env_params",
        "dynamic_scale",
        "metrics",
        "obs_normalizer",
    }
    assert set(went(plan, "metadata")) == {"config/name", "config/lr"}
    reasons = {s.why for s in plan.steps if s.slots[0].item in ("extras", "metadata")}
    assert reasons == {"rule:keep"}


def test_metrics_and_a_scale_beside_a_bare_tree_are_no_params():
    source = checkpoint(*tree("net", A), leaf("metrics/loss/total", ()),
                        leaf("dynamic_scale/scale", ()))  # fmt: skip
    plan = make(source, model=items(["net"], net=A))
    assert plan.ok, str(plan)
    assert set(went(plan, "extras")) == {"metrics/loss/total", "dynamic_scale/scale"}


def test_without_a_model_the_items_of_a_bundle_bear_the_models_names():
    source = checkpoint(*tree("actor_params", A), *adam("actor_opt_state", A),
                        *tree("critic_params", C), STEP)  # fmt: skip
    plan = make(source)
    assert plan.ok, str(plan)
    assert {"actor", "critic", "actor_optimizer"} <= set(plan.target.items)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("actor_params", "actor"),
        ("params_actor", "ActorState"),
        ("agents/3/train_state", "agent_3"),
        ("critic_opt_state", "critic_optimizer"),
    ],
)
def test_names_of_one_model_have_the_same_words(one, other):
    assert name_words(one.split("/")) == name_words(other) != ()


def test_words_of_copies():
    assert copy_words(name_words("ema_teacher")) == ("ema",)
    assert copy_words(name_words("threshold")) == ()
    assert copy_words(name_words("folded_actor")) == ()
