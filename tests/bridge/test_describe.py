"""What the target says of a model is what Orbax's StandardSave writes for it."""

import functools
import json
import logging
import resource
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen, nnx
from flax.training.train_state import TrainState

from bridge._describe import describe, places, resolve
from bridge.errors import TargetError
from bridge.target import SlotRef, Target


class Custom(nnx.Variable):
    pass


class EmaParam(nnx.Param):
    pass


class RoutingTable(nnx.Variable):
    pass


class MyCache(nnx.Cache):
    pass


class Pair(NamedTuple):
    a: jax.Array
    b: jax.Array


class Zoo(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 3, rngs=rngs)
        self.tied = self.linear
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(1, 1, rngs=rngs) for _ in range(11)])
        self.table = nnx.Dict(a=nnx.Linear(1, 1, rngs=rngs), b=nnx.Param(jnp.ones(2)))
        self.seq = nnx.Sequential(nnx.Linear(1, 2, rngs=rngs), nnx.relu, nnx.PReLU())
        self.attention = nnx.MultiHeadAttention(2, 4, rngs=rngs, dropout_rate=0.1)
        self.rnn = nnx.RNN(nnx.LSTMCell(2, 3, rngs=rngs), rngs=rngs)
        self.spectral = nnx.SpectralNorm(nnx.Linear(2, 3, rngs=rngs), rngs=rngs)
        self.lora = nnx.LoRALinear(2, 3, lora_rank=2, rngs=rngs)
        self.custom = Custom(jnp.ones(2, jnp.bfloat16))
        self.ema = EmaParam(jnp.ones(2))
        self.cache = MyCache(jnp.zeros((1, 2), jnp.float16))
        self.value = nnx.Param(jnp.ones(2))
        self.raw = nnx.data(jnp.ones(3, jnp.int32))
        self.raw_key = nnx.data(jax.random.key(7, impl="rbg"))
        self.keys = nnx.RngKey(jax.random.split(jax.random.key(0), 3), tag="x")
        self.sown = nnx.Intermediate((jnp.ones(2), jnp.ones(3)))
        self.tree = nnx.Param({"value": jnp.ones(2), "list": [jnp.ones(1), None, {}, ()]})
        self.pair = nnx.Variable(Pair(jnp.ones(1), jnp.ones(2)))
        self.nothing = nnx.Variable(None)
        self.no_variable = nnx.data(None)
        self.no_list = nnx.List([])
        self.static = 3


def zoo():
    return Zoo(nnx.Rngs(0))


def optimizer(tx, model=lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)), kind=nnx.Optimizer):
    return lambda: kind(model(), tx, wrt=nnx.Param)


def big(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)


def labels(params):
    return jax.tree.map(lambda x: "big" if x.ndim > 1 else "small", params)


def decoding():
    attention = nnx.MultiHeadAttention(2, 4, decode=True, rngs=nnx.Rngs(0))
    attention.init_cache((1, 5, 4))
    return attention


OPTIMIZERS = {
    "adam": optax.adam(1e-3),
    "schedule": optax.sgd(optax.linear_schedule(1.0, 0.0, 3)),
    "chain": optax.chain(optax.clip(1.0), optax.adamw(1e-3)),
    "masked": optax.masked(optax.adam(1e-3), big),
    "partitioned": optax.partition({"big": optax.adam(1e-3), "small": optax.sgd(1.0, 0.9)}, labels),
    "hyperparams": optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3),
    "multisteps": optax.MultiSteps(optax.adam(1e-3), 2),
    "sm3": optax.sm3(1e-3),
    "adafactor": optax.adafactor(1e-3),
    "noisy": optax.noisy_sgd(1e-3, key=jax.random.key(0)),
}

MODELS = {
    "zoo": zoo,
    "model-and-optimizer": optimizer(OPTIMIZERS["adam"], kind=nnx.ModelAndOptimizer),
    "rngs": lambda: nnx.Rngs(0, dropout=1),
    "vmapped": lambda: nnx.vmap(lambda k: nnx.Linear(2, 3, rngs=nnx.Rngs(k)))(
        jax.random.split(jax.random.key(0), 4)
    ),
    "decoding": decoding,
    "lora": lambda: nnx.Optimizer(
        nnx.LoRALinear(2, 3, lora_rank=2, rngs=nnx.Rngs(0)), OPTIMIZERS["adam"], wrt=nnx.LoRAParam
    ),
    "metrics": lambda: nnx.MultiMetric(
        loss=nnx.metrics.Average("loss"), accuracy=nnx.metrics.Accuracy()
    ),
    **{name: optimizer(tx) for name, tx in OPTIMIZERS.items()},
}


def saved(state, folder):
    """What is on disk: shapes, dtypes and key implementations by path, and the empty entries."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "x", state)
        checkpointer.wait_until_finished()
        values = checkpointer.restore(folder / "x")
    document = json.loads((folder / "x" / "_METADATA").read_text())["tree_metadata"]
    arrays, empties = {}, {}
    for entry in document.values():
        path = tuple(k["key"] for k in entry["key_metadata"])
        kind = entry["value_metadata"]["value_type"]
        if kind in ("None", "Dict", "List", "Tuple"):
            empties[path] = kind
            continue
        value = values
        for key in entry["key_metadata"]:
            value = value[int(key["key"]) if key["key_type"] == 1 else key["key"]]
        impl = None
        if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            impl = str(jax.random.key_impl(value))
            value = jax.random.key_data(value)
        arrays[path] = (value.shape, value.dtype.name, impl)
    return arrays, empties


@pytest.mark.parametrize("name", MODELS)
def test_target_is_what_standard_save_writes(name, tmp_path):
    target = describe(MODELS[name])
    arrays, empties = saved(nnx.state(MODELS[name]()), tmp_path)
    assert {s.disk_path: (s.shape, s.dtype, s.key_impl) for s in target.slots} == arrays
    assert {e.disk_path: e.value_type for e in target.empties} == empties
    assert len(target.slots) > 1


@pytest.mark.parametrize("name", MODELS)
def test_live_and_abstract_objects_are_described_as_their_factory(name):
    want = describe(MODELS[name])
    assert describe(MODELS[name]()) == want
    assert describe(nnx.eval_shape(MODELS[name])) == want
    assert describe(lambda: nnx.eval_shape(MODELS[name])) == want
    if isinstance(MODELS[name](), nnx.Module):
        assert describe(nnx.split(MODELS[name]())) == want
        assert describe(nnx.state(MODELS[name]())) == want


def test_target_survives_json():
    target = describe(zoo, optax.adam(1e-3))
    assert Target.from_json(json.loads(json.dumps(target.to_json()))) == target


def slots(model, tx=None):
    return {str(s.ref): s for s in describe(model, tx).slots}


def test_arrays_that_flax_loses_when_they_are_abstract_are_refused(tmp_path):
    def make():
        return nnx.WeightNorm(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))

    arrays, _ = saved(nnx.state(make()), tmp_path)
    if isinstance(make().scales["kernel",], nnx.Variable):
        assert {s.disk_path for s in describe(make).slots} == set(arrays)
    else:  # flax 0.12.5
        with pytest.raises(TargetError, match="has 3 arrays, and this flax finds 2 of them"):
            describe(make)


def test_paths_name_attributes_and_only_the_variables_own_value_is_dropped():
    found = slots(zoo)
    assert found["model:blocks/10/kernel"].disk_path == ("blocks", "10", "kernel", "value")
    assert found["model:attention/value/kernel"].disk_path == (
        "attention",
        "value",
        "kernel",
        "value",
    )
    assert found["model:value"].disk_path == ("value", "value")
    assert found["model:tree/value"].disk_path == ("tree", "value", "value")
    assert found["model:sown/1"].disk_path == ("sown", "value", "1")
    assert found["model:raw"].disk_path == ("raw",)
    spectral = [s for s in describe(zoo).slots if s.path[:2] == ("spectral", "batch_stats")]
    assert [s.path[2] for s in spectral] == ["('kernel', 'sigma')", "('kernel', 'u')"]


def test_tied_variables_are_one_slot():
    assert [name for name in slots(zoo) if "tied" in name] == []
    assert "model:linear/kernel" in slots(zoo)


def test_types_collections_and_what_is_ephemeral():
    found = slots(zoo, optax.adam(1e-3))
    kinds = {
        "model:linear/kernel": ("Param", "params", False),
        "model:norm/mean": ("BatchStat", "batch_stats", False),
        "model:dropout/rngs/key": ("RngKey", "rngs", True),
        "model:dropout/rngs/count": ("RngCount", "rngs", True),
        "model:lora/lora/lora_a": ("LoRAParam", "params", False),
        "model:custom": ("Custom", "custom", False),
        "model:ema": ("EmaParam", "params", False),
        "model:cache": ("MyCache", "cache", True),
        "model:sown/0": ("Intermediate", "intermediates", True),
        "model:raw": ("Array", "", False),
        "model:raw_key": ("Array", "", False),
        "optimizer:step": ("OptState", "opt_state", False),
        "optimizer:opt_state/0/count": ("OptArray", "opt_state", False),
        "optimizer:opt_state/0/mu/linear/kernel": ("OptVariable", "opt_state", False),
    }
    assert {
        n: (found[n].variable_type, found[n].collection, found[n].ephemeral) for n in kinds
    } == kinds
    assert (found["model:raw_key"].key_impl, found["model:raw_key"].shape) == ("rbg", (4,))
    assert (found["model:keys"].key_impl, found["model:keys"].shape) == ("threefry2x32", (3, 2))
    assert found["model:custom"].dtype == "bfloat16"


def test_collection_of_a_class_that_the_registry_does_not_know_comes_from_its_name():
    made = nnx.variable_type_from_name("test_counters", allow_register=True)
    state = nnx.State({"a": RoutingTable(jnp.ones(1)), "b": made(jnp.ones(1))})
    assert [s.collection for s in describe(state).slots] == ["routing_table", "test_counters"]


def test_to_nnx_modules_take_the_linen_paths():
    def make():
        module = linen.Sequential([linen.Dense(3), linen.BatchNorm(use_running_average=True)])
        return nnx.bridge.ToNNX(module, rngs=nnx.Rngs(0)).lazy_init(jnp.ones((1, 2)))

    found = slots(make)
    assert found["model:layers_0/kernel"].collection == "params"
    assert found["model:layers_1/mean"].collection == "batch_stats"


def test_nothing_is_allocated_for_a_trillion_parameters():
    class Huge(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(10**5, 10**5, rngs=rngs) for _ in range(100)])

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    target = describe(Huge, optax.adamw(1e-3))
    assert sum(np.prod(s.shape) for s in target.slots if s.item == "model") > 10**12
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 * 10**5  # kB


def test_sharding_annotations_need_no_mesh():
    def make():
        init = nnx.with_partitioning(nnx.initializers.ones, ("data", "model"))
        return nnx.Linear(2, 4, kernel_init=init, rngs=nnx.Rngs(0))

    assert slots(make, optax.adam(1e-3))["optimizer:opt_state/0/nu/kernel"].shape == (2, 4)


def test_numpy_and_python_values_keep_or_get_the_dtype_that_jax_would_give():
    class Model(nnx.Module):
        def __init__(self):
            self.table = nnx.Variable(np.ones(3))
            self.raw = nnx.data(np.int8(1))
            self.number = nnx.Variable(3)
            self.flag = nnx.Variable(True)
            self.rate = nnx.data(0.5)

    for model in (Model, Model()):
        assert {n: s.dtype for n, s in slots(model).items()} == {
            "model:table": "float64",
            "model:raw": "int8",
            "model:number": "int32",
            "model:flag": "bool",
            "model:rate": "float32",
        }


@pytest.mark.parametrize("value", ["text", np.array(["a"]), object(), np.zeros(1, "i4,f4")])
def test_values_that_no_checkpoint_keeps_are_named(value):
    class Model(nnx.Module):
        def __init__(self):
            self.inner = nnx.Dict(name=nnx.Variable(value))

    for model in (Model, Model()):
        with pytest.raises(TargetError, match=r"\['inner'\]\['name'\].*plain attribute"):
            describe(model)


def test_classes_and_functions_that_want_only_rngs_get_them():
    want = describe(lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    assert describe(functools.partial(nnx.Linear, 2, 3)) == want

    def make(rngs, width=3):
        return nnx.Linear(2, width, rngs=rngs)

    assert describe(make) == want
    assert describe(zoo) == describe(Zoo)


def test_items_have_the_names_they_are_given():
    def linear():
        return nnx.Linear(1, 1, rngs=nnx.Rngs(0))

    def both():
        model = linear()
        return model, nnx.Optimizer(model, optax.sgd(1.0), wrt=nnx.Param)

    assert describe(linear).items == ("model",)
    assert describe(linear, optax.sgd(1.0)).items == ("model", "optimizer")
    assert describe(linear, lambda: optax.sgd(1.0)).items == ("model", "optimizer")
    assert describe(linear, {"model": optax.sgd(1.0)}).items == ("model", "optimizer")
    assert describe(optimizer(optax.sgd(1.0))).items == ("optimizer",)
    assert describe(both).items == ("model", "optimizer")
    assert describe(both()).items == ("model", "optimizer")
    assert describe(lambda: {"a": linear(), "b": linear()}).items == ("a", "b")
    pair = {"gen": linear, "disc": linear()}
    assert describe(pair).items == ("gen", "disc")
    assert describe(pair, {"disc": optax.sgd(1.0)}).items == ("gen", "disc", "disc_optimizer")

    class Agent(NamedTuple):
        actor: nnx.Module
        critic: nnx.Module

    assert describe(lambda: Agent(linear(), linear())).items == ("actor", "critic")


def test_a_model_without_state_has_no_slots():
    assert describe(lambda: nnx.Sequential(nnx.relu)).slots == ()


class Dense(linen.Module):
    def __call__(self, x):
        return x


def fails():
    raise RuntimeError("no weights at /data")


def linear():
    return nnx.Linear(1, 1, rngs=nnx.Rngs(0))


TRAIN_STATE = TrainState.create(apply_fn=abs, params={"w": jnp.ones(1)}, tx=optax.sgd(1.0))


@pytest.mark.parametrize(
    ("model", "tx", "message"),
    [
        (3, None, r"the model is of type int\. Give a function"),
        ("models:make", None, r"the text 'models:make'; resolve it first"),
        (Dense(), None, r"a Linen module \(Dense\); the target is NNX"),
        (Dense, None, r"a Linen module \(Dense\)"),
        (lambda: [Dense()][0], None, r"a Linen module \(Dense\)"),
        (lambda: 3, None, r"the model gives an object of type int"),
        (TRAIN_STATE, None, r"a TrainState, which is a template.*legacy\.restore"),
        (fails, None, r"could not be traced .*RuntimeError: no weights at /data"),
        (nnx.Linear, None, r"Linear needs the arguments in_features, out_features, rngs"),
        (lambda a: a, None, r"needs the arguments a\. Bind them"),
        (lambda: (linear(), linear()), None, r"tuple of Linear, Linear; expected one module"),
        ({"a/b": linear}, None, r"'a/b' cannot be an item name"),
        ({"extras": linear}, None, r"item name 'extras' is taken"),
        ({"a": 3}, None, r"item 'a' is of type int"),
        ({"a": lambda: 3}, None, r"item 'a' gives an object of type int"),
        (linear, 3, r"tx of 'model' is of type int; expected an optax"),
        (linear, lambda: 3, r"tx of 'model' is of type int"),
        (linear, optax.adam, r"adam needs the arguments learning_rate\. Bind them"),
        (
            {"a": lambda: (linear(), linear())},
            None,
            r"item 'a' is a tuple of Linear, Linear",
        ),
        (linear, optimizer(optax.sgd(1.0))(), r"tx of 'model' is an nnx\.Optimizer"),
        ({"gen": linear}, optax.sgd(1.0), r"give a dict \{model's name: tx\}"),
        ({"gen": linear}, {"gan": optax.sgd(1.0)}, r"tx names 'gan'.*Did you mean 'gen'\?"),
        (
            lambda: (linear(), optimizer(optax.sgd(1.0))()),
            optax.sgd(1.0),
            r"item 'optimizer', which the model has already",
        ),
        (nnx.state(linear()), optax.sgd(1.0), r"'model' is a state; an optimizer needs"),
        (
            nnx.State({"a.b": nnx.Param(jnp.ones(1)), "a": {"b": nnx.Param(jnp.ones(1))}}),
            None,
            r"share one name on disk",
        ),
        (
            nnx.State({0: nnx.Param(jnp.ones(1)), "0": nnx.Param(jnp.ones(1))}),
            None,
            r"could not be traced",
        ),
    ],
)
def test_what_is_no_target_is_refused_in_words(model, tx, message):
    with pytest.raises(TargetError, match=message):
        describe(model, tx)


def test_int_and_str_keys_of_one_text_are_refused():
    class Key(str):
        __slots__ = ()

        def __str__(self):
            return "0"

    with pytest.raises(TargetError, match="occurs twice"):
        describe(nnx.State({"0": nnx.Param(jnp.ones(1)), Key("1"): nnx.Param(jnp.ones(1))}))


def test_an_empty_container_that_orbax_does_not_know_is_refused():
    @jax.tree_util.register_pytree_node_class
    class Hollow:
        def tree_flatten(self):
            return (), None

        @classmethod
        def tree_unflatten(cls, _aux, _children):
            return cls()

    with pytest.raises(TargetError, match=r"model: a holds an empty Hollow"):
        describe(nnx.State({"a": nnx.Variable(Hollow())}))


def test_a_tree_key_that_orbax_does_not_know_is_refused():
    @jax.tree_util.register_pytree_with_keys_class
    class Node:
        def tree_flatten_with_keys(self):
            return [(object(), 1)], None

        @classmethod
        def tree_unflatten(cls, _aux, _children):
            return cls()

    with pytest.raises(TargetError, match="a type that Orbax does not save"):
        list(places(nnx.State({"a": nnx.Variable(Node())})))


def test_live_objects_are_left_as_they_were():
    model = linear()
    before = model.kernel.get_metadata(), model.kernel.get_raw_value()
    describe(model, optax.adam(1e-3))
    describe(lambda: model)
    assert model.kernel.get_metadata() == before[0]
    assert model.kernel.get_raw_value() is before[1]
    assert SlotRef("model", ("kernel",)) in {s.ref for s in describe(model).slots}


def test_resolve_imports_what_the_text_names(tmp_path, monkeypatch):
    (tmp_path / "zoo_models.py").write_text("class Zoo:\n    small = 'found'\n")
    (tmp_path / "zoo_broken.py").write_text("import not_installed\n")
    (tmp_path / "zoo_raises.py").write_text("raise RuntimeError('no GPU')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert resolve("zoo_models:Zoo.small") == "found"
    for text, message in {
        "zoo_models": r"does not name a Python object; expected module:name",
        "zoo_models:": r"expected module:name",
        "pkg/zoo.py:make": r"give the module, not its file: pkg\.zoo:make",
        "no_such.zoo:make": r"there is no module 'no_such'",
        "zoo_models:Zo": r"zoo_models has no 'Zo'\. Did you mean Zoo\?",
        "zoo_models:Zoo.big": r"zoo_models\.Zoo has no 'big'\. It has small\.",
        "zoo_broken:make": r"importing zoo_broken failed: No module named 'not_installed'",
        "zoo_raises:make": r"importing zoo_raises failed: RuntimeError: no GPU",
    }.items():
        with pytest.raises(TargetError, match=message):
            resolve(text)


def test_resolving_names_loads_no_jax():
    code = "import sys, bridge.spec; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
