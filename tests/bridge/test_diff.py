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
from legacy import Checkpoint, Format, Leaf, LeafTable

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
