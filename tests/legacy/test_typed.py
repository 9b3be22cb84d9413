"""A checkpoint of any format comes back in the user's own types, or not at all."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import serialization, struct
from flax.core import FrozenDict
from flax.training.train_state import TrainState

import legacy

GOLDENS = Path(__file__).parents[1] / "goldens"
STATES = sorted(GOLDENS.glob("*/cnn_state-*"))


class State(TrainState):
    batch_stats: Any
    ema_params: Any
    key: Any


class Fields(NamedTuple):
    mean: Any
    var: Any


PARAMS = {
    "Dense_0": {"kernel": np.arange(12, dtype=np.float32).reshape(4, 3), "bias": np.ones(3, "f")},
    "head": {"kernel": np.ones((3, 2), np.float32)},
}

TXS = {
    "adamw": optax.adamw(optax.exponential_decay(0.1, 2, 0.9)),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3), optax.scale(2.0)),
    "sgd": optax.sgd(0.1),
    "masked": optax.masked(optax.adam(1e-3), {"Dense_0": True, "head": False}),
    "multi_transform": optax.multi_transform(
        {"a": optax.adam(1e-3), "b": optax.set_to_zero()}, {"Dense_0": "a", "head": "b"}
    ),
    "multi_steps": optax.MultiSteps(optax.adam(1e-3), 4),
    "inject": optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
}


def make_state(tx="adamw", seed=0, params=PARAMS):
    params = jax.tree.map(lambda x: jnp.asarray(x) * (seed + 1), params)
    transform = TXS[tx]
    transform = transform.gradient_transformation() if tx == "multi_steps" else transform
    state = State.create(
        apply_fn=print,
        params=params,
        tx=transform,
        batch_stats=FrozenDict({"mean": jnp.full(3, seed, ml_dtypes.bfloat16)}),
        ema_params=params,
        key=jax.random.PRNGKey(seed),
    )
    for _ in range(seed):
        state = state.apply_gradients(grads=params)
    return state


def write(path, tree):
    path.write_bytes(serialization.to_bytes(tree))
    return path


def same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("tx", TXS)
def test_a_train_state_comes_back_as_flax_gives_it(tx, tmp_path):
    saved, target = make_state(tx, 2), make_state(tx, 0)
    file = write(tmp_path / "checkpoint_2", saved)
    got = legacy.restore(file, target)
    assert type(got) is State
    assert got.tx is target.tx
    assert got.apply_fn is target.apply_fn
    assert type(got.step) is int
    same(dataclasses.replace(got, step=0), dataclasses.replace(saved, step=0, tx=target.tx))
    from_flax = serialization.from_bytes(target, file.read_bytes())
    same(jax.tree.map(np.asarray, got), jax.tree.map(np.asarray, from_flax))


@pytest.mark.parametrize("tx", TXS)
@pytest.mark.parametrize("abstract", [False, True])
def test_a_train_state_comes_back_from_orbax(tx, abstract, tmp_path):
    saved, target = make_state(tx, 2), make_state(tx, 0)
    ocp.PyTreeCheckpointer().save(tmp_path / "ckpt", saved)
    if abstract:
        target = jax.eval_shape(functools.partial(make_state, tx))
    target = dataclasses.replace(target, step=0)
    got = legacy.restore(tmp_path / "ckpt", target)
    assert int(got.step) == 2
    same(dataclasses.replace(got, step=0), dataclasses.replace(saved, step=0, tx=target.tx))


def test_nothing_of_the_target_is_changed(tmp_path):
    target = {"a": [np.zeros(2, np.float32)], "b": {1: np.zeros(1)}}
    file = write(tmp_path / "f", {"a": [np.ones(2, np.float32)], "b": {1: np.ones(1)}})
    got = legacy.restore(file, target)
    assert target["a"][0].sum() == 0
    got["a"][0][:] = 7
    assert legacy.restore(file, target)["a"][0].sum() == 2


def _contents():
    place = GOLDENS / "make" / "contents.py"
    if not place.exists():
        pytest.skip("tests/goldens/make is absent")
    spec = importlib.util.spec_from_file_location("golden_contents", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "folder", STATES or [None], ids=lambda f: f and f"{f.parent.name}-{f.name}"
)
def test_a_state_of_every_era_comes_back_in_todays_classes(folder):
    if folder is None:
        pytest.skip("no golden checkpoints in tests/goldens")
    truth = json.loads((folder / "truth.json").read_text())
    arrays = np.load(folder / "truth.npz")
    target = _contents()._new_cnn_state()
    place = (
        folder
        if list(folder.glob("checkpoint_*"))
        else next(p for p in folder.iterdir() if p.is_dir())
    )
    got = legacy.restore(place, target, item=truth.get("item"))
    assert type(got) is type(target)
    flat = flax.traverse_util.flatten_dict(serialization.to_state_dict(got), keep_empty_nodes=True)
    for leaf in truth["leaves"]:
        value = flat[tuple(leaf["path"])]
        if "data" in leaf:
            want = arrays[leaf["data"]]
            assert np.array_equal(np.asarray(value), want), leaf
        elif "value" in leaf:
            assert value == leaf["value"], leaf
        else:
            assert value is None or value == {} or value is flax.traverse_util.empty_node, leaf


def test_containers_come_back_as_what_they_are_in_the_target(tmp_path):
    tree = {
        "frozen": FrozenDict({"a": {"b": 1}}),
        "ordered": OrderedDict(b=1, a=2),
        "default": defaultdict(list, {"x": 3}),
        "list": [1, (2, 3)],
        "fields": Fields(1, {"k": 2}),
        "ints": {0: 1, 10: 2},
    }
    plain = {**tree, "ordered": dict(tree["ordered"]), "default": dict(tree["default"])}
    got = legacy.restore(write(tmp_path / "f", plain), tree)
    assert got == tree
    assert [type(v) for v in got.values()] == [type(v) for v in tree.values()]
    assert got["default"].default_factory is list


def test_a_frozen_target_takes_what_a_dict_was_saved_as(tmp_path):
    got = legacy.restore(write(tmp_path / "f", {"a": {"b": 1}}), FrozenDict({"a": {"b": 0}}))
    assert got == FrozenDict({"a": {"b": 1}})


def test_without_a_target_the_plain_tree_comes_back(tmp_path):
    tree = {"a": np.ones(2), "b": {"c": "text", "d": None, "e": {}, "f": [1, 2.5]}}
    got = legacy.restore(write(tmp_path / "f", tree), None)
    want = {"c": "text", "d": None, "e": {}, "f": {"0": 1, "1": 2.5}}
    assert got["b"] == want
    assert got["a"].flags.writeable
    assert legacy.restore(tmp_path / "f", {"b": None}) == {"b": want}


def test_without_a_target_lists_of_orbax_are_lists(tmp_path):
    ocp.PyTreeCheckpointer().save(tmp_path / "ckpt", {"a": [np.ones(1), {"b": np.zeros(2)}]})
    got = legacy.restore(tmp_path / "ckpt", None)
    assert type(got["a"]) is list
    assert list(got["a"][1]) == ["b"]


def test_pain_05_optimizer_states_are_named_tuples_again(tmp_path):
    saved = make_state("chain", 1).opt_state
    file = write(tmp_path / "f", {"opt": saved})
    got = legacy.restore(file, {"opt": make_state("chain").opt_state})["opt"]
    assert type(got) is tuple
    assert type(got[1][0]) is optax.ScaleByAdamState


def test_pain_06_an_optimizer_wrapped_otherwise_is_refused_with_both_sides_named(tmp_path):
    file = write(tmp_path / "f", make_state("masked", 1).opt_state)
    with pytest.raises(legacy.TargetMismatch, match="inner_state") as caught:
        legacy.restore(file, optax.adam(1e-3).init(PARAMS))
    assert "'count', 'mu', 'nu'" in str(caught.value) or "'0', '1'" in str(caught.value)


def test_pain_13_empty_states_may_be_missing_none_or_empty(tmp_path):
    target = (optax.EmptyState(), Fields(0, {}), None, (), optax.MaskedNode())
    for tree in (
        {"1": {"mean": 1}},
        {"0": None, "1": {"mean": 1, "var": None}, "2": None, "3": None},
        {"0": {}, "1": {"mean": 1, "var": {}}, "2": {}, "3": {}, "4": {}},
    ):
        got = legacy.restore(write(tmp_path / "f", tree), target)
        assert got == (optax.EmptyState(), Fields(1, {}), got[2], (), optax.MaskedNode())


def test_an_empty_state_does_not_swallow_what_the_file_has(tmp_path):
    file = write(tmp_path / "f", {"opt": {"0": {"trace": 1}, "1": {}}})
    with pytest.raises(legacy.TargetMismatch, match=r"opt/0: target: EmptyState.*'trace'"):
        legacy.restore(file, {"opt": (optax.EmptyState(), optax.EmptyState())})


def test_a_named_tuple_saved_by_position_is_accepted_and_a_mix_is_not(tmp_path):
    file = write(tmp_path / "f", {"0": 1, "1": 2})
    assert legacy.restore(file, Fields(0, 0)) == Fields(1, 2)
    file = write(tmp_path / "g", {"0": 1, "var": 2})
    with pytest.raises(legacy.TargetMismatch, match="target: Fields with 'mean', 'var'"):
        legacy.restore(file, Fields(0, 0))


def test_pain_07_old_named_tuples_come_back_from_flax_0_3_4(tmp_path):
    old = {"name": "Fields", "fields": {"0": "mean", "1": "var"}, "values": {"0": 1, "1": 2}}
    file = tmp_path / "f"
    file.write_bytes(msgpack.packb({"s": old}))
    assert legacy.restore(file, {"s": Fields(0, 0)}) == {"s": Fields(1, 2)}


def test_pain_08_two_keys_that_are_one_as_text_are_refused(tmp_path):
    file = write(tmp_path / "f", {"a": {"0": 1}})
    with pytest.raises(legacy.TargetMismatch, match="same as text"):
        legacy.restore(file, {"a": {0: 1, "0": 2}})


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_pain_09_typed_keys_come_back_typed_and_only_as_the_same_kind(impl, tmp_path):
    key = jax.random.key(3, impl=impl)
    ocp.PyTreeCheckpointer().save(tmp_path / "ckpt", {"key": key})
    got = legacy.restore(tmp_path / "ckpt", {"key": jax.random.key(0, impl=impl)})["key"]
    assert got.dtype == key.dtype
    assert jax.random.key_data(got).tolist() == jax.random.key_data(key).tolist()
    abstract = jax.eval_shape(lambda: {"key": jax.random.key(0, impl=impl)})
    assert legacy.restore(tmp_path / "ckpt", abstract)["key"].dtype == key.dtype
    other = "rbg" if impl != "rbg" else "unsafe_rbg"
    with pytest.raises(legacy.TargetMismatch, match=f"typed key {impl}"):
        legacy.restore(tmp_path / "ckpt", {"key": jax.random.key(0, impl=other)})
    raw = {"key": np.zeros(jax.random.key_data(key).shape, np.uint32)}
    if impl == "threefry2x32":
        assert legacy.restore(tmp_path / "ckpt", raw)["key"].tolist() == [0, 3]
    else:
        with pytest.raises(legacy.TargetMismatch, match="only threefry2x32 keys"):
            legacy.restore(tmp_path / "ckpt", raw)


def test_a_raw_key_of_old_code_fills_a_typed_key_of_as_many_words(tmp_path):
    file = write(tmp_path / "f", {"key": jax.random.PRNGKey(5)})
    got = legacy.restore(file, {"key": jax.random.key(0)})["key"]
    assert got == jax.random.key(5)
    with pytest.raises(legacy.TargetMismatch, match=r"key<rbg>"):
        legacy.restore(file, {"key": jax.random.key(0, impl="rbg")})


def test_pain_12_boxes_are_rebuilt_and_unboxed_by_what_the_target_has(tmp_path):
    boxed = {"k": nn.Partitioned(jnp.ones((2, 3)), names=(None, "model"))}
    target = {"k": nn.Partitioned(jnp.zeros((2, 3)), names=("data", None))}
    file = write(tmp_path / "boxed", boxed)
    got = legacy.restore(file, target)["k"]
    assert isinstance(got, nn.Partitioned)
    assert got.names == ("data", None)
    assert got.value.sum() == 6
    assert legacy.restore(file, {"k": jnp.zeros((2, 3))})["k"].sum() == 6
    plain = write(tmp_path / "plain", {"k": jnp.ones((2, 3))})
    assert legacy.restore(plain, target)["k"].value.sum() == 6


def test_pain_12_a_real_child_called_value_is_kept(tmp_path):
    tree = {"attention": {"value": {"kernel": np.ones(2)}}}
    assert list(legacy.restore(write(tmp_path / "f", tree), tree)["attention"]) == ["value"]


def test_pain_20_dataclasses_keep_their_static_fields(tmp_path):
    @struct.dataclass
    class Config:
        scale: Any
        name: str = struct.field(pytree_node=False, default="new")
        extra: Any = None

    file = write(tmp_path / "f", {"c": Config(scale=2.0, name="old", extra=None)})
    got = legacy.restore(file, {"c": Config(scale=0.0)})["c"]
    assert got == Config(scale=2.0, name="new", extra=None)


def test_a_field_that_the_constructor_does_not_take_is_set_all_the_same(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Record:
        a: int
        b: int = dataclasses.field(init=False, default=0)

    assert legacy.restore(write(tmp_path / "f", {"a": 1, "b": 2}), Record(0)).b == 2


def test_every_difference_is_reported_at_once(tmp_path):
    tree = {"shape": np.ones(3), "dtype": np.ones(2, np.float64), "only_file": 1, "leaf": {"x": 1}}
    target = {
        "shape": np.ones(4),
        "dtype": np.ones(2, np.float32),
        "missing": np.ones(1),
        "subtree": {"a": np.ones(1), "b": [1, 2]},
        "leaf": 1,
        "function": print,
    }
    file = write(tmp_path / "f", {**tree, "function": 1})
    with pytest.raises(legacy.TargetMismatch, match="do not fit in 6 places") as caught:
        legacy.restore(file, target)
    assert caught.value.problems == (
        "shape: target: array of shape (4,) float64; file: array of shape (3,) float64.",
        (
            "dtype: target: array of shape (2,) float32; file: array of shape (2,) float64; "
            "cast=True converts it."
        ),
        "missing: target: array of shape (1,) float64; file has nothing here.",
        "subtree: target: 3 leaves; file has nothing here.",
        "leaf: target: int; file: a container with 'x'.",
        (
            "function: target has a builtin_function_or_method, which is no array, number or "
            "text. Make the field static, or put None or an array there."
        ),
    )


def test_what_only_the_file_has_is_shown_beside_the_problems(tmp_path):
    file = write(tmp_path / "f", {"parms": {"a": 1}})
    with pytest.raises(legacy.TargetMismatch, match="Only the file has: parms"):
        legacy.restore(file, {"params": {"a": 1}})


def test_many_problems_are_all_data_and_thirty_are_shown(tmp_path):
    file = write(tmp_path / "f", {"x": 1})
    target = {"x": 1, **{f"p{i}": 1 for i in range(40)}}
    with pytest.raises(legacy.TargetMismatch, match="and 10 more") as caught:
        legacy.restore(file, target)
    assert len(caught.value.problems) == 40


@pytest.mark.parametrize(
    ("target", "saved", "match"),
    [
        ({"a": 1}, {"a": np.ones(2)}, r"target: int; file: array of shape \(2,\)"),
        ({"a": 1}, {"a": 1.5}, "target: int; file: Python number"),
        ({"a": 1.0}, {"a": 1}, "cast=True"),
        ({"a": True}, {"a": 1}, "target: bool"),
        ({"a": "x"}, {"a": b"x"}, "target: str; file: Python bytes"),
        ({"a": np.ones(2)}, {"a": None}, "file has None here"),
        ({"a": np.ones(2)}, {"a": {}}, "file has an empty"),
        ({"a": {"b": 1}}, {"a": np.ones(2)}, "target: dict with 'b'; file: array"),
        ({"a": [1, 2]}, {"a": [1, 2, 3]}, "target: list with '0', '1'; file has '0', '1', '2'"),
        ({"a": (1, 2)}, {"a": (1,)}, "a/1: target: int; file has nothing"),
        ({"a": dict}, {"a": 1}, "the class dict, not an instance"),
        ({"a": np.int8(1)}, {"a": 300}, "300 would become 44"),
        ({"a": np.float32(1)}, {"a": 0.1}, r"0\.1 would become 0\.1000000.*cast=True rounds"),
        ({"a": np.float32(1)}, {"a": 1}, "becomes float32 with cast=True"),
        ({"a": np.ones(2, np.complex64)}, {"a": "x"}, "file: Python str"),
    ],
)
def test_what_does_not_fit_is_refused(target, saved, match, tmp_path):
    with pytest.raises(legacy.TargetMismatch, match=match):
        legacy.restore(write(tmp_path / "f", saved), target)


@pytest.mark.parametrize(
    ("target", "saved", "want"),
    [
        (1, np.asarray(7, np.int32), 7),
        (1.5, np.float32(2.5), 2.5),
        (1.5, jnp.asarray(2.5, jnp.bfloat16), 2.5),
        (False, np.bool_(True), True),
        (1j, 2j, 2j),
        ("x", "text", "text"),
        (b"x", b"bytes", b"bytes"),
        (np.float32(0), np.float32(2.5), np.float32(2.5)),
        (np.zeros((), np.int32), 12, np.asarray(12, np.int32)),
        (np.zeros((), np.float32), 0.5, np.asarray(0.5, np.float32)),
    ],
)
def test_numbers_and_texts_come_back_in_the_type_of_the_target(target, saved, want, tmp_path):
    got = legacy.restore(write(tmp_path / "f", {"a": saved}), {"a": target})["a"]
    assert type(got) is type(want)
    assert got == want


def test_pain_23_a_cast_happens_only_when_asked_for(tmp_path):
    file = write(tmp_path / "f", {"a": np.arange(3, dtype=np.float64), "b": 0.1, "c": 1, "d": 2})
    target = {"a": np.zeros(3, np.float32), "b": np.float32(0), "c": 0.0, "d": np.float32(0)}
    got = legacy.restore(file, target, cast=True)
    assert got["a"].dtype == np.float32
    assert (got["b"], got["c"], got["d"]) == (np.float32(0.1), 1.0, 2.0)


def test_a_cast_keeps_what_is_infinite_in_the_file(tmp_path):
    file = write(tmp_path / "f", {"a": np.array([np.inf, np.nan, 1]), "b": -np.inf})
    got = legacy.restore(file, {"a": np.zeros(3, np.float16), "b": np.float16(0)}, cast=True)
    assert np.array_equal(got["a"], np.float16([np.inf, np.nan, 1]), equal_nan=True)
    assert got["b"] == -np.inf


@pytest.mark.parametrize(
    ("target", "saved", "match"),
    [
        (np.zeros(2, np.int32), np.ones(2, np.float32), "float32"),
        (1, np.float32(2), "float32"),
        (np.zeros(2, np.int8), np.asarray([1, 300]), "int8 cannot hold"),
        (np.int8(0), 300, "300 would become 44"),
        (np.zeros(1, np.float32), np.ones(1, np.complex64), "complex64"),
        (np.zeros(2, np.float16), np.float32([1, 1e6]), r"1000000.0 \(float32\).*float16 cannot"),
        (np.zeros(1, np.float32), np.array([1e300]), r"1e\+300 \(float64\).*float32 cannot hold"),
        (np.zeros(1, np.float16), np.array([1 << 40]), r"\(int64\).*float16 cannot hold"),
        (np.zeros((), np.float16), np.array(1e6), "would become inf"),
        (np.zeros(1, ml_dtypes.float8_e4m3fn), np.array([1e6]), "float8_e4m3fn cannot hold"),
        (np.float32(0), 1e300, r"1e\+300 would become inf: float32 is too small"),
        (np.float16(0), 1 << 40, "1099511627776 would become inf: float16 is too small"),
    ],
)
def test_a_cast_that_loses_more_than_precision_is_refused(target, saved, match, tmp_path):
    with pytest.raises(legacy.TargetMismatch, match=match):
        legacy.restore(write(tmp_path / "f", {"a": saved}), {"a": target}, cast=True)


def test_jax_targets_give_jax_arrays_on_the_same_devices_and_numpy_stays_numpy(tmp_path):
    device = jax.devices()[0]
    file = write(tmp_path / "f", {"a": np.ones(2, "f"), "b": np.ones(2, "f"), "c": np.ones(2, "f")})
    sharding = jax.sharding.SingleDeviceSharding(device)
    target = {
        "a": jnp.zeros(2),
        "b": jax.device_put(np.zeros(2, "f"), device),
        "c": jax.ShapeDtypeStruct((2,), np.float32),
    }
    got = legacy.restore(file, target)
    assert [a.committed for a in (got["a"], got["b"])] == [False, True]
    assert type(got["c"]) is np.ndarray
    target["c"] = jax.ShapeDtypeStruct((2,), np.float32, sharding=sharding)
    assert legacy.restore(file, target)["c"].sharding == sharding


def test_names_that_only_the_file_has_are_reported_and_refused_when_strict(tmp_path):
    file = write(tmp_path / "f", {"params": {"a": 1}, "opt": {"mu": 2, "nu": 3}})
    seen = []
    assert legacy.restore(file, {"params": {"a": 0}}, on_ignored=seen.append) == {
        "params": {"a": 1}
    }
    assert seen == [("opt", "mu"), ("opt", "nu")]
    with pytest.raises(legacy.TargetMismatch, match="opt: only the file has this, 2 leaves"):
        legacy.restore(file, {"params": {"a": 0}}, strict=True)


def test_a_misspelt_name_is_pointed_out(tmp_path):
    file = write(tmp_path / "f", {"kernel": 1})
    with pytest.raises(legacy.TargetMismatch, match="the target has 'kernal' there"):
        legacy.restore(file, {"kernal": 1}, strict=True)


def test_defaults_fill_only_what_they_name(tmp_path):
    file = write(tmp_path / "f", {"params": {"a": {"kernel": 1}}})
    target = {"params": {"a": {"kernel": 0, "bias": 5}}, "opt": {"mu": 7}, "step": 9}
    with pytest.raises(legacy.TargetMismatch, match="step: target: int") as caught:
        legacy.restore(file, target, defaults=["params/*/bias", ("opt",)])
    assert len(caught.value.problems) == 1
    want = {"params": {"a": {"kernel": 1, "bias": 5}}, "opt": {"mu": 7}, "step": 9}
    assert legacy.restore(file, target, defaults=True) == want
    assert legacy.restore(file, target, defaults=["params/a", "opt", "s*"]) == want
    with pytest.raises(legacy.TargetMismatch, match="opt/mu: the file has nothing"):
        legacy.restore(file, {"opt": {"mu": 1, "nu": 2}}, defaults="opt/nu")


def test_a_default_that_matches_nothing_is_a_problem(tmp_path):
    file = write(tmp_path / "f", {"a": 1})
    with pytest.raises(legacy.TargetMismatch, match="no leaf of the target matches 'parms'"):
        legacy.restore(file, {"a": 0}, defaults=["parms"])
    assert legacy.restore(file, {"a": 0}, defaults=["a"]) == {"a": 1}


def test_pain_27_an_abstract_leaf_is_no_default(tmp_path):
    file = write(tmp_path / "f", {"a": 1})
    target = {"a": 0, "b": jax.ShapeDtypeStruct((2,), np.float32)}
    with pytest.raises(legacy.TargetMismatch, match=r"b: .*abstract target has no default"):
        legacy.restore(file, target, defaults=True)


def test_at_restores_a_part_of_the_file(tmp_path):
    file = write(tmp_path / "f", {"state": {"params": {"a/b": np.ones(2)}}})
    target = {"a/b": np.zeros(2)}
    assert legacy.restore(file, target, at="state/params")["a/b"].sum() == 2
    assert legacy.restore(file, target, at=("state", "params"))["a/b"].sum() == 2
    with pytest.raises(legacy.TargetMismatch, match=r"at='state/parms'.*state has 'params'"):
        legacy.restore(file, target, at="state/parms")
    with pytest.raises(legacy.TargetMismatch, match=r"in the file: state/params/c"):
        legacy.restore(file, {"c": 1}, at="state/params")


def test_item_and_step_choose_what_is_restored(tmp_path):
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        for step in (1, 2):
            tree = {"a": np.full(2, step, np.float32)}
            manager.save(
                step,
                args=ocp.args.Composite(
                    model=ocp.args.StandardSave(tree),
                    ema=ocp.args.StandardSave(tree),
                    config=ocp.args.JsonSave({"lr": 0.5}),
                ),
            )
        manager.wait_until_finished()
    target = {"a": np.zeros(2, np.float32)}
    run = tmp_path / "run"
    assert legacy.restore(run, target, item="ema")["a"].tolist() == [2, 2]
    assert legacy.restore(run, target, item="model", step=1)["a"].tolist() == [1, 1]
    assert legacy.restore(run, None, item="config") == {"lr": 0.5}
    assert set(legacy.restore(run, None)) == {"model", "ema"}
    with pytest.raises(legacy.AmbiguousCheckpoint, match="2 items, ema, model"):
        legacy.restore(run, target)
    with pytest.raises(legacy.TargetMismatch, match="no item 'params'; its items are"):
        legacy.restore(run, target, item="params")
    opened = legacy.open(run)
    assert legacy.restore(opened, target, item="ema", step=2)["a"].tolist() == [2, 2]
    with pytest.raises(legacy.CheckpointNotFound, match="is step 2"):
        legacy.restore(opened, target, item="ema", step=1)


def test_no_array_is_read_when_there_is_a_problem(tmp_path, monkeypatch):
    file = write(tmp_path / "f", {"a": np.ones(2), "b": np.ones(3)})
    monkeypatch.setattr(legacy.Leaf, "read", lambda *_: pytest.fail("an array was read"))
    with pytest.raises(legacy.TargetMismatch, match="b: target"):
        legacy.restore(file, {"a": np.zeros(2), "b": np.zeros(2)})


def test_leaves_that_cannot_be_read_are_all_named_and_the_rest_is_there(tmp_path):
    good = msgpack.packb([[2], "float32", np.float32([1, 2]).tobytes()], use_bin_type=True)
    bad = msgpack.ExtType(1, good.replace(b"float32", b"float31"))
    state = {"params": {"k": msgpack.ExtType(1, good), "b": bad}, "mu": {"k": bad}, "step": 7}
    file = tmp_path / "checkpoint_7"
    file.write_bytes(msgpack.packb(state, use_bin_type=True))
    zeros = np.zeros(2, np.float32)
    target = {"params": {"k": zeros, "b": zeros}, "mu": {"k": zeros}, "step": 0}

    for wanted in (None, target):
        with pytest.raises(legacy.DamagedCheckpoint, match="2 leaves cannot be read") as error:
            legacy.restore(file, wanted)
        assert {p.split(":")[0] for p in error.value.problems} == {"mu/k", "params/b"}
    # a default is for what is missing; a damaged value is not missing
    with pytest.raises(legacy.DamagedCheckpoint, match="mu/k"):
        legacy.restore(file, target, defaults=True)
    assert legacy.restore(file, zeros, at="params/k").tolist() == [1, 2]
    assert legacy.restore(file, None, at="step") == 7
