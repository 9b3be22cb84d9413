"""Parts of fingerprints: readings, evaluation in float64, transforms, pairing by exclusion."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.fingerprint_lift import Unliftable, evaluate, narrow
from bridge.fingerprint_match import Unit
from bridge.fingerprint_pairs import pairings
from bridge.fingerprint_quiet import quiet_pairs
from bridge.fingerprint_readings import WHOLE, Reading, options
from bridge.fingerprint_values import Classes, randoms, role_of
from bridge.proof import Pairing
from bridge.transforms import Join, Reshape, Stack, Transpose, Unstack, apply_all


def wide(function, *args):
    closed = jax.make_jaxpr(function)(*args)
    with jax.enable_x64(True):
        given = [jnp.asarray(np.asarray(a), np.float64) for a in args]
        return [np.asarray(x) for x in evaluate(closed.jaxpr, closed.consts, given)]


X = np.linspace(0.1, 0.9, 6, dtype=np.float32).reshape(2, 3)


def halves(x):
    return (x.astype(jnp.bfloat16) * 2).astype(jnp.float16) / 3


def loop(x):
    return jax.lax.fori_loop(0, 3, lambda _, y: jnp.sin(y) + x, jnp.zeros_like(x))


def scan(x):
    return jax.lax.scan(lambda c, y: (c + jnp.exp(y), c), jnp.zeros(3, x.dtype), x)


def branch(x):
    return jax.lax.cond(x[0, 0] > 0, jnp.cos, jnp.sin, x)


def inner(x):
    return jax.checkpoint(jax.nn.relu)(jax.jit(jnp.log)(x)) + jax.nn.logsumexp(x)


def scattered(x):
    return jnp.zeros((4, 3)).at[jnp.array([1, 1])].add(x).at[0].set(2.0)


def until(x):
    return jax.lax.while_loop(lambda y: y.sum() < 9, lambda y: y * 1.5, x)


@pytest.mark.parametrize("function", [halves, loop, scan, branch, inner, scattered, until])
def test_what_was_traced_in_low_precision_is_evaluated_in_float64(function):
    with jax.enable_x64(True):
        # the same function where nothing is rounded: no fixed types, or exact ones
        plain = (lambda x: x * 2 / 3) if function is halves else function
        expected = [np.asarray(y) for y in jax.tree.leaves(plain(jnp.asarray(X, np.float64)))]
    found = wide(function, X)
    assert [y.dtype for y in found] == [np.float64] * len(found)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13)


def test_random_draws_keep_their_bits():
    with jax.enable_x64(False):
        expected = jax.random.normal(jax.random.key(1), (5,))
    found = wide(lambda x: x[0, 0] * 0 + jax.random.normal(jax.random.key(1), (5,)), X)[0]
    np.testing.assert_allclose(found, np.asarray(expected), rtol=1e-6)


def test_a_gradient_passes_stop_gradient():
    closed = jax.make_jaxpr(lambda x: (jax.lax.stop_gradient(x) ** 2).sum())(X)
    with jax.enable_x64(True):
        grad = jax.grad(lambda x: evaluate(closed.jaxpr, closed.consts, [x])[0])(
            jnp.asarray(X, np.float64)
        )
    np.testing.assert_allclose(np.asarray(grad), 2 * X.astype(np.float64))


def test_a_call_into_python_has_no_wide_form():
    def away(x):
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    with pytest.raises(Unliftable):
        wide(away, X)


def test_code_that_results_do_not_need_does_not_make_a_model_narrow():
    def traced(x):
        jnp.sin(x.astype(np.float32))
        return x * 2

    with jax.enable_x64(True):
        assert not narrow(jax.make_jaxpr(traced)(jnp.ones(3)).jaxpr)
        assert narrow(jax.make_jaxpr(lambda x: x.astype(np.float32))(jnp.ones(3)).jaxpr)


@pytest.mark.parametrize(
    ("shape", "reading"),
    [
        ((2, 3, 4), WHOLE),
        ((2, 3, 4), Reading((2, 0, 1))),
        ((2, 3, 4), Reading((), 3, 4)),
        ((2, 6), Reading((), 3, 2)),
        ((4, 3), Reading((1, 0), 2, 2)),
    ],
)
def test_a_leaf_is_built_from_its_pieces(shape, reading):
    leaf = np.arange(np.prod(shape)).reshape(shape)
    pieces = reading.pieces(leaf)
    assert len(pieces) == reading.count
    assert np.array_equal(reading.built(pieces, shape), leaf)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([(4, 3)] * 2, [(2, 4, 3)], Reading((), 2, 12)),
        ([(4, 3)] * 2, [(4, 2, 3)], Reading((), 2, 3)),
        ([(4, 3)] * 3, [(4, 9)], Reading((), 3, 3)),
        ([(8, 2, 4)] * 3, [(8, 24)], Reading((), 3, 8)),
        ([(3, 4)], [(4, 3)], Reading((1, 0))),
        ([(4, 3)], [(12,)], WHOLE),
    ],
)
def test_the_likeliest_reading_comes_first(ours, theirs, expected):
    _, found = options(
        {("l", str(n)): s for n, s in enumerate(ours)},
        {("n", str(n)): s for n, s in enumerate(theirs)},
    )
    assert found["n", "0"][0] == expected


def test_classes_have_the_same_numbers_on_both_sides_in_every_reading():
    linen = {("l", str(n)): (4, 4) for n in range(4)}
    nnx = {("n",): (4, 4, 4)}
    ours, theirs = options(linen, nnx)
    assert len(theirs["n",]) == 3
    classes = Classes(linen, nnx, ours, theirs, randoms(0))
    part = classes.vector(("l", "0"), 16)
    built = [r.built([part] * 4, (4, 4, 4)) for r in theirs["n",]]
    assert np.array_equal(built[0], built[1])
    assert np.array_equal(built[0], built[2])


def test_roles_come_from_names():
    assert role_of(("params", "a", "kernel")) == "other"
    assert role_of(("a", "gamma")) == "scale"


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([((2, 3), WHOLE)], [((2, 3), WHOLE)], ()),
        ([((2, 3), WHOLE)], [((6,), WHOLE)], (Reshape((6,)),)),
        ([((2, 3), WHOLE)], [((3, 2), Reading((1, 0)))], (Transpose((1, 0)),)),
        ([((2, 3), WHOLE)] * 2, [((2, 2, 3), Reading((), 2, 6))], (Stack(0),)),
        ([((2, 3), WHOLE)] * 2, [((2, 6), Reading((), 2, 3))], (Join(1),)),
        ([((2, 2, 3), Reading((), 2, 3))], [((2, 3), WHOLE)] * 2, (Unstack(1),)),
        (
            [((2, 2, 3), Reading((), 2, 6))],
            [((3, 2), Reading((1, 0)))] * 2,
            (Unstack(0), Transpose((1, 0))),
        ),
    ],
)
def test_pieces_become_the_shortest_transforms(ours, theirs, expected):
    linen = {("l", str(n)): x for n, x in enumerate(ours)}
    nnx = {("n", str(n)): x for n, x in enumerate(theirs)}
    left = [(p, n) for p, (_, r) in linen.items() for n in range(r.count)]
    right = [(p, n) for p, (_, r) in nnx.items() for n in range(r.count)]
    made, lost = pairings(dict(zip(left, right, strict=True)), linen, nnx)
    assert made == [Pairing(tuple(linen), tuple(nnx), expected)]
    assert not lost


def test_fused_pieces_in_another_order_are_permuted():
    linen = {("l",): ((2, 6), Reading((), 3, 2))}
    nnx = {("n",): ((3, 2, 2), Reading((), 3, 4))}
    order = [2, 0, 1]
    (pairing,), _ = pairings({(("l",), n): (("n",), order[n]) for n in range(3)}, linen, nnx)
    leaf = np.arange(12).reshape(2, 6)
    parts = np.split(leaf, 3, axis=1)
    assert np.array_equal(
        apply_all(pairing.transforms, [leaf])[0], [parts[order.index(n)] for n in range(3)]
    )


def test_stacks_of_separate_leaves_become_fused_leaves_of_a_list():
    linen = {("q",): ((2, 3, 4), Reading((), 2, 12)), ("k",): ((2, 3, 4), Reading((), 2, 12))}
    nnx = {("n", str(i)): ((3, 8), Reading((), 2, 4)) for i in range(2)}
    partners = {((name,), i): (("n", str(i)), j) for j, name in enumerate("qk") for i in range(2)}
    (pairing,), _ = pairings(partners, linen, nnx)
    q, k = np.arange(24).reshape(2, 3, 4), -np.arange(24).reshape(2, 3, 4)
    given = {("q",): q, ("k",): k}
    made = apply_all(pairing.transforms, [given[p] for p in pairing.sources])
    for slot, array in zip(pairing.slots, made, strict=True):
        i = int(slot[1])
        assert np.array_equal(array, np.concatenate([q[i], k[i]], axis=1))


def bias(*path):
    return Unit(path, WHOLE, 0, 4)


PARTNERS = {(("params", "key", "kernel"), 0): (("k", "kernel"), 0)}
READINGS = ({("params", "key", "kernel"): (WHOLE,)}, {("k", "kernel"): (WHOLE,)})


def quiet(ours, theirs, hints=(), params=True):
    flags = {u.path: True for u in ours}, {u.path: params for u in theirs}
    return quiet_pairs(ours, theirs, PARTNERS, READINGS, flags, hints)


def test_what_has_no_influence_is_paired_beside_what_is_matched_only():
    key, other = bias("params", "key", "bias"), bias("params", "query", "bias")
    slot = bias("k", "bias")
    assert quiet([key], [slot]) == [(key, slot)]
    assert quiet([other], [slot]) == []
    assert quiet([key, bias("params", "key", "offset")], [slot]) == []
    assert quiet([key], [slot, bias("k", "offset")]) == []
    assert quiet([key], [slot], params=False) == []


def test_a_hint_decides_only_what_is_left():
    key, slot, far = bias("params", "key", "bias"), bias("k", "bias"), bias("far")
    lone = bias("params", "lone")
    hints = [Pairing((lone.path,), (far.path,)), Pairing((key.path,), (far.path,))]
    assert quiet([key, lone], [slot, far], hints) == [(key, slot), (lone, far)]
