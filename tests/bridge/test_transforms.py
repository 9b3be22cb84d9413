"""Transforms: what they do, that they can be undone bit for bit, and what they refuse."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import TransformError
from bridge.transforms import (
    TRANSFORMS,
    Cast,
    Copy,
    Each,
    Function,
    Join,
    Pad,
    Permute,
    Reshape,
    Scale,
    Slice,
    Spec,
    Split,
    Stack,
    Transform,
    Transpose,
    Unstack,
    apply_all,
    describe_all,
    infer_all,
    inverse_all,
    moments_all,
    transform_from_json,
)

FLOATS = ["float16", "float32", "float64", "bfloat16", "float8_e4m3fn", "float8_e5m2"]
INTS = ["int8", "int32", "int64", "uint8", "uint32", "uint64", "int4", "uint4"]
DTYPES = [*FLOATS, *INTS, "bool", "complex64"]


def raw(array):
    return array.shape, array.dtype.name, array.tobytes()


def make(shape, dtype, seed=0):
    """An array of random bits: NaN payloads, subnormals and infinities among them."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.name in ("bool", "int4", "uint4"):
        low, high = {"bool": (0, 2), "int4": (-8, 8), "uint4": (0, 16)}[dtype.name]
        return rng.integers(low, high, shape).astype(dtype)
    size = math.prod(shape) * dtype.itemsize
    return np.frombuffer(rng.bytes(size), dtype).reshape(shape)


@st.composite
def cases(draw):
    """A transform that loses nothing, and arrays that it fits."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    seed = draw(st.integers(0, 2**16))
    n = draw(st.integers(1, 4))
    arrays = [make(shape, dtype, seed + i) for i in range(n)]
    ndim = len(shape)
    ops = [Copy(), Reshape((math.prod(shape),)), Reshape((*shape, 1)), Scale(1)]
    if dtype in FLOATS or dtype == "complex64":
        ops.append(Cast(dtype))
    else:
        ops.remove(Scale(1))
    order = draw(st.permutations(range(ndim)))
    signs = draw(st.lists(st.booleans(), min_size=ndim, max_size=ndim))
    ops.append(Transpose([a - ndim if s else a for a, s in zip(order, signs, strict=True)]))
    ops.append(Stack(draw(st.integers(-ndim - 1, ndim))))
    if ndim:
        axis = draw(st.integers(-ndim, ndim - 1))
        size = shape[axis]
        ops += [
            Permute(axis, draw(st.permutations(range(size)))),
            Pad(axis, draw(st.integers(0, 2)), draw(st.integers(0, 2)), draw(st.integers(0, 1))),
            Slice(axis),
            Join(axis),
        ]
        cut = draw(st.integers(0, size))
        op = draw(st.sampled_from([Split(axis, (cut, size - cut)), Unstack(axis)]))
        if draw(st.booleans()) and not (size == 0 and op == Unstack(axis)):
            return op, arrays[:1]
        if draw(st.booleans()):  # a join of arrays that differ in length
            more = list(shape)
            more[axis] += 2
            return Join(axis), [*arrays, make(tuple(more), dtype, seed + 9)]
    op = draw(st.sampled_from(ops))
    if draw(st.booleans()) and not op.joins:
        return Each((op,) * n), arrays
    return op, arrays


@given(cases())
def test_inverse_gives_back_every_bit_and_infer_agrees_with_apply(case):
    op, arrays = case
    specs = tuple(Spec.of(a) for a in arrays)
    before = [raw(a) for a in arrays]
    out = op.apply(arrays)
    assert op.infer(specs) == tuple(Spec.of(a) for a in out)
    undo = op.inverse(specs)
    assert [raw(a) for a in undo.apply(out)] == before
    assert undo.infer(op.infer(specs)) == specs
    assert [raw(a) for a in arrays] == before, "the input was written to"


@given(cases())
def test_json_round_trip(case):
    op, _ = case
    again = transform_from_json(json.loads(json.dumps(op.to_json())))
    assert again == op
    assert hash(again) == hash(op)
    assert str(again) == op.describe()


@given(cases(), st.sampled_from([0, 1, 2]))
def test_structural_transforms_treat_moments_alike(case, order):
    op, arrays = case
    moment = op.for_moment(order)
    shapes = [s.shape for s in op.infer([Spec.of(a) for a in arrays])]
    assert [s.shape for s in moment.infer([Spec.of(a) for a in arrays])] == shapes


def test_a_pipeline_is_undone_in_reverse_order():
    # grouped-query attention: query and key differ in their number of heads
    arrays = [make((6, 4, 2), "bfloat16", 1), make((6, 1, 2), "bfloat16", 2)]
    ops = (Reshape((6, -1)), Join(1), Transpose((1, 0)), Cast("float32", exact=True))
    specs = [Spec.of(a) for a in arrays]
    finite = [np.where(np.isfinite(a), a, np.zeros_like(a)) for a in arrays]
    out = apply_all(ops, finite)
    assert infer_all(ops, specs) == (Spec.of(out[0]),) == (Spec((10, 6), "float32"),)
    undo = inverse_all(ops, specs)
    assert undo[-1] == Each((Reshape((6, 4, 2)), Reshape((6, 1, 2))))
    assert [raw(a) for a in apply_all(undo, out)] == [raw(a) for a in finite]
    assert describe_all(undo) == (
        "cast(dtype=bfloat16, exact=True) → transpose(1,0) → split(axis=1, sizes=8,2) → "
        "each(reshape(6,4,2),reshape(6,1,2))"
    )


def test_no_transforms_are_a_plain_copy():
    arrays = (np.zeros(3),)
    assert apply_all((), arrays) == arrays
    assert infer_all((), [Spec((3,), "f")]) == (Spec((3,), "f"),)
    assert inverse_all((), [Spec((3,), "f")]) == ()
    assert describe_all(()) == ""


def test_views_where_possible():
    array = np.arange(12.0).reshape(3, 4)
    array.flags.writeable = False
    for op in (
        Transpose((1, 0)),
        Reshape((12,)),
        Slice(0, 1),
        Unstack(0),
        Split(1, (1, 3)),
        Copy(),
    ):
        assert all(np.shares_memory(a, array) for a in op.apply([array])), op


def test_nothing_at_all_goes_through_elementwise_transforms():
    for op in (Transpose((0,)), Scale(2), Cast("int8"), Copy()):
        assert op.infer(()) == op.apply(()) == ()
        assert op.inverse(()).apply(()) == () if not op.loss else True


def test_unstack_of_a_vector_gives_arrays_without_axes():
    assert [a.shape for a in Unstack(0).apply([np.arange(2)])] == [(), ()]


@pytest.mark.parametrize(
    ("op", "specs", "text"),
    [
        (
            Transpose((1, 0)),
            [Spec((2, 3, 4), "int8")],
            r"has 2 axes, the array has 3 \(int8\[2,3,4",
        ),
        (Reshape((4, 2)), [Spec((3, 3), "int8")], "does not hold the 9 elements of int8"),
        (Reshape((4, -1)), [Spec((3, 3), "int8")], "does not hold the 9 elements"),
        (Reshape((0, -1)), [Spec((0, 3), "int8")], "does not hold the 0 elements"),
        (Stack(0), [], "no array to stack"),
        (Stack(0), [Spec((2,), "int8"), Spec((3,), "int8")], r"0 and 1 of 2 differ: int8\[2\] and"),
        (Stack(0), [Spec((2,), "int8"), Spec((2,), "int4")], r"int8\[2\] and int4\[2\]"),
        (Stack(3), [Spec((2,), "int8")], "there is no axis 3"),
        (Unstack(0), [Spec((2,), "int8")] * 2, r"takes one array, got 2 \(int8\[2\], int8"),
        (Unstack(0), [], "takes one array, got 0 "),
        (Unstack(0), [Spec((), "int8")], r"no axis 0 here: the array is int8\[\]"),
        (Unstack(1), [Spec((2, 0), "int8")], "length 0"),
        (Split(0, (1, 2)), [Spec((4,), "int8")], "add up to 3, axis 0 of .* has 4"),
        (Split(0, (1, 2)), [Spec((3,), "int8")] * 2, "takes one array"),
        (Join(0), [], "no array to join"),
        (Join(0), [Spec((1, 2), "int8"), Spec((1, 3), "int8")], "0 and 1 of 2 do not fit"),
        (Join(0), [Spec((1,), "int8"), Spec((1, 1), "int8")], "do not fit together"),
        (Join(-1), [Spec((1, 2), "int8"), Spec((2, 1, 2), "int8")], "do not fit together"),
        (Join(0), [Spec((1,), "int8"), Spec((1,), "int4")], "do not fit together"),
        (Slice(0, 1, 5), [Spec((4,), "int8")], "from 1 to 5, the axis has 4"),
        (Slice(0, -5), [Spec((4,), "int8")], "from -1 to 4"),
        (Slice(0, 3, 1), [Spec((4,), "int8")], "from 3 to 1"),
        (Pad(1, 1), [Spec((4,), "int8")], "no axis 1"),
        (Pad(0, 1, value=300), [Spec((4,), "int8")], "value does not fit int8: value 300"),
        (Pad(0, 1, value=0.5), [Spec((4,), "int8")], "0.5 .* not exactly a value of int8"),
        (Permute(0, (1, 0)), [Spec((3,), "int8")], "has 2 indices, the axis has 3"),
        (Scale(2), [Spec((3,), "int8")], r"floating point numbers only, the array is int8\[3\]"),
        (Scale(2), [Spec((3,), "int4")], "floating point numbers only"),
        (Cast("float32"), [Spec((3,), "complex64")], "complex64.* cannot be cast"),
        (Cast("float32"), [Spec((3,), "str32")], "cannot be cast"),
        (Pad(0, 1, value=2**70), [Spec((3,), "uint64")], "value does not fit uint64"),
        (Pad(0, 1), [Spec((3,), "str32")], "pads numbers only"),
        (Each((Copy(),)), [Spec((3,), "int8")] * 2, "has 1 transforms for 2 arrays"),
    ],
)
def test_infer_refuses_what_does_not_fit(op, specs, text):
    with pytest.raises(TransformError, match=text):
        op.infer(specs)
    with pytest.raises(TransformError, match=text):
        op.inverse(specs)
    if all(s.dtype != "str32" for s in specs):
        with pytest.raises(TransformError, match=text):
            op.apply([np.zeros(s.shape, s.dtype) for s in specs])


@pytest.mark.parametrize(
    ("make_it", "text"),
    [
        (lambda: Transpose((0, 2)), "each of the axes 0 to 1 once"),
        (lambda: Transpose((0, 0)), "once"),
        (lambda: Transpose("10"), "field 'axes': expected a list of integers, got '10'"),
        (lambda: Transpose((0, True)), "expected an integer, got True"),
        (lambda: Transpose(3), "not iterable"),
        (lambda: Reshape((-1, -1)), "at most one is -1"),
        (lambda: Reshape((-2,)), "sizes are 0 or more"),
        (lambda: Split(0, ()), "at least one size"),
        (lambda: Split(0, (-1, 3)), "none below 0"),
        (lambda: Stack(0.5), "cannot be interpreted as an integer"),
        (lambda: Pad(0, -1), "0 or more"),
        (lambda: Pad(0, value=math.nan), "expected a finite number, got nan"),
        (lambda: Pad(0, value="0"), "expected a number, got '0'"),
        (lambda: Permute(0, (0, 2)), "each of 0 to 1 once"),
        (lambda: Scale(0), "all zeros"),
        (lambda: Scale(math.inf), "finite"),
        (lambda: Scale(10**400), "finite"),
        (lambda: Scale(True), "expected a number, got True"),
        (lambda: Cast("flaot32"), "expected a dtype name such as float32, got 'flaot32'"),
        (lambda: Cast("str"), "expected a dtype of numbers"),
        (lambda: Cast("object"), "expected a dtype of numbers"),
        (lambda: Cast("float128"), "expected a dtype of numbers"),
        (lambda: Cast(3), "expected a string, got 3"),
        (lambda: Cast("int8", exact=1), "expected true or false, got 1"),
        (lambda: Function("math"), "form 'package.module:function'"),
        (lambda: Function("a:b", moments="maybe"), "expected 'refuse' or 'copy' or 'same'"),
        (lambda: Function("a:b", result="x"), "expected 'same' or 'probe'"),
        (lambda: Each((Stack(0),)), "changes the number of arrays"),
        (lambda: Each((3,)), "expected a list of transforms, got 3"),
    ],
)
def test_a_transform_that_exists_is_well_formed(make_it, text):
    with pytest.raises(TransformError, match=re.escape(text)):
        make_it()


def test_lists_become_tuples_so_that_equal_transforms_are_equal():
    assert Transpose([np.int64(1), 0]) == Transpose((1, 0))
    assert Cast("f4") == Cast("float32")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"op": "transpos", "axes": [0]}, r"'transpos' \(did you mean 'transpose'\?\)"),
        ({"op": "rot13"}, "unknown transform 'rot13'. There are: transpose, reshape"),
        ({"axes": [0]}, "is no transform; write one as"),
        ("transpose", "is no transform"),
        ({"op": 3}, "is no transform"),
        ({"op": "stack", "axes": 0}, r"no field 'axes' \(did you mean 'axis'\?\)"),
        ({"op": "transpose"}, "'transpose' needs axes"),
        ({"op": "transpose", "axes": ["0"]}, "cannot be interpreted as an integer"),
        ({"op": "function", "name": "a:b", "fn": 1}, "no field 'fn'"),
        ({"op": "each", "transforms": [{"op": "nope"}]}, "unknown transform 'nope'"),
        ({"op": "each", "transforms": 3}, "takes a list of transforms"),
    ],
)
def test_wrong_json_is_refused(data, text):
    with pytest.raises(TransformError, match=text):
        transform_from_json(data)


def test_hostile_nesting_is_refused():
    data = {"op": "copy"}
    for _ in range(5000):
        data = {"op": "each", "transforms": [data]}
    with pytest.raises(TransformError, match="at most 8 deep"):
        transform_from_json(data)


def test_every_transform_is_frozen_registered_and_described():
    for op, kind in TRANSFORMS.items():
        assert kind.op == op
        assert issubclass(kind, Transform)
        assert dataclasses.is_dataclass(kind)
        assert kind.__dataclass_params__.frozen
        assert not hasattr(kind.__new__(kind), "__dict__"), op


# --- losses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "loss"),
    [
        (Slice(0, 1), "outside the slice"),
        (Scale(0.5), "exact but for numbers near the smallest"),
        (Scale(0.3), "last bit"),
        (Function("numpy:flip"), "whatever numpy:flip does"),
        (Each((Copy(), Scale(3), Scale(3))), "last bit"),
    ],
)
def test_what_loses_something_says_so_and_cannot_be_undone(op, loss):
    assert loss in op.loss
    specs = [Spec((4,), "float32")] * (3 if isinstance(op, Each) else 1)
    with pytest.raises(TransformError, match=loss):
        op.inverse(specs)


def test_a_rounding_cast_cannot_be_undone_but_an_exact_one_can():
    assert "rounded to bfloat16" in Cast("bfloat16").loss
    assert Cast("bfloat16", exact=True).loss is None
    with pytest.raises(TransformError, match="With `exact = true` every value is checked"):
        Cast("bfloat16").inverse([Spec((2,), "float32")])
    assert Cast("bfloat16", exact=True).inverse([Spec((), "float32")]) == Cast(
        "float32", exact=True
    )
    assert Cast("int32").inverse([Spec((), "int8")]) == Cast("int8", exact=True)
    assert Cast("int8").inverse([Spec((), "bool")]) == Cast("bool", exact=True)
    assert Cast("int8").inverse([Spec((), "int8")]) == Copy()
    with pytest.raises(TransformError, match="from int32"):
        Cast("uint32").inverse([Spec((2,), "int32")])


# --- scale ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*FLOATS, "complex64"])
def test_scale_keeps_the_dtype_and_special_values(dtype):
    array = np.array([0.0, 1.0, 2.0, np.nan]).astype(dtype)
    (out,) = Scale(0.5).apply([array])
    assert out.dtype == array.dtype
    assert out[:3].astype(complex).tolist() == [0, 0.5, 1]
    assert np.isnan(out[3])


def test_scale_of_complex_infinity_stays_infinite():
    (out,) = Scale(-2).apply([np.array([complex(np.inf, 1)], np.complex64)])
    assert out[0] == complex(-np.inf, -2)


def test_scale_rounds_once():
    x = np.float32(1.1)
    assert Scale(0.1).apply([np.array(x)])[0] == np.float32(np.float64(x) * 0.1)


@pytest.mark.parametrize(
    ("dtype", "big"),
    [("float16", 60000.0), ("bfloat16", 3e38), ("float8_e4m3fn", 400), ("float4_e2m1fn", 6)],
)
def test_scale_never_leaves_the_range_of_the_dtype(dtype, big):
    array = np.array([[1, 1], [1, big]]).astype(dtype)
    with pytest.raises(TransformError, match=rf"at index \(1, 1\) leaves the range of {dtype}"):
        Scale(2).apply([array])


def test_moments_of_a_scaled_parameter_scale_the_other_way():
    """log-variance to log-std: times 0.5 the weights, 2 mu, 4 nu."""
    op = Scale(0.5)
    assert op.for_moment(0) is op
    assert op.for_moment(1) == Scale(2)
    assert op.for_moment(2) == Scale(4)
    with pytest.raises(TransformError, match="beyond what floats hold"):
        Scale(1e-300).for_moment(2)
    with pytest.raises(TransformError, match="order 0, 1 or 2, got 3"):
        op.for_moment(3)


# --- moments ----------------------------------------------------------------------------------


def test_moments_are_not_cast_and_padding_of_moments_is_zero():
    ops = (Cast("bfloat16"), Pad(0, 1, 2, value=7), Transpose((0,)))
    assert moments_all(ops, 0) == ops
    assert moments_all(ops, 1) == moments_all(ops, 2) == (Pad(0, 1, 2), Transpose((0,)))
    assert Each((Scale(2), Copy())).for_moment(1) == Each((Scale(0.5), Copy()))


def test_moments_of_a_function_need_a_word_from_the_user():
    name = "numpy:negative"
    assert Function(name).for_moment(0) == Function(name)
    assert Function(name, moments="copy").for_moment(1) == Copy()
    assert Function(name, moments="same").for_moment(2) == Function(name, moments="same")
    with pytest.raises(TransformError, match='Say so in the rule: moments = "copy"'):
        Function(name).for_moment(1)


# --- cast -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "source", "dtype", "text"),
    [
        (-1, "int32", "uint32", "value -1 .* does not fit uint32"),
        (2**31, "uint32", "int32", "value 2147483648 .* does not fit int32"),
        (300, "int64", "uint8", "value 300"),
        (2**64 - 1, "uint64", "int64", "18446744073709551615 .* does not fit int64"),
        (8, "int8", "int4", "value 8 .* does not fit int4"),
        (-1, "int4", "uint4", "value -1 .* does not fit uint4"),
        (2, "int8", "bool", "value 2 .* does not fit bool"),
        (0.5, "float32", "bool", "value 0.5 .* is not exactly a value of bool"),
        (np.nan, "float32", "int32", "value nan .* does not fit int32"),
        (np.inf, "float32", "int64", "value inf"),
        (2.0**63, "float64", "int64", "does not fit int64"),
        (2.0**64, "float64", "uint64", "does not fit uint64"),
        (70000.0, "float32", "float16", "value 70000.0 .* does not fit float16"),
        (1e39, "complex128", "complex64", "does not fit complex64"),
        (500.0, "float32", "float8_e4m3fn", "does not fit float8_e4m3fn"),
        (np.inf, "float32", "float8_e4m3fn", "value inf .* does not fit"),
        (7.0, "float32", "float4_e2m1fn", "value 7.0 .* does not fit"),
        (np.nan, "float32", "float4_e2m1fn", "value nan .* does not fit"),
        (1000, "int64", "float8_e4m3fn", "value 1000 .* does not fit"),
    ],
)
def test_a_cast_never_turns_a_value_into_another_one(value, source, dtype, text):
    array = np.zeros((2, 3), source)
    array[1, 2] = value
    with pytest.raises(TransformError, match=text) as caught:
        Cast(dtype).apply([array])
    assert "at index (1, 2)" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "source", "dtype"),
    [
        (16777217, "int32", "float32"),
        (2**63 - 1, "int64", "float64"),
        (2**64 - 1, "uint64", "float64"),
        (2**63 - 1, "int64", "float32"),
        (0.1, "float32", "bfloat16"),
        (0.5, "float32", "int32"),
        (-0.0, "float32", "int32"),
        (0.1, "complex128", "complex64"),
        (1 / 3, "bfloat16", "float8_e4m3fn"),
    ],
)
def test_an_exact_cast_refuses_rounding_and_a_plain_one_allows_it(value, source, dtype):
    array = (
        np.array([0, value]).astype(source) if value != 2**64 - 1 else np.array([0, value], source)
    )
    assert Cast(dtype).apply([array])[0].dtype.name == dtype
    with pytest.raises(TransformError, match=rf"index \(1,\) is not exactly a value of {dtype}"):
        Cast(dtype, exact=True).apply([array])


def test_an_exact_cast_keeps_nan_payloads_or_refuses():
    quiet = np.array([0x7FC00000, 0x7F800000, 0x80000000], np.uint32).view(np.float32)
    op = Cast("bfloat16", exact=True)
    (out,) = op.apply([quiet])
    assert op.inverse([Spec.of(quiet)]).apply([out])[0].tobytes() == quiet.tobytes()
    payload = np.array([0x7FC00001], np.uint32).view(np.float32)
    with pytest.raises(TransformError, match="not exactly"):
        op.apply([payload])


@pytest.mark.parametrize("dtype", [*DTYPES, "float8_e8m0fnu", "float6_e2m3fn", "uint2"])
@pytest.mark.parametrize("source", [*DTYPES, "float8_e8m0fnu", "float6_e2m3fn", "uint2"])
def test_one_is_one_in_every_dtype(source, dtype):
    array = np.ones((2, 2), source)
    if "complex64" in (source, dtype) and source != dtype:
        with pytest.raises(TransformError, match="use a function"):
            Cast(dtype).apply([array])
        return
    op = Cast(dtype, exact=True)
    (out,) = op.apply([array])
    assert out.astype("complex128").tolist() == [[1, 1], [1, 1]]
    assert op.inverse([Spec.of(array)]).apply([out])[0].tobytes() == array.tobytes()


@given(st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.integers(0, 99))
def test_an_exact_cast_can_be_undone_or_is_refused(source, dtype, seed):
    array = make((3,), source, seed)
    op = Cast(dtype, exact=True)
    try:
        (out,) = op.apply([array])
    except TransformError:
        return
    back = op.inverse([Spec.of(array)]).apply([out])[0]
    assert raw(back) == raw(array)


def test_a_cast_of_many_blocks_looks_at_every_one():
    array = np.zeros(300_000, np.float32)
    assert Cast("float16").apply([array])[0].shape == array.shape
    array[-1] = 1e6
    with pytest.raises(TransformError, match=r"value 1000000.0 at index \(299999,\)"):
        Cast("float16").apply([array])
    array[-1] = np.inf
    assert np.isinf(Cast("float16").apply([array])[0][-1])


def test_blocks_cover_large_and_transposed_arrays(monkeypatch):
    monkeypatch.setattr("bridge.transforms_cast.BLOCK", 5)
    array = np.arange(2 * 3 * 7, dtype=np.int32).reshape(2, 7, 3).transpose(2, 0, 1)
    (out,) = Cast("float32").apply([array])
    assert (out == array).all()
    assert (Scale(2).apply([out])[0] == array * 2).all()
    bad = array.copy()
    bad[2, 1, 6] = -1
    with pytest.raises(TransformError, match=r"value -1 at index \(2, 1, 6\)"):
        Cast("uint32").apply([bad])
    out[1, 0, 6] = 3e38
    with pytest.raises(TransformError, match=r"at index \(1, 0, 6\)"):
        Scale(4).apply([out])


# --- function ---------------------------------------------------------------------------------


def test_a_named_function_is_called_with_each_array_and_stored_by_name():
    op = Function("numpy:flipud")
    assert [a.tolist() for a in op.apply([np.array([1, 2]), np.array([3, 4])])] == [[2, 1], [4, 3]]
    assert op.to_json() == {"op": "function", "name": "numpy:flipud"}
    assert Function.of(np.flipud).to_json()["name"].endswith(":flipud")
    assert Function.of(np.linalg.norm).fn is np.linalg.norm


def test_a_lambda_works_in_memory_and_is_not_stored():
    op = Function.of(lambda x: x + 1)
    assert op.apply([np.zeros(2)])[0].tolist() == [1, 1]
    assert "test_transforms.py" in op.name
    with pytest.raises(TransformError, match="only functions that can be imported by name"):
        op.to_json()
    assert Function.of(test_views_where_possible).to_json()


def test_another_shape_or_dtype_must_be_declared():
    specs = [Spec((2, 3), "float32")]
    array = np.zeros((2, 3), np.float32)
    with pytest.raises(TransformError, match=r"made float32\[3,2\] of float32\[2,3\].*probe"):
        Function("numpy:transpose").apply([array])
    probed = Function("numpy:transpose", result="probe")
    assert probed.infer(specs) == (Spec((3, 2), "float32"),) == (Spec.of(probed.apply([array])[0]),)
    with pytest.raises(TransformError, match=r"made int64\[2,3\] of float32\[2,3\]"):
        Function.of(lambda x: x.astype(np.int64)).apply([array])


def test_a_function_of_many_arrays():
    op = Function.of(lambda a, b: a - b)
    op = dataclasses.replace(op, many=True)
    assert op.infer([Spec((2,), "float32")] * 2) == (Spec((2,), "float32"),)
    assert op.apply([np.array([3.0]), np.array([1.0])])[0].tolist() == [2.0]
    two = dataclasses.replace(Function.of(lambda a: (a, a)), many=True)
    assert len(two.apply([np.zeros(1)])) == 2
    assert two.joins
    assert two.splits


def test_a_function_cannot_write_to_its_input():
    array = np.zeros(2)

    def spoil(x):
        x += 1
        return x

    with pytest.raises(TransformError, match=r"raised ValueError: .*read-only.*float64\[2\]"):
        Function.of(spoil).apply([array])
    assert array.flags.writeable
    assert array.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("no_such_package:fn", "cannot be imported: No module named 'no_such_package'"),
        ("numpy:no_such", "cannot be imported: module 'numpy' has no attribute"),
        ("numpy:pi", "is no function but 3.14"),
        ("builtins:repr", "gave no array of numbers"),
    ],
)
def test_a_function_that_is_not_one_is_refused(name, text):
    with pytest.raises(TransformError, match=text):
        Function(name).apply([np.zeros(2)])


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (1, 1)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool", "complex64"])
def test_a_stack_of_what_was_read_in_its_room_copies_nothing(shape, dtype):
    stack = Stack(axis=0)
    arrays = [np.full(shape, n % 2).astype(getattr(ml_dtypes, dtype, dtype)) for n in range(4)]
    room = stack.room([Spec.of(a) for a in arrays])
    assert [(r.shape, r.dtype) for r in room] == [(a.shape, a.dtype) for a in arrays]
    for memory, array in zip(room, arrays, strict=True):
        memory[...] = array
    (whole,) = stack.apply(room)
    np.testing.assert_array_equal(whole, np.stack(arrays))
    assert whole is room[0].base


@pytest.mark.parametrize("change", ["order", "one left", "one elsewhere", "one turned"])
def test_a_stack_of_anything_else_is_a_copy(change):
    room = list(Stack(axis=0).room([Spec((2, 2), "float32")] * 3))
    for n, memory in enumerate(room):
        memory[...] = np.arange(4.0).reshape(2, 2) + n
    arrays = {
        "order": [room[1], room[0], room[2]],
        "one left": room[:2],
        "one elsewhere": [room[0], room[1].copy(), room[2]],
        "one turned": [room[0], room[1].T, room[2]],
    }[change]
    (whole,) = Stack(axis=0).apply(arrays)
    np.testing.assert_array_equal(whole, np.stack(arrays))
    assert whole is not room[0].base


def test_there_is_no_room_for_what_has_to_copy_or_never_copies():
    specs = [Spec((2, 2), "float32")] * 2
    assert Stack(axis=1).room(specs) is None
    assert Join(axis=0).room(specs) is None
    assert Unstack(axis=0).room(specs[:1]) is None
