"""Patterns: what they match, what they fill in, and that no pattern takes forever."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import RuleError
from bridge.patterns import Pattern
from legacy.leaves import format_path, parse_path

COMPONENTS = st.text(min_size=0, max_size=6)
PATHS = st.lists(COMPONENTS, max_size=5).map(tuple)


def match(pattern, path):
    found = Pattern.parse(pattern).match(parse_path(path))
    return None if found is None else dict(found)


@pytest.mark.parametrize(
    ("pattern", "path", "captures"),
    [
        ("params/Dense_0/kernel", "params/Dense_0/kernel", {}),
        ("params/Dense_0/kernel", "params/Dense_0/bias", None),
        ("params/Dense_0", "params/Dense_0/kernel", None),
        ("params/Dense_0/kernel", "params/Dense_0", None),
        ("params/Dense_{i}/kernel", "params/Dense_12/kernel", {"i": "12"}),
        ("params/Dense_{i}/kernel", "params/Dense_/kernel", None),
        ("params/Dense_{i}/kernel", "params/Dense_out/kernel", {"i": "out"}),
        ("params/Dense_{i:int}/kernel", "params/Dense_out/kernel", None),
        ("params/Dense_{i:int}/kernel", "params/Dense_07/kernel", {"i": "07"}),
        ("params/Dense_{i:int}/kernel", "params/Dense_²/kernel", None),
        ("{a}/{b}", "x/y", {"a": "x", "b": "y"}),
        ("{a}/{a}", "x/y", None),
        ("{a}/{a}", "x/x", {"a": "x"}),
        ("{a}_{b}", "x_1_2", {"a": "x", "b": "1_2"}),
        ("{a}_{b:int}", "x_1_2", {"a": "x_1", "b": "2"}),
        ("{a}-{a}", "1-1-1", None),
        ("{a}-{a}", "1-2-1-2", {"a": "1-2"}),
        ("{a:int}/{a}", "x/x", None),
        ("*/kernel", "a/kernel", {}),
        ("*/kernel", "a/b/kernel", None),
        ("**/kernel", "a/b/kernel", {}),
        ("**/kernel", "kernel", {}),
        ("**", "/", {}),
        ("*", '""', {}),
        ("{a}", '""', None),
        ("D*_{i}", "Dense_0", {"i": "0"}),
        ("{w...}/kernel", "a/b/kernel", {"w": ("a", "b")}),
        ("{w...}/kernel", "kernel", {"w": ()}),
        ("{w...}/k/{w...}", "a/b/k/a/b", {"w": ("a", "b")}),
        ("{w...}/k/{w...}", "a/b/k/b/a", None),
        ("{a...}/{b...}", "x/y", {"a": (), "b": ("x", "y")}),
        ('params/"{i}"', 'params/"{i}"', {}),
        ('params/"{i}"', "params/3", None),
        ('"a/b"/{i}', '"a/b"/3', {"i": "3"}),
        ("/", "/", {}),
        ("/", "a", None),
    ],
)
def test_what_a_pattern_matches(pattern, path, captures):
    assert match(pattern, path) == captures


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a component at character 0"),
        ("a//b", "expected a component at character 2"),
        ("a/", "expected a component at character 2"),
        ('"a"b', "expected a slash at character 3"),
        ('"a', "expected a component at character 0"),
        (r'"\x"/a', r"is no JSON string"),
        ("a{b", "'a{b' is no capture"),
        ("{}", "is no capture"),
        ("{1}", "is no capture"),
        ("{a:float}", "is no capture"),
        ("x{a...}", "is no capture"),
        ("{a}{b}", "no text between {a} and {b}"),
        ("{a}*", "no text between {a} and *"),
        ("a**", "no text between * and *"),
        ("{a}/{a...}", "a is written with and without dots"),
        (["a/b"], "'a/b' is more than one component; quote it"),
        ([3], "3 is not a string"),
    ],
)
def test_what_is_no_pattern(text, message):
    with pytest.raises(RuleError, match=re.escape(message)):
        Pattern.parse(text)


def test_a_list_of_components_is_the_same_pattern():
    assert Pattern.parse(["a", '"b/c"', "d_{i}"]) == Pattern.parse('a/"b/c"/d_{i}')


@pytest.mark.parametrize(
    "text", ["/", "a/b", "a/{b}_{c:int}/*", "**/{x...}", '"a/b"/"{i}"/x', '"a b"', "Dense_{i}x*"]
)
def test_a_pattern_is_printed_as_it_is_read(text):
    assert str(Pattern.parse(text)) == text
    assert Pattern.parse(str(Pattern.parse(text))) == Pattern.parse(text)


def test_captures_are_named_in_order_of_first_use():
    pattern = Pattern.parse("{b}/{a...}/{b}_{c}/*")
    assert pattern.captures == ("b", "a", "c")
    assert pattern.rests == {"a"}
    assert pattern.wild
    assert not Pattern.parse("{a}").wild


def test_fill():
    pattern = Pattern.parse("x/{w...}/c_{i}_{i}")
    assert pattern.fill({"w": ("a", "b"), "i": "3"}) == ("x", "a", "b", "c_3_3")
    assert pattern.fill({"w": "a", "i": "3", "more": "4"}) == ("x", "a", "c_3_3")
    assert Pattern.parse("x/{a}").fill({"a": "b/c"}) == ("x", "b/c")
    assert str(pattern.bind({"i": "3"})) == "x/{w...}/c_3_3"


@pytest.mark.parametrize(
    ("text", "captures", "message"),
    [
        ("x/{a}", {}, "nothing is known for a; known are: no captures"),
        ("x/{a}/{b...}", {"c": ""}, "nothing is known for a, b; known are: c"),
        ("x/*", {}, "'*' says nothing about where to go"),
        ("x/**", {}, "'*' says nothing"),
        ("x_{a}", {"a": ("b", "c")}, "a stands for the components 'b/c'; write {a...}"),
    ],
)
def test_fill_refuses_what_it_does_not_know(text, captures, message):
    with pytest.raises(RuleError, match=re.escape(message)):
        Pattern.parse(text).fill(captures)


@given(PATHS)
def test_a_literal_pattern_matches_its_path_alone(path):
    pattern = Pattern.literal(path)
    assert pattern.match(path) == {}
    assert pattern.fill({}) == path
    assert pattern.match((*path, "x")) is None
    again = Pattern.parse(format_path(path))
    assert again == pattern
    assert str(again) == format_path(path)


@given(
    st.text("abc_/.", min_size=1, max_size=5),
    st.integers(0, 10**6),
    st.lists(st.text(max_size=5), max_size=3),
)
def test_match_undoes_fill(name, i, rest):
    captures = {"name": name, "i": str(i), "rest": tuple(rest)}
    for text in ("params/{name}/{rest...}/Conv_{i}", "{rest...}/{i:int}-{name}/x", "{i}/{name}"):
        pattern = Pattern.parse(text)
        known = {k: v for k, v in captures.items() if k in pattern.captures}
        assert pattern.match(pattern.fill(captures)) == known


@given(PATHS, st.sampled_from(["**/{a}/**", "{a}x*/{b...}", "{a...}/{b}_{c}/**", "{a}/{b}/{c...}"]))
def test_what_a_match_says_fits_the_path(path, text):
    pattern = Pattern.parse(text)
    found = pattern.match(path)
    if found is not None:
        assert set(found) == set(pattern.captures)
        assert pattern.bind(found).match(path) == {}


@pytest.mark.parametrize(
    "text",
    [
        "/".join(["**", "a"] * 8) + "/b",
        "*a" * 12 + "b",
        "/".join(f"{{w{i}...}}" for i in range(12)) + "/b",
        "/".join(f"{{a{i}}}-{{b{i}}}x" for i in range(8)),
    ],
)
def test_matching_is_never_exponential(text):
    pattern = Pattern.parse(text)
    start = time.perf_counter()
    assert pattern.match(("a",) * 60) is None
    assert pattern.match(("a" * 200,)) is None
    assert pattern.match(("a-a",) * 30) is None
    assert time.perf_counter() - start < 10


def test_names_that_occur_too_often_end_in_an_error():
    text = "{a...}/x/{b...}/{a...}/{c...}/{b...}/{c...}"
    with pytest.raises(RuleError, match="too ambiguous for x/x/x"):
        Pattern.parse(text + "/y").match(("x",) * 100)


def test_a_very_deep_path_is_matched():
    path = ("a",) * 5000
    assert Pattern.literal(path).match(path) == {}
    assert Pattern.parse("**/b").match(path) is None
