"""Collections other than params: ephemeral ones, custom ones, and those under another name."""

from __future__ import annotations

import pytest
from planning_cases import checkpoint, kinds, leaf, make, slot, target, tree, went, whys

from bridge import Target

W = {"vq/kernel": (3, 4)}


def codebook(path, shape=(8, 4), kind="Codebook", **more):
    return slot(path, shape, kind=kind, collection=kind.lower(), **more)


def model(*slots):
    return Target((*target(W).slots, *slots))


@pytest.mark.parametrize("name", ["intermediates", "cache", "perturbations", "losses"])
def test_what_each_call_makes_anew_is_left_behind_by_name(name):
    source = checkpoint(*tree("params", W), *tree(name, {"vq/out/0": (2, 4), "top": (3,)}))
    plan = make(source, model=model())
    assert plan.ok, str(plan)
    assert {i.rule for i in plan.ignored} == {"ephemeral"}
    assert len(plan.ignored) == 2


def test_a_cache_that_has_slots_is_mapped():
    cache = {"attn/cached_key": (2, 8, 4), "attn/cache_index": ()}
    source = checkpoint(*tree("params", W), *tree("cache", cache))
    slots = [slot(p, s, kind="Cache", collection="cache", ephemeral=True) for p, s in cache.items()]
    plan = make(source, model=model(*slots))
    assert plan.ok, str(plan)
    assert went(plan)["cache/attn/cached_key"] == "attn/cached_key"
    assert not plan.ignored


def test_a_cache_with_slots_of_other_shapes_is_no_ephemeral_thing():
    source = checkpoint(*tree("params", W), *tree("cache", {"attn/cached_key": (2, 8, 4)}))
    other = slot("attn/cached_key", (2, 16, 4), kind="Cache", collection="cache", ephemeral=True)
    plan = make(source, model=model(other))
    assert not plan.ok
    assert plan.problems[0].sources == (("cache", "attn", "cached_key"),)


@pytest.mark.parametrize("name", ["codebook", "vq_stats", "ema"])
def test_a_collection_goes_to_a_class_of_another_name_by_path(name):
    source = checkpoint(*tree("params", W), *tree(name, {"vq/codes": (8, 4), "vq/usage": (8,)}))
    plan = make(source, model=model(codebook("vq/codes"), codebook("vq/usage", (8,))))
    assert plan.ok, str(plan)
    assert went(plan)[f"{name}/vq/codes"] == "vq/codes"
    assert set(whys(plan).values()) == {"path"}


def test_a_flat_collection_of_the_root_module_goes_by_path():
    source = checkpoint(*tree("params", W), leaf("vq_stats/codes", (8, 4)), leaf("extra/x", (3,)))
    plan = make(source, model=model(codebook("codes")))
    assert plan.ok, str(plan)
    assert went(plan)["vq_stats/codes"] == "codes"
    assert went(plan, "extras") == {"extra/x": "extra/x"}


def test_two_flat_collections_with_one_path_are_not_chosen_from():
    source = checkpoint(*tree("params", W), leaf("a/codes", (8, 4)), leaf("b/codes", (8, 4)))
    plan = make(source, model=model(codebook("codes")))
    assert kinds(plan) == ["unfilled-slot"]


def test_one_collection_and_one_class_are_paired_as_leaves_of_one_kind():
    source = checkpoint(*tree("params", W), *tree("vq_stats", {"vq/codes": (8, 4)}))
    plan = make(source, model=model(codebook("quantizer/table")))
    assert plan.ok, str(plan)
    assert whys(plan)["vq_stats/vq/codes"] == "unique"
    two = checkpoint(*tree("params", W), *tree("vq_stats", {"vq/codes": (8, 4), "vq/old": (8, 4)}))
    plan = make(two, model=model(codebook("quantizer/table"), codebook("quantizer/other")))
    assert not plan.ok
    assert not any("vq_stats" in s for s in went(plan))


def test_several_collections_and_classes_are_paired_by_path_only():
    source = checkpoint(
        *tree("params", W), *tree("vq_stats", {"vq/codes": (8, 4)}), *tree("ema", {"vq/avg": (3,)})
    )
    slots = [codebook("q/codes"), codebook("vq/avg", (3,), kind="Mean")]
    plan = make(source, model=model(*slots))
    assert went(plan)["ema/vq/avg"] == "vq/avg"
    # then one collection faces one class
    assert plan.ok, str(plan)
    slots[1] = codebook("q/mean", (3,), kind="Mean")
    plan = make(source, model=model(*slots))
    assert not plan.ok
    assert set(went(plan)) == {"params/vq/kernel"}


@pytest.mark.parametrize("kind", ["BatchStat", "Param"])
def test_collections_that_both_sides_know_are_never_mixed(kind):
    source = checkpoint(*tree("params", W), *tree("vq_stats", {"vq/codes": (8, 4)}))
    known = {"BatchStat": "batch_stats", "Param": "params"}[kind]
    plan = make(source, model=model(slot("vq/codes", (8, 4), kind=kind, collection=known)))
    assert not plan.ok
    assert "vq_stats/vq/codes" not in went(plan)
    stats = checkpoint(*tree("params", W), *tree("batch_stats", {"vq/codes": (8, 4)}))
    assert not make(stats, model=model(codebook("vq/codes"))).ok


def test_a_buffer_of_another_shape_or_name_is_no_place_for_a_parameter():
    source = checkpoint(*tree("params", {**W, "pos": (6, 4)}))
    for found in (codebook("pos", (6, 5)), codebook("position", (6, 4))):
        plan = make(source, model=model(found))
        assert not plan.ok
        assert "params/pos" not in went(plan)
    assert make(source, model=model(codebook("pos", (6, 4)))).ok
    raw = slot("pos", (6, 4), kind="Array", collection="")
    plan = make(source, model=model(raw))
    assert whys(plan)["params/pos"] == "rule:buffer"


def test_a_parameter_without_a_source_is_a_problem_whose_rule_starts_it():
    source = checkpoint(*tree("params", W))
    plan = make(source, model=model(slot("attn/key/bias", (4,))))
    (problem,) = plan.problems
    assert problem.rule.startswith('[[init]]\nslot = "attn/key/bias"\n')
    assert problem.rule.endswith('\nvalue = "zeros"')
