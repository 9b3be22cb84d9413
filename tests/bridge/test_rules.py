"""Rules: reading and writing them, and what they mean for leaves and slots."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import RuleError, TransformError
from bridge.orbax_transforms import RegexMap, from_orbax
from bridge.patterns import Pattern
from bridge.rules import CastRule, Ignore, Init, Map, Rules, expand, is_map
from bridge.rules_expand import nearest
from bridge.rules_index import Paths
from bridge.target import SlotRef
from bridge.transforms import (
    Cast,
    Each,
    Function,
    Join,
    Pad,
    Reshape,
    Scale,
    Slice,
    Split,
    Stack,
    Transpose,
    Unstack,
)
from legacy.leaves import parse_path

TOML = r"""
[[map]]
from = "params/Conv_{i}/kernel"
to = "convs/{i}/kernel"

[[map]]
code = "qkv"
from = ["params/attn/q", "params/attn/k", 'params/attn/"v/w"']
to = "attn/qkv"
item = "model"
transforms = [{op = "reshape", shape = [8, -1]}, {op = "join", axis = 1}]
reason = "one matrix for \"all\" three"

[[map]]
from = "params/layers"
to = ["first", "second"]
transforms = [{op = "split", axis = 0, sizes = [1, 2]}, {op = "function", name = "a.b:c"}]

[[ignore]]
source = "params/head/**"

[[init]]
slot = "attn/key/bias"
value = "zeros"

[[init]]
slot = "scale"
value = 0.5

[[cast]]
slot = "**"
dtype = "float32"
exact = true
"""


def paths(*texts):
    return [parse_path(t) for t in texts]


def slots(*texts, item="model"):
    return [SlotRef(item, parse_path(t)) for t in texts]


def pairs(expansion):
    assert expansion.problems == ()
    return [
        (" ".join("/".join(s) for s in b.sources), " ".join("/".join(r.path) for r in b.slots))
        for b in expansion.bindings
    ]


# --- reading and writing ----------------------------------------------------------------------


def test_rules_are_read_from_toml():
    rules = Rules.from_toml(TOML).rules
    assert [r.code for r in rules] == [
        "map-1", "qkv", "map-2", "ignore-1", "init-1", "init-2", "cast-1",
    ]  # fmt: skip
    assert rules[0] == Map.of("params/Conv_{i}/kernel", "convs/{i}/kernel", code="map-1")
    assert rules[0].to == Pattern.parse("convs/{i}/kernel")
    assert rules[1].transforms == (Reshape((8, -1)), Join(1))
    assert rules[1].item == "model"
    assert rules[1].reason == 'one matrix for "all" three'
    assert [str(p) for p in rules[2].to] == ["first", "second"]
    assert rules[3] == Ignore.of("params/head/**", code="ignore-1")
    assert [r.how for r in rules[4:6]] == ["zeros", "0.5"]
    assert rules[6] == CastRule.of("**", "float32", exact=True, code="cast-1")


def test_toml_round_trip():
    rules = Rules.from_toml(TOML)
    assert Rules.from_toml(rules.to_toml()) == rules
    assert Rules().to_toml() == ""
    assert Rules.from_toml("") == Rules()


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), min_size=1, max_size=3),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    st.floats(allow_nan=False, allow_infinity=False).filter(bool),
    st.floats(allow_nan=False),
)
def test_any_names_and_numbers_survive_toml(path, reason, factor, value):
    place = Pattern.literal(tuple(path))
    rules = Rules(
        (
            Map.of(place, place, [Scale(factor), Each((Pad(0, 1, value=factor),))], reason=reason),
            Map.of([place, place], place, [Join(-1), Slice(0, 1), Cast("int4", exact=True)]),
            Ignore.of(place, reason=reason),
            Init.of(place, value),
        )
    )
    assert Rules.from_toml(rules.to_toml()) == rules


def test_every_problem_of_a_file_is_reported_at_once():
    text = """
    [[mapp]]
    x = 1
    [[map]]
    fron = "a"
    to = "b"
    [[map]]
    from = "a{"
    to = []
    transforms = [{op = "transpos"}]
    [[map]]
    from = "a/{i}"
    to = "b"
    [[map]]
    from = 3
    to = "b"
    transforms = "stack"
    [[init]]
    slot = "x"
    value = "zeroes"
    [[init]]
    slot = "x"
    value = true
    [[cast]]
    slot = "x"
    dtype = "float"
    exact = 1
    [[cast]]
    slot = "x"
    dtype = "flaot32"
    [ignore]
    source = "x"
    """
    with pytest.raises(RuleError, match=r"my\.toml: 13 problem\(s\)") as caught:
        Rules.from_toml(text, "my.toml")
    expected = [
        r"unknown table \[\[mapp\]\] \(did you mean 'map'\?\)",
        r"\[\[map\]\] number 1: unknown key 'fron' \(did you mean 'from'\?\)",
        r"\[\[map\]\] number 1: needs from",
        r"\[\[map\]\] number 2: from: pattern 'a\{': 'a\{' is no capture",
        r"\[\[map\]\] number 2: transforms: unknown transform 'transpos'",
        r"\[\[map\]\] number 3: \{i\} occurs in `from` only, so several leaves become one",
        r"\[\[map\]\] number 4: from: expected a string, got 3",
        r"\[\[map\]\] number 4: transforms: expected a list such as",
        r"\[\[init\]\] number 1: rule init: value 'zeroes' is not known",
        r"\[\[init\]\] number 2: value: expected a string or a number, got True",
        r"\[\[cast\]\] number 1: exact: expected true or false, got 1",
        r"\[\[cast\]\] number 2: rule cast: cast: field 'dtype': expected a dtype name",
        r"\[ignore\] must be written \[\[ignore\]\]",
    ]
    for text in expected:
        assert any(re.search(text, p) for p in caught.value.problems), text


def test_what_is_no_toml_names_the_file():
    with pytest.raises(RuleError, match=r"my\.toml: not valid TOML: Expected"):
        Rules.from_toml("[[map", "my.toml")


def test_two_rules_of_one_code_are_an_error():
    twice = '[[ignore]]\nsource = "a"\ncode = "x"\n' * 2
    with pytest.raises(RuleError, match=r"my\.toml: two rules have the code 'x'"):
        Rules.from_toml(twice, "my.toml")
    with pytest.raises(RuleError, match="two rules have the code 'x'"):
        Rules.of([Ignore.of("a", code="x"), Init.of("a", "ones", code="x")])


def test_default_codes_leave_out_those_taken():
    rules = Rules.of([Ignore.of("a"), Ignore.of("b", code="ignore-1"), Map.of("a", "b")])
    assert [r.code for r in rules.rules] == ["map-1", "ignore-2", "ignore-1"]


def test_rules_of_anything_users_hold(tmp_path):
    file = tmp_path / "r.toml"
    file.write_text(TOML)
    rules = Rules.load(file)
    assert Rules.of(None) == Rules() == Rules.of([])
    assert Rules.of(rules) is rules
    assert Rules.of(str(file)) == Rules.of(file) == Rules.of(list(rules.rules)) == rules


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (3, "expected a path, Rules or a list of rules, got int"),
        ({"a": 1}, "Orbax transforms go into `transforms=`"),
        (["a"], "'a' is no rule; give Map"),
        ("/no/such.toml", r"rules file /no/such.toml: cannot be read .*No such file"),
    ],
)
def test_what_is_no_rules(given, text):
    with pytest.raises(RuleError, match=text):
        Rules.of(given)


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "r.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(RuleError, match="cannot be read"):
        Rules.load(tmp_path / "r.toml")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Map.of([], "a"), "at least one pattern each"),
        (lambda: Map.of("a", []), "at least one pattern each"),
        (lambda: Map.of("a", "*"), "`to`: * has a '*'"),
        (lambda: Map.of(["a_{i}", "b_{j}"], "c", [Join(0)]), "must have the same captures"),
        (lambda: Map.of("a", ["a_{i}", "b"], [Unstack(0)]), "`to`: a_{i} and b must have"),
        (lambda: Map.of("{i...}", "{i}"), "capture i is written with dots on one side only"),
        (lambda: Map.of("a_{i}", "b"), "that needs stack or join"),
        (lambda: Map.of("a", "b_{i}"), "that needs unstack or split"),
        (lambda: Map.of(["a", "b"], "c", [Transpose((0,))]), "2 sources become 1 slots"),
        (lambda: Init.of("a", "nan"), "value 'nan' is not known; write 'zeros'"),
        (lambda: Init.of("a", "rng:x"), "not known"),
        (lambda: Init.of("a", "pkg:"), "not known"),
        (lambda: CastRule.of("a", "f33"), "expected a dtype name"),
    ],
)
def test_a_rule_that_exists_is_well_formed(make, text):
    with pytest.raises(RuleError, match=re.escape(text)):
        make()


@pytest.mark.parametrize("how", ["zeros", "ones", "rng:7", "-1e-3", "inf", "my.pkg:Init.fn", 3])
def test_known_ways_to_initialise(how):
    assert Init.of("a", how).how == str(how)


def test_all_problems_of_one_rule_are_named():
    with pytest.raises(RuleError) as caught:
        Map.of("a_{i}", "b/*")
    assert len(caught.value.problems) == 2


def test_matches():
    assert Ignore.of("a/**").matches(("a", "b"))
    assert not Ignore.of("a/**").matches(("b",))
    for rule in (Init.of("a", 1, item="model"), CastRule.of("a", "int8", item="model")):
        assert rule.matches(SlotRef("model", ("a",)))
        assert not rule.matches(SlotRef("ema", ("a",)))
        assert not is_map(rule)


# --- expansion --------------------------------------------------------------------------------


def test_one_leaf_to_one_slot_by_captures():
    rule = Map.of("params/Conv_{i}/{name}", "convs/{i}/{name}")
    leaves = paths("params/Conv_10/kernel", "params/Conv_2/kernel", "params/Dense_0/kernel")
    assert pairs(expand(rule, leaves, slots("convs/2/kernel", "convs/10/kernel", "x"))) == [
        ("params/Conv_2/kernel", "convs/2/kernel"),
        ("params/Conv_10/kernel", "convs/10/kernel"),
    ]


def test_rests_move_whole_subtrees():
    rule = Map.of("params/old/{rest...}", "new/{rest...}")
    assert pairs(expand(rule, paths("params/old/a/b"), slots("new/a/b"))) == [
        ("params/old/a/b", "new/a/b")
    ]


def test_gathered_captures_come_in_natural_order_within_each_group():
    rule = Map.of("params/block_{i}/{n}", "blocks/{n}", [Stack(0)])
    leaves = paths(*(f"params/block_{i}/{n}" for i in range(12) for n in "kb"))
    found = expand(rule, sorted(leaves), slots("blocks/k", "blocks/b"))
    assert pairs(found) == [
        (" ".join(f"params/block_{i}/{n}" for i in range(12)), f"blocks/{n}") for n in "bk"
    ]


def test_gathered_numbers_may_start_anywhere_and_sit_in_a_name():
    rule = Map.of("{layer}/k", "k", [Stack(0)])
    assert pairs(expand(rule, paths("layer_10/k", "layer_9/k"), slots("k"))) == [
        ("layer_9/k layer_10/k", "k")
    ]


def test_two_gathered_captures_are_a_grid():
    rule = Map.of("b_{i}_{j}", "b", [Stack(0), Reshape((2, 3))])
    leaves = [(f"b_{i}_{j}",) for j in range(3) for i in range(2)]
    assert pairs(expand(rule, leaves, slots("b"))) == [("b_0_0 b_0_1 b_0_2 b_1_0 b_1_1 b_1_2", "b")]
    assert expand(rule, leaves[:-1], slots("b")).problems == (
        "{i}, {j} are gathered: 5 combinations were found, 6 expected, each once",
    )


def test_one_leaf_spreads_over_the_slots_there_are():
    rule = Map.of("params/{n}/layers", "{n}/layers/{i}/w", [Unstack(0)])
    places = slots(*(f"{n}/layers/{i}/w" for n in "ab" for i in (10, 9)), "c/layers/0/w")
    assert pairs(expand(rule, paths("params/a/layers", "params/b/layers"), places)) == [
        ("params/a/layers", "a/layers/9/w a/layers/10/w"),
        ("params/b/layers", "b/layers/9/w b/layers/10/w"),
    ]


def test_lists_keep_their_order_and_share_captures():
    rule = Map.of(
        ["p_{i}/z", "p_{i}/r", "p_{i}/n"], ["g/{i}", "h/{i}"], [Join(0), Split(0, (1, 2))]
    )
    leaves = paths("p_0/n", "p_0/r", "p_0/z")
    assert pairs(expand(rule, leaves, slots("h/0", "g/0"))) == [("p_0/z p_0/r p_0/n", "g/0 h/0")]


def test_a_list_is_the_inner_order_when_layers_are_gathered():
    rule = Map.of(["l_{i}/q", "l_{i}/k"], "qk", [Stack(0), Reshape((2, 2, 3))])
    leaves = paths("l_0/k", "l_0/q", "l_1/k", "l_1/q")
    assert pairs(expand(rule, leaves, slots("qk"))) == [("l_0/q l_0/k l_1/q l_1/k", "qk")]


def test_the_item_tells_slots_of_one_path_apart():
    both = slots("k") + slots("k", item="ema")
    found = expand(Map.of("k", "k"), paths("k"), both)
    assert found.problems == ("slot k is in items 'model', 'ema': say which by `item`",)
    assert expand(Map.of("k", "k", item="ema"), paths("k"), both).bindings[0].slots == (both[1],)
    found = expand(Map.of("k", "k", item="emma"), paths("k"), both)
    assert found.problems == ("there is no slot k in item 'emma'",)


@pytest.mark.parametrize(
    ("rule", "leaves", "places", "text"),
    [
        (
            Map.of("params/Konv_{i}/w", "c/{i}"),
            ["params/Conv_0/w"],
            ["c/0"],
            "params/Konv_{i}/w matches nothing; nearest: params/Conv_0/w",
        ),
        (
            Map.of("params/Conv_{i}/w", "conv/{i}/w"),
            ["params/Conv_0/w"],
            ["convs/0/w"],
            "there is no slot conv/0/w; nearest: convs/0/w",
        ),
        (
            Map.of("params/*/w", "w"),
            ["params/a/w", "params/b/w"],
            ["w"],
            "params/*/w matches 2 paths: params/a/w, params/b/w; name what differs by a capture",
        ),
        (
            Map.of("l_{i}", "l", [Stack(0)]),
            ["l_0", "l_2", "l_3"],
            ["l"],
            "{i} is gathered, and 1 is missing between 0 and 3",
        ),
        (
            Map.of("gate_{g}", "l", [Join(0)]),
            ["gate_i", "gate_f", "gate_o"],
            ["l"],
            "{g} is gathered and its values are not numbers (f, i, o), so their order is not known",
        ),
        (
            Map.of("l_{i}", "l", [Stack(0)]),
            ["l_0", "l_norm"],
            ["l"],
            "not numbers (0, norm)",
        ),
        (
            Map.of("l_{i}", "l", [Stack(0)]),
            ["l_0", "l_00"],
            ["l"],
            "2 combinations were found, 1 expected",
        ),
        (
            Map.of(["q_{i}", "k_{i}"], "qk/{i}", [Join(0)]),
            ["q_0", "k_0", "q_1"],
            ["qk/0", "qk/1"],
            "k_{i} matches nothing for i = 1",
        ),
        (
            Map.of(["q", "q"], "qk", [Join(0)]),
            ["q"],
            ["qk"],
            "source q is used more than once",
        ),
        (
            Map.of("q", ["a", "a"], [Split(0, (1, 1))]),
            ["q"],
            ["a"],
            "slot model:a is used more than once",
        ),
        (
            Map.of("l", "ls/{i}", [Unstack(0)]),
            ["l"],
            ["ls/0", "ls/2"],
            "{i} is spread, and 1 is missing between 0 and 2",
        ),
        (
            Map.of("l", "ls/{i}", [Unstack(0)]),
            ["l"],
            ["lz/0"],
            "ls/{i} matches nothing",
        ),
        (
            Map.of("l", ["ls/{i}/a", "ls/{i}/b"], [Unstack(0)]),
            ["l"],
            ["ls/0/a", "ls/0/b", "ls/1/a"],
            "ls/{i}/b matches nothing for i = 1",
        ),
    ],
)
def test_what_does_not_come_out_even_is_a_problem(rule, leaves, places, text):
    found = expand(rule, paths(*leaves), slots(*places))
    assert any(text in p for p in found.problems), found.problems


def test_all_problems_of_an_expansion_come_at_once_and_the_rest_is_bound():
    rule = Map.of("c_{i}", "c/{i}")
    found = expand(rule, paths("c_0", "c_1", "c_2"), slots("c/1"))
    assert [p.split(";")[0] for p in found.problems] == [
        "there is no slot c/0", "there is no slot c/2",
    ]  # fmt: skip
    assert len(found.bindings) == 1


def test_many_missing_slots_do_not_take_forever():
    rule = Map.of("a_{i}/w", "b/{i}/w")
    leaves = [(f"a_{i}", "w") for i in range(3000)]
    found = expand(rule, leaves, [SlotRef("model", ("c", str(i), "w")) for i in range(3000)])
    assert len(found.problems) == 3000


def test_spreading_over_many_slots_does_not_take_forever():
    rule = Map.of("b_{i}/w", "b/{i}/d/{j}", [Unstack(0)])
    places = [SlotRef("model", ("b", str(i), "d", str(j))) for i in range(300) for j in range(20)]
    found = expand(rule, [(f"b_{i}", "w") for i in range(300)], places)
    assert found.problems == ()
    assert [len(b.slots) for b in found.bindings] == [20] * 300


def test_a_spread_that_could_be_cut_in_several_ways_is_cut_as_the_leaf_says():
    rule = Map.of("w_{i}", "{i}_{j}", [Unstack(0)])
    found = expand(rule, paths("w_a_b"), slots("a_b_0", "a_b_1", "a_c"))
    assert pairs(found) == [("w_a_b", "a_b_0 a_b_1")]


def test_too_ambiguous_a_pattern_is_a_problem_not_a_crash():
    rule = Map.of("{a...}/x/{b...}/{a...}/{c...}/{b...}/{c...}/y", "k", [Stack(0)])
    found = expand(rule, [(*["x"] * 100, "y")], slots("k"))
    assert "too ambiguous" in found.problems[0]


def test_nearest_prefers_equal_components():
    many = [("other", str(i)) for i in range(100)]
    assert nearest(("convs", "0", "kernel"), [*many, ("conv", "0", "kernel")], 1) == (
        ("conv", "0", "kernel"),
    )
    assert nearest(("a",), []) == ()


@given(st.permutations(range(13)), st.booleans())
def test_the_order_of_leaves_and_slots_in_the_file_does_not_matter(order, spread):
    leaves = [(f"l_{i}",) for i in order]
    if spread:
        rule, places = Map.of("x", "l_{i}", [Unstack(0)]), [SlotRef("m", p) for p in leaves]
        found = expand(rule, [("x",)], places).bindings[0].slots
        assert [r.path for r in found] == [(f"l_{i}",) for i in range(13)]
    else:
        found = expand(Map.of("l_{i}", "x", [Stack(0)]), leaves, slots("x"))
        assert found.bindings[0].sources == tuple((f"l_{i}",) for i in range(13))


# --- Orbax ------------------------------------------------------------------------------------


def transform(**fields):
    return SimpleNamespace(
        **{"original_key": None, "use_fallback": False, "value_fn": None, "multi_value_fn": None}
        | fields
    )


def test_orbax_transforms_become_rules():
    rules = from_orbax(
        {r"(.*)/kernel/value": transform(original_key=r"params/\1/kernel", value_fn=np.transpose)}
    ).rules
    assert [r.code for r in rules] == ["orbax-1"]
    assert is_map(rules[0])
    assert rules[0].item is None
    found = expand(rules[0], paths("params/a/b/kernel", "params/c"), slots("a/b/kernel", "c"))
    assert pairs(found) == [("params/a/b/kernel", "a/b/kernel")]
    (op,) = rules[0].transforms
    assert op.apply([np.zeros((2, 3))])[0].shape == (3, 2)


@pytest.mark.parametrize(
    ("regex", "key"),
    [
        (r"a/kernel", "params/a/kernel"),
        (r"a/kernel/value", "params/a/kernel"),
        (r"model/a/kernel", "params/a/kernel"),
        (r"model/a/kernel/value", "params/a/kernel"),
        (r"(.*)/kernel(/value)?", r"params/\1/kernel"),
        (r"(?P<m>\w)/kernel", r"params/\g<m>/kernel"),
        (r"(\w)/(\w+)", ("params", r"\1", r"\2")),
        (r"(\w)/(\w+)", [r"params", r"\1", r"\2"]),
    ],
)
def test_keys_with_and_without_value_and_item(regex, key):
    (rule,) = from_orbax({regex: transform(original_key=key)}).rules
    assert pairs(expand(rule, paths("params/a/kernel"), slots("a/kernel"))) == [
        ("params/a/kernel", "a/kernel")
    ]


def test_without_original_key_the_key_stays_and_nested_dictionaries_join():
    (rule,) = from_orbax({"a": {"b": transform()}}).rules
    assert pairs(expand(rule, paths("a/b"), slots("a/b", "b"))) == [("a/b", "a/b")]


def test_later_entries_win_as_they_do_in_orbax():
    rules = from_orbax(
        {r"(.*)": transform(original_key=r"p/\1"), "b": transform(original_key="p/special")}
    ).rules
    leaves, places = paths("p/a", "p/b", "p/special"), slots("a", "b")
    assert pairs(expand(rules[0], leaves, places)) == [("p/a", "a")]
    assert pairs(expand(rules[1], leaves, places)) == [("p/special", "b")]


@pytest.mark.filterwarnings("ignore")
def test_orbax_itself_agrees():
    ocp = pytest.importorskip("orbax.checkpoint")
    old = {"p": {"Dense_0": {"w": 1, "b": 2}, "Dense_1": {"w": 3, "b": 4}, "s": 5}}
    new = {"l": {"0": {"w": 0, "b": 0}, "1": {"w": 0, "b": 0}}, "p": {"s": 0}}
    transforms = {
        r"l/(\d)/(.*)": ocp.Transform(original_key=r"p/Dense_\1/\2"),
        r"l/1/b": ocp.Transform(original_key="p/Dense_0/b", value_fn=lambda x: x * 10),
        r"p/s": ocp.Transform(),
    }
    theirs = ocp.apply_transformations(old, transforms, new)
    leaves = {("p", "s"): 5} | {
        ("p", f"Dense_{i}", n): old["p"][f"Dense_{i}"][n] for i in range(2) for n in "wb"
    }
    places = slots("l/0/w", "l/0/b", "l/1/w", "l/1/b", "p/s")
    ours = {}
    for rule in from_orbax(transforms).rules:
        for binding in expand(rule, leaves, places).bindings:
            value = (np.asarray(leaves[binding.sources[0]]),)
            for op in rule.transforms:
                value = op.apply(value)
            ours[binding.slots[0].path] = int(value[0])
    assert ours == {
        ("p", "s"): theirs["p"]["s"],
        **{("l", i, n): theirs["l"][i][n] for i in "01" for n in "wb"},
    }


def test_all_useless_entries_are_reported_at_once():
    with pytest.raises(RuleError, match="some entries cannot be used") as caught:
        from_orbax(
            {
                "a": transform(use_fallback=True),
                "b": transform(multi_value_fn=lambda k, t: t[k]),
                "c": transform(value_fn=lambda x, args: (x, args), multi_value_fn_input_args=None),
                "d": transform(value_fn=3),
                "e": transform(original_key=3),
                "f(": transform(),
                "g(.*)": transform(original_key=r"\2"),
                "h(.*)": transform(original_key=r"\g<x>"),
                "i": "renamed",
            }
        )
    for text, problem in zip(
        [
            "use_fallback has no value to fall back on here; write an [[init]] rule",
            "multi_value_fn does not say which leaves it reads; write [[map]]",
            "value_fn of a RestoreTransform takes RestoreArgs",
            "value_fn is no function but 3",
            "original_key must be a string or a tuple",
            "not a regex",
            "there is no group 2",
            "there is no group 'x'",
            "expected an ocp.Transform, got 'renamed'",
        ],
        caught.value.problems,
        strict=True,
    ):
        assert text in problem
    with pytest.raises(RuleError, match=r"expected \{regex: ocp\.Transform"):
        from_orbax([("a", "b")])


@pytest.mark.parametrize(
    ("entries", "leaves", "places", "text"),
    [
        ({"kernl": transform()}, ["kernel"], ["kernel"], "regex 'kernl' matches no slot"),
        ({"a": transform(original_key="b")}, ["bb"], ["a"], "wants 'b', and there is no such leaf"),
        ({"a": transform(), ".*": transform()}, ["a"], ["a"], "later regexes take all"),
        (
            {"a(/value)?": transform()},
            ["a", "a/value"],
            ["a"],
            "slot model:a may come from a, a/value",
        ),
        (
            {"[ab]": transform(original_key="p")},
            ["p"],
            ["a", "b"],
            "source p is used more than once by this rule; write an entry for each slot",
        ),
        ({"a/b": transform()}, ['"a/b"', "a/b"], ["a/b"], 'may come from "a/b", a/b'),
    ],
)
def test_orbax_entries_that_do_not_come_out_are_problems(entries, leaves, places, text):
    rule = from_orbax(entries).rules[0]
    assert any(text in p for p in expand(rule, paths(*leaves), slots(*places)).problems)


def test_regex_rules_stay_in_memory():
    rules = from_orbax({"a": transform(value_fn=lambda x: x)})
    with pytest.raises(RuleError, match="rule orbax-1: Orbax transforms are no TOML"):
        rules.to_toml()
    with pytest.raises(TransformError, match="only functions that can be imported"):
        Rules.of([Map.of("a", "b", [Function.of(lambda x: x)])]).to_toml()
    with pytest.raises(RuleError, match="not a regex"):
        RegexMap("x", "(")
    assert RegexMap("x", "a", item="ema").expand([("a",)], slots("a")).problems == (
        "regex 'a' matches no slot",
    )


def test_rules_and_transforms_load_no_jax():
    code = (
        "import sys, bridge.rules, bridge.orbax_transforms, bridge.transforms, bridge.patterns\n"
        "bad = {'jax', 'flax', 'orbax', 'optax'} & {m.split('.')[0] for m in sys.modules}\n"
        "sys.exit(', '.join(bad) or 0)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_rule_looks_only_at_paths_that_its_texts_leave_open():
    every = Paths((f"block_{i}", "Dense_0", leaf) for i in range(100) for leaf in ("k", "b"))
    for text, few in {
        "block_7/Dense_0/k": 1,
        "block_7/{x...}": 2,
        "{i}/Dense_0/k": 100,
        "**/Dense_0/b": 100,
        "block_{i}/Dense_0/{leaf}": 200,
        "block_7/other/k": 0,
    }.items():
        pattern = Pattern.parse(text)
        near = every.near(pattern)
        assert len(near) == few, text
        matched = [p for p in every if pattern.match(p) is not None]
        assert [p for _, p, _ in near if pattern.match(p) is not None] == matched
