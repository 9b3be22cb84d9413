"""A file of suggestions that nobody edited never makes a wrong plan, whatever was renamed."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings
from planning_cases import checkpoint, leaf, make, slot

import bridge
from bridge import Target
from bridge.suggest_file import suggestions

RELAXED = {"deadline": None, "suppress_health_check": list(HealthCheck)}

LAYERS = [
    {"kernel": (4, 4), "bias": (4,)},
    {"kernel": (4, 4)},
    {"kernel": (4, 8), "bias": (8,)},
    {"kernel": (4, 2, 4), "bias": (2, 4)},
    {"scale": (4,), "bias": (4,)},
    {"bias": (4,)},
    {"embedding": (8, 4)},
    {"pos": (1, 4)},
    {"gate": (8,)},
]
OTHER = {"kernel": "weight", "scale": "gamma", "bias": "beta", "pos": "position", "gate": "shift"}
old_names = st.sampled_from(["Dense", "LayerNorm", "block", "enc", "fc"])
new_names = st.sampled_from(["layers", "norm", "blocks", "fc", "proj"])


def told(base, at):
    return (base,) if at is None else (f"{base}_{at}",)


@st.composite
def renamed(draw):
    """Layers under random old and new names: rows of (old path, new path, old shape, new shape)."""
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        layer = draw(st.sampled_from(LAYERS))
        count = draw(st.integers(1, 3))
        order = draw(st.permutations(range(count)))
        start = draw(st.integers(0, 1))
        ours, theirs = draw(old_names), draw(new_names)
        reshaped = draw(st.booleans())
        spelled = draw(st.booleans())
        for i in range(count):
            a = told(ours, None if count == 1 else i)
            b = (theirs, str(order[i] + start)) if count > 1 else (theirs,)
            for name, shape in layer.items():
                new = (shape[0], shape[1] * shape[2]) if reshaped and len(shape) == 3 else shape
                new = shape[1:] if reshaped and shape[0] == 1 else new
                other = OTHER.get(name, name) if spelled else name
                rows.append(((*a, name), (*b, other), shape, new))
    return rows


@settings(max_examples=100, **RELAXED)
@given(renamed(), st.sets(st.integers(0, 20), max_size=2), st.randoms())
def test_an_unedited_file_maps_nothing_wrongly(rows, without, random):
    ours = {a: s for a, _, s, _ in rows}
    theirs = {b: s for n, (_, b, _, s) in enumerate(rows) if n not in without}
    truth = {a: b for n, (a, b, _, _) in enumerate(rows) if n not in without}
    if len(ours) < len(rows) or len(set(theirs)) < len(truth):
        return
    leaves = [leaf(("params", *p), s) for p, s in ours.items()]
    slots = [slot(p, s) for p, s in theirs.items()]
    random.shuffle(leaves)
    random.shuffle(slots)
    source, model = checkpoint(*leaves), Target(tuple(slots))
    plan = make(source, model=model)
    before = {s.sources: s.slots for s in plan.steps}
    rules = bridge.Rules.from_toml(suggestions(plan))
    after = make(source, model=model, rules=rules)
    assert not [p for p in after.problems if p.kind == "rule"]
    for step in after.steps:
        if before.get(step.sources) != step.slots:  # only what the file brought about
            (path,), (ref,) = step.sources, step.slots
            assert truth.get(path[1:]) == ref.path, (step, suggestions(plan))
    for one in after.initialised:
        assert one.slot.path not in truth.values(), (one, suggestions(plan))
    for one in after.ignored:
        assert one.path[1:] not in truth, (one, suggestions(plan))
