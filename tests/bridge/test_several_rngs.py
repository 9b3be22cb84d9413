"""What becomes of PRNG keys and of the model's random streams, under each policy."""

from __future__ import annotations

import numpy as np
import pytest
from planning_cases import checkpoint, kinds, leaf, make, pasted, slot, tree, went

from bridge import BridgeError, Target
from bridge.transforms import StreamKey, transform_from_json
from legacy import Leaf

W = {"d/kernel": (3, 4)}
THREEFRY, RBG = "threefry2x32", "rbg"


def stream(path, impl=THREEFRY, count=True, shape=()):
    width = 2 if impl == THREEFRY else 4
    name = path.split("/")[-1]
    found = [
        slot(f"{path}/key", (*shape, width), "uint32", "RngKey", "rngs", key_impl=impl,
             ephemeral=True, stream=None if name == "rngs" else name)
    ]  # fmt: skip
    if count:
        found.append(slot(f"{path}/count", shape, "uint32", "RngCount", "rngs", ephemeral=True))
    return found


def model(*slots):
    return Target((slot("d/kernel", (3, 4)), *(s for group in slots for s in group)))


def key(path, impl=None, shape=(2,)):
    if impl is None:
        return leaf(path, shape, "uint32")
    return Leaf(tuple(path.split("/")), "key", shape, np.dtype("uint32"), 8, key_impl=impl)


def source(*keys):
    return checkpoint(*tree("params", W), *keys)


def how(plan):
    return {"/".join(i.slot.path): i.how for i in plan.initialised}


def test_keep_carries_the_key_and_starts_streams_from_the_seed():
    plan = make(source(key("dropout_rng")), model=model(stream("drop/rngs")), seed=7)
    assert plan.ok
    assert went(plan, "extras") == {"dropout_rng": "dropout_rng"}
    assert how(plan) == {"drop/rngs/key": "rng:7", "drop/rngs/count": "zeros"}
    (said,) = plan.warnings
    assert said == (
        "1 random stream of the model starts from seed 7 (rngs='keep'); the keys of the checkpoint "
        "(dropout_rng) are kept in extras"
    )


def test_streams_without_a_key_say_so_and_no_stream_says_nothing():
    (said,) = make(source(), model=model(stream("a"), stream("b"))).warnings
    assert said.startswith("2 random streams of the model start from seed 0 (rngs='keep')")
    assert said.endswith("the checkpoint has no PRNG key")
    assert make(source(key("rng")), model=model()).warnings == ()


def test_drop_ignores_keys_by_name():
    plan = make(source(key("rng"), key("state/key", THREEFRY)), model=model(stream("drop/rngs")),
                rngs="drop")  # fmt: skip
    assert plan.ok
    assert {i.rule for i in plan.ignored} == {"drop-rng"}
    assert len(plan.ignored) == 2
    assert how(plan)["drop/rngs/key"] == "rng:0"
    assert "left behind" in plan.warnings[0]


@pytest.mark.parametrize("impl", [None, THREEFRY])
def test_reseed_gives_one_stream_the_stored_key(impl):
    plan = make(source(key("rng", impl)), model=model(stream("rngs/dropout")), rngs="reseed")
    assert plan.ok, str(plan)
    (step,) = [s for s in plan.steps if s.why == "rule:reseed"]
    assert step.transforms == ()
    assert went(plan, "extras") == {"rng": "rng"}
    assert how(plan) == {"rngs/dropout/count": "zeros"}
    assert plan.warnings == ()


def test_reseed_gives_several_streams_keys_of_their_own():
    slots = model(stream("a/rngs"), stream("b/rngs", shape=(3,)))
    plan = make(source(key("rng")), model=slots, rngs="reseed")
    assert plan.ok, str(plan)
    made = {s.slots[0].path[0]: s.transforms for s in plan.steps if s.why == "rule:reseed"}
    assert made == {
        "a": (StreamKey("model:a/rngs/key", (2,)),),
        "b": (StreamKey("model:b/rngs/key", (3, 2)),),
    }
    data = [t.apply([np.array([0, 42], np.uint32)])[0] for (t,) in made.values()]
    assert len({d.tobytes() for d in (data[0], *data[1])}) == 4


def test_reseed_pairs_keys_and_streams_by_name_and_else_takes_the_one_without():
    slots = model(stream("rngs/dropout"), stream("rngs/params"), stream("drop/rngs"))
    plan = make(source(key("dropout_rng"), key("rng")), model=slots, rngs="reseed")
    assert plan.ok, str(plan)
    made = {"/".join(s.slots[0].path): s.sources[0] for s in plan.steps if s.why == "rule:reseed"}
    assert made == {
        "rngs/dropout/key": ("dropout_rng",),
        "rngs/params/key": ("rng",),
        "drop/rngs/key": ("rng",),
    }


def test_reseed_does_not_choose_between_keys_and_its_rule_settles_it():
    keys = source(key("a_rng"), key("b_rng"))
    plan = make(keys, model=model(stream("drop/rngs")), rngs="reseed")
    assert kinds(plan) == ["ambiguous"]
    assert "no name says which one is meant" in plan.problems[0].message
    assert make(keys, model=model(stream("drop/rngs")), rngs="reseed", rules=pasted(plan)).ok


@pytest.mark.parametrize("stored", [key("rng", RBG, (4,)), key("rng", None, (4,))])
def test_keys_of_another_algorithm_never_seed_a_stream(stored):
    plan = make(source(stored), model=model(stream("drop/rngs")), rngs="reseed")
    assert kinds(plan) == ["dtype"]
    assert f"are {THREEFRY} keys for the stream model:drop/rngs/key" in plan.problems[0].message
    assert make(source(stored), model=model(stream("drop/rngs", RBG)), rngs="reseed").ok


def test_a_policy_that_is_none_is_named():
    with pytest.raises(
        BridgeError, match="rngs='new' is no policy; write 'keep', 'reseed', 'drop'"
    ):
        make(source(), model=model(), rngs="new")


def test_a_stream_key_depends_on_all_that_it_should_and_on_nothing_else():
    data = np.array([1, 2], np.uint32)
    (first,) = StreamKey("s", (2, 2)).apply([data])
    assert first.dtype == np.uint32
    assert first.shape == (2, 2)
    (again,) = StreamKey("s", (2, 2)).apply([data[::-1][::-1]])
    assert (first == again).all()
    assert not (first == StreamKey("t", (2, 2)).apply([data])[0]).all()
    assert not (first == StreamKey("s", (2, 2)).apply([data + np.uint32(1)])[0]).all()
    assert len(np.unique(StreamKey("s", (64, 2)).apply([data])[0])) == 128
    assert transform_from_json(StreamKey("s", (2, 2)).to_json()) == StreamKey("s", (2, 2))
