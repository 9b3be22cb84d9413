"""A plan for hundreds of leaves is short enough to review, and hides nothing that differs."""

from __future__ import annotations

import re

import pytest
from planning_cases import checkpoint, leaf, make, opt_slots, slot, tree

from bridge import report
from bridge._plan import Plan, Problem, Step
from bridge.report_problems import problem_lines
from bridge.target import SlotRef, Target
from bridge.transforms import Cast, Join, Scale, Split

LAYERS = 25
GATES = ("hi", "hf", "hg", "ho")


def paths(*texts):
    return tuple(tuple(t.split("/")) for t in texts)


def step(sources, slots, *transforms, item="model", why="fingerprint"):
    return Step(paths(*sources), tuple(SlotRef(item, p) for p in paths(*slots)), transforms, why)


def text_of(steps):
    return report.plan_text(Plan(tuple(steps), (), (), (), Target(()), "s"))


def attention(before="params", after="", item="model", order="qkv", *more, layers=range(LAYERS)):
    return [
        step(
            [f"{before}/h_{n}/c_attn/kernel"],
            [f"{after}layers/{n}/attention/{q}/kernel" for q in order],
            Split(1, (8, 8, 8)),
            *more,
            item=item,
        )
        for n in layers
    ]


def test_layers_that_are_split_are_one_row():
    text = text_of(attention())
    assert "params/h_{0…24}/c_attn/kernel\n" in text
    one = "model:layers/{0…24}/attention/q/kernel + …/k/kernel + …/v/kernel"
    assert one in " ".join(text.split())
    assert "split(axis=1, sizes=8,8,8); fingerprint ×25" in text
    assert len(text.splitlines()) < 10


def test_a_layer_that_is_split_in_another_order_has_its_own_row():
    steps = [*attention(layers=range(12)), *attention(order="kqv", layers=[12])]
    text = " ".join(text_of([*steps, *attention(layers=range(13, 25))]).split())
    assert "h_{0…11}/c_attn" in text
    assert "model:layers/12/attention/k/kernel + …/q/kernel + …/v/kernel" in text
    assert "h_{13…24}/c_attn" in text


def test_layers_that_are_joined_fold_whatever_numbers_their_paths_have():
    steps = [
        step(
            [f"params/block_{n}/gate_{k}/Dense_{k + 2}/kernel" for k in range(4)],
            [f"blocks/{n}/cell_0/dense_1/kernel"],
            Join(1),
        )
        for n in range(LAYERS)
    ]
    text = " ".join(text_of(steps).split())
    assert "params/block_{0…24}/gate_{0…3}/Dense_{2…5}/kernel ×4" in text
    assert "model:blocks/{0…24}/cell_0/dense_1/kernel" in text
    assert text.count("×25") == 1


def test_slots_of_a_folded_row_are_folded_among_themselves():
    steps = [
        step([f"params/stage_{n}/w"], [f"stages/{n}/blocks/{k}/w" for k in range(6)])
        for n in range(10, 13)
    ]
    assert "model:stages/{10…12}/blocks/{0…5}/w ×6" in " ".join(text_of(steps).split())


def test_slots_in_another_order_than_their_numbers_are_told_in_that_order():
    text = text_of([step(["params/w"], [f"blocks/{k}/w" for k in (2, 1, 0)])])
    assert "model:blocks/2/w + …/1/w + …/0/w" in text


def test_slots_of_several_items_keep_their_items():
    refs = (SlotRef("a", ("w",)), SlotRef("a", ("v",)), SlotRef("b", ("w",)))
    assert "a:w + v + b:w" in text_of([Step((("params", "w"),), refs)])


def test_a_quoted_name_is_never_shortened():
    text = text_of([step(["params/w"], ["a/b c/q", "a/b c/k"], Split(0, (1, 1)))])
    assert 'model:a/"b c"/q + a/"b c"/k' in text


def test_copies_of_split_layers_are_as_the_params():
    moments = attention("opt_state/0/mu", "opt_state/0/mu/", "optimizer")
    text = text_of([*attention(), *moments])
    assert "opt_state/0/mu/… → optimizer:opt_state/0/mu/…  as params ×25; fingerprint" in (
        text.replace("\n   ", "")
    )
    assert "opt_state/0/mu/h_" not in text


@pytest.mark.parametrize("more", [Scale(0.5), Cast("float32")])
def test_moments_that_are_not_carried_as_the_params_have_rows_of_their_own(more):
    moments = attention("opt_state/0/mu", "opt_state/0/mu/", "optimizer", "qkv", more)
    text = text_of([*attention(), *moments])
    assert "as params" not in text
    assert "opt_state/0/mu/h_{0…24}/c_attn/kernel" in text
    assert str(more) in text


def test_moments_in_another_order_or_place_are_no_copies():
    swapped = attention("opt_state/0/mu", "opt_state/0/mu/", "optimizer", "qvk")
    assert "as params" not in text_of([*attention(), *swapped])
    scattered = [
        Step(s.sources, (*s.slots[:2], SlotRef("optimizer", ("x", *s.slots[2].path[3:]))),
             s.transforms, s.why)
        for s in attention("opt_state/0/mu", "opt_state/0/mu/", "optimizer")
    ]  # fmt: skip
    assert "as params" not in text_of([*attention(), *scattered])


def test_copies_of_joined_gates_are_as_the_params():
    def cell(before, after, item):
        return [
            step(
                [f"{before}/{name}/{g}/kernel" for g in GATES],
                [f"{after}{name}/kernel"],
                Join(1),
                item=item,
            )
            for name in ("encoder", "decoder", "head")
        ]

    mixed = cell("ema", "ema/", "extras")
    mixed[2] = step(["ema/head/" + g + "/kernel" for g in GATES], ["ema/head/kernel"],
                    *mixed[2].transforms, item="extras", why="path")  # fmt: skip
    text = text_of([*cell("params", "", "model"), *mixed])
    assert "ema/… " in text
    assert "as params ×3; fingerprint, path" in " ".join(text.split())


def unnamed(layers):
    """A GPT whose layers are named anew and whose queries, keys and values were one."""
    ours = {"ln_f/scale": (8,), "ln_f/bias": (8,)}
    theirs = {"norm_f/scale": (8,), "norm_f/bias": (8,)}
    for n in range(layers):
        for name, wide in (("attn/c_attn", 24), ("attn/c_proj", 8), ("mlp/c_fc", 32)):
            ours |= {f"h_{n}/{name}/kernel": (8, wide), f"h_{n}/{name}/bias": (wide,)}
        for name, wide in (("q", 8), ("k", 8), ("v", 8), ("out", 8), ("up", 32)):
            theirs |= {f"layers/{n}/{name}/kernel": (8, wide), f"layers/{n}/{name}/bias": (wide,)}
        for name, other in (("ln_1", "norm_attn"), ("ln_2", "norm_mlp")):
            ours |= {f"h_{n}/{name}/{x}": (8,) for x in ("scale", "bias")}
            theirs |= {f"layers/{n}/{other}/{x}": (8,) for x in ("scale", "bias")}
    states = [*tree("opt_state/0/mu", ours), *tree("opt_state/0/nu", ours)]
    source = checkpoint(*tree("params", ours), leaf("opt_state/0/count", (), "int32"), *states)
    slots = (slot(p, s) for p, s in theirs.items())
    return make(source, model=Target((*slots, *opt_slots(("0/mu", "0/nu"), theirs, step=False))))


def test_a_deep_model_under_new_names_is_reviewed_on_some_pages():
    plan = unnamed(60)
    text = report.plan_text(plan)
    lines = text.splitlines()
    assert len(plan.problems) > 1000
    assert max(map(len, lines)) <= 80
    assert len(lines) < 400
    assert "opt_state/0/mu/h_" not in text
    assert "params/h_{0…59}/attn/c_attn/kernel ×60" in text
    assert len(report.plan_json(plan)["problems"]) == len(plan.problems)


def test_all_leaves_and_slots_of_problems_are_counted():
    plan = unnamed(12)
    text = " ".join(report.plan_text(plan).split())
    head, *groups = re.split(r" \d+\. ", text[text.index("problems: ") :])
    leaves = len({p for problem in plan.problems for p in problem.sources})
    slots = len({r for problem in plan.problems for r in problem.slots})

    def total(said, noun):
        return sum(int(n.replace(",", "")) for n in re.findall(rf"\b([\d,]+) {noun}", said))

    assert f"problems: {len(plan.problems)}, of {len(groups)} kinds" in head
    assert total(head, "lea(?:f|ves)") == leaves
    assert total(head, "slots?") == slots
    own = [re.sub(r"for example: .*? (?=\d+ (?:lea|slot)\w+:)", "", g) for g in groups]
    assert sum(total(g, "lea(?:f|ves)") for g in own) == leaves
    assert sum(total(g, "slots?") for g in own) == slots


def lines_of(problems):
    return "\n".join(problem_lines(problems, 80))


def lost(name, shape="[8]", **more):
    return Problem("ambiguous", f"params/{name} float32{shape} has no slot",
                   paths(f"params/{name}"), **more)  # fmt: skip


def test_other_shapes_and_other_kinds_are_other_groups():
    problems = [lost(f"h_{n}/w", f"[{8 + n // 3}]") for n in range(6)]
    text = lines_of([*problems, Problem("shape", problems[0].message)])
    assert "problems: 7, of 3 kinds" in text
    assert "params/h_{0…2}/w ×3" in text
    assert "params/h_{3…5}/w ×3" in text


def test_a_group_shows_three_rules_and_says_how_many_more_there_are():
    rules = [f'[[ignore]]\nsource = "h_{n}/{"abcde"[n % 5]}"' for n in range(20)]
    text = lines_of([lost(f"h_{n}/w", rule=rule) for n, rule in enumerate(rules)])
    assert text.count("[[ignore]]") == 3
    assert "and 17 more rules: --suggest FILE writes all" in text


def test_a_long_remark_in_a_rule_is_wrapped_and_what_may_be_pasted_is_not():
    remark = "# " + "may be a part of it " * 8
    toml = f'# source = "{"x" * 90}"'
    text = lines_of([lost("w", rule=f"{remark}\n{toml}\nsource = 1")])
    assert toml in text
    assert max(len(line) for line in text.splitlines() if toml not in line) <= 80
    for line in text[text.index("rule to paste:") :].splitlines()[1:]:
        assert line.strip().startswith(("# ", "source"))


def test_groups_beyond_the_sixtieth_are_counted():
    names = [f"{a}{b}" for a in "abcdefgh" for b in "abcdefghij"]
    problems = [lost(f"{name}/w") for name in names]
    text = " ".join(lines_of(problems).split())
    assert " 60. ambiguous" in text
    assert " 61. " not in text
    said = "and 20 more kinds: 20 problems (20 leaves); --json or --suggest FILE has all of them"
    assert text.endswith(said)


def test_many_rows_of_a_group_are_counted():
    problems = [lost(f"h_{n * n}/w") for n in range(30)]
    text = lines_of(problems)
    assert "30 leaves:" in text
    rest = int(re.search(r"and (\d+) more rows like these", text)[1])
    assert rest + text.count("params/h_") - 1 == 30  # the example names one more


def test_the_parameters_of_two_models_do_not_follow_one_another():
    both = paths("actor/params/fc/w", "critic/params/fc/w", "params/a/w", "params/b/a/w")
    assert "follow" not in lines_of([Problem("ambiguous", "which is which", both)])
    slots = (SlotRef("actor", ("fc", "w")), SlotRef("critic", ("fc", "w")))
    assert "follow" not in lines_of([Problem("ambiguous", "which is which", both, slots)])


@pytest.mark.parametrize("head", ["params", "actor/params", "params/params"])
def test_moments_and_averages_follow_their_parameter(head):
    near = head.rpartition("params")[0] if head != "params/params" else ""
    names = (f"{head}/fc/w", f"{near}opt_state/0/mu/fc/w", f"{near}ema_{head[len(near) :]}/fc/w")
    if head == "params/params":
        names = (names[0], "opt_state/0/mu/params/fc/w", "ema_params/params/fc/w")
    slots = (SlotRef("model", ("l", "w")), SlotRef("optimizer", ("opt_state", "mu", "l", "w")))
    text = lines_of([Problem("shape", "they differ", paths(*names), slots)])
    assert "and 2 leaves and 1 slot that follow them (optimizer state, copies)" in text
