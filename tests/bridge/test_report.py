"""Reports say everything, in 80 columns, with repeated blocks folded and no path cut."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge import report
from bridge._fold import fold, fold_paths
from bridge._plan import Ignored, Initialised, Plan, Problem, Step
from bridge._text import size, wrap_path
from bridge._verdict import Difference, Verdict
from bridge.roles import find_roles
from bridge.target import Slot, SlotRef, Target
from legacy import Checkpoint, Format, Leaf, LeafTable, Run, Skipped, StepEntry, format_path

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
    assert report.verdict_text(good) == (
        "verified to rung d (restored by Orbax): 3 of 3 values compared bit for bit, 2.0\n"
        "  KiB, 1.0 s"
    )
    bad = Verdict("full", "", (Difference("a", "x is missing"), Difference("c", "y differs")))
    text = report.verdict_text(bad)
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
