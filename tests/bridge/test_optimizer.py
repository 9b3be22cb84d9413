"""Optimizer states: what optax writes today and wrote before, against what nnx.Optimizer holds."""

from __future__ import annotations

import flax.serialization
import jax
import numpy as np
import optax
import pytest
from flax import nnx, traverse_util
from planning_cases import (
    check,
    checkpoint,
    kinds,
    leaf,
    make,
    opt_slots,
    pasted,
    target,
    tree,
    went,
)

import bridge
from bridge import Map, Target
from bridge.errors import TransformError
from bridge.moments import for_moments
from bridge.optimizer_heads import cut, pair_heads
from bridge.transforms import Pad, Scale, Split, Stack, Transpose, Unstack

OLD = {
    "Dense_0/kernel": (3, 4),
    "Dense_0/bias": (4,),
    "Dense_1/kernel": (4, 2),
    "Dense_1/bias": (2,),
}
NEW = {p.replace("Dense_0", "inner").replace("Dense_1", "head"): s for p, s in OLD.items()}


RENAMED = [Map.of("params/Dense_0/{x}", "inner/{x}"), Map.of("params/Dense_1/{x}", "head/{x}")]


class Net(nnx.Module):
    def __init__(self):
        self.inner = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(4, 2, rngs=nnx.Rngs(0))


def linen_leaves(tx, *, none=False):
    """A TrainState as flax.serialization (or Orbax, with ``none``) keeps it."""
    params = {}
    for path, shape in OLD.items():
        layer, name = path.split("/")
        params.setdefault(layer, {})[name] = jax.ShapeDtypeStruct(shape, np.float32)
    state = flax.serialization.to_state_dict(jax.eval_shape(tx.init, params))
    flat = traverse_util.flatten_dict(state, keep_empty_nodes=True)
    leaves = [*tree("params", OLD), leaf("step", (), "int32")]
    for path, value in flat.items():
        full = ("opt_state", *path)
        if value is traverse_util.empty_node or not hasattr(value, "shape"):
            leaves.append(leaf(full, kind="none" if none else "empty"))
        else:
            leaves.append(leaf(full, value.shape, value.dtype))
    return leaves


def is_kernel(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


def labels(params):
    return jax.tree.map(lambda p: "mat" if p.ndim > 1 else "vec", params)


TXS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, 0.9),
    "adamw": optax.adamw(1e-3),
    "mu_dtype": optax.adam(1e-3, mu_dtype="bfloat16"),
    "clip": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)),
    "schedule": optax.chain(optax.clip(1.0), optax.adam(optax.linear_schedule(1e-3, 0, 10))),
    "nested": optax.chain(optax.chain(optax.adam(1e-3), optax.trace(0.9)), optax.trace(0.5)),
    "masked": optax.masked(optax.adam(1e-3), is_kernel),
    "multi": optax.multi_transform({"mat": optax.adam(1e-3), "vec": optax.sgd(0.1, 0.9)}, labels),
    "freeze": optax.multi_transform({"mat": optax.adam(1e-3), "vec": optax.set_to_zero()}, labels),
    "steps": optax.MultiSteps(optax.adam(1e-3), 2).gradient_transformation(),
    "hyper": optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3),
    "hyper_schedule": optax.inject_hyperparams(optax.adam)(optax.linear_schedule(1e-3, 0, 10)),
    "factored": optax.adafactor(1e-3, min_dim_size_to_factor=2),
    "unfactored": optax.adafactor(1e-3, momentum=0.9),
    "lamb": optax.lamb(1e-3),
    "novograd": optax.novograd(1e-3),
    "amsgrad": optax.amsgrad(1e-3),
    "finite": optax.apply_if_finite(optax.adam(1e-3), 3),
    "lion": optax.lion(1e-3),
}


@pytest.mark.parametrize("name", TXS)
def test_every_transformation_is_aligned_under_new_names(name):
    tx = TXS[name]
    rules = [Map.of("params/Dense_0/{x}", "inner/{x}"), Map.of("params/Dense_1/{x}", "head/{x}")]
    for none in (False, True):
        source = checkpoint(*linen_leaves(tx, none=none))
        plan = make(source, model=Net, tx=tx, rules=rules)
        assert plan.ok, str(plan)
        for path, to in went(plan, "optimizer").items():
            expected = path.replace("Dense_0", "inner").replace("Dense_1", "head")
            assert expected in (f"{to}", f"opt_state/{to}", to)
        step = next(s for s in plan.steps if s.sources == (("step",),))
        assert [t.describe() for t in step.transforms] == ["cast(dtype=uint32, exact=True)"]


@pytest.mark.parametrize("name", [n for n in TXS if n != "sgd"])
def test_without_a_model_the_state_is_laid_out_as_nnx_has_it(name):
    """Every slot and every empty entry is where ``nnx.Optimizer`` has it."""
    tx = TXS[name]
    rules = [Map.of("params/Dense_0/{x}", "inner/{x}"), Map.of("params/Dense_1/{x}", "head/{x}")]
    source = checkpoint(*linen_leaves(tx))
    plan = make(source, rules=rules)
    assert plan.ok, str(plan)
    wanted = bridge.describe(Net, tx)
    ours = {(s.disk_path, s.shape, s.dtype) for s in plan.target.slots if s.item == "optimizer"}
    theirs = {(s.disk_path, s.shape, s.dtype) for s in wanted.slots if s.item == "optimizer"}
    assert ours == theirs


def model(fields=("0/mu", "0/nu"), shapes=NEW, scalars=("0/count",), names=None):
    return Target((*target(names or shapes).slots, *opt_slots(fields, shapes, scalars=scalars)))


def state(fields=("0/mu", "0/nu"), scalars=("0/count",), shapes=OLD):
    return checkpoint(
        *tree("params", shapes),
        *[x for f in fields for x in tree(f"opt_state/{f}", shapes)],
        *[leaf(f"opt_state/{c}", (), "int32") for c in scalars],
        leaf("step", (), "int32"),
    )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ((("0/mu", "0/nu"), ("0/count",)), (("1/0/mu", "1/0/nu"), ("1/0/count",))),
        ((("1/mu", "1/nu"), ("1/count", "2/count")), (("0/mu", "0/nu"), ("0/count", "1/count"))),
        ((("0/mu", "0/nu"), ("0/count", "1/count")), (("1/mu", "1/nu"), ("1/count", "2/count"))),
        ((("0/mu",), ("0/count",)), (("inner_state/0/mu",), ("inner_state/0/count",))),
    ],
)
def test_an_empty_state_more_or_fewer_in_the_chain_does_not_matter(ours, theirs):
    plan = make(state(*ours), model=model(theirs[0], scalars=theirs[1]))
    assert plan.ok, str(plan)
    home = lambda p: p.rsplit("/", 1)[0]  # noqa: E731 - said once
    moved = went(plan, "optimizer")
    for a, b in zip(ours[1], theirs[1], strict=True):
        assert moved[f"opt_state/{a}"] == f"opt_state/{b}"
    for a, b in zip(ours[0], theirs[0], strict=True):
        assert home(moved[f"opt_state/{a}/Dense_0/bias"]) == f"opt_state/{b}/inner"


def test_fields_that_may_have_moved_are_refused():
    plan = make(state(("1/trace", "2/trace"), ()), model=model(("0/trace", "1/trace"), scalars=()))
    assert not went(plan, "optimizer").keys() - {"step"}
    (problem,) = plan.problems
    assert "the optimizers are chained differently" in problem.message
    assert problem.candidates[0].startswith("the checkpoint has: 1/trace/Dense_0/…")
    assert problem.candidates[1].startswith("the optimizer has: opt_state/0/trace/…")


def test_another_optimizer_is_one_problem_that_shows_both_trees():
    plan = make(state(), model=model(("0/trace",), scalars=()))
    assert kinds(plan) == ["unmatched-source"]
    assert make(state(), model=model(("0/trace",), scalars=()), rules=pasted(plan)).ok


def test_no_optimizer_state_at_all_is_one_problem():
    source = checkpoint(*tree("params", OLD))
    plan = make(source, model=model())
    assert kinds(plan) == ["unfilled-slot"]
    fixed = make(source, model=model(), rules=pasted(plan))
    assert fixed.ok
    assert len(fixed.initialised) == 2 * len(NEW) + 2


def test_a_mask_that_differs_is_one_problem_for_each_field():
    wanted = model()
    fewer = Target(tuple(s for s in wanted.slots if "mu" not in s.path or s.path[-1] != "bias"))
    plan = make(state(), model=fewer)
    assert kinds(plan) == ["moments"]
    assert "and 1 more parameters are alike" in plan.problems[0].message
    assert make(state(), model=fewer, rules=pasted(plan)).ok


def moved(plan, field, name):
    (step,) = [s for s in plan.steps if s.sources[0][-2:] == (field, name)]
    return [t.describe() for t in step.transforms]


@pytest.mark.parametrize(
    ("transform", "shape", "mu", "nu"),
    [
        (Transpose((1, 0)), (4, 3), ["transpose(1,0)"], ["transpose(1,0)"]),
        (Scale(0.5), (3, 4), ["scale(2.0)"], ["scale(4.0)"]),
        (Pad(0, 0, 1), (4, 4), None, None),
    ],
)
def test_moments_follow_the_transforms_of_their_parameter(transform, shape, mu, nu):
    source = state(shapes={"w": (3, 4)})
    plan = make(
        source, model=model(shapes={"v": shape}), rules=[Map.of("params/w", "v", [transform])]
    )
    assert plan.ok, str(plan)
    if mu is not None:
        assert moved(plan, "mu", "w") == mu
        assert moved(plan, "nu", "w") == nu


def test_moments_are_stacked_unstacked_split_and_joined_with_their_parameters():
    parts, whole = {f"l_{i}/k": (2, 3) for i in range(3)}, {"ls/k": (3, 2, 3)}
    plan = make(state(shapes=parts), model=model(shapes=whole),
                rules=[Map.of("params/l_{i}/k", "ls/k", [Stack(0)])])  # fmt: skip
    assert plan.ok
    assert [len(s.sources) for s in plan.steps if "mu" in s.sources[0]] == [3]
    plan = make(state(shapes=whole), model=model(shapes=parts),
                rules=[Map.of("params/ls/k", "l_{i}/k", [Unstack(0)])])  # fmt: skip
    assert plan.ok
    gates = {"a/k": (3, 2), "b/k": (3, 2)}
    plan = make(state(shapes={"ab/k": (3, 4)}), model=model(shapes=gates),
                rules=[Map.of("params/ab/k", ["a/k", "b/k"], [Split(1, (2, 2))])])  # fmt: skip
    assert plan.ok


def test_a_function_must_say_what_it_does_to_moments():
    rule = bridge.Rules.from_toml(
        '[[map]]\nfrom = "params/w"\nto = "v"\n'
        'transforms = [{op = "function", name = "numpy:flipud"}]'
    )
    plan = make(state(shapes={"w": (3, 4)}), model=model(shapes={"v": (3, 4)}), rules=rule)
    assert kinds(plan) == ["moments", "moments"]
    assert 'moments = "copy"' in plan.problems[0].message
    again = bridge.Rules((*rule.rules, *pasted(plan).rules))
    assert make(state(shapes={"w": (3, 4)}), model=model(shapes={"v": (3, 4)}), rules=again).ok


def test_factored_moments_do_not_follow_a_transpose():
    source = checkpoint(
        *tree("params", {"w": (3, 4)}), leaf("opt_state/0/v_row/w", (3,)), leaf("step", (), "int32")
    )
    slots = (*target({"w": (4, 3)}).slots, *opt_slots(["0/v_row"], {"w": (4,)}, scalars=()))
    plan = make(source, model=Target(slots), rules=[Map.of("params/w", "w", [Transpose((1, 0))])])
    assert kinds(plan) == ["moments"]
    assert "factored or per-tensor" in plan.problems[0].message


def test_a_flat_vector_of_all_parameters_needs_the_same_order():
    def flat(names, new):
        total = sum(int(np.prod(s)) for s in names.values())
        source = checkpoint(
            *tree("params", names), leaf("opt_state/0/mu", (total,)), leaf("step", (), "int32")
        )
        mu = bridge.Slot("optimizer", ("opt_state", "0", "mu"), ("opt_state", "0", "mu", "value"),
                         "OptArray", "opt_state", (total,), "float32")  # fmt: skip
        return make(source, model=Target((*target(new).slots, *opt_slots([], {}, scalars=()), mu)))

    assert flat({"a/k": (2, 3), "b/k": (4,)}, {"c/k": (2, 3), "d/k": (4,)}).ok
    plan = flat({"a/k": (2, 3), "b/k": (4, 5)}, {"d/k": (2, 3), "c/k": (4, 5)})
    (step,) = [s for s in plan.steps if s.sources[0][0] == "opt_state"]
    assert [t.describe() for t in step.transforms] == ["blocks(axis=0, sizes=6,20, order=1,0)"]
    plan = flat({"a/k": (2, 3), "b/k": (4,)}, {"c/k": (2, 3), "d/k": (4,), "e/k": (9,)})
    assert not plan.ok


def test_moments_of_dropped_and_new_parameters_are_dropped_and_zero():
    source = state()
    shapes = {p: s for p, s in NEW.items() if "head" not in p} | {"fresh/kernel": (4, 9)}
    rules = [bridge.Ignore.of("params/Dense_1/**"), bridge.Init.of("fresh/**", "ones")]
    plan = make(source, model=model(shapes=shapes), rules=rules)
    assert plan.ok, str(plan)
    assert {i.rule for i in plan.ignored} == {"ignore-1"}
    assert len(plan.ignored) == 6
    assert {(i.slot.item, i.how) for i in plan.initialised} == {
        ("model", "ones"),
        ("optimizer", "zeros"),
    }


def test_a_parameter_that_became_a_buffer_has_no_moments():
    wanted = model()
    slots = tuple(
        bridge.Slot(s.item, s.path, s.disk_path, "Buffer", "buffer", s.shape, s.dtype)
        if s.item == "model" and s.path == ("inner", "bias")
        else s
        for s in wanted.slots
        if s.item == "model" or s.path[-2:] != ("inner", "bias")
    )
    plan = make(state(), model=Target(slots), rules=[Map.of("params/Dense_0/bias", "inner/bias")])
    assert plan.ok, str(plan)
    assert {i.rule for i in plan.ignored} == {"moments-of-a-buffer"}


def test_a_slot_that_another_collection_feeds_leaves_no_moment_behind():
    source = checkpoint(*state().leaves.values(), *tree("stats", {"Dense_0/extra": (9,)}))
    wanted = model(shapes={**NEW, "inner/extra": (9,)})
    plan = make(source, model=wanted, rules=[Map.of("stats/Dense_0/extra", "inner/extra")])
    assert not plan.ok  # its moments have no source, and nobody said that they start at zero
    assert all(r.item == "optimizer" for p in plan.problems for r in p.slots)


def test_an_optimizer_without_its_model_is_aligned_by_the_parameters_it_names():
    plan = make(state(), model=Target(opt_slots(["1/0/mu", "1/0/nu"], NEW, scalars=["1/0/count"])))
    assert plan.ok, str(plan)
    assert went(plan, "optimizer")["opt_state/0/nu/Dense_1/bias"] == "opt_state/1/0/nu/head/bias"
    alike = {"a/kernel": (4, 4), "b/kernel": (4, 4)}
    other = {"x/kernel": (4, 4), "y/kernel": (4, 4)}
    plan = make(state(shapes=alike), model=Target(opt_slots(["0/mu", "0/nu"], other)))
    assert not plan.ok
    assert "model=(model, optimizer)" in str(plan)


def flax_optim(*fields, shapes=OLD, step=True):
    """A checkpoint of a ``flax.optim.Optimizer``."""
    states = [
        leaf(f"optimizer/state/param_states/{p}/{f}", s) for p, s in shapes.items() for f in fields
    ]
    steps = [leaf("optimizer/state/step", (), "int32")] if step else []
    return checkpoint(*tree("optimizer/target", shapes), *states, *steps)


def test_a_state_of_flax_optim_becomes_one_of_optax():
    plan = make(flax_optim("grad_ema", "grad_sq_ema"), model=model())
    assert plan.ok, str(plan)
    there = went(plan, "optimizer")
    states = "optimizer/state/param_states"
    assert there[f"{states}/Dense_0/bias/grad_ema"] == "opt_state/0/mu/inner/bias"
    assert there[f"{states}/Dense_0/bias/grad_sq_ema"] == "opt_state/0/nu/inner/bias"
    steps = {r.path for s in plan.steps for r in s.slots if s.sources[0][-1] == "step"}
    assert steps == {("step",), ("opt_state", "0", "count")}
    assert any("AdaBelief" in w for w in plan.warnings)


def test_a_state_of_flax_optim_without_an_optimizer_is_laid_out_as_optax_has_it():
    plan = make(flax_optim("momentum"))
    assert plan.ok
    there = went(plan, "optimizer")
    momentum = "optimizer/state/param_states/Dense_0/bias/momentum"
    assert there[momentum] == "opt_state/0/trace/Dense_0/bias"
    assert make(flax_optim("momentum"), model=target(NEW)).ok
    odd = make(flax_optim("something"))
    assert odd.ok
    assert "extras" in {r.item for s in odd.steps for r in s.slots}
    assert make(flax_optim("grad_ema"), model=model()).problems


def test_a_step_below_zero_is_refused_when_it_is_cast():
    plan = make(state(), model=model())
    step = next(s for s in plan.steps if s.sources == (("step",),))
    (cast,) = step.transforms
    with pytest.raises(bridge.TransformError):
        cast.apply([np.array(-1, np.int32)])


def test_paths_are_cut_at_the_longest_parameter_name():
    names = {("kernel",), ("a", "kernel")}
    assert cut(("0", "mu", "a", "kernel"), names) == (("0", "mu"), ("a", "kernel"))
    assert cut(("0", "count"), names) is None
    assert cut(("0", "mu", "params", "kernel"), names, ("params",)) == (("0", "mu"), ("kernel",))


def test_heads_pair_by_path_or_when_only_one_is_left():
    p, q = frozenset({("k",)}), frozenset({("l",)})
    assert pair_heads({("0", "mu"): p}, {("0", "mu"): p}) == {("0", "mu"): (("0", "mu"), "path")}
    assert pair_heads({("0", "t"): p, ("2", "t"): p}, {("0", "t"): p, ("1", "t"): p}) == {}
    assert pair_heads({("0", "t"): p, ("2", "t"): q}, {("3", "t"): q, ("1", "t"): p}) == {
        ("0", "t"): (("1", "t"), "unique"),
        ("2", "t"): (("3", "t"), "unique"),
    }


def test_the_plan_of_an_optimizer_round_trips():
    source = state()
    check(bridge.plan(source, model=model()), source)


@pytest.mark.parametrize("field", ["trace", "ema"])
def test_a_field_of_updates_does_not_follow_a_scale(field):
    # after Adam in the chain an update is normalised: 1/f would be silently wrong there
    with pytest.raises(TransformError, match="cannot be told how it scales"):
        for_moments([Scale(0.5)], ("1", field))
    assert for_moments([Transpose((1, 0))], ("1", field)) == (Transpose((1, 0)),)
    assert for_moments([Scale(0.5)], ("0", "mu")) == (Scale(2.0),)
    assert for_moments([Scale(0.5)], ("0", "nu")) == (Scale(4.0),)


# --- what must not be exchanged ---------------------------------------------------------------


def fed_by(plan, prefix):
    """Which field of the checkpoint feeds a field of the optimizer."""
    return {
        "/".join(s.sources[0][1:-2]) or "/".join(s.sources[0])
        for s in plan.steps
        for r in s.slots
        if "/".join(r.path).startswith(f"opt_state/{prefix}/")
    }


def test_mu_and_nu_are_told_apart_though_nothing_but_the_name_does():
    plan = make(state(("0/nu", "0/mu")), model=model(("1/0/mu", "1/0/nu"), scalars=("1/0/count",)))
    assert plan.ok
    assert fed_by(plan, "1/0/mu") == {"0/mu"}
    assert fed_by(plan, "1/0/nu") == {"0/nu"}


def test_the_moments_of_one_optimizer_are_not_dealt_out_to_two():
    # adam's mu and nu would fit lion and rmsprop by name
    plan = make(state(("0/mu", "0/nu")), model=model(("0/mu", "1/nu")))
    (problem,) = plan.problems
    assert "chained differently" in problem.message
    plan = make(state(("0/mu", "1/nu")), model=model(("0/mu", "0/nu")))
    assert not plan.ok
    assert not any("mu" in r.path or "nu" in r.path for s in plan.steps for r in s.slots)


def part(field, *names):
    return tree(f"opt_state/{field}", {n: OLD[n] for n in names})


def test_labels_that_were_exchanged_are_refused():
    inner = "inner_states/{}/inner_state/0/mu"
    kernels, biases = [n for n in OLD if "kernel" in n], [n for n in OLD if "bias" in n]
    source = checkpoint(
        *tree("params", OLD),
        *part(inner.format("a"), *kernels),
        *part(inner.format("b"), *biases),
        leaf("step", (), "int32"),
    )

    def wanted(a, b):
        slots = []
        for label, names in (("a", a), ("b", b)):
            new = {n.replace("Dense_0", "inner").replace("Dense_1", "head"): OLD[n] for n in names}
            slots += opt_slots([inner.format(label)], new, scalars=(), step=False)
        return Target((*target(NEW).slots, *slots, *opt_slots([], {}, scalars=())))

    assert make(source, model=wanted(kernels, biases)).ok
    plan = make(source, model=wanted(biases, kernels))
    assert not plan.ok
    assert "masked differently" in plan.problems[0].message


def test_labels_that_were_renamed_are_known_by_the_parameters_below_them():
    inner = "inner_states/{}/inner_state/0/mu"
    kernels, biases = [n for n in OLD if "kernel" in n], [n for n in OLD if "bias" in n]
    source = checkpoint(
        *tree("params", OLD),
        *part(inner.format("a"), *kernels),
        *part(inner.format("b"), *biases),
        leaf("opt_state/inner_states/a/inner_state/0/count", (), "int32"),
        leaf("opt_state/inner_states/b/inner_state/0/count", (), "int32"),
        leaf("step", (), "int32"),
    )
    tx = optax.multi_transform({"vec": optax.lion(1e-3), "mat": optax.lion(1e-3)}, labels)
    plan = make(source, model=Net, tx=tx, rules=RENAMED)
    assert plan.ok, str(plan)
    there = went(plan, "optimizer")
    for old, new in (("a", "mat"), ("b", "vec")):
        count = f"opt_state/inner_states/{old}/inner_state/0/count"
        assert there[count] == f"opt_state/inner_states/{new}/inner_state/0/count"


def test_counts_of_schedules_that_moved_are_refused():
    # an EmptyState fewer: the count at 1 was at 2, and by its path it would be the other one's
    fields = (("0/trace",), ("1/count", "2/count"))
    plan = make(state(*fields), model=model(("3/trace",), scalars=("0/count", "1/count")))
    assert not plan.ok
    assert not any(s.sources[0][-1] == "count" for s in plan.steps)
    assert "1/count" in plan.problems[-1].candidates[0]


def test_the_count_of_a_schedule_is_not_that_of_adam():
    plan = make(state(scalars=("0/count", "1/count")),
                model=model(("1/0/mu", "1/0/nu"), scalars=("0/count", "1/0/count")))  # fmt: skip
    assert plan.ok
    assert went(plan, "optimizer")["opt_state/0/count"] == "opt_state/1/0/count"
    assert went(plan, "optimizer")["opt_state/1/count"] == "opt_state/0/count"


def test_a_schedule_that_is_gone_leaves_its_count_behind_and_says_so():
    plan = make(state(scalars=("0/count", "1/count")), model=model())
    assert plan.ok
    assert {i.rule for i in plan.ignored} == {"schedule-count"}
    assert any("is its learning rate right?" in w for w in plan.warnings)


def test_a_schedule_that_is_new_goes_on_at_the_count_of_its_chain():
    plan = make(state(), model=model(scalars=("0/count", "1/count")))
    assert plan.ok
    (step,) = [s for s in plan.steps if s.why == "rule:schedule-count"]
    assert step.sources == (("opt_state", "0", "count"),)
    assert step.slots[0].path == ("opt_state", "1", "count")
    anew = make(state(), model=model(scalars=("0/count", "1/count")),
                rules=[bridge.Init.of("opt_state/1/count", "zeros", item="optimizer")])  # fmt: skip
    assert anew.ok
    assert not [s for s in anew.steps if s.why == "rule:schedule-count"]
    # of momentum alone nothing counts
    bare = make(state(("0/trace",), ()), model=model(("0/trace",), scalars=("1/count",)))
    assert kinds(bare) == ["unfilled-slot"]


def test_a_vector_over_some_of_the_parameters_is_no_vector_of_the_same_length():
    """``masked(flatten(adam))``: what it is over is not in the checkpoint."""
    names, new = {"a/k": (2, 3), "b/k": (2, 3)}, {"d/k": (2, 3), "c/k": (2, 3)}
    mu = "inner_states/m/inner_state/0/mu"
    source = checkpoint(
        *tree("params", names), leaf(f"opt_state/{mu}", (6,)), leaf("step", (), "int32")
    )
    path = ("opt_state", *mu.split("/"))
    slot = bridge.Slot(
        "optimizer", path, (*path, "value"), "OptArray", "opt_state", (6,), "float32"
    )
    rules = [Map.of("params/a/k", "d/k"), Map.of("params/b/k", "c/k")]
    slots = (*target(new).slots, *opt_slots([], {}, scalars=()), slot)
    plan = make(source, rules=rules, model=Target(slots))
    assert not plan.ok
    assert "cannot be told" in plan.problems[0].message


def test_the_step_of_flax_optim_is_its_own():
    source = checkpoint(*flax_optim("momentum").leaves.values(), leaf("step", (), "int32"))
    plan = make(source, model=model(("0/trace",), scalars=()))
    assert plan.ok, str(plan)
    (step,) = [s for s in plan.steps if str(s.slots[0]) == "optimizer:step"]
    assert step.sources == (("optimizer", "state", "step"),)


def test_the_state_of_a_multi_optimizer_goes_by_parameter():
    kernels = {p: s for p, s in OLD.items() if "kernel" in p}
    biases = {p: s for p, s in OLD.items() if "bias" in p}
    states = "optimizer/state/param_states"
    source = checkpoint(
        *tree("optimizer/target", OLD),
        *[
            leaf(f"{states}/{p}/{f}", s)
            for p, s in OLD.items()
            for f in ("grad_ema", "grad_sq_ema")
        ],
        leaf("optimizer/state/step", kind="number"),
    )
    assert kernels
    assert biases
    tx = optax.multi_transform({"mat": optax.adam(1e-2), "vec": optax.adam(1e-3)}, labels)
    plan = make(source, model=Net, tx=tx, rules=RENAMED)
    assert plan.ok, str(plan)
    there = went(plan, "optimizer")
    for path in OLD:
        new = path.replace("Dense_0", "inner").replace("Dense_1", "head")
        label = "mat" if path in kernels else "vec"
        slot = f"opt_state/inner_states/{label}/inner_state/0/nu/{new}"
        assert there[f"{states}/{path}/grad_sq_ema"] == slot
    casts = {t.describe() for s in plan.steps if s.sources[0][-1] == "step" for t in s.transforms}
    assert casts == {"cast(dtype=int32, exact=True)", "cast(dtype=uint32, exact=True)"}
