"""Two checkpoints of any format are compared leaf by leaf, and nothing else is said."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import bridge
from bridge._bits import blocks, measure, same_value
from bridge.report_diff import diff_text
from legacy import Checkpoint, DamagedCheckpoint, Format, Leaf, LeafTable
from legacy.leaves import unreadable

GOLDENS = Path(__file__).parents[1] / "goldens"


def leaf(path, value):
    parts = tuple(path.split("/"))
    if not isinstance(value, np.ndarray):
        kind = "none" if value is None else {int: "number", float: "number"}.get(type(value), "str")
        return Leaf(parts, kind, reader=lambda _: value)
    return Leaf(
        parts,
        "array",
        value.shape,
        value.dtype,
        value.nbytes,
        lambda index: value if index is None else value[index],
    )


def checkpoint(**values):
    table = LeafTable([leaf(path.replace("__", "/"), v) for path, v in values.items()])
    return Checkpoint(
        Path("mem"), Format("flax-msgpack", "msgpack", "now"), None, {"default": table}
    )


def lost(path, why="gone"):
    return unreadable(tuple(path.split("/")), DamagedCheckpoint(why))


def of(*leaves):
    return Checkpoint(Path("mem"), Format("orbax", "ocdbt", "now"), None, {"": LeafTable(leaves)})


def f4(*values):
    return np.array(values, np.float32)


def test_a_checkpoint_is_the_same_as_itself():
    found = bridge.diff(
        GOLDENS / "latest" / "cnn_state-ptc_zarr3", GOLDENS / "latest" / "cnn_state-ptc_zarr3"
    )
    assert found.same
    assert found.equal > 50
    assert "same:" in str(found)


def test_one_training_state_in_two_formats_has_equal_arrays():
    found = bridge.diff(
        GOLDENS / "latest" / "cnn_state-flax_msgpack",
        GOLDENS / "latest" / "cnn_state-mgr_args" / "mgr",
    )
    assert not [c for c in found.changed if "value" in c.what or "shape" in c.what]


def test_leaves_of_one_side_are_listed():
    found = bridge.diff(checkpoint(a=f4(1), b=f4(1)), checkpoint(b=f4(1), c=f4(1)))
    assert (found.only_a, found.only_b) == ((("", ("a",)),), (("", ("c",)),))
    assert (found.equal, found.same) == (1, False)


@pytest.mark.parametrize(
    ("a", "b", "what"),
    [
        (f4(1, 2), f4(1, 2, 3), ("shape",)),
        (f4(1, 2), np.array([1, 2], np.float64), ("dtype",)),
        (f4(1, 2), np.array([1, 3], np.float64), ("dtype", "value")),
        (np.array(3), 3, ("kind",)),
        (np.array(3), 4, ("kind", "value")),
        ("x", "y", ("value",)),
        (None, "y", ("kind", "value")),
        (f4(0.0), f4(-0.0), ("value",)),
        (f4(np.nan), f4(np.nan), None),
    ],
)
def test_each_kind_of_difference_is_named(a, b, what):
    found = bridge.diff(checkpoint(x=a), checkpoint(x=b))
    assert (found.changed[0].what if found.changed else None) == what


def test_structure_comes_before_large_differences_before_small_ones():
    found = bridge.diff(
        checkpoint(a=f4(1), b=f4(1), c=f4(1), d=f4(1)),
        checkpoint(a=f4(1.5), b=f4(9), c=f4(1, 2), d=f4(np.nan)),
    )
    assert [c.path[0] for c in found.changed] == ["c", "d", "b", "a"]


def test_without_values_no_array_is_read():
    def explode(_):
        raise AssertionError

    bad = Leaf(("w",), "array", (2,), np.dtype("float32"), 8, explode)
    one = Checkpoint(Path("mem"), Format("orbax", "ocdbt", ""), 1, {"default": LeafTable([bad])})
    found = bridge.diff(one, one, values=False)
    assert found.same
    assert "values not compared" in str(found)


def test_ulps_count_across_zero_and_in_bfloat16():
    tiny = np.float32(1e-45)
    assert measure(f4(tiny), f4(-tiny)).max_ulp == 2
    one = np.array([1], ml_dtypes.bfloat16)
    above = (one.view(np.uint16) + np.uint16(1)).view(ml_dtypes.bfloat16)
    assert measure(one, above).max_ulp == 1
    assert measure(np.float64([-1.7e308]), np.float64([1.7e308])).max_ulp > 2**63


def test_integers_are_exact_beyond_what_floats_hold():
    assert measure(np.array([2**53 + 1]), np.array([2**53])).max_abs == 1
    assert measure(np.array([2**53 + 1]), np.array([2.0**53])).differing == 1
    assert measure(np.array([2**64 - 1], np.uint64), np.array([2**64 - 1.0])).differing == 1


@given(
    arrays.arrays(np.float32, arrays.array_shapes(max_dims=3, max_side=9)),
    st.integers(1, 100),
    st.data(),
)
def test_blocks_cover_an_array_once_and_in_order(array, limit, data):
    chunks = tuple(data.draw(st.integers(1, n)) for n in array.shape)
    it = Leaf(("a",), "array", array.shape, array.dtype, array.nbytes, chunks=chunks)
    parts = [array if b is None else array[b] for b in blocks(it, limit=limit)]
    assert b"".join(p.tobytes() for p in parts) == array.tobytes()
    for block in blocks(it, limit=limit):
        assert block is None or block[0].start % chunks[0] == 0


@given(arrays.arrays(np.float16, 5), arrays.arrays(np.float16, 5))
def test_a_measure_is_zero_exactly_for_equal_bits(a, b):
    assert (measure(a, b).differing == 0) == (a.tobytes() == b.tobytes()) == same_value(a, b)
    assert measure(a, a).differing == 0


@pytest.mark.parametrize("values", [True, False])
def test_leaves_that_cannot_be_read_are_never_the_same(values):
    good = leaf("a", f4(1))
    for one, two in ((lost("a"), lost("a")), (lost("a"), good), (good, lost("a"))):
        found = bridge.diff(of(one), of(two), values=values)
        assert not found.same
        assert found.changed[0].what == ("unreadable",)
        assert found.changed[0].problems == (one.problem, two.problem)
        assert "1 of them cannot be read" in " ".join(diff_text(found).split())


def test_a_leaf_that_turns_out_broken_while_it_is_read_does_not_end_the_comparison():
    def broken(_):
        raise DamagedCheckpoint("chunk 3 is damaged")

    bad = Leaf(("a",), "array", (2,), np.dtype("float32"), 8, broken)
    found = bridge.diff(of(bad, leaf("b", f4(1))), of(leaf("a", f4(1, 2)), leaf("b", f4(2))))
    assert [c.what for c in found.changed] == [("unreadable",), ("value",)]
    assert "chunk 3 is damaged" in found.changed[0].problems[0]
    assert found.changed[0].problems[1] is None
    assert "chunk 3 is damaged" in diff_text(found)
    assert None not in bridge.diff(of(bad), of(bad)).changed[0].problems


@pytest.mark.parametrize(
    ("a", "b", "signs", "rel"),
    [
        (f4(0.0, 1), f4(-0.0, 1), 1, 0.0),
        (f4(0.0, 1), f4(-0.0, 2), 1, 0.5),
        (f4(1, 4), f4(1, 5), 0, 0.2),
        (np.array([10, 2]), np.array([5, 2]), 0, 0.5),
        (np.array([-(2**63), 2]), np.array([2**63 - 1, 2]), 0, 2.0),
        (np.array([3 + 4j, 0]), np.array([0j, 0]), 0, 1.0),
        (np.array([True, False]), np.array([True, True]), 0, 1.0),
        (f4(np.nan, 1), f4(1, 1), 0, 0.0),
    ],
)
def test_a_measure_has_the_relative_difference_and_the_signs_of_zeros(a, b, signs, rel):
    found = measure(a, b)
    assert (found.signs, found.max_rel) == (signs, pytest.approx(rel))
    assert (measure(a[:1], b[:1]) | measure(a[1:], b[1:])) == found


def test_a_zero_of_another_sign_is_named():
    assert str(measure(f4(0, 0), f4(-0.0, 0))) == "1 of 2 differ, 0.0 and -0.0"
    assert bridge.diff(checkpoint(a=f4(0, 0)), checkpoint(a=f4(-0.0, 0))).changed


def test_a_subtree_of_one_side_is_one_line():
    a = checkpoint(params__w=f4(1), **{f"ema__layer_{n}__w": f4(1) for n in range(20)})
    text = diff_text(bridge.diff(a, checkpoint(params__w=f4(1))))
    assert "ema/  20 leaves" in text
    assert "layer_" not in text


def test_renamed_layers_are_guessed_and_compared():
    a = {f"params__layers_{n}__{name}": f4(n, i) for n in range(12) for i, name in enumerate("wb")}
    b = {f"params__blocks_{n}__{name}": f4(n, i) for n in range(12) for i, name in enumerate("wb")}
    found = bridge.diff(checkpoint(**a), checkpoint(**b))
    assert len(found.renamed) == 24
    assert all(r.same and r.a[1][-1] == r.b[1][-1] for r in found.renamed)
    assert len(found.only_a) == len(found.only_b) == 24
    text = diff_text(found)
    assert "params/layers_{0…11}/ → params/blocks_{0…11}/" in text
    assert "24 leaves, same values" in text
    assert "only in a:" not in text
    unread = bridge.diff(checkpoint(**a), checkpoint(**b), values=False)
    assert {r.same for r in unread.renamed} == {None}


def test_a_moved_subtree_is_guessed_in_every_copy_of_the_params():
    def tree(path):
        return {
            f"{root}__{path}__{leaf}": f4(1) if leaf == "bias" else f4(1, 2)
            for root in ("params", "opt__mu", "opt__nu")
            for leaf in ("kernel", "bias")
        }

    found = bridge.diff(checkpoint(**tree("encoder__fc")), checkpoint(**tree("model__encoder__fc")))
    assert {(r.a[0], r.a[-1]): (r.b[0], r.b[-1]) for r in found.renamed}
    assert all(r.a[:-3] == r.b[: len(r.a[:-3])] for r in found.renamed)
    assert len(found.renamed) == 6


def test_what_could_be_two_leaves_is_not_guessed():
    found = bridge.diff(checkpoint(a__w=f4(1)), checkpoint(b__w=f4(1), c__w=f4(1)))
    assert found.renamed == ()


def test_a_long_list_is_cut_with_a_count_unless_all_is_asked():
    a = {f"w{n}x{n * n}": f4(n, 0) for n in range(100)}
    b = {f"w{n}x{n * n}": f4(n + 1 + n / 7, 0) for n in range(100)}
    found = bridge.diff(checkpoint(**a), checkpoint(**b))
    assert "and 40 more rows (--full or --json has all)" in diff_text(found)
    full = diff_text(found, full=True)
    assert all(f"w{n}x{n * n}\n" in full for n in range(100))


def test_structure_that_differs_alike_is_one_row():
    a = checkpoint(**{f"layers_{n}__w": f4(1, 2) for n in range(12)})
    b = checkpoint(**{f"layers_{n}__w": np.array([1, 2], np.float64) for n in range(12)})
    text = diff_text(bridge.diff(a, b))
    assert "layers_{0…11}/w ×12" in text
    assert "dtype: float32 (2,) | float64 (2,)" in text


names = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(lambda p: ("t", *p, "w"))


@given(st.sets(names), st.sets(names), st.booleans())
def test_every_leaf_of_both_sides_is_counted_once(one, two, values):
    def made(paths):
        return of(*(Leaf(p, "array", (1,), np.dtype("float32"), 4, lambda _: f4(1)) for p in paths))

    found = bridge.diff(made(one), made(two), values=values)
    assert found.equal + len(found.changed) + len(found.only_a) == len(one)
    assert found.equal + len(found.changed) + len(found.only_b) == len(two)
    assert {("", r.a) for r in found.renamed} <= set(found.only_a)
    assert {("", r.b) for r in found.renamed} <= set(found.only_b)
    assert len({r.b for r in found.renamed}) == len(found.renamed)
    text = diff_text(found, full=True)
    assert ("same:" in text) == found.same == (one == two)


def test_a_long_axis_behind_short_ones_is_read_in_blocks():
    it = Leaf(("a",), "array", (1, 10, 2), np.dtype("float32"), 80)
    assert [b[1] for b in blocks(it, limit=32)] == [slice(0, 4), slice(4, 8), slice(8, 10)]
