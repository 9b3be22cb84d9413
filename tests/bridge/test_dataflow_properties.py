"""Random programs, spelled and laid out in two ways: what is paired is right."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from dataflow_cases import DIM, ROWS, layers, pair_of
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.dataflow import dataflow
from bridge.dataflow_layout import transforms_of
from bridge.dataflow_walks import Walk, fused
from bridge.transforms import Join, Reshape, Split, Stack, Transpose, Unstack, apply_all

SEEDS = st.integers(0, 10**6)


def other_activation(layer, rng):
    if layer["kind"] == "dense" and rng.random() < 0.3:
        layer["act"] = "gelu" if layer["act"] != "gelu" else "tanh"
    return layer


def other_epsilon(layer, rng):
    return {**layer, "eps": 1e-3} if rng.random() < 0.5 else layer


def no_bias(layer, rng):
    if layer["kind"] == "dense" and rng.random() < 0.3:
        layer["bias"] = False
    return layer


def nothing(layer, _):
    return layer


@pytest.mark.parametrize("change", [nothing, other_activation, other_epsilon, no_bias])
@settings(max_examples=8, deadline=None)
@given(seed=SEEDS)
def test_no_pairing_is_wrong(change, seed):
    rng = np.random.default_rng(seed)
    spec = layers(rng)
    other = np.random.default_rng(seed + 1)
    pair, linen, model = pair_of(spec, rng, lambda layer: change(layer, other))
    proof = dataflow(linen, model, {})
    values = {p: rng.normal(size=s).astype(np.float32) for p, s in pair.leaves.items()}
    truth = pair.filled(values)
    got = {
        slot: array
        for p in proof.pairings
        for slot, array in zip(
            p.slots, apply_all(p.transforms, [values[s] for s in p.sources]), strict=True
        )
    }
    if not proof.ties:
        for slot, array in got.items():
            np.testing.assert_array_equal(array, truth[slot])
    if proof.same:
        assert got.keys() == truth.keys()
        x = rng.normal(size=(2, ROWS, DIM)).astype(np.float32)
        a, b = (
            jnp.asarray(m.calls[0].run(v, [x]).outputs[0])
            for m, v in ((linen, values), (model, got))
        )
        np.testing.assert_allclose(a, b, atol=1e-3 * float(jnp.abs(a).max() + 1e-9))
    else:
        assert proof.parted


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_transforms_move_elements_where_the_walks_say(seed):
    """Random stacks, joins and transposes are found again from where the elements lie."""
    rng = np.random.default_rng(seed)
    count, axis = int(rng.integers(2, 4)), int(rng.integers(3))
    n, m = (int(n) for n in rng.integers(2, 4, 2))
    order = rng.permutation(count)
    whole = np.stack([np.zeros((n, m))] * count, axis)
    walks = []
    for k in range(count):
        where = np.moveaxis(np.arange(whole.size).reshape(whole.shape), axis, 0)
        index = where[int(np.argwhere(order == k)[0, 0])]
        steps = (int(index[1, 0] - index[0, 0]), int(index[0, 1] - index[0, 0]))
        walk = Walk((0, int(index[0, 0])), ((n, m, steps[0]), (m, 1, steps[1])))
        walks.append(tuple(fused([walk])))
    done = transforms_of(tuple(walks), [(n, m)] * count, [whole.shape])
    assert done is not None
    leaves, _, transforms = done
    assert list(leaves) == list(order)
    named = [np.full((n, m), k) for k in leaves]
    (got,) = apply_all(transforms, named)
    np.testing.assert_array_equal(got, np.stack(named, axis))


@pytest.mark.parametrize(
    ("walks", "leaves", "slots", "wanted"),
    [
        ([[Walk((0, 0), ((6, 1, 1),))]], [(2, 3)], [(6,)], (Reshape((6,)),)),
        ([[Walk((0, 0), ((2, 3, 1), (3, 1, 2)))]], [(2, 3)], [(3, 2)], (Transpose((1, 0)),)),
        (
            [[Walk((0, 0), ((4, 1, 1),))], [Walk((0, 4), ((2, 1, 1),))]],
            [(4,), (2,)],
            [(6,)],
            (Join(0),),
        ),
        (
            [[Walk((0, 0), ((4, 1, 1),))], [Walk((4, 0), ((2, 1, 1),))]],
            [(6,)],
            [(4,), (2,)],
            (Split(0, (4, 2)),),
        ),
        (
            [[Walk((0, 0), ((3, 1, 1),))], [Walk((3, 0), ((3, 1, 1),))]],
            [(2, 3)],
            [(3,), (3,)],
            (Unstack(0),),
        ),
        (
            [[Walk((0, 0), ((3, 1, 2),))], [Walk((0, 1), ((3, 1, 2),))]],
            [(3,), (3,)],
            [(3, 2)],
            (Stack(1),),
        ),
    ],
)
def test_the_shortest_transforms_are_found(walks, leaves, slots, wanted):
    done = transforms_of([tuple(w) for w in walks], leaves, slots)
    assert done is not None
    assert done[2] == wanted


def test_pieces_that_do_not_fill_a_slot_give_no_transforms():
    half = [Walk((0, 0), ((3, 1, 1),))]
    assert transforms_of([half], [(3,)], [(6,)]) is None


def test_pieces_that_lie_alike_are_put_together():
    halves = [Walk((0, 0), ((3, 2, 1),)), Walk((1, 3), ((3, 2, 1),))]
    assert fused(halves) == [Walk((0, 0), ((3, 2, 1), (2, 1, 3)))]
    rows = [Walk((0, 0), ((2, 1, 1),)), Walk((2, 2), ((4, 1, 1),))]
    assert fused(rows) == [Walk((0, 0), ((6, 1, 1),))]
