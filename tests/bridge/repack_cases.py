"""One NNX state, saved officially and as old checkpoints under other names; shared by tests."""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from pathlib import Path

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx

import legacy
from bridge._describe import describe
from bridge._plan import Initialised, Plan, Step
from bridge.target import Slot, Target
from bridge.transforms import Transpose


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(12)])
        self.wide = nnx.Linear(300, 200, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.half = nnx.Param(jnp.arange(3, dtype=jnp.bfloat16))
        self.zero = nnx.Param(jnp.zeros((5, 2)))
        self.sown = nnx.Intermediate((jnp.ones(3), [jnp.ones(2), jnp.ones((2, 2))]))
        self.raw = nnx.data(jnp.arange(6).reshape(2, 3))


def kernels(params):
    return jax.tree.map_with_path(lambda path, _: "kernel" in jax.tree_util.keystr(path), params)


def make():
    """A model and two optimizers with values that are all different."""
    model = Net(nnx.Rngs(0, dropout=1))
    adamw = optax.adamw(1e-3)
    objects = {
        "model": model,
        "optimizer": nnx.Optimizer(
            model, optax.chain(optax.clip_by_global_norm(1.0), adamw), wrt=nnx.Param
        ),
        "masked": nnx.Optimizer(model, optax.masked(adamw, kernels), wrt=nnx.Param),
    }
    counter = iter(range(1, 10_000))

    def fill(x):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.key(next(counter))
        if x.shape == (5, 2):
            return x  # zeros: chunks equal to the fill value are stored, too
        noise = np.random.default_rng(next(counter)).uniform(1, 99, x.shape)
        return jnp.asarray(noise).astype(x.dtype)

    for item in objects.values():
        nnx.update(item, jax.tree.map(fill, nnx.state(item)))
    return objects


def target_of(objects):
    return describe(objects)


def leaves_of(state):
    """The leaves of a state by path; keys as key data."""
    found = {}
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        names = tuple(
            str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path
        )
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            found[names] = (str(jax.random.key_impl(x)), np.asarray(jax.random.key_data(x)))
        else:
            found[names] = (str(x.dtype), np.asarray(x))
    return found


def same_bits(a, b):
    a, b = leaves_of(a), leaves_of(b)
    assert a.keys() == b.keys()
    for path, (kind, value) in a.items():
        assert kind == b[path][0], path
        assert value.shape == b[path][1].shape, path
        assert value.tobytes() == b[path][1].tobytes(), path


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def value_of(slot: Slot, objects) -> np.ndarray:
    # ``value`` may or may not be in the flattened path, depending on the Variable
    found = leaves_of(nnx.state(objects[slot.item]))
    return found.get(slot.path, found.get(slot.disk_path))[1]


def old_names(target: Target):
    """Names that a Linen checkpoint might have, in an order that has nothing to do with NNX's."""
    order = np.random.default_rng(5).permutation(len(target.slots))
    return {
        slot.ref: ("params", f"Dense_{n}", "kernel")
        for slot, n in zip(target.slots, order, strict=True)
    }


TRANSPOSED = (
    ("model", ("wide", "kernel")),
    ("optimizer", ("opt_state", "1", "0", "mu", "wide", "kernel")),
)


def make_plan(checkpoint, target, names, *, init=()):
    steps = [
        Step(
            (names[slot.ref],),
            (slot.ref,),
            (Transpose((1, 0)),) if (slot.item, slot.path) in TRANSPOSED else (),
        )
        for slot in target.slots
        if slot.ref in names
    ]
    return Plan(
        steps=tuple(steps),
        ignored=(),
        initialised=tuple(Initialised(ref, "init", how) for ref, how in init),
        problems=(),
        target=target,
        signature=checkpoint.leaves.signature(),
    )


def old_tree(target, names, objects):
    tree: dict = {}
    for slot in target.slots:
        if slot.ref not in names:
            continue
        value = value_of(slot, objects)
        if (slot.item, slot.path) in TRANSPOSED:
            value = value.T
        node = tree
        *above, last = names[slot.ref]
        for key in above:
            node = node.setdefault(key, {})
        node[last] = jnp.asarray(value)
    return tree


def write_old(kind, folder: Path, tree) -> legacy.Checkpoint:
    """Write ``tree`` as an old checkpoint of one kind and open it."""
    path = folder / "old"
    if kind == "msgpack":
        path.mkdir(parents=True)
        (path / "checkpoint_7").write_bytes(flax.serialization.to_bytes(tree))
        return legacy.open(path)
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=kind != "zarr", use_zarr3=kind == "zarr3")
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(path, tree)
    return legacy.open(path)


def digests(folder: Path):
    """Contents, times and kinds of everything below a folder."""
    return {
        str(p.relative_to(folder)): (
            hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "",
            p.stat().st_mtime_ns,
        )
        for p in sorted(folder.rglob("*"))
    }


ORBAX = tuple(int(n) for n in metadata.version("orbax-checkpoint").split(".")[:3])


def documents(step: Path):
    """The documents of a step folder that do not depend on time or chance."""
    found = {}
    for path in step.rglob("*"):
        name = str(path.relative_to(step))
        if path.is_dir() or "/d/" in f"/{name}" or path.name == "manifest.ocdbt":
            continue
        if path.name == "commit_success.txt":
            # orbax 0.12.0 wrote none, 0.12.8 does, and nothing asks for it
            if ORBAX > (0, 12, 0):
                found[name] = ""
        elif path.name == "_CHECKPOINT_METADATA":
            data = json.loads(path.read_text())
            assert data.pop("init_timestamp_nsecs") <= data.pop("commit_timestamp_nsecs")
            found[name] = json.dumps(data)
        else:
            # what a jax of the time calls its CPU; a sharding is information, never a condition
            found[name] = path.read_text().replace("TFRT_CPU_0", "cpu:0")
    return found


def zarrays(item: Path):
    from bridge import ocdbt

    return dict(ocdbt.survey(item).zarrays)
