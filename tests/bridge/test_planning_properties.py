"""Whatever the trees: every leaf and slot is accounted for, and no weight goes to a wrong place."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from planning_cases import check, checkpoint, leaf, make, opt_slots, slot, target, tree, went

import bridge
from bridge import Target

RELAXED = {"deadline": None, "suppress_health_check": list(HealthCheck)}

# -- modules with a known truth ---------------------------------------------------------------

LAYERS = [
    {"kernel": (4, 4), "bias": (4,)},
    {"kernel": (4, 4)},
    {"kernel": (4, 8), "bias": (8,)},
    {"kernel": (8, 4), "bias": (4,)},
    {"kernel": (3, 3, 4, 4), "bias": (4,)},
    {"scale": (4,), "bias": (4,)},
    {"scale": (4,)},
    {"bias": (4,)},
    {"embedding": (16, 4)},
    {"pos": (1, 4)},
    {"w_x": (4, 8), "gate": (8,)},
]
names = st.sampled_from(["a", "b", "c", "Dense", "layers", "block", "enc", "norm"])


@st.composite
def modules(draw, depth=2):
    """A tree of modules: name to layer or to another tree; lists are names with numbers."""
    found = {}
    for _ in range(draw(st.integers(1, 3))):
        name = draw(names)
        inner = draw(modules(depth=depth - 1)) if depth and draw(st.booleans()) else None
        layer = dict(draw(st.sampled_from(LAYERS)))
        if draw(st.booleans()):
            for i in range(draw(st.integers(1, 3))):
                found[name, i] = inner or layer
        else:
            found[name, None] = inner or layer
    return found


def is_layer(node):
    return all(isinstance(k, str) for k in node)


@st.composite
def renamed(draw, node):
    """The same tree under new names; pairs of (Linen path, NNX path, shape)."""
    if is_layer(node):
        return [((k,), (k,), s) for k, s in node.items()]
    rows = []
    keep = draw(st.booleans())
    new = {}
    # a list of another name may have another order; one of the same name may skip indices
    order = {n: draw(st.permutations([i for m, i in node if m == n])) for n, _ in node}
    step, start = draw(st.sampled_from([(1, 0), (2, 0), (1, 1)]))
    for name, i in node:
        base = name if keep else new.setdefault(name, f"m{len(new)}")
        ours, theirs = name, (base,)
        if i is not None:
            at = i * step + start if keep or None in order[name] else order[name][i]
            ours = f"{name}_{i}"
            theirs = (base, str(at)) if draw(st.booleans()) else (f"{base}_{at}",)
        for a, b, s in draw(renamed(node[name, i])):
            rows.append(((ours, *a), (*theirs, *b), s))
    return rows


@st.composite
def rewrites(draw):
    """A model and its rewrite: renamed, with lists that skip, layers dropped and added."""
    rows = draw(renamed(draw(modules())))
    dropped = draw(st.sets(st.integers(0, len(rows) - 1), max_size=2))
    ours = {a: s for a, _, s in rows}
    theirs = {b: s for n, (_, b, s) in enumerate(rows) if n not in dropped}
    truth = {a: b for n, (a, b, _) in enumerate(rows) if n not in dropped}
    if len(set(truth.values())) < len(truth) or clash(ours) or clash(theirs):
        return None
    if draw(st.booleans()):  # a leaf that is reshaped, and a new one of the shape that it had
        a, b, shape = draw(st.sampled_from(rows))
        if truth.get(a) == b and ("narrow", b[-1]) not in theirs:
            theirs[b] = (1, *shape)
            theirs["narrow", b[-1]] = shape
            del truth[a]
    if draw(st.booleans()):  # a new layer of a shape that no dropped leaf has
        shape = draw(st.sampled_from([(5, 5), (4, 4), (4,), (2, 2, 4)]))
        path = ("new", draw(st.sampled_from(["kernel", "bias", "scale"])))
        gone = {s for n, (_, _, s) in enumerate(rows) if n in dropped}
        if shape not in gone and path not in theirs:
            theirs[path] = shape
    return ours, theirs, truth


def clash(paths):
    return any(p != q and q[: len(p)] == p for p in paths for q in paths)


@settings(max_examples=100, **RELAXED)
@given(rewrites(), st.randoms())
def test_a_mapped_leaf_is_where_it_belongs(case, random):
    if case is None:
        return
    ours, theirs, truth = case
    leaves = [leaf(("params", *p), s) for p, s in ours.items()]
    slots = [slot(p, s) for p, s in theirs.items()]
    random.shuffle(leaves)
    random.shuffle(slots)
    source = checkpoint(*leaves)
    plan = make(source, model=Target(tuple(slots)))
    for step in plan.steps:
        (path,), (ref,) = step.sources, step.slots
        # one name on both sides is the name of one thing, by design
        assert truth.get(path[1:]) == ref.path or path[1:] == ref.path, step


@settings(max_examples=60, **RELAXED)
@given(rewrites(), st.randoms())
def test_the_order_of_leaves_and_slots_never_matters(case, random):
    if case is None:
        return
    ours, theirs, _ = case
    slots = [slot(p, s) for p, s in theirs.items()]
    source = checkpoint(*[leaf(("params", *p), s) for p, s in ours.items()])
    one = went(bridge.plan(source, model=Target(tuple(slots))))
    random.shuffle(slots)
    assert went(bridge.plan(source, model=Target(tuple(slots)))) == one


# -- traps --------------------------------------------------------------------------------------


def plan_of(ours, theirs):
    source = checkpoint(*tree("params", ours))
    return make(source, model=target(theirs))


def test_a_list_that_skips_indices_is_refused():
    ours = {f"layers_{i}/kernel": (4, 4) for i in range(3)}
    plan = plan_of(ours, {f"layers/{i}/kernel": (4, 4) for i in (0, 2, 4)})
    assert not plan.steps


def test_a_list_that_starts_at_one_is_refused():
    ours = {f"block_{i}/kernel": (4, 4) for i in range(3)}
    plan = plan_of(ours, {f"block_{i}/kernel": (4, 4) for i in (1, 2, 3)})
    assert not plan.steps


def test_a_list_that_skips_indices_is_unique_where_shapes_differ():
    ours = {f"layers_{i}/kernel": (4, 5 + i) for i in range(3)}
    plan = plan_of(ours, {f"layers/{2 * i}/kernel": (4, 5 + i) for i in range(3)})
    assert plan.ok
    assert went(plan)["params/layers_1/kernel"] == "layers/2/kernel"


def test_a_model_that_grew_is_paired_by_path_and_says_what_is_new():
    ours = {f"layers_{i}/kernel": (4, 4) for i in range(3)}
    plan = plan_of(ours, {f"layers/{i}/kernel": (4, 4) for i in range(5)})
    assert len(plan.steps) == 3
    assert [p.slots[0].path[1] for p in plan.problems] == ["3", "4"]


def test_a_leaf_that_may_be_reshaped_takes_the_certainty_away():
    # `old` became `wide`, and `narrow` is new: nothing but its shape speaks for old -> narrow
    plan = plan_of({"old/kernel": (4, 4)}, {"wide/kernel": (2, 2, 4), "narrow/kernel": (4, 4)})
    assert not plan.steps


def test_a_leaf_whose_path_is_there_in_another_shape_may_belong_elsewhere():
    ours = {"a/kernel": (4, 4), "b/kernel": (4, 4)}
    plan = plan_of(ours, {"b/kernel": (1, 4, 4), "narrow/kernel": (4, 4)})
    assert not plan.steps


def test_a_norm_without_scale_does_not_feed_one_without_bias():
    assert not plan_of({"LayerNorm_0/bias": (4,)}, {"ln/scale": (4,)}).steps
    assert not plan_of({"LayerNorm_0/bias": (4,)}, {"ln/gamma": (4,)}).steps
    assert not plan_of({"n/scale": (4,)}, {"n/b": (4,)}).steps
    assert not plan_of({"n/bias": (4,)}, {"ln/anything": (4,)}).steps


def test_a_square_kernel_under_another_leaf_name_may_be_transposed():
    assert not plan_of({"d/kernel": (4, 4)}, {"d/weight": (4, 4)}).steps
    assert plan_of({"d/kernel": (4, 5)}, {"d/weight": (4, 5)}).ok


def test_mean_and_var_stay_what_they_are():
    source = checkpoint(
        *tree("params", {"d/kernel": (3, 4)}),
        *tree("batch_stats", {"BatchNorm_0/mean": (4,), "BatchNorm_0/var": (4,)}),
    )
    slots = (
        slot("fc/kernel", (3, 4)),
        slot("bn/var", (4,), kind="BatchStat", collection="batch_stats"),
        slot("bn/mean", (4,), kind="BatchStat", collection="batch_stats"),
    )
    plan = make(source, model=Target(slots))
    assert went(plan)["batch_stats/BatchNorm_0/mean"] == "bn/mean"
    assert went(plan)["batch_stats/BatchNorm_0/var"] == "bn/var"
    source = checkpoint(*tree("batch_stats", {"n/mean": (4,)}), *tree("params", {"k": (2,)}))
    assert not make(source,
                    model=Target((slot("k", (2,)), slots[1]))).ok  # fmt: skip


def test_two_heads_of_one_shape_are_refused_even_when_one_was_dropped():
    plan = plan_of({"old/kernel": (4, 9), "head/kernel": (4, 9)}, {"new/kernel": (4, 9)})
    assert not plan.steps


def test_an_untied_embedding_has_no_home_in_a_tied_model():
    plan = plan_of(
        {"embed/embedding": (16, 4), "lm_head/kernel": (4, 16)}, {"wte/embedding": (16, 4)}
    )
    assert [p.sources for p in plan.problems] == [
        (("params", "lm_head", "kernel"),)
    ] or not plan.steps


def test_a_leaf_called_value_with_siblings_is_no_box():
    ours = {"attn/value": (4, 8), "attn/key": (4, 9)}
    plan = plan_of(ours, {"attn/value": (4, 8), "attn/key": (4, 9)})
    assert plan.ok
    assert not plan_of(
        {"attn/value": (4, 8), "attn/key": (4, 8)}, {"attn": (4, 8), "k": (4, 8)}
    ).steps


def test_lists_of_different_names_are_not_paired_by_their_order():
    ours = {f"Dense_{i}/kernel": (4, 4) for i in range(2)}
    assert not plan_of(ours, {f"layers/{i}/kernel": (4, 4) for i in range(2)}).steps
    ours = {f"Dense_{i}/{k}": s for i in range(2) for k, s in LAYERS[0].items()}
    assert not plan_of(ours, {f"xs_{p.removeprefix('Dense_')}": s for p, s in ours.items()}).steps


# -- accounting over anything ---------------------------------------------------------------------

words = st.sampled_from(
    ["params", "opt_state", "step", "ema", "ema_params", "0", "1", "mu", "nu", "count", "kernel",
     "bias", "batch_stats", "mean", "value", "a", "Dense_0", "rng", "target"]
)  # fmt: skip
paths = st.lists(words, min_size=1, max_size=5).map(tuple)
shapes = st.sampled_from([(), (4,), (4, 4), (2, 8), (0, 3)])
dtypes = st.sampled_from(["float32", "bfloat16", "int32", "uint32"])
kinds_of = st.sampled_from(["array"] * 6 + ["scalar", "number", "str", "bool", "none", "empty"])


def free(paths_):
    chosen = []
    for p in sorted(set(paths_)):
        if not any(p[: len(c)] == c or c[: len(p)] == p for c in chosen):
            chosen.append(p)
    return chosen


@st.composite
def checkpoints(draw):
    found = []
    for p in free(draw(st.lists(paths, max_size=14))):
        kind = draw(kinds_of)
        shape = () if kind == "scalar" else draw(shapes)
        found.append(leaf(p, shape, draw(dtypes), kind))
    if draw(st.booleans()):
        params = {"a/kernel": (4, 4), "b/kernel": (4, 4), "b/bias": (4,)}
        have = {x.path[0] for x in found}
        for name in {"params", "opt_state", "ema"} - have:
            where = {"params": "params", "opt_state": "opt_state/0/mu", "ema": "ema/params"}[name]
            found += tree(where, params)
    return checkpoint(*found)


@st.composite
def targets(draw):
    chosen = free(draw(st.lists(paths, max_size=8)))
    items = draw(st.sampled_from([("model",), ("actor", "critic"), ("model", "ema")]))
    found = []
    for p in chosen:
        collection = draw(st.sampled_from(["params", "params", "batch_stats", "rngs", ""]))
        found.append(
            slot(p, draw(shapes), draw(dtypes), collection=collection,
                 item=draw(st.sampled_from(items)), ephemeral=collection == "rngs")
        )  # fmt: skip
    if draw(st.booleans()):
        wanted = {"/".join(s.path): s.shape for s in found if s.item == items[0]}
        name = "optimizer" if items[0] == "model" else f"{items[0]}_optimizer"
        found += opt_slots(["0/mu"], wanted, item=name)
    disk = [(s.item, ".".join(s.disk_path)) for s in found]
    return Target(tuple(s for n, s in enumerate(found) if disk.index(disk[n]) == n))


RULES = [
    bridge.Ignore.of("params/a/**"),
    bridge.Ignore.of("**/bias"),
    bridge.Map.of("params/a/kernel", "a/kernel"),
    bridge.Map.of("params/{x}/kernel", "{x}/bias"),
    bridge.Map.of("batch_stats/{x...}", "{x...}"),
    bridge.Map.of("opt_state/0/count", "opt_state/0/count", item="optimizer"),
    bridge.Map.of("params/a/kernel", "b/kernel", [bridge.transforms.Transpose((1, 0))]),
    bridge.Init.of("a/**", "zeros"),
    bridge.Init.of("**/kernel", "ones", item="optimizer"),
    bridge.CastRule.of("**", "bfloat16"),
]
some_rules = st.lists(st.sampled_from(RULES), max_size=3, unique_by=id)


@settings(max_examples=120, **RELAXED)
@given(checkpoints(), st.none() | targets(), some_rules)
def test_every_leaf_and_slot_has_exactly_one_account(source, model, rules):
    plan = bridge.plan(source, model=model, rules=rules)
    check(plan, source)


# -- size ----------------------------------------------------------------------------------------


def big(n, rename=lambda i: f"blocks/{i}"):
    parts = {"Dense_0/kernel": (4, 8), "Dense_0/bias": (8,), "LayerNorm_0/scale": (4,)}
    ours = {f"Block_{i}/{p}": s for i in range(n // 9) for p, s in parts.items()}
    source = checkpoint(
        *tree("params", ours),
        *tree("opt_state/0/mu", ours),
        *tree("opt_state/0/nu", ours),
        leaf("opt_state/0/count", (), "int32"),
        leaf("step", (), "int32"),
    )
    theirs = {f"{rename(i)}/{p}": s for i in range(n // 9) for p, s in parts.items()}
    model = Target((*target(theirs).slots, *opt_slots(["0/mu", "0/nu"], theirs)))
    return source, model


@pytest.mark.parametrize("kind", ["structural", "path", "refused"])
def test_ten_thousand_leaves_are_all_accounted_for(kind):
    # how long it takes is measured by benchmarks/plan_scaling.py
    source, model = big(10_000, (lambda i: f"Block/{i}") if kind == "path" else lambda i: f"xs/{i}")
    plan = bridge.plan(source, model=None if kind == "structural" else model)
    assert plan.ok == (kind != "refused")
    check(plan, source)
