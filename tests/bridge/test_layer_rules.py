"""Layer rules: their examples, their codes, and what they must not do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from planning_cases import checkpoint, leaf, target

import bridge
from bridge.layer_rules import LAYER_RULES, expanded
from bridge.pairing import pair
from bridge.target import SlotRef
from bridge.transforms import describe_all
from bridge.views import Candidate
from legacy import format_path


def sources(*lines):
    return [
        Candidate(path[1:], path[0], shape, "float32", path)
        for line in lines
        for path, shape in expanded(line)
    ]


def slots(*lines):
    found = []
    for line in lines:
        kind, colon, rest = line.partition(": ")
        for path, shape in expanded(rest if colon else line):
            collection = kind if colon else "params"
            found.append(Candidate(path, collection, shape, "float32", SlotRef("model", path)))
    return found


def text(step):
    ours = " + ".join(format_path(p[1:]) for p in step.sources)
    theirs = " + ".join(format_path(r.path) for r in step.slots)
    how = describe_all(step.transforms)
    return f"{ours} → {theirs}" + (f" by {how}" if how else "")


def steps(before, after):
    return {text(p): p.why for p in pair(sources(*before), slots(*after))}


@pytest.mark.parametrize("rule", LAYER_RULES.values(), ids=lambda r: r.code)
def test_the_example_of_each_rule_is_what_happens(rule):
    found = pair(sources(*rule.before), slots(*rule.after))
    said = {text(p): p.why for p in found}
    assert {p for s in found for p in s.sources} == {c.key for c in sources(*rule.before)}
    assert {r for s in found for r in s.slots} == {c.key for c in slots(*rule.after)}
    for line in rule.steps:
        assert said.get(line) == f"rule:{rule.code}", said


def test_codes_are_names():
    assert all(code == rule.code and rule.text.endswith(".") for code, rule in LAYER_RULES.items())


def planned(before, after, **more):
    leaves = [leaf(("params", *c.path), c.shape) for c in sources(*before)]
    model = target({c.path: c.shape for c in slots(*after)})
    return bridge.plan(checkpoint(*leaves), model=model, **more)


def test_two_axes_that_may_count_the_layers_are_both_too_many():
    before = ("params/blocks/fc/kernel [3,3,5]",)
    plan = planned(before, ("blocks/{0..2}/fc/kernel [3,5]",))
    assert not plan.ok
    assert not plan.steps
    assert any(
        "the 3 layers of blocks may lie along more than one axis" in w for w in plan.warnings
    )
    # another leaf of the same stack decides it
    before = (*before, "params/blocks/top/kernel [3,5,5]")
    plan = planned(before, ("blocks/{0..2}/fc/kernel [3,5]", "blocks/{0..2}/top/kernel [5,5]"))
    assert plan.ok
    assert not plan.warnings


def test_an_order_is_offered_and_only_taken_when_it_is_allowed():
    before, after = ("params/Dense_{0..2}/kernel [4,4]",), ("layers/{0..2}/kernel [4,4]",)
    plan = planned(before, after)
    assert not plan.ok
    assert any("3 leaves could be paired by the order" in w for w in plan.warnings)
    plan = planned(before, after, allow_order=True)
    assert plan.ok
    assert {s.why for s in plan.steps} == {"order"}
    assert not plan.warnings


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (("params/ConvLocal_0/kernel [8,9,4]",), ("conv/kernel [3,3,4]",), "Linen's ConvLocal"),
        (("params/MGUCell_0/{if,in,hf,hn}/kernel [4,4]",), ("c/kernel [4,4]",), "Linen's MGUCell"),
        (("params/mine/{if,in,hf,hn}/kernel [4,4]",), ("c/kernel [4,4]",), "a Linen MGUCell"),
        (("params/mine/{ih,hh}/kernel [3,3,4,16]",), ("c/kernel [4,4]",), "a Linen ConvLSTMCell"),
        (("params/LayerNorm_0/scale [5,6]",), ("norm/scale [6]",), "over several axes"),
    ],
)
def test_a_layer_that_nnx_does_not_have_is_one_problem_that_says_so(before, after, said):
    plan = planned(before, after)
    first = plan.problems[0]
    assert said in first.message
    assert "nnx.bridge.ToNNX" in first.message
    assert len(first.sources) == len(sources(*before))
    assert all("has no slot" not in p.message for p in plan.problems)


def test_such_a_layer_written_by_hand_maps_by_its_names():
    before = ("params/MGUCell_0/{if,in,hf,hn}/kernel [4,4]",)
    assert planned(before, ("MGUCell_0/{if_,in_,hf,hn}/kernel [4,4]",)).ok


def test_a_bias_that_would_be_lost_is_a_problem_with_the_rule_that_accepts_it():
    rule = LAYER_RULES["gru-fuse"]
    model = target({c.path: c.shape for c in slots(*rule.after)})

    def holding(value):
        """A checkpoint of which only the odd bias can be read."""
        leaves = [leaf(("params", *c.path), c.shape) for c in sources(*rule.before)]
        *most, last = leaves
        assert last.path == ("params", "cell", "hn", "bias")
        return checkpoint(*most, replace(last, reader=lambda _: np.full(4, value, "f4")))

    assert bridge.plan(holding(0), model=model).ok
    plan = bridge.plan(holding(1), model=model)
    (problem,) = plan.problems
    assert problem.kind == "loss"
    assert "its largest value is 1" in problem.message
    rules = bridge.Rules.from_toml(problem.rule)
    assert bridge.plan(holding(1), model=model, rules=rules).ok


@pytest.mark.parametrize("rule", LAYER_RULES.values(), ids=lambda r: r.code)
def test_boxes_do_not_stop_a_rule(rule):
    boxed = [
        Candidate((*c.path, "value"), c.collection, c.shape, c.dtype, (*c.key, "value"))
        for c in sources(*rule.before)
    ]
    found = pair(boxed, slots(*rule.after))
    assert {r for s in found for r in s.slots} == {c.key for c in slots(*rule.after)}
    assert {p[-1] for s in found for p in s.sources} == {"value"}


@pytest.mark.parametrize("rule", LAYER_RULES.values(), ids=lambda r: r.code)
def test_two_layers_of_one_kind_under_other_names_are_not_told_apart(rule):
    """Each example twice: what the names do not say, no rule may say."""
    ours = [replace_path(c, name) for name in ("Layer_0", "Layer_1") for c in sources(*rule.before)]
    theirs = [replace_path(c, name) for name in ("late", "early") for c in slots(*rule.after)]
    assert pair(ours, theirs) == ()


def replace_path(candidate, parent):
    """The same leaf one level further down."""
    path = (parent, *candidate.path)
    key = candidate.key
    key = SlotRef(key.item, path) if isinstance(key, SlotRef) else (key[0], *path)
    return replace(candidate, path=path, key=key)


def test_one_kernel_for_three_projections_without_an_axis_for_them_is_refused_with_its_reason():
    before = (
        "params/attn/{query,key,value}/kernel [8,2,4]",
        "params/attn/out/kernel [2,4,8]",
    )
    plan = planned(before, ("attn/qkv/kernel [8,24]", "attn/out/kernel [2,4,8]"))
    assert not plan.ok
    assert any("attn/qkv/kernel [8, 24] holds queries, keys and values" in w for w in plan.warnings)
