"""NNX states of old releases are named as such, and Linen trees are never taken for one."""

import pytest

from legacy.leaves import Leaf, LeafTable, parse_path
from legacy.nnx_era import nnx_era


def table(*paths: str) -> LeafTable:
    return LeafTable([Leaf(parse_path(path), "array") for path in paths])


@pytest.mark.parametrize(
    ("paths", "era", "fact"),
    [
        # flax 0.8.4: nnx.state(model) with Dropout
        (
            ("drop/rngs/dropout/count/raw_value", "linear/kernel/raw_value"),
            "flax 0.8.2-0.8.5",
            "all leaves end in raw_value, such as drop/rngs/dropout/count/raw_value",
        ),
        # flax 0.8.4: an optimizer, whose count is not wrapped
        (
            ("model/linear/kernel/raw_value", "opt_state/0/count", "step/raw_value"),
            "flax 0.8.2-0.8.5",
            "all leaves end in raw_value",
        ),
        # flax 0.8.1, 0.10.2
        (("linear/kernel/value", "norm/mean/value"), "0.8.0-0.8.1 or 0.9", "all leaves end in"),
        # nnx.split into a dict with a name that is Linen's, too
        (
            ("params/linear/kernel/value", "rest/norm/mean/value"),
            "or 0.9 and newer",
            "end in value",
        ),
        # only the streams: their names are those of Linen collections
        (("dropout/key/value", "params/key/value", "params/count/value"), "or 0.9", "end in value"),
        # one entry of a larger tree
        (("model/a/mean/value", "epoch", "metrics/loss"), "or 0.9", "all leaves below model"),
        # what only NNX writes is not in it
        (("a/kernel/value", "a/bias/value"), "or Linen parameters that are all in", "end in value"),
        (
            ("drop/rngs/dropout/key", "drop/rngs/dropout/count", "linear/kernel"),
            "the pure dict",
            "random streams as NNX keeps them, such as drop/rngs/dropout/",
        ),
    ],
)
def test_a_state_is_told_by_what_its_leaves_end_in(paths, era, fact):
    found = nnx_era(table(*paths))
    assert found is not None
    assert era in found[0]
    assert fact in found[1]


@pytest.mark.parametrize(
    "paths",
    [
        # nn.Partitioned boxes, some and all of the parameters
        ("params/kernel/value", "params/bias"),
        ("params/Dense_0/kernel/value", "params/Dense_0/bias/value"),
        ("params/encoder/kernel/value", "params/encoder/bias/value"),
        ("Dense_0/kernel/value", "Dense_0/bias/value"),
        ("enc/kernel/value", "dec/kernel"),
        # a TrainState of them
        ("step", "params/enc/kernel/value", "opt_state/0/mu/enc/kernel/value", "opt_state/0/count"),
        ("params/enc/kernel/value", "batch_stats/norm/mean"),
        # a module or a parameter of that name
        ("params/value/kernel", "params/Critic_0/value"),
        ("params/critic/raw_value", "params/critic/kernel"),
        ("value",),
        ("raw_value",),
        # the rngs of a Linen trainer
        ("rngs/dropout", "params/kernel"),
        (),
        ("/",),
    ],
)
def test_a_linen_tree_is_never_taken_for_one(paths):
    assert nnx_era(table(*paths)) is None


def test_leaves_without_a_value_say_nothing():
    mixed = [Leaf(("linear", "bias"), "none"), Leaf(("linear", "kernel", "raw_value"), "array")]
    assert nnx_era(LeafTable(mixed)) is not None
    assert nnx_era(LeafTable([Leaf(("a", "raw_value"), "none")])) is None
