"""Restored objects hold exactly what the plan says, and can be trained on."""

import json
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx, serialization
from flax.training.train_state import TrainState

from bridge._describe import describe, places
from bridge._place import put
from bridge._plan import Initialised, Plan, Problem, Step
from bridge._restore import restore
from bridge.apply import JSON_TYPE
from bridge.carry import EXTRAS, METADATA
from bridge.errors import BridgeError, PlanMismatch, PlanProblems, TargetError
from bridge.items import HOMELESS
from bridge.target import Slot, SlotRef, Target
from legacy import Checkpoint, Format, Leaf, LeafTable

HERE = Path(__file__).parent


class Net(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(11)])
        self.tied = self.hidden

    def __call__(self, x):
        x = self.drop(self.norm(self.hidden(x)))
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return x


def net():
    return Net(nnx.Rngs(0))


def big(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)


TX = optax.chain(
    optax.clip_by_global_norm(1.0), optax.masked(optax.adam(1e-3), big), optax.scale(0.5)
)


def random_values(target, seed=0):
    """A value for each slot, by the path that its source has below."""
    rng = np.random.default_rng(seed)
    return {
        (s.item, *s.path): rng.integers(0, 2 if s.dtype == "bool" else 100, s.shape).astype(
            getattr(jnp, s.dtype)
        )
        for s in target.slots
    }


def checkpoint_of(values):
    def leaf(path, value):
        if isinstance(value, Leaf):
            return replace(value, path=path)
        return Leaf(
            path,
            "array",
            value.shape,
            value.dtype,
            value.nbytes,
            reader=lambda index: value if index is None else value[index],
        )

    table = LeafTable([leaf(p, v) for p, v in values.items()])
    return Checkpoint(Path("old"), Format("orbax", "ocdbt", "now"), 3, {"default": table})


def plan_of(target, checkpoint, **changes):
    """Each slot is fed by the leaf of its own path below its item's name."""
    steps = tuple(Step(((s.item, *s.path),), (s.ref,)) for s in target.slots)
    plan = Plan(steps, (), (), (), target, checkpoint.leaves.signature())
    return replace(plan, **changes)


def restored(model, tx=None, **changes):
    target = describe(model, tx)
    values = random_values(target)
    checkpoint = checkpoint_of(values)
    plan = plan_of(target, checkpoint, **changes)
    return values, restore(checkpoint, model=model, tx=tx, plan=plan)


def contents(value, item):
    return {
        (item, *p.path): np.asarray(
            jax.random.key_data(p.value)
            if jax.dtypes.issubdtype(p.value.dtype, jax.dtypes.prng_key)
            else p.value
        )
        for p in places(value)
        if not p.empty
    }


def same(found, values):
    assert found.keys() == values.keys()
    for path, value in values.items():
        assert found[path].dtype == value.dtype, path
        assert found[path].tobytes() == value.tobytes(), path


@nnx.jit
def train(model, optimizer, x):
    loss, grads = nnx.value_and_grad(lambda m: (m(x) ** 2).mean())(model)
    optimizer.update(model, grads)
    return loss


def test_every_array_is_the_sources_bit_for_bit_and_training_goes_on():
    values, (model, optimizer, extras) = restored(net, TX)
    same(contents(model, "model") | contents(optimizer, "optimizer"), values)
    assert extras == {}
    assert model.tied is model.hidden
    before = int(optimizer.step[...])
    for _ in range(3):
        train(model, optimizer, jnp.ones((2, 4)))
    assert optimizer.step[...] == before + 3
    assert optimizer.step[...].dtype == jnp.uint32


def test_the_graph_and_the_optimizers_containers_are_those_of_fresh_objects():
    _, (model, optimizer, _) = restored(net, TX)
    fresh = net()
    assert nnx.graphdef(model) == nnx.graphdef(fresh)
    assert nnx.graphdef(optimizer) == nnx.graphdef(nnx.Optimizer(fresh, TX, wrt=nnx.Param))
    clip, masked, _ = optimizer.opt_state
    assert isinstance(clip, optax.EmptyState)
    assert isinstance(masked.inner_state[0], optax.ScaleByAdamState)
    assert isinstance(masked.inner_state[0].mu["hidden"]["bias"].get_value(), optax.MaskedNode)
    assert not hasattr(optimizer, "model")


@pytest.mark.parametrize(
    "tx",
    [
        optax.sm3(1e-3),
        optax.MultiSteps(optax.adam(1e-3), 2),
        optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3),
        optax.noisy_sgd(1e-3, key=jax.random.key(0)),
        optax.partition(
            {True: optax.adam(1e-3), False: optax.set_to_zero()},
            lambda p: jax.tree.map(lambda x: x.ndim > 1, p),
        ),
    ],
    ids=["sm3", "multisteps", "hyperparams", "noisy", "partition"],
)
def test_every_kind_of_optimizer_state_is_filled_and_goes_on(tx):
    values, (model, optimizer, _) = restored(lambda: nnx.Linear(4, 4, rngs=nnx.Rngs(0)), tx)
    same(contents(optimizer, "optimizer"), {p: v for p, v in values.items() if p[0] != "model"})
    train(model, optimizer, jnp.ones((2, 4)))


def test_a_real_train_state_is_restored_from_its_file_and_continues_equally(tmp_path):
    class Old(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(2, name="out")(linen.relu(linen.Dense(8, name="hid")(x)))

    class New(nnx.Module):
        def __init__(self, rngs):
            self.hid = nnx.Linear(4, 8, rngs=rngs)
            self.out = nnx.Linear(8, 2, rngs=rngs)
            self.drop = nnx.Dropout(0.1, rngs=rngs)

        def __call__(self, x):
            return self.out(nnx.relu(self.hid(x)))

    x, tx = jnp.ones((3, 4)), optax.adamw(1e-3)
    params = Old().init(jax.random.key(0), x)["params"]
    state = TrainState.create(apply_fn=Old().apply, params=params, tx=tx)

    @jax.jit
    def old_step(state):
        grads = jax.grad(lambda p: (state.apply_fn({"params": p}, x) ** 2).mean())(state.params)
        return state.apply_gradients(grads=grads)

    for _ in range(3):
        state = old_step(state)
    (tmp_path / "checkpoint_3").write_bytes(serialization.to_bytes(state))
    model, optimizer, extras = restore(tmp_path / "checkpoint_3", model=New, tx=tx)
    assert (optimizer.step[...], extras) == (3, {})
    for _ in range(3):
        state = old_step(state)
        train(model, optimizer, x)
    np.testing.assert_array_equal(model.hid.kernel[...], state.params["hid"]["kernel"])
    np.testing.assert_array_equal(model(x), Old().apply({"params": state.params}, x))


def test_live_objects_are_left_alone_and_new_ones_of_their_graph_come_back():
    model = net()
    optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)
    before = np.asarray(model.hidden.kernel[...])
    values, result = restored((model, optimizer))
    same(contents(result.model, "model") | contents(result.optimizer, "optimizer"), values)
    assert result.model is not model
    assert nnx.graphdef(result.model) == nnx.graphdef(model)
    np.testing.assert_array_equal(model.hidden.kernel[...], before)
    _, again = restored(model, TX)
    train(again.model, again.optimizer, jnp.ones((2, 4)))


def test_nothing_restored_shares_memory_with_the_source():
    # JAX takes over aligned buffers without copying them
    buffer = np.zeros(4 * 4 * 4 + 64, np.uint8)
    aligned = np.ndarray((4, 4), np.float32, buffer, -buffer.ctypes.data % 64)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    models = [
        nnx.State({"a": nnx.Param(jax.ShapeDtypeStruct((4, 4), jnp.float32, sharding=sharding))})
        for sharding in (None, device)
    ]
    slot = Slot(EXTRAS, ("a",), ("a",), "Array", "", (4, 4), "float32")
    target = Target((*describe(models[0]).slots, slot))
    checkpoint = checkpoint_of({("model", "a"): aligned, (EXTRAS, "a"): aligned})
    plan = plan_of(target, checkpoint)
    results = [restore(checkpoint, model=model, plan=plan) for model in models]
    buffer[:] = 255
    for model, _, extras in results:
        assert not np.asarray(model["a"][...]).any()
        assert not extras["a"].any()


def test_items_come_back_in_the_form_they_were_asked_for():
    def linear():
        return nnx.Linear(2, 2, rngs=nnx.Rngs(0))

    sgd = optax.sgd(1.0, momentum=0.9)
    _, result = restored(linear)
    assert isinstance(result.model, nnx.Linear)
    assert result.optimizer is None
    _, result = restored({"gen": linear, "disc": linear()}, {"disc": sgd})
    assert list(result.model) == ["gen", "disc"]
    assert list(result.optimizer) == ["disc_optimizer"]
    train(result.model["disc"], result.optimizer["disc_optimizer"], jnp.ones((1, 2)))
    _, result = restored(lambda: nnx.Optimizer(linear(), sgd, wrt=nnx.Param))
    assert result.model is None
    assert isinstance(result.optimizer, nnx.Optimizer)
    _, result = restored(lambda: nnx.ModelAndOptimizer(linear(), sgd))
    assert result.optimizer.model is result.model
    _, result = restored(nnx.split(linear()))
    assert isinstance(result.model, nnx.Linear)
    values, result = restored(nnx.state(linear()))
    assert isinstance(result.model, nnx.State)
    same(contents(result.model, "model"), values)


def test_variables_that_two_items_share_stay_shared_and_must_get_one_value():
    def both():
        model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        return model, nnx.ModelAndOptimizer(model, optax.sgd(1.0))

    target = describe(both)
    values = random_values(target)
    values["model", "kernel"] = values["optimizer", "model", "kernel"]
    values["model", "bias"] = values["optimizer", "model", "bias"]
    checkpoint = checkpoint_of(values)
    result = restore(checkpoint, model=both, plan=plan_of(target, checkpoint))
    assert result.optimizer.model is result.model
    values["model", "bias"] = values["model", "bias"] + 1
    checkpoint = checkpoint_of(values)
    with pytest.raises(PlanMismatch, match="a Variable that two items share"):
        restore(checkpoint, model=both, plan=plan_of(target, checkpoint))


def test_shared_keys_are_compared_by_their_data():
    def both():
        rngs = nnx.Rngs(0)
        return {"a": rngs, "b": rngs}

    target = describe(both)
    values = random_values(target)
    values |= {("b", *p[1:]): v for p, v in values.items() if p[0] == "a"}
    checkpoint = checkpoint_of(values)
    result = restore(checkpoint, model=both, plan=plan_of(target, checkpoint))
    assert result.model["a"] is result.model["b"]


def test_dtypes_that_jax_does_not_hold_stay_numpy():
    class Table(nnx.Module):
        def __init__(self):
            self.table = nnx.Variable(np.ones(3))

    values, result = restored(Table)
    found = result.model.table.get_value()
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float64
    assert found is not values["model", "table"]


def test_typed_keys_come_back_typed():
    def model():
        return nnx.Dict(rng=nnx.data(jax.random.key(0, impl="rbg")), drop=nnx.Rngs(0).fork())

    values, result = restored(model)
    assert str(jax.random.key_impl(result.model.rng)) == "rbg"
    same(contents(result.model, "model"), values)
    jax.random.uniform(result.model.rng)


def test_initialised_slots_get_what_the_plan_says():
    target = describe(nnx.Rngs(0))
    checkpoint = checkpoint_of({})
    init = tuple(Initialised(s.ref, "rng", "rng:5") for s in target.slots)
    plan = plan_of(target, checkpoint, steps=(), initialised=init)
    one = restore(checkpoint, model=nnx.Rngs(0), plan=plan).model
    two = restore(checkpoint, model=nnx.Rngs(1), plan=plan).model
    np.testing.assert_array_equal(one.uniform((3,)), two.uniform((3,)))


def homeless(path, item=EXTRAS, kind="Array", shape=(2,), dtype="float32", impl=None):
    return Slot(item, path, path, kind, "", shape, dtype, impl)


def with_extras(*pairs):
    """A restored model and the extras that the given slots and leaves make."""
    target = describe(nnx.State({"a": nnx.Param(jnp.ones(1))}))
    values = random_values(target) | {("x", str(n)): leaf for n, (_, leaf) in enumerate(pairs)}
    checkpoint = checkpoint_of(values)
    plan = plan_of(target, checkpoint)
    steps = [Step((("x", str(n)),), (slot.ref,)) for n, (slot, _) in enumerate(pairs)]
    plan = replace(
        plan,
        steps=(*plan.steps, *steps),
        target=Target((*target.slots, *(slot for slot, _ in pairs))),
    )
    model = nnx.State({"a": nnx.Param(jnp.ones(1))})
    return restore(checkpoint, model=model, plan=plan).extras


def test_what_has_no_home_comes_back_as_nested_dicts():
    key = homeless(("rng",), shape=(2,), dtype="uint32", impl="threefry2x32")
    text = Leaf((), "str", reader=lambda _: "resnet")
    json_slot = homeless(("config", "name"), METADATA, JSON_TYPE, (), "python")
    extras = with_extras(
        (homeless(("ema", "0", "kernel")), np.ones(2, np.float32)),
        (homeless(("ema", "1", "kernel")), np.zeros(2, np.float32)),
        (key, np.array([1, 2], np.uint32)),
        (json_slot, text),
    )
    assert extras.keys() == {"ema", "rng", "config"}
    assert extras["ema"]["0"]["kernel"].tolist() == [1, 1]
    assert extras["config"] == {"name": "resnet"}
    assert jax.random.key_data(extras["rng"]).tolist() == [1, 2]


def test_extras_of_one_path_are_refused():
    value = np.ones(2, np.float32)
    text = Leaf((), "str", reader=lambda _: "a")
    for path in (("a",), ("a", "b")):
        json_slot = homeless(path, METADATA, JSON_TYPE, (), "python")
        with pytest.raises(BridgeError, match="given twice, or lies below another"):
            with_extras((homeless(("a",)), value), (json_slot, text))


def test_homeless_items_have_one_name():
    assert HOMELESS == (EXTRAS, METADATA)


def test_an_optimizer_state_that_nobody_asked_for_is_not_read():
    def unread(_index):
        raise AssertionError("read")

    target = describe(net, TX)
    values = random_values(target)
    for path, value in values.items():
        if path[0] == "optimizer":
            values[path] = Leaf(path, "array", value.shape, value.dtype, 0, reader=unread)
    checkpoint = checkpoint_of(values)
    result = restore(checkpoint, model=net, plan=plan_of(target, checkpoint))
    assert result.optimizer is None


def test_a_plan_with_problems_reads_nothing():
    with pytest.raises(PlanProblems, match=r"1 problem\(s\)") as error:
        restored(net, problems=(Problem("shape", "no"),))
    assert error.value.problems == (Problem("shape", "no"),)


def test_a_plan_for_another_source_is_refused():
    with pytest.raises(PlanMismatch, match=r"the plan was made for a source of signature abc"):
        restored(net, signature="abc")


def test_a_plan_for_another_model_is_refused_with_every_difference():
    def make(features, kind=nnx.Param, impl="rbg", **more):
        return nnx.State(
            {
                "a": kind(jax.ShapeDtypeStruct((features,), jnp.float32)),
                "k": nnx.Variable(jax.random.key(0, impl=impl)),
                **more,
            }
        )

    target = describe({"m": make(2, b=nnx.Param(jnp.ones(1))), "gone": make(1)})
    checkpoint = checkpoint_of(random_values(target))
    plan = plan_of(target, checkpoint)
    model = {"m": make(3, c=nnx.Param(jnp.ones(1)), impl="threefry2x32")}
    with pytest.raises(PlanMismatch, match="made for another model") as error:
        restore(checkpoint, model=model, plan=plan)
    assert error.value.problems == (
        "gone:a: the plan has an item 'gone', the model does not",
        "gone:k: the plan has an item 'gone', the model does not",
        "m:a: the model has shape (3,) dtype float32, the plan shape (2,) dtype float32",
        "m:b: the plan has it, the model does not",
        "m:c: the model has it, the plan does not",
        (
            "m:k: the model has shape (2,) dtype uint32 (threefry2x32 key), "
            "the plan shape (4,) dtype uint32 (rbg key)"
        ),
    )


def test_a_slot_without_a_value_is_an_error():
    target = describe(net)
    steps = plan_of(target, checkpoint_of({})).steps
    left = [s for s in steps if s.slots[0] != SlotRef("model", ("hidden", "bias"))]
    with pytest.raises(BridgeError, match="without a value: model:hidden/bias"):
        restored(net, steps=tuple(left))


def test_a_plan_and_other_words_on_the_mapping_are_refused():
    target = describe(net)
    checkpoint = checkpoint_of(random_values(target))
    plan = plan_of(target, checkpoint)
    with pytest.raises(BridgeError, match="rules, at= would"):
        restore(checkpoint, model=net, plan=plan, rules=[], at="ema")


def test_another_step_than_the_opened_one_is_refused():
    checkpoint = checkpoint_of({})
    with pytest.raises(BridgeError, match=r"step=4 was asked for.*is step 3"):
        restore(checkpoint, model=net, step=4)


def test_a_train_state_as_model_is_sent_to_where_it_belongs():
    state = TrainState.create(apply_fn=abs, params={"w": jnp.ones(1)}, tx=optax.sgd(1.0))
    with pytest.raises(TargetError, match=r"legacy\.restore"):
        restore("nowhere", model=state)


def test_values_that_do_not_fit_their_slot_are_refused():
    slot = Slot("m", ("w",), ("w", "value"), "Param", "params", (2,), "float32")
    with pytest.raises(BridgeError, match=r"wants shape \(2,\).*has shape \(3,\)"):
        put(np.ones(3, np.float32), slot, None)
    with pytest.raises(BridgeError, match="dtype float64"):
        put(np.ones(2), slot, None)


def run(code, devices=1):
    """Run code in a process of its own and return what it prints as JSON."""
    preamble = f"""
        import json, os, sys
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count={devices}"
        os.environ["JAX_PLATFORMS"] = "cpu"
        sys.path[:0] = {[str(HERE), str(HERE.parents[1])]!r}
        import jax, jax.numpy as jnp, numpy as np, optax
        from flax import nnx
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        from test_restore import *
        from bridge.items import gather
        from bridge.transforms import Transpose
    """
    text = textwrap.dedent(preamble) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


SHARDED = """
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    class Model(nnx.Module):
        def __init__(self, rngs):
            init = nnx.with_partitioning(nnx.initializers.ones, ("data", "model"))
            self.one = nnx.Linear(16, 16, kernel_init=init, rngs=rngs)
            self.two = nnx.Linear(16, 16, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.drop(self.two(self.one(x)))

    def on(*axes):
        return NamedSharding(mesh, P(*axes))

    def struct(sharding, shape=(16, 16)):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    def leaf(path, value, **more):
        def reader(index):
            got = value if index is None else value[index]
            reads.setdefault("/".join(path), []).append(got.nbytes)
            return got
        return Leaf(path, "array", value.shape, value.dtype, value.nbytes, reader=reader, **more)

    def check(model, optimizer):
        same(contents(model, "model") | contents(optimizer, "optimizer"), values)
        for _ in range(3):
            loss = train(model, optimizer, jnp.ones((8, 16)))
        assert np.isfinite(loss) and optimizer.step[...] == values["optimizer", "step"] + 3

    def spec(variable):
        sharding = variable.get_value().sharding
        return list(sharding.spec) if isinstance(sharding, NamedSharding) else None

    reads, results = {}, {}
    tx = optax.adamw(1e-3)
    target = describe(Model, tx)
    values = random_values(target)
    source = checkpoint_of({p: leaf(p, v) for p, v in values.items()})
    plan = plan_of(target, source)

    # abstract objects say where their arrays go
    abstract = gather(Model).objects["model"]
    abstract.one.kernel.set_value(struct(on("data", "model")))
    abstract.one.bias.set_value(struct(on(), (16,)))
    abstract.two.kernel.set_value(struct(on("model")))
    model, optimizer, _ = restore(source, model=abstract, tx=tx, plan=plan)
    mu = optimizer.opt_state[0].mu
    results["abstract"] = {k: list(v) for k, v in reads.items()}, [
        spec(v) for v in (model.one.kernel, mu["one"]["kernel"], model.one.bias,
                          model.two.kernel, mu["two"]["kernel"], model.two.bias)
    ]
    check(model, optimizer)

    # so do live ones
    model.two.kernel.set_value(jax.device_put(model.two.kernel.get_value(), on(None, "model")))
    model, optimizer, _ = restore(source, model=model, tx=tx, plan=plan)
    mu = optimizer.opt_state[0].mu
    results["live"] = [spec(model.two.kernel), spec(mu["two"]["kernel"])]
    check(model, optimizer)

    # and annotations, under a mesh
    with jax.set_mesh(mesh):
        model, optimizer, _ = restore(source, model=Model, tx=tx, plan=plan)
        mu = optimizer.opt_state[0].mu
        results["mesh"] = [spec(v) for v in (model.one.kernel, mu["one"]["kernel"],
                                             model.two.kernel)]
        assert nnx.graphdef(Model(nnx.Rngs(0))) == nnx.graphdef(model)
        check(model, optimizer)

    # or the mesh that they name themselves
    init = nnx.with_partitioning(nnx.initializers.ones, ("data", None), mesh=mesh)
    named = lambda: nnx.Linear(16, 16, kernel_init=init, use_bias=False, rngs=nnx.Rngs(0))
    kernel = gather(named).objects["model"].kernel.get_value()
    results["named"] = kernel.sharding == on("data", None)

    # what cannot be read by blocks
    reads.clear()
    state = nnx.State({n: nnx.Param(struct(on("data", "model"))) for n in ("chunk", "turned")})
    target = describe(state)
    values = random_values(target)
    source = checkpoint_of({p: leaf(p, v, chunks=(16, 16)) for p, v in values.items()})
    plan = plan_of(target, source)
    turned = replace(plan.steps[1], transforms=(Transpose((1, 0)),))
    found = restore(source, model=state, plan=replace(plan, steps=(plan.steps[0], turned))).model
    values["model", "turned"] = values["model", "turned"].T.copy()
    same(contents(found, "model"), values)
    assert found["turned"].get_value().sharding == on("data", "model")
    results["once"] = reads

    slot = Slot("m", ("w",), ("w", "value"), "Param", "params", (6,), "float32")
    try:
        put(np.ones(6, np.float32), slot, on("data"))
    except BridgeError as error:
        results["uneven"] = str(error)
    slot = Slot("m", ("k",), ("k", "value"), "RngKey", "rngs", (2,), "uint32", "threefry2x32")
    results["key"] = put(np.ones(2, np.uint32), slot, on()).sharding == on()
    print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def sharded():
    return run(SHARDED, devices=8)


def test_sharded_arrays_are_read_block_by_block(sharded):
    reads, _ = sharded["abstract"]
    assert reads["model/one/kernel"] == [128] * 8
    assert reads["optimizer/opt_state/0/mu/one/kernel"] == [128] * 8
    assert reads["model/one/bias"] == [64]
    assert reads["model/two/kernel"] == [512] * 2
    assert all(len(v) == 1 for k, v in reads.items() if "kernel" not in k)


def test_arrays_go_where_abstract_and_live_objects_and_annotations_say(sharded):
    _, specs = sharded["abstract"]
    assert specs == [["data", "model"], ["data", "model"], [], ["model"], ["model"], None]
    assert sharded["live"] == [[None, "model"], [None, "model"]]
    assert sharded["mesh"] == [["data", "model"], ["data", "model"], []]
    assert sharded["named"]
    assert sharded["key"]


def test_single_chunks_and_transformed_values_are_read_once(sharded):
    assert sharded["once"] == {"model/chunk": [1024], "model/turned": [1024]}


def test_a_sharding_that_does_not_fit_is_named(sharded):
    assert "slot m:w of shape (6,) cannot be placed on" in sharded["uneven"]


def test_memory_stays_near_the_size_of_the_model():
    peak, size = run("""
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(1000, 5000, use_bias=False, rngs=rngs)
                                    for _ in range(4)])
    tx = optax.adam(1e-3)
    target = describe(Model, tx)
    def two(index, slot):
        spans = index or [slice(0, n) for n in slot.shape]
        return np.full([span.stop - span.start for span in spans], 2, slot.dtype)
    values = {(s.item, *s.path): Leaf((), "array", s.shape, np.dtype(s.dtype),
                                      4 * int(np.prod(s.shape)),
                                      reader=lambda i, s=s: two(i, s))
              for s in target.slots}
    source = checkpoint_of(values)
    plan = plan_of(target, source)
    jax.block_until_ready(jax.device_put(np.ones(3)))
    def status(name):
        return int(open("/proc/self/status").read().split(name)[1].split()[0]) * 1024
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS:")
    model, optimizer, _ = restore(source, model=Model, tx=tx, plan=plan)
    jax.block_until_ready((nnx.state(model), nnx.state(optimizer)))
    size = source.leaves.nbytes
    print(json.dumps([status("VmHWM:") - before, size]))
    """)
    assert size > 2 * 10**8
    assert peak < 1.15 * size
