"""Pairing: certain or not at all."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from bridge.match import Candidate, match, normal
from bridge.target import SlotRef


def source(*path, shape=(4, 4), collection="params", dtype="float32"):
    return Candidate(path, collection, shape, dtype, (collection, *path))


def slot(*path, shape=(4, 4), collection="params", dtype="float32"):
    return Candidate(path, collection, shape, dtype, SlotRef("model", path))


def pairs(sources, slots):
    return {p.source[1:]: (p.slot.path, p.why) for p in match(sources, slots)}


def test_an_index_after_an_underscore_is_an_index_of_a_list():
    got = pairs([source("layers_3", "kernel")], [slot("layers", "3", "kernel")])
    assert got == {("layers_3", "kernel"): (("layers", "3", "kernel"), "path")}


def test_a_keyword_may_have_an_underscore_behind_it():
    got = pairs([source("cell", "if", "kernel")], [slot("cell", "if_", "kernel")])
    assert got == {("cell", "if", "kernel"): (("cell", "if_", "kernel"), "path")}


def test_a_box_is_taken_off_only_where_that_gives_the_path():
    got = pairs(
        [source("Dense_0", "kernel", "value"), source("attention", "value", "kernel")],
        [slot("Dense_0", "kernel"), slot("attention", "value", "kernel")],
    )
    assert got["Dense_0", "kernel", "value"][0] == ("Dense_0", "kernel")
    assert got["attention", "value", "kernel"][0] == ("attention", "value", "kernel")


def test_an_exact_path_is_paired_even_when_shapes_differ_so_that_the_plan_can_say_so():
    got = pairs([source("a", "kernel")], [slot("a", "kernel", shape=(4, 5))])
    assert got == {("a", "kernel"): (("a", "kernel"), "path")}


def test_two_spellings_of_one_path_are_no_pair():
    sources = [source("layers_1", "kernel"), source("layers", "1", "kernel")]
    got = pairs(sources, [slot("layers", "01", "kernel")])
    assert got == {}


def test_layers_of_different_shapes_are_unique():
    got = pairs(
        [source("Dense_0", "kernel", shape=(3, 4)), source("Dense_1", "kernel", shape=(4, 5))],
        [slot("out", "kernel", shape=(4, 5)), slot("hidden", "kernel", shape=(3, 4))],
    )
    assert got["Dense_0", "kernel"] == (("hidden", "kernel"), "unique")
    assert got["Dense_1", "kernel"] == (("out", "kernel"), "unique")


def test_two_layers_of_one_shape_stay_unmatched():
    sources = [source("Dense_0", "kernel"), source("Dense_1", "kernel")]
    assert pairs(sources, [slot("mean", "kernel"), slot("logvar", "kernel")]) == {}


def test_query_key_and_value_under_other_names_stay_unmatched():
    sources = [source("attn", n, "kernel") for n in ("query", "key", "value")]
    assert pairs(sources, [slot("attn", n, "kernel") for n in ("wq", "wk", "wv")]) == {}


def test_a_bias_never_feeds_a_scale():
    assert pairs([source("n", "bias", shape=(4,))], [slot("norm", "scale", shape=(4,))]) == {}
    got = pairs([source("n", "scale", shape=(4,))], [slot("norm", "weight", shape=(4,))])
    assert got == {("n", "scale"): (("norm", "weight"), "unique")}


def test_params_never_feed_batch_stats():
    assert pairs([source("a", "mean")], [slot("a", "mean", collection="batch_stats")]) == {}


def test_another_dtype_is_not_unique():
    assert pairs([source("a", "kernel")], [slot("b", "kernel", dtype="bfloat16")]) == {}


def test_modules_are_told_apart_by_what_is_in_them():
    sources = [
        source("Block_0", "Dense_0", "kernel"),
        source("Block_0", "Dense_0", "bias", shape=(4,)),
        source("Dense_0", "kernel"),
    ]
    slots = [
        slot("trunk", "fc", "kernel"),
        slot("trunk", "fc", "bias", shape=(4,)),
        slot("head", "kernel"),
    ]
    got = pairs(sources, slots)
    assert got["Block_0", "Dense_0", "kernel"][0] == ("trunk", "fc", "kernel")
    assert got["Dense_0", "kernel"][0] == ("head", "kernel")


names = st.sampled_from(["a", "b", "Dense_0", "Dense_1", "layers_2", "if", "kernel", "bias"])
paths = st.lists(names, min_size=1, max_size=4).map(tuple)
shapes = st.sampled_from([(4,), (4, 4), (2, 3)])


@given(st.dictionaries(paths, shapes, max_size=12), st.dictionaries(paths, shapes, max_size=12))
def test_each_source_and_slot_is_paired_at_most_once_and_uniques_agree(left, right):
    sources = [source(*p, shape=s) for p, s in left.items()]
    slots = [slot(*p, shape=s) for p, s in right.items()]
    found = match(sources, slots)
    assert len({p.source for p in found}) == len(found)
    assert len({p.slot for p in found}) == len(found)
    for pair in found:
        if pair.why == "unique":
            assert left[pair.source[1:]] == right[pair.slot.path]


@given(st.lists(st.tuples(paths, shapes), max_size=8, unique_by=lambda t: t[0]), st.randoms())
def test_the_order_of_the_leaves_never_matters(leaves, random):
    sources = [source(*p, shape=s) for p, s in leaves]
    slots = [slot("x", *p, shape=s) for p, s in leaves]
    expected = pairs(sources, slots)
    random.shuffle(sources)
    random.shuffle(slots)
    assert pairs(sources, slots) == expected


@given(paths)
def test_normal_is_the_same_when_done_twice(path):
    assert normal(normal(path)) == normal(path)


def test_a_level_that_holds_nothing_else_is_looked_through():
    got = pairs(
        [source("LSTMCell_0", "ii", "kernel"), source("head", "kernel", shape=(4, 2))],
        [slot("rnn", "cell", "ii", "kernel"), slot("top", "kernel", shape=(4, 2))],
    )
    assert got["LSTMCell_0", "ii", "kernel"] == (("rnn", "cell", "ii", "kernel"), "unique")


def test_random_streams_in_the_model_are_no_reason_to_find_no_block():
    block = {"a": (4, 5), "b": (5, 4)}
    sources = [source("Block_0", n, "kernel", shape=s) for n, s in block.items()]
    sources += [source("Other_0", "a", "kernel", shape=(4, 5))]
    slots = [slot("body", n, "kernel", shape=s) for n, s in block.items()]
    slots += [slot("body", "rngs", "count", shape=(), collection="rngs")]
    slots += [slot("tail", "a", "kernel", shape=(4, 5))]
    got = pairs(sources, slots)
    assert got["Block_0", "a", "kernel"][0] == ("body", "a", "kernel")
    assert got["Other_0", "a", "kernel"][0] == ("tail", "a", "kernel")


def test_the_only_module_of_its_kind_is_found_wherever_it_moved():
    block = {"query": (4, 2, 2), "out": (2, 2, 4), "norm": (4,), "mlp": (4, 7)}
    sources = [source("Transformer", "Block_0", n, "w", shape=s) for n, s in block.items()]
    sources += [source("stem", "w", shape=(4, 4))]
    slots = [slot("trunk", n, "w", shape=s) for n, s in block.items()]
    slots += [slot("encoder", "first", "w", shape=(4, 4))]
    got = pairs(sources, slots)
    assert {p[-2]: path[0][-2] for p, path in got.items() if len(p) > 2} == {n: n for n in block}


def test_a_module_that_lost_a_layer_is_not_taken_for_another_that_looks_like_it():
    dense = {"kernel": (4, 4), "bias": (4,)}
    wide = {"kernel": (4, 8), "bias": (8,)}
    ours = {("a", "a", "a"): dense, ("a", "a", "b"): wide, ("a", "b"): dense, ("b",): dense}
    theirs = {("m0", "m0", "m1"): wide, ("m0", "m1"): dense, ("m1",): dense}
    sources = [source(*p, n, shape=s) for p, layer in ours.items() for n, s in layer.items()]
    slots = [slot(*p, n, shape=s) for p, layer in theirs.items() for n, s in layer.items()]
    got = pairs(sources, slots)
    assert {p[:-1] for p in got} <= {("a", "a", "b")}


def test_numbers_written_by_people_say_no_more_than_others():
    for name in ("layer", "expert", "block"):
        sources = [source(f"{name}_{i}", "kernel") for i in range(3)]
        assert pairs(sources, [slot("stack", str(i), "kernel") for i in range(3)]) == {}
    sources = [source(f"norm{i}", "scale", shape=(4,)) for i in (1, 2)]
    assert pairs(sources, [slot(f"norm_{i}", "scale", shape=(4,)) for i in (0, 1)]) == {}


def test_a_list_that_may_begin_elsewhere_is_not_paired_by_its_indices():
    sources = [source("stem", "kernel"), *(source(f"layers_{i}", "kernel") for i in range(3))]
    slots = [*(slot("layers", str(i), "kernel") for i in range(3)), slot("head", "kernel")]
    assert pairs(sources, slots) == {}
    wide = slot("head", "kernel", shape=(4, 9))
    got = pairs([source("stem", "kernel", shape=(4, 9)), *sources[1:]], [*slots[:3], wide])
    assert len(got) == 4


def test_words_that_two_names_share_prove_nothing():
    sources = [source(f"generator_{x}", "kernel") for x in "ab"]
    assert pairs(sources, [slot(f"from_{x}", "kernel") for x in "ab"]) == {}
