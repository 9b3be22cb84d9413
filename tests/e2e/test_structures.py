"""Structures: what is nested, listed, shared, tied, stacked or wrapped, with truth by hand.

Each pair is planned by names alone, where every leaf is right or refused and none is wrong, and
with the Linen module, where every leaf is right and the outputs are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx, serialization
from layer_table import data

import bridge
import legacy
from bridge.apply import step_values

D = 4
X = data(3, D)
IDS = jnp.asarray([[1, 4, 2], [0, 3, 5]])
DECODED = optax.adam(1e-3)


def linear(rngs, *shape):
    return nnx.Linear(*(shape or (D, D)), rngs=rngs)


def flat(tree, prefix=()):
    """A nested dict as a dict of paths."""
    if isinstance(tree, Mapping):
        found = [flat(v, (*prefix, str(k))) for k, v in tree.items()]
        return {path: x for part in found for path, x in part.items()}
    return {prefix: np.asarray(tree)}


def pick(tree, *index, axis=0):
    """One layer of a stack."""
    for i in index:
        tree = jax.tree.map(lambda x, i=i: np.take(x, i, axis=axis), tree)
    return tree


def stacked(*trees):
    return jax.tree.map(lambda *xs: np.stack(xs), *trees)


def front(tree, axis):
    """A stack whose axis comes first."""
    return jax.tree.map(lambda x: np.moveaxis(x, axis, 0), tree)


# -- nested modules, lists and dicts -----------------------------------------------------------


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(D)(nn.relu(nn.Dense(D)(x)))


class Middle(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Inner()(x) + Inner()(2 * x)


class Nested(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(D)(Middle()(x))


class NewInner(nnx.Module):
    """Linen numbers layers as they are made: the outer one is made first."""

    def __init__(self, rngs):
        self.up = linear(rngs)
        self.down = linear(rngs)

    def __call__(self, x):
        return self.down(nnx.relu(self.up(x)))


class NewMiddle(nnx.Module):
    def __init__(self, rngs):
        self.right = NewInner(rngs)
        self.left = NewInner(rngs)

    def __call__(self, x):
        return self.left(x) + self.right(2 * x)


class NewNested(nnx.Module):
    def __init__(self, rngs):
        self.trunk = NewMiddle(rngs)
        self.head = linear(rngs)

    def __call__(self, x):
        return self.head(self.trunk(x))


def nested(p):
    def inner(q):
        return {"down": q["Dense_0"], "up": q["Dense_1"]}

    middle = p["Middle_0"]
    return {
        "head": p["Dense_0"],
        "trunk": {"left": inner(middle["Inner_0"]), "right": inner(middle["Inner_1"])},
    }


class Listed(nn.Module):
    def setup(self):
        self.layers = [nn.Dense(D) for _ in range(12)]

    def __call__(self, x):
        for f in self.layers:
            x = jnp.tanh(f(x))
        return x


class NewListed(nnx.Module):
    def __init__(self, rngs, name="layers"):
        self.name = name
        setattr(self, name, nnx.List([linear(rngs) for _ in range(12)]))

    def __call__(self, x):
        for f in getattr(self, self.name):
            x = jnp.tanh(f(x))
        return x


class Heads(nn.Module):
    def setup(self):
        self.heads = {"mean": nn.Dense(D), "logvar": nn.Dense(D)}

    def __call__(self, x):
        return self.heads["mean"](x) * jnp.exp(self.heads["logvar"](x))


class NewHeads(nnx.Module):
    def __init__(self, rngs):
        self.heads = nnx.Dict(logvar=linear(rngs), mean=linear(rngs))

    def __call__(self, x):
        return self.heads["mean"](x) * jnp.exp(self.heads["logvar"](x))


class RenamedHeads(nnx.Module):
    def __init__(self, rngs):
        self.log_scale = linear(rngs)
        self.location = linear(rngs)

    def __call__(self, x):
        return self.location(x) * jnp.exp(self.log_scale(x))


# -- shared and tied ---------------------------------------------------------------------------


class Shared(nn.Module):
    @nn.compact
    def __call__(self, x):
        twice = nn.Dense(D)
        return nn.Dense(D)(jnp.tanh(twice(jnp.tanh(twice(x)))))


class NewShared(nnx.Module):
    """One layer under two names: one Variable, under the first of them."""

    def __init__(self, rngs):
        self.second = linear(rngs)
        self.first = self.second
        self.last = linear(rngs)

    def __call__(self, x):
        return self.last(jnp.tanh(self.second(jnp.tanh(self.first(x)))))


class Unshared(nnx.Module):
    """What was one layer is two."""

    def __init__(self, rngs):
        self.second = linear(rngs)
        self.first = linear(rngs)
        self.last = linear(rngs)

    def __call__(self, x):
        return self.last(jnp.tanh(self.second(jnp.tanh(self.first(x)))))


class Tied(nn.Module):
    @nn.compact
    def __call__(self, ids):
        table = nn.Embed(6, D)
        return table.attend(jnp.tanh(nn.Dense(D)(table(ids))))


class NewTied(nnx.Module):
    """The head shares the Variable of the table."""

    def __init__(self, rngs, *, tied=True):
        self.table = nnx.Embed(6, D, rngs=rngs)
        self.head = nnx.Embed(6, D, rngs=rngs)
        self.hidden = linear(rngs)
        if tied:
            self.head.embedding = self.table.embedding

    def __call__(self, ids):
        return self.head.attend(jnp.tanh(self.hidden(self.table(ids))))


class Doubled(nn.Module):
    """Two leaves, which only an equal start or a copy keeps equal."""

    @nn.compact
    def __call__(self, ids):
        x = jnp.tanh(nn.Dense(D)(nn.Embed(6, D, name="read")(ids)))
        return nn.Embed(6, D, name="write").attend(x)


# -- stacks ------------------------------------------------------------------------------------


class Body(nn.Module):
    """A block of several layers of one shape."""

    @nn.compact
    def __call__(self, x, _=None):
        h = nn.LayerNorm()(x)
        return x + nn.Dense(D)(nn.relu(nn.Dense(D)(h))), None


class NewBody(nnx.Module):
    def __init__(self, rngs):
        self.shrink = linear(rngs)
        self.norm = nnx.LayerNorm(D, rngs=rngs)
        self.grow = linear(rngs)

    def __call__(self, x):
        return x + self.shrink(nnx.relu(self.grow(self.norm(x))))


def body(q):
    # Dense_0 is the outer one of a nested call
    return {"norm": q["LayerNorm_0"], "shrink": q["Dense_0"], "grow": q["Dense_1"]}


class Scanned(nn.Module):
    axis: int = 0
    length: int = 3
    rest: int = 0

    @nn.compact
    def __call__(self, x):
        scan = nn.scan(
            Body,
            variable_axes={"params": self.axis},
            split_rngs={"params": True},
            length=self.length,
        )
        x, _ = scan(name="stack")(x, None)
        for _ in range(self.rest):
            x, _ = Body()(x)
        return x


class Rematted(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.remat_scan(Single, lengths=(2, 3))(name="stack")(x)


class Single(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.Dense(D)(nn.relu(nn.Dense(D)(x)))


class NewSingle(nnx.Module):
    def __init__(self, rngs):
        self.shrink = linear(rngs)
        self.grow = linear(rngs)

    def __call__(self, x):
        return x + self.shrink(nnx.relu(self.grow(x)))


def single(q):
    return {"shrink": q["Dense_0"], "grow": q["Dense_1"]}


class BlockList(nnx.Module):
    def __init__(self, rngs, n=3, kind=NewBody):
        self.blocks = nnx.List([kind(rngs) for _ in range(n)])

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class BlockStack(nnx.Module):
    def __init__(self, rngs, axis=0, n=3, kind=NewBody):
        @nnx.split_rngs(splits=n)
        @nnx.vmap(in_axes=(0,), out_axes=axis)
        def make(rngs):
            return kind(rngs)

        self.blocks, self.axis = make(rngs), axis

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, self.axis), out_axes=nnx.Carry)
        def through(x, block):
            return block(x)

        return through(x, self.blocks)


class TwoAxes(nnx.Module):
    """Two axes of layers, as ``nn.remat_scan`` has them."""

    def __init__(self, rngs):
        def make(rngs, *splits):
            if not splits:
                return NewSingle(rngs)
            here, *below = splits
            split = nnx.split_rngs(splits=here)
            return split(nnx.vmap(lambda r: make(r, *below), in_axes=(0,), out_axes=0))(rngs)

        self.blocks = make(rngs, 2, 3)

    def __call__(self, x):
        over = nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return over(over(lambda x, block: block(x)))(x, self.blocks)


class Ensemble(nn.Module):
    @nn.compact
    def __call__(self, x):
        members = nn.vmap(
            Single, in_axes=None, out_axes=0, axis_size=3,
            variable_axes={"params": 0}, split_rngs={"params": True},
        )  # fmt: skip
        return members(name="members")(x)


class NewEnsemble(BlockStack):
    def __init__(self, rngs):
        super().__init__(rngs, kind=NewSingle)

    def __call__(self, x):
        return nnx.vmap(lambda b, x: b(x), in_axes=(0, None), out_axes=0)(self.blocks, x)


class ListEnsemble(BlockList):
    def __init__(self, rngs):
        super().__init__(rngs, kind=NewSingle)

    def __call__(self, x):
        return jnp.stack([block(x) for block in self.blocks])


# -- wrapped, and what calls leave behind ------------------------------------------------------


class Mapped(nn.Module):
    """A layer whose params are looked at through a function: the file keeps what is beneath."""

    @nn.compact
    def __call__(self, x):
        doubled = nn.map_variables(
            nn.Dense, "params", lambda v: jax.tree.map(lambda a: 2 * a, v), init=False, mutable=True
        )
        return nn.Dense(D)(doubled(D)(x))


class NewMapped(nnx.Module):
    def __init__(self, rngs):
        self.first = linear(rngs)
        self.last = linear(rngs)

    def __call__(self, x):
        return self.last(x @ (2 * self.first.kernel[...]) + 2 * self.first.bias[...])


class Sowing(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(D)(x)
        self.sow("losses", "l2", jnp.sum(x**2))
        self.sow("intermediates", "hidden", x)
        return nn.Dense(2)(x)


class NewSowing(nnx.Module):
    def __init__(self, rngs, *, sow):
        self.first = linear(rngs)
        self.last = linear(rngs, D, 2)
        self.sows = sow

    def __call__(self, x):
        x = self.first(x)
        if self.sows:
            self.sow(nnx.Intermediate, "hidden", x)
        return self.last(x)


@dataclass(frozen=True)
class Pair:
    """A structure on both sides.

    Attributes:
        linen: the old model.
        nnx: makes the new one.
        truth: what its slots hold, of the old params.
        x: the input.
        alone: what a plan without the Linen module must say; empty where it maps everything.
        within: how far apart the outputs may be; compiled loops round otherwise.

    """

    linen: nn.Module
    nnx: Callable[[nnx.Rngs], Any]
    truth: Callable[[Any], Any]
    x: Any = field(default_factory=lambda: X)
    alone: str = ""
    within: float = 1e-5

    def model(self):
        """The new model."""
        return self.nnx(nnx.Rngs(3))


def twelve(name):
    return lambda p: {name: {i: p[f"layers_{i}"] for i in range(12)}}


def blocks(axis, n=3, one=body):
    return lambda p: {"blocks": {i: one(pick(p["stack"], i, axis=axis)) for i in range(n)}}


UNSURE = "nothing proves which is which"
NO_SLOT = "no slot"
PAIRS = {
    "nested": Pair(Nested(), NewNested, nested, alone=UNSURE),
    "list": Pair(Listed(), NewListed, twelve("layers")),
    "list renamed": Pair(
        Listed(), lambda r: NewListed(r, "steps"), twelve("steps"), alone=UNSURE
    ),
    "dict": Pair(Heads(), NewHeads, lambda p: {"heads": {
        "mean": p["heads_mean"], "logvar": p["heads_logvar"]}}),
    "dict renamed": Pair(Heads(), RenamedHeads, lambda p: {
        "location": p["heads_mean"], "log_scale": p["heads_logvar"]}, alone=UNSURE),
    "shared": Pair(Shared(), NewShared, lambda p: {
        "first": p["Dense_0"], "last": p["Dense_1"]}, alone=UNSURE),
    "tied": Pair(Tied(), NewTied, lambda p: {
        "head": p["Embed_0"], "hidden": p["Dense_0"]}, x=IDS),
    "scan to list": Pair(Scanned(), BlockList, blocks(0), alone=NO_SLOT),
    "scan on axis 1 to list": Pair(Scanned(1), BlockList, blocks(1), alone=NO_SLOT),
    "scan on axis -1 to list": Pair(Scanned(-1), BlockList, blocks(-1), alone=NO_SLOT),
    **{
        f"scan on axis {a} to stack on axis {b}": Pair(
            Scanned(a),
            lambda r, b=b: BlockStack(r, b),
            lambda p, a=a, b=b: {"blocks": jax.tree.map(
                lambda x: np.moveaxis(x, 0, b), body(front(p["stack"], a)))},
            alone=NO_SLOT,
        )
        for a, b in ((0, 0), (1, 0), (-1, 0), (0, 1), (1, -1), (-1, -1))
    },
    "scan of length 4 on axis 1 to stack": Pair(  # as long as the layers are wide
        Scanned(1, length=4), lambda r: BlockStack(r, 0, 4),
        lambda p: {"blocks": body(front(p["stack"], 1))}, alone=NO_SLOT),
    "remat_scan to two axes": Pair(Rematted(), TwoAxes, lambda p: {
        "blocks": single(p["stack"])}, alone=NO_SLOT),
    "remat_scan to list": Pair(Rematted(), lambda r: BlockList(r, 6, NewSingle), lambda p: {
        "blocks": {i * 3 + j: single(pick(p["stack"], i, j))
                   for i in range(2) for j in range(3)}}, alone=NO_SLOT),
    "remainder": Pair(
        Scanned(length=10, rest=2),
        lambda r: BlockList(r, 12),
        lambda p: {"blocks": {
            **blocks(0, 10)(p)["blocks"], 10: body(p["Body_0"]), 11: body(p["Body_1"])}},
        alone=NO_SLOT,
        within=1e-4,
    ),
    "ensemble to stack": Pair(Ensemble(), NewEnsemble, lambda p: {
        "blocks": single(p["members"])}, alone=NO_SLOT),
    "ensemble to list": Pair(Ensemble(), ListEnsemble, lambda p: {
        "blocks": {i: single(pick(p["members"], i)) for i in range(3)}}, alone=NO_SLOT),
    "map_variables": Pair(Mapped(), NewMapped, lambda p: {
        "first": next(q for name, q in p.items() if name != "Dense_0"),
        "last": p["Dense_0"]}, alone=UNSURE),
    "sown": Pair(Sowing(), lambda r: NewSowing(r, sow=False), lambda p: {
        "first": p["Dense_0"], "last": p["Dense_1"]}),
    "sown in both": Pair(Sowing(), lambda r: NewSowing(r, sow=True), lambda p: {
        "first": p["Dense_0"], "last": p["Dense_1"]}),
}  # fmt: skip


def drawn(tree, seed):
    """Other values in every float leaf."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda a: (
            rng.uniform(0.2, 1.0, np.shape(a)).astype(a.dtype)
            * rng.choice([-1, 1], np.shape(a)).astype(a.dtype)
        ),
        tree,
    )


def saved(pair, folder, change=lambda p: p):
    """A checkpoint of a training with adam; its variables and its moments."""
    variables = dict(jax.eval_shape(pair.linen.init, jax.random.key(0), pair.x))
    variables = drawn(variables, 1)
    params = variables["params"] = change(variables["params"])
    moments = {name: drawn(params, seed) for name, seed in (("mu", 2), ("nu", 3))}
    state = serialization.to_state_dict(DECODED.init(params))
    state["0"] |= moments
    rest = {c: v for c, v in variables.items() if c != "params"}
    tree = {"params": params, "opt_state": state, "step": np.int32(5), **rest}
    path = folder / "checkpoint_5"
    path.write_bytes(serialization.msgpack_serialize(serialization.to_state_dict(tree)))
    return path, variables, moments


def check(plan, path, pair, variables, moments):
    """No slot gets anything but what the truth says, in a plan with problems as well."""
    want = {("model", p): x for p, x in flat(pair.truth(variables["params"])).items()}
    for name, tree in moments.items():
        for p, x in flat(pair.truth(tree)).items():
            want["optimizer", ("opt_state", "0", name, *p)] = x
    leaves = legacy.open(path).leaves
    slots = {slot.ref: slot for slot in plan.target.slots}
    seen = set()
    for step in plan.steps:
        for ref, got in zip(step.slots, step_values(step, leaves, slots), strict=True):
            key = ref.item, ref.path
            if key in want:
                assert np.asarray(got).tobytes() == want[key].tobytes(), f"{step}"
                seen.add(key)
            else:
                assert ref.item in ("extras", "metadata") or ref.path[-1] in ("count", "step"), step
    if plan.ok:
        seen |= {(i.slot.item, i.slot.path) for i in plan.initialised}
        assert seen == set(want), f"{set(want) - seen}\n{plan}"


def says(plan):
    return "\n".join(f"{p.message} {p.rule}" for p in plan.problems)


@pytest.mark.parametrize("name", PAIRS)
def test_names_alone_map_a_structure_right_or_refuse_it(name, tmp_path):
    pair = PAIRS[name]
    path, variables, moments = saved(pair, tmp_path)
    plan = bridge.plan(path, model=pair.model, tx=DECODED)
    check(plan, path, pair, variables, moments)
    if pair.alone:
        assert not plan.ok, str(plan)
        assert pair.alone in says(plan), says(plan)
    else:
        assert plan.ok, str(plan)


# flax deprecates sowing outside of nnx.capture(); models that do it are there all the same
@pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")
@pytest.mark.parametrize("name", PAIRS)
def test_the_linen_module_proves_a_structure(name, tmp_path):
    pair = PAIRS[name]
    path, variables, moments = saved(pair, tmp_path)
    plan = bridge.plan(path, model=pair.model, tx=DECODED, linen=pair.linen, sample_input=pair.x)
    assert plan.ok, str(plan)
    check(plan, path, pair, variables, moments)
    got = bridge.restore(path, model=pair.model, tx=DECODED, plan=plan).model
    want = pair.linen.apply({"params": variables["params"]}, pair.x)
    np.testing.assert_allclose(got(pair.x), want, rtol=1e-5, atol=pair.within)


UNTIED = Pair(
    Shared(),
    Unshared,
    lambda p: {"first": p["Dense_0"], "second": p["Dense_0"], "last": p["Dense_1"]},
)
TO_BOTH = """
[[map]]
from = "params/Dense_0/{leaf}"
to = "first/{leaf}"

[[map]]
from = "params/Dense_0/{leaf}"
to = "second/{leaf}"

[[map]]
from = "params/Dense_1/{leaf}"
to = "last/{leaf}"
"""


def test_one_leaf_fills_two_slots_only_by_rules_and_its_moments_are_asked_for(tmp_path):
    path, variables, moments = saved(UNTIED, tmp_path)
    plan = bridge.plan(path, model=UNTIED.model, tx=DECODED)
    check(plan, path, UNTIED, variables, moments)
    assert UNSURE in says(plan)
    plan = bridge.plan(path, model=UNTIED.model, tx=DECODED, rules=bridge.Rules.from_toml(TO_BOTH))
    assert {p.kind for p in plan.problems} == {"moments"}
    assert "belong to neither alone" in says(plan)
    pasted = "\n".join((TO_BOTH, *(p.rule for p in plan.problems)))
    rules = bridge.Rules.from_toml(pasted)
    plan = bridge.plan(path, model=UNTIED.model, tx=DECODED, rules=rules)
    assert plan.ok, str(plan)
    check(plan, path, UNTIED, variables, moments)
    got = bridge.restore(path, model=UNTIED.model, tx=DECODED, plan=plan).model
    want = UNTIED.linen.apply({"params": variables["params"]}, X)
    np.testing.assert_allclose(got(X), want, rtol=1e-6, atol=1e-6)
