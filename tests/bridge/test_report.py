"""Reports say everything, in 80 columns, with repeated blocks folded and no path cut."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge import report, report_outcome
from bridge._fold import fold, fold_paths
from bridge._json import dumps
from bridge._leaf_words import group_reasons
from bridge._plan import Ignored, Initialised, Plan, Problem, Step
from bridge._stats import find_leaves, look, statistics
from bridge._text import columns, grid, printable, size, wrap_path
from bridge._verdict import Difference, Verdict
from bridge.errors import BridgeError
from bridge.report_inspect import losses, unreadable_count
from bridge.report_leaf import look_json, look_text, looks_text
from bridge.roles import find_roles
from bridge.target import Slot, SlotRef, Target
from legacy import (
    Checkpoint,
    DamagedCheckpoint,
    Format,
    Leaf,
    LeafTable,
    Run,
    Skipped,
    StepEntry,
    format_path,
)
from legacy.leaves import unreadable

F4 = np.dtype("float32")


def array(path, shape=(2, 3), **options):
    nbytes = 4 * int(np.prod(shape))
    return Leaf(tuple(path.split("/")), "array", shape, F4, nbytes, **options)


def slot(path, item="model"):
    parts = tuple(path.split("/"))
    return Slot(item, parts, (*parts, "value"), "Param", "params", (2, 3), "float32")


def copy(source, target, why="path", item="model"):
    return Step((tuple(source.split("/")),), (SlotRef(item, tuple(target.split("/"))),), (), why)


def plan(steps=(), **options):
    slots = tuple(
        Slot(r.item, r.path, (*r.path, "value"), "Param", "", (2,), "float32")
        for s in steps
        for r in s.slots
    )
    parts = {"ignored": (), "initialised": (), "problems": (), **options}
    return Plan(steps=tuple(steps), target=Target(slots), signature="s", **parts)


def test_repeated_layers_are_one_row():
    made = plan([copy(f"params/layers_{n}/kernel", f"layers/{n}/kernel") for n in range(12)])
    text = report.plan_text(made)
    assert text.startswith("12 leaves: 12 mapped (12 path), 0 ignored; 12 slots: 12 filled")
    assert "params/layers_{0…11}/kernel → model:layers/{0…11}/kernel  path ×12" in text


def test_a_gap_or_another_reason_breaks_a_fold():
    steps = [copy(f"l_{n}/w", f"l/{n}/w", "order" if n == 2 else "path") for n in range(6)]
    text = report.plan_text(plan(steps))
    assert "l_{3…5}/w" in text
    assert "l_2/w" in text
    assert "order" in text


def test_copies_of_the_params_are_one_row_each():
    names = ("a/kernel", "a/bias", "b/kernel", "b/bias")
    steps = [copy(f"params/{n}", f"net/{n}") for n in names]
    steps += [
        copy(f"opt_state/0/mu/{n}", f"opt_state/mu/net/{n}", "rule:moments", "optimizer")
        for n in names
    ]
    text = report.plan_text(plan(steps))
    assert "opt_state/0/mu/…" in text
    assert "optimizer:opt_state/mu/…" in text
    assert "as params ×4; rule:moments" in text


def test_a_copy_that_is_mapped_otherwise_is_not_hidden_in_a_row():
    names = ("a/kernel", "a/bias", "b/kernel", "b/bias")
    steps = [copy(f"params/{n}", n) for n in names]
    swapped = ("b/kernel", "a/bias", "a/kernel", "b/bias")
    steps += [
        copy(f"ema/{n}", f"ema/{t}", item="extras") for n, t in zip(names, swapped, strict=True)
    ]
    text = report.plan_text(plan(steps))
    assert "ema/a/kernel" in text
    assert "extras:ema/b/kernel" in text


def test_a_plan_shows_what_is_not_mapped_and_every_problem():
    made = plan(
        [copy("params/w", "w")],
        ignored=(Ignored(("opt", "count"), "ignore:old-count"),),
        initialised=(Initialised(SlotRef("model", ("rngs", "count")), "init:rng", "rng:0"),),
        problems=(
            Problem(
                "shape",
                "params/k is (3, 2), the slot wants (2, 3)",
                sources=(("params", "k"),),
                candidates=("model:k (transposed)",),
                rule='[[map]]\nsource = "params/k"',
            ),
            Problem("unfilled-slot", "nothing feeds model:b"),
        ),
        warnings=("epsilon differs",),
    )
    text = report.plan_text(made)
    for part in (
        "3 leaves: 1 mapped (1 path), 1 ignored, 1 open; 1 slot: 1 filled, 1 initialised",
        "opt/count  ignore:old-count",
        "model:rngs/count  rng:0; init:rng",
        "warning: epsilon differs",
        "problems: 2",
        "1. shape: params/k is (3, 2), the slot wants (2, 3)",
        "candidate: model:k (transposed)",
        '    source = "params/k"',
        "2. unfilled-slot: nothing feeds model:b",
    ):
        assert part in text
    assert str(made) == text
    assert report.plan_json(made)["ok"] is False


def test_a_step_with_many_slots_folds_them():
    refs = tuple(SlotRef("model", ("layers", str(n), "w")) for n in range(4))
    made = plan([Step((("params", "layers", "w"),), refs)])
    assert "model:layers/{0…3}/w ×4" in report.plan_text(made)


def test_long_paths_are_wrapped_and_never_cut():
    long = "/".join(f"a_rather_long_module_name_{n}" for n in range(9))
    text = report.plan_text(plan([copy(f"params/{long}", long)]))
    assert max(map(len, text.splitlines())) <= 80
    assert f"params/{long}" in "".join(line.strip() for line in text.splitlines())


names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=6)
paths = st.lists(
    st.lists(st.one_of(names, st.integers(0, 30).map(lambda n: f"l_{n}")), min_size=1, max_size=3)
    .map(tuple),
    max_size=20,
    unique=True,
)  # fmt: skip


@given(paths)
def test_folding_loses_no_row(rows):
    families = fold([((p,), None, p) for p in rows])
    assert sorted(p for f in families for p in f.rows) == sorted(rows)
    for family in families:
        if len(family.rows) == 1:
            assert family.paths == (format_path(family.rows[0]),)


def test_numbers_with_leading_zeros_are_not_folded():
    assert fold_paths([("l_01",), ("l_02",), ("l_03",)]) == ["l_01", "l_02", "l_03"]


def test_the_tree_folds_equal_blocks_only():
    leaves = [array(f"params/block_{n}/w") for n in range(12)]
    leaves += [array("params/block_12/w", (5,)), array("params/head/w")]
    text = "\n".join(report.tree_lines(LeafTable(leaves)))
    assert "block_0 … block_11/ ×12" in text
    assert "block_12/" in text
    assert "float32 (5,)" in text
    assert max(map(len, text.splitlines())) <= 80


def test_deep_trees_keep_every_name():
    long = "/".join(f"a_rather_long_module_name_{n}" for n in range(9))
    lines = report.tree_lines(LeafTable([array(f"{long}/kernel_of_the_layer", (1, 2, 3, 4, 5))]))
    assert max(map(len, lines)) <= 80
    for n in range(9):
        assert any(f"a_rather_long_module_name_{n}" in line for line in lines)
    assert any("float32 (1, 2, 3, 4, 5)" in line for line in lines)


def test_a_checkpoint_is_told_with_its_notes_and_what_was_skipped():
    table = LeafTable(
        [
            array("params/Dense_0/kernel", notes=("its sharding is gone",)),
            array("params/Dense_0/bias", (3,)),
            Leaf(("step",), "number", nbytes=8),
        ]
    )
    opened = Checkpoint(
        Path("runs/checkpoint_5"),
        Format("flax-msgpack", "msgpack", "flax 0.3.0 or newer", ("dtypes are names",)),
        5,
        {"default": table, "metrics": LeafTable([], json_file=Path("metrics"))},
        skipped=(Skipped(Path("runs/checkpoint_tmp"), "temporary"),),
    )
    text = report.checkpoint_text(opened, find_roles(table))
    for part in (
        "flax 0.3.0 or newer",
        "- dtypes are names",
        "step      5",
        "default: 3 leaves",
        "metrics: JSON, 0 values",
        "params",
        "float32 (2, 3)",
        "- its sharding is gone",
        "checkpoint_tmp: temporary",
    ):
        assert part in text
    data = json.loads(json.dumps(report.checkpoint_json(opened, find_roles(table))))
    assert len(data["items"]["default"]["leaves"]) == 3


def test_a_run_is_one_line_with_its_steps():
    steps = tuple(StepEntry(n, Path(f"r/{n}")) for n in range(0, 2000, 100))
    text = report.run_text(Run(Path("r"), "orbax-manager", steps, (Skipped(Path("r/x"), "tmp"),)))
    assert "20 steps: 0, 100, 200, … 1800, 1900" in text
    assert "skipped x: tmp" in text


def test_a_verdict_names_its_rung_and_all_differences():
    good = Verdict("full", "d", slots=3, compared=3, nbytes=2048, seconds=1)
    assert report_outcome.verdict_text(good) == (
        "verified to rung d (restored by Orbax): 3 of 3 values compared bit for bit, 2.0\n"
        "  KiB, 1.0 s"
    )
    bad = Verdict("full", "", (Difference("a", "x is missing"), Difference("c", "y differs")))
    text = report_outcome.verdict_text(bad)
    assert "NOT VERIFIED: 2 differences; no rung holds" in text
    assert "(a) x is missing" in text
    assert "(c) y differs" in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_text_keeps_to_the_width(width):
    made = plan([copy(f"params/Dense_{n}/kernel", f"dense{n}/kernel") for n in range(3, 30, 5)])
    assert max(map(len, report.plan_text(made, width).splitlines())) <= width


@given(st.text("ab/", min_size=1, max_size=60), st.integers(20, 40))
def test_a_wrapped_path_reads_back(path, width):
    lines = wrap_path(path, width, "> ", "  ")
    assert "".join(line[2:] for line in lines) == path


def test_sizes_are_for_people():
    assert [size(n) for n in (0, 1023, 1024, 1 << 20, 1 << 50)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.0 MiB",
        "1024.0 TiB",
    ]


def strict(text):
    """What a parser that knows no ``NaN`` makes of it."""

    def refuse(name):
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


def opened(*leaves, **options):
    parts = {"skipped": (), "metadata": {}, **options}
    return Checkpoint(
        Path("runs/checkpoint_5"),
        Format("orbax", "ocdbt", "orbax 0.12 or newer", ("_METADATA",)),
        5,
        {"default": LeafTable(leaves)},
        **parts,
    )


def stored(path, value):
    parts = tuple(path.split("/"))
    kind = "array" if isinstance(value, np.ndarray) else "scalar"
    return Leaf(
        parts,
        kind,
        value.shape,
        value.dtype,
        value.nbytes,
        lambda index: value if index is None else value[index],
    )


def lost(path, why="the folder {} is missing"):
    return unreadable(tuple(path.split("/")), DamagedCheckpoint(why.format(path.replace("/", "."))))


def test_a_tree_takes_no_more_room_than_it_needs():
    lines = report.tree_lines(LeafTable([array("a"), array("key")]), 200)
    assert max(map(len, lines)) < 40
    assert len(lines) == 3


def test_blocks_are_folded_over_gaps_and_say_the_size_of_one():
    leaves = [array(f"block_{n}/w", (5,) if n in (3, 7) else (2, 3)) for n in range(12)]
    text = "\n".join(report.tree_lines(LeafTable(leaves)))
    assert "block_0 … block_2, block_4 … block_6, block_8 … block_11/ ×10" in text
    assert "each 24 B" in text
    assert "block_3, block_7/" not in text


def test_blocks_of_unequal_containers_are_not_folded():
    from legacy.leaves import Node

    leaves = [array(f"block_{n}/0") for n in range(3)]
    text = "\n".join(report.tree_lines(LeafTable(leaves, {("block_1",): Node("list")})))
    assert "block_1/ list" in text
    assert "×3" not in text


@given(paths)
def test_every_name_of_a_small_tree_is_drawn(rows):
    names = [(f"x{n}", *row) for n, row in enumerate(rows)]
    text = "\n".join(report.tree_lines(LeafTable([Leaf(p, "none", nbytes=n) for n, p in
                                                   enumerate(names)]), 400))  # fmt: skip
    for part in {part for row in rows for part in row if not part.startswith("l_")}:
        assert format_path((part,)) in text


def test_an_empty_checkpoint_says_so():
    text = report.checkpoint_text(opened(), find_roles(LeafTable([])))
    assert "tree: empty, there are no leaves" in text
    assert strict(dumps(report.checkpoint_json(opened(), None)))["leaves"] == 0


def test_a_reason_that_many_leaves_share_is_one_line():
    leaves = [lost(f"layers_{n}/kernel") for n in range(1000)]
    leaves += [lost("head/kernel", "its chunk is broken"), array("head/bias")]
    checkpoint = opened(*leaves)
    problems, _ = losses(checkpoint)
    assert [len(reason.paths) for reason in problems] == [1000, 1]
    text = report.checkpoint_text(checkpoint, find_roles(checkpoint.leaves))
    first = "1,001 of 1,002 leaves cannot be read: the folder layers_0.kernel is missing"
    assert first in " ".join(text.split())
    assert "layers_{0…999}/kernel ×1000" in text
    assert "its chunk is broken" in text
    assert len(text.splitlines()) < 45
    data = report.checkpoint_json(checkpoint, None)
    assert data["unreadable"] == unreadable_count(checkpoint) == 1001
    listed = [leaf["problem"] for leaf in data["items"]["default"]["leaves"]]
    assert listed.count("its chunk is broken") == listed.count(None) == 1


def test_reasons_of_a_leaf_with_a_short_name_keep_their_words():
    (reason,) = group_reasons([(("a",), "a value that was lost")])
    assert reason.text == "a value that was lost"
    reasons = group_reasons([(("a",), "a value, a"), (("b",), "b value, b"), (("c",), "other")])
    assert [len(r.paths) for r in reasons] == [2, 1]


def test_many_notes_are_counted_and_not_all_listed():
    leaves = [array(f"m{n}x{n * n}", notes=("lost",)) for n in range(0, 300, 7)]
    text = report.checkpoint_text(opened(*leaves), None)
    assert "notes     on 43 leaves, below the tree" in text
    assert "more lines like these (--json has all)" in text


def test_json_of_a_checkpoint_has_everything_and_is_strict():
    table = LeafTable([array("params/w", chunks=(1, 3), notes=("n",)), lost("x")])
    checkpoint = opened(*table.values(), metadata={"loss": float("nan"), "top": float("inf")})
    data = strict(dumps(report.checkpoint_json(checkpoint, find_roles(table))))
    leaf = data["items"]["default"]["leaves"][0]
    assert leaf == {
        "path": ["params", "w"],
        "kind": "array",
        "shape": [2, 3],
        "dtype": "float32",
        "nbytes": 24,
        "role": "params",
        "storage": None,
        "chunks": [1, 3],
        "container": None,
        "key_impl": None,
        "notes": ["n"],
        "problem": None,
    }
    assert data["metadata"] == {"loss": "NaN", "top": "Infinity"}
    assert data["totals"]["params"] == {"leaves": 1, "nbytes": 24}
    assert (data["leaves"], data["nbytes"], data["unreadable"]) == (2, 24, 1)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False,
                                                                      allow_infinity=False),
    lambda inside: st.lists(inside) | st.dictionaries(st.text(), inside),
)  # fmt: skip


@given(json_values)
def test_json_documents_read_back(value):
    assert strict(dumps(value)) == value


def test_nothing_in_a_name_steers_the_terminal():
    for name in ("\x1b[2J", "a\x9b31m", "\u202eabc", "\udc80", "\x07"):
        assert printable(name).isprintable()
        assert printable(name) != name
    assert printable("核 é …\n") == "核 é …\n"


def test_columns_are_those_of_a_terminal():
    lines = grid([("核核", "1"), ("abcd", "22")], right=(1,))
    assert [columns(line) for line in lines] == [8, 8]
    assert columns("e\N{COMBINING ACUTE ACCENT}") == 1


@pytest.mark.parametrize(
    ("dtype", "values", "low", "high"),
    [
        ("float32", [1, 2, 4], 1.0, 4.0),
        ("bfloat16", [1, 2, 4], 1.0, 4.0),
        ("float8_e4m3fn", [1, 2, 4], 1.0, 4.0),
        ("int4", [-8, 0, 7], -8, 7),
        ("uint64", [0, 2**64 - 1], 0, 2**64 - 1),
        ("int64", [2**53, 2**53 + 1], 2**53, 2**53 + 1),
        ("bool", [True, False, True], False, True),
    ],
)
def test_statistics_are_exact_in_every_dtype(dtype, values, low, high):
    import ml_dtypes

    kind = getattr(ml_dtypes, dtype, None) or dtype
    found = statistics(stored("a", np.array(values, kind)))
    assert (found.minimum, found.maximum) == (low, high)
    assert (found.size, found.finite) == (len(values), len(values))
    assert found.zeros == values.count(0)
    assert np.isclose(found.norm, np.linalg.norm(np.array(values, float)))
    assert sum(found.histogram) in (0, len(values))  # two integers may be one double
    assert found.histogram or dtype == "int64"


def test_statistics_tell_nan_from_infinite_and_survive_large_numbers():
    found = statistics(stored("a", np.array([np.nan, np.inf, -np.inf, 0.0, 1e308, -1e308])))
    assert (found.nans, found.infinite, found.zeros, found.finite) == (1, 2, 1, 3)
    assert found.norm is None
    strict(dumps(dict(found.to_json())))
    empty = statistics(stored("a", np.zeros((0, 3), np.float32)))
    assert (empty.size, empty.minimum, empty.norm, empty.first) == (0, None, None, ())
    complexes = statistics(stored("a", np.array([3 + 4j, 0])))
    assert (complexes.norm, complexes.zeros, complexes.minimum) == (5.0, 1, None)


def test_statistics_of_blocks_are_those_of_the_whole(monkeypatch):
    value = np.random.default_rng(0).normal(3, 2, (1, 40, 7)).astype(np.float32)
    whole = statistics(stored("a", value))
    monkeypatch.setattr("bridge._stats.BLOCK", 100)
    parts = statistics(stored("a", value))
    assert parts.histogram == ()
    assert (parts.minimum, parts.maximum, parts.first) == (
        whole.minimum,
        whole.maximum,
        whole.first,
    )
    assert np.allclose([parts.mean, parts.std, parts.norm], [whole.mean, whole.std, whole.norm])


@pytest.mark.parametrize(
    ("leaf", "said"),
    [
        (Leaf(("a",), "str", reader=lambda _: "x" * 300), "x" * 300),
        (Leaf(("a",), "bytes", reader=lambda _: b"\0\1"), "value b'\\x00\\x01'"),
        (Leaf(("a",), "none"), "value none"),
        (Leaf(("a",), "empty", container="dict"), "value empty"),
        (Leaf(("a",), "number", reader=lambda _: float("nan")), "value nan"),
        (Leaf(("a",), "number", reader=lambda _: 2**70), f"value {2**70}"),
        (lost("a"), "cannot be read: leaf a cannot be read: the folder a is missing"),
    ],
)
def test_a_look_at_a_leaf_of_each_kind(leaf, said):
    seen = look(leaf.path, leaf)
    assert said in look_text(seen, 400)
    strict(dumps(look_json(seen)))
    assert looks_text([seen]).startswith("leaf")


def test_a_leaf_is_found_by_what_is_printed_and_by_what_a_shell_leaves_of_it():
    checkpoint = opened(array("params/Dense_0/kernel"), array("params/Dense_0/bias"),
                        Leaf(("a/b",), "none"))  # fmt: skip
    one = ("params", "Dense_0", "kernel")
    for text in ("params/Dense_0/kernel", "default/params/Dense_0/kernel"):
        (found,) = find_leaves(checkpoint, text).values()
        assert found.path == one
    assert list(find_leaves(checkpoint, "a/b")) == [("a/b",)]
    assert len(find_leaves(checkpoint, "params/")) == 2
    assert len(find_leaves(checkpoint, "/")) == 3


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("params/Dense_0/kernl", "near it: params/Dense_0/kernel"),
        ("parms/Dense_0/kernel", "near it: params/Dense_0/kernel"),
        ("Dense_0/kernel", "near it: params/Dense_0/kernel"),
        ("params/Dense_0/kernel/w", "near it: params/Dense_0/kernel"),
        ("xyz", "`linen2nnx inspect` lists them"),
    ],
)
def test_a_misspelt_leaf_is_answered_with_the_nearest(text, near):
    with pytest.raises(BridgeError, match="has no leaf") as raised:
        find_leaves(opened(array("params/Dense_0/kernel")), text)
    assert near in str(raised.value)


def test_folding_of_many_paths_that_do_not_run_on_costs_little():
    rows = [(f"l_{n * 7}", "w") for n in range(20_000)]
    assert len(fold([((p,), None, p) for p in rows])) == 20_000
