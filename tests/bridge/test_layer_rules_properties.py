"""Layer rules on random sizes: what is paired holds the right numbers, or nothing is paired."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from bridge.errors import TransformError
from bridge.pairing import offer_order, pair
from bridge.target import SlotRef
from bridge.transforms import Drop, DropZero, apply_all, inverse_all, moments_all
from bridge.transforms_base import Spec
from bridge.views import Candidate

RELAXED = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
sizes = st.integers(1, 6)


def arrays(shapes):
    """An array of numbers of its own for each path."""
    made, start = {}, 0
    for path, shape in shapes.items():
        size = int(np.prod(shape))
        made[path] = np.arange(start, start + size, dtype="f4").reshape(shape)
        start += size
    return made


def planned(old, new, how=pair):
    """What each slot gets, as pairs say; slots by path with their shapes."""
    ours = [
        Candidate(tuple(p.split("/")), "params", a.shape, "float32", ("params", *p.split("/")))
        for p, a in old.items()
    ]
    theirs = [
        Candidate(tuple(p.split("/")), "params", s, "float32", SlotRef("m", tuple(p.split("/"))))
        for p, s in new.items()
    ]
    got = {}
    for one in how(ours, theirs):
        values = apply_all(one.transforms, [old["/".join(p[1:])] for p in one.sources])
        assert len(values) == len(one.slots)
        got |= {"/".join(r.path): v for r, v in zip(one.slots, values, strict=True)}
    return got


def shapes_of(values):
    return {path: value.shape for path, value in values.items()}


def agrees(got, truth, *, whole):
    """Each value that is there is right; all are there if that is asked."""
    for path, value in got.items():
        assert value.shape == truth[path].shape
        np.testing.assert_array_equal(value, truth[path])
    if whole:
        assert got.keys() == truth.keys()


@RELAXED
@given(sizes, sizes, st.lists(sizes, max_size=1))
def test_the_gates_of_an_lstm_are_joined_and_split_in_one_order(inputs, hidden, stack):
    shapes = {f"LSTMCell_0/i{g}/kernel": (*stack, inputs, hidden) for g in "gifo"}
    shapes |= {f"LSTMCell_0/h{g}/kernel": (*stack, hidden, hidden) for g in "gifo"}
    shapes |= {f"LSTMCell_0/h{g}/bias": (*stack, hidden) for g in "gifo"}
    old = arrays(shapes)

    def joined(kind, leaf):
        return np.concatenate([old[f"LSTMCell_0/{kind}{g}/{leaf}"] for g in "ifgo"], -1)

    truth = {
        "rnn/cell/dense_i/kernel": joined("i", "kernel"),
        "rnn/cell/dense_h/kernel": joined("h", "kernel"),
        "rnn/cell/dense_h/bias": joined("h", "bias"),
    }
    agrees(planned(old, shapes_of(truth)), truth, whole=inputs != hidden)
    back = {p.replace("LSTMCell_0", "rnn/cell").replace("/if/", "/if_/"): a for p, a in old.items()}
    agrees(planned(old, shapes_of(back)), back, whole=True)
    again = {p.removeprefix("rnn/"): a for p, a in truth.items()}
    gates = {p.replace("LSTMCell_0", "cell").replace("/if/", "/if_/"): a for p, a in old.items()}
    agrees(planned(again, shapes_of(gates)), gates, whole=True)


@RELAXED
@given(sizes, sizes, st.booleans())
def test_the_gates_of_a_gru_are_joined_where_its_odd_bias_is_zero(inputs, hidden, zero):
    shapes = {f"cell/i{g}/{leaf}": s for g in "nrz" for leaf, s in
              (("kernel", (inputs, hidden)), ("bias", (hidden,)))}  # fmt: skip
    shapes |= {f"cell/h{g}/kernel": (hidden, hidden) for g in "nrz"}
    old = arrays(shapes)
    old["cell/hn/bias"] = np.zeros(hidden, "f4") if zero else np.ones(hidden, "f4")

    def joined(kind, leaf):
        return np.concatenate([old[f"cell/{kind}{g}/{leaf}"] for g in "rzn"], -1)

    truth = {
        "cell/dense_i/kernel": joined("i", "kernel"),
        "cell/dense_i/bias": joined("i", "bias"),
        "cell/dense_h/kernel": joined("h", "kernel"),
    }
    if zero:
        agrees(planned(old, shapes_of(truth)), truth, whole=True)
        return
    with pytest.raises(TransformError, match="not zero: its largest value is 1"):
        planned(old, shapes_of(truth))
    del old["cell/hn/bias"]  # accepted by an ignore rule
    agrees(planned(old, shapes_of(truth)), truth, whole=True)


@st.composite
def blocks(draw):
    """Layers of one block: shapes by path."""
    found = {}
    for n in range(draw(st.integers(1, 3))):
        kernel = tuple(draw(st.lists(st.integers(2, 5), min_size=2, max_size=3)))
        found[f"layer{n}/kernel"] = kernel
        if draw(st.booleans()):
            found[f"layer{n}/bias"] = kernel[-1:]
    return found


@RELAXED
@given(blocks(), st.integers(2, 5), st.sampled_from([0, 1, -1]), st.booleans())
def test_stacks_and_lists_of_one_name_are_the_same_along_one_axis(block, n, axis, scanned):
    stack = {}
    for path, shape in block.items():
        at = axis % (len(shape) + 1)
        stack[f"blocks/{path}"] = (*shape[:at], n, *shape[at:])
    if scanned:
        old = arrays(stack)
        truth = {
            f"blocks/{i}/{p}": np.take(old[f"blocks/{p}"], i, axis) for p in block for i in range(n)
        }
    else:
        old = arrays({f"blocks_{i}/{p}": s for i in range(n) for p, s in block.items()})
        truth = {
            f"blocks/{p}": np.stack([old[f"blocks_{i}/{p}"] for i in range(n)], axis) for p in block
        }
    agrees(planned(old, shapes_of(truth)), truth, whole=n > max(max(s) for s in block.values()))


@RELAXED
@given(blocks(), st.integers(2, 5), st.booleans())
def test_under_other_names_the_order_is_only_offered(block, n, scanned):
    if scanned:
        old = arrays({f"ScanBlock_0/{p}": (n, *s) for p, s in block.items()})
        truth = {f"blocks/{i}/{p}": old[f"ScanBlock_0/{p}"][i] for p in block for i in range(n)}
    else:
        old = arrays({f"Block_{i}/{p}": s for i in range(n) for p, s in block.items()})
        truth = {f"blocks/{p}": np.stack([old[f"Block_{i}/{p}"] for i in range(n)]) for p in block}
    assert not planned(old, shapes_of(truth))
    agrees(planned(old, shapes_of(truth), offer_order), truth, whole=False)


@RELAXED
@given(st.integers(1, 4), st.integers(1, 4), sizes, st.sampled_from([None, 0, 1, -1]),
       st.integers(2, 4), st.booleans())  # fmt: skip
def test_heads_are_laid_out_in_one_axis_and_back(heads, depth, width, axis, n, biases):
    plain = {f"{r}/kernel": (width, heads, depth) for r in ("query", "key", "value")}
    plain["out/kernel"] = (heads, depth, width)
    if biases:
        plain |= {f"{r}/bias": (heads, depth) for r in ("query", "key", "value")}
        plain["out/bias"] = (width,)
    names = {"query": "wq", "key": "wk", "value": "wv", "out": "wo"}
    layers = 1 if axis is None else n
    one = [arrays({f"attn/{p}": s for p, s in plain.items()}) for _ in range(layers)]
    one = [{p: a + 1000 * i for p, a in layer.items()} for i, layer in enumerate(one)]

    def flat(path, a):
        if "kernel" in path:
            return a.reshape((-1, width) if "out" in path else (width, -1))
        return a.reshape(-1)

    def whole(arrays_):
        return arrays_[0] if axis is None else np.stack(arrays_, axis)

    old = {p: whole([layer[p] for layer in one]) for p in one[0]}
    new = {
        f"mixer/{names[p.split('/')[1]]}/{p.split('/')[2]}": whole([flat(p, x[p]) for x in one])
        for p in one[0]
    }
    agrees(planned(old, shapes_of(new)), new, whole=axis is None and heads * depth > 1)
    agrees(planned(new, shapes_of(old)), old, whole=axis is None and heads * depth > 1)


def test_what_is_dropped_must_be_zero_and_cannot_come_back():
    drop = DropZero()
    ones, zeros = np.ones(3, "f4"), np.zeros(3, "f4")
    (kept,) = drop.apply([ones, zeros])
    np.testing.assert_array_equal(kept, ones)
    assert drop.joins
    assert moments_all([drop], 0) == (drop,)
    assert moments_all([drop], 1) == moments_all([drop], 2) == (Drop(),)
    for value in (1e-30, -2.0, np.nan, np.inf):
        with pytest.raises(TransformError, match="not zero"):
            drop.apply([ones, np.full(3, value, "f4")])
    with pytest.raises(TransformError, match="cannot be undone"):
        inverse_all([drop], [Spec((3,), "float32")] * 2)
    with pytest.raises(TransformError, match="takes two arrays or more"):
        drop.apply([ones])


def test_layers_that_words_tell_apart_are_never_offered_by_order():
    old = arrays({f"{n}/kernel": (4, 4) for n in ("mean", "logvar")})
    assert not planned(old, {f"{n}/kernel": (4, 4) for n in ("mu", "sigma")}, offer_order)
    old = arrays({f"attn/{n}/kernel": (4, 4) for n in ("query", "key", "value")})
    assert not planned(old, {f"a/{n}/kernel": (4, 4) for n in ("wq", "wk", "wv")}, offer_order)


def test_numbered_layers_are_offered_in_natural_order():
    old = arrays({f"Dense_{i}/kernel": (4, 4) for i in range(12)})
    truth = {f"layers/{2 * i}/kernel": old[f"Dense_{i}/kernel"] for i in range(12)}
    assert not planned(old, shapes_of(truth))
    agrees(planned(old, shapes_of(truth), offer_order), truth, whole=True)


def test_the_forward_cell_is_offered_first():
    gates = {f"h{g}/kernel": (3, 3) for g in "ifgo"} | {f"h{g}/bias": (3,) for g in "ifgo"}
    gates |= {f"i{g}/kernel": (5, 3) for g in "ifgo"}
    old = arrays({f"LSTMCell_{i}/{p}": s for i in (0, 1) for p, s in gates.items()})
    truth = {
        f"bi/{way}_rnn/cell/{p}": old[f"LSTMCell_{i}/{p}"]
        for i, way in enumerate(("forward", "backward"))
        for p in gates
    }
    assert not planned(old, shapes_of(truth))
    agrees(planned(old, shapes_of(truth), offer_order), truth, whole=True)
