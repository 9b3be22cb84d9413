"""Ways of saving with Orbax, from 0.0.23 to today: every layout it ever put on disk.

A writer gets the golden's folder and a `Content`, saves into the folder with the public calls of
the era it is run in, and returns the facts that `matrix` explains, and these: `json_items`,
`metrics` by step, `all_steps` of the run, `custom` metadata of the save, `root_metadata` of the
run, `unknown_items`. The other trees of a step are among `steps`, as `_item_<name>`.

A release that has no such way of saving raises `Absent`, and no golden is made of it.

Runs on Python 3.8 - 3.13 and on every release of Orbax since 0.0.23.
"""
import collections
import contextlib
import functools
import inspect
import socket

import flax
import jax
import numpy as np

import truth

META = {"name": "run-ü", "seed": 7, "classes": ["cat", "dog"], "lr": 0.01, "note": None,
        "nested": {"empty": {}, "list": [1, [2.5, False]]}}
CUSTOM = {"commit": "0a1b", "tags": ["x", "y"], "epoch": 3}
tree_map = jax.tree_util.tree_map


class Absent(Exception):
    """The installed release has no such way of saving."""


# --- flax's own save_checkpoint on Orbax


def flax_orbax(folder, content):
    """`save_checkpoint` on flax's Orbax backend: a folder `checkpoint_<step>`."""
    checkpoints = _flax_on_orbax()
    checkpoints.save_checkpoint(str(folder), content.tree, content.step)
    return {}


def flax_orbax_steps(folder, content):
    """The same for every step, with another prefix, all kept."""
    checkpoints = _flax_on_orbax()
    for step, tree in sorted(content.trees.items()):
        checkpoints.save_checkpoint(str(folder / "run"), tree, step, prefix="run_", keep=99)
    return {**_steps(content), "checkpoint": "run"}


def flax_orbax_given(folder, content):
    """`save_checkpoint(..., orbax_checkpointer=)`: flax hands the tree to the given one."""
    import orbax.checkpoint as ocp
    checkpoints = _flax_on_orbax()
    _need(checkpoints.save_checkpoint, "orbax_checkpointer")
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    checkpoints.save_checkpoint(
        str(folder), content.tree, content.step, orbax_checkpointer=checkpointer)
    return {}


def _flax_on_orbax():
    from flax.training import checkpoints
    config = getattr(flax, "config", None)
    if not hasattr(config, "flax_use_orbax_checkpointing"):
        raise Absent("flax.config.flax_use_orbax_checkpointing")
    config.update("flax_use_orbax_checkpointing", True)
    return checkpoints


# --- one tree, PyTreeCheckpointHandler


def ptc(folder, content):
    """`PyTreeCheckpointHandler` with the defaults of the release."""
    return _save(folder, content)


def ptc_agg(folder, content):
    """Every leaf aggregated into the one msgpack file (a wish that 0.5.16 and later ignore)."""
    import orbax.checkpoint as ocp
    args = tree_map(lambda _: ocp.SaveArgs(aggregate=True), content.tree)
    return _save(folder, content, save_args=args)


def ptc_agg_some(folder, content):
    """Every second leaf aggregated."""
    import orbax.checkpoint as ocp
    leaves, treedef = jax.tree_util.tree_flatten(content.tree)
    args = [ocp.SaveArgs(aggregate=n % 2 == 0) for n in range(len(leaves))]
    return _save(folder, content, save_args=jax.tree_util.tree_unflatten(treedef, args))


def ptc_agg_name(folder, content):
    """Another name for the aggregate file, every second leaf in it."""
    return _agg_name(folder, content)


def _agg_name(folder, content):
    import orbax.checkpoint as ocp
    leaves, treedef = jax.tree_util.tree_flatten(content.tree)
    args = [ocp.SaveArgs(aggregate=n % 2 == 0) for n in range(len(leaves))]
    args = jax.tree_util.tree_unflatten(treedef, args)
    return _save(folder, content, save_args=args, aggregate_filename="my_checkpoint")


def ptc_guide(folder, content):
    """As flax's guide had it: `save_args` from `orbax_utils.save_args_from_target`."""
    try:
        from flax.training import orbax_utils
    except ImportError as error:
        raise Absent("flax.training.orbax_utils") from error
    return _save(folder, content, save_args=orbax_utils.save_args_from_target(content.tree))


def ptc_ocdbt(folder, content):
    """OCDBT, asked for: in 2023 it was not yet the default."""
    import orbax.checkpoint as ocp
    if _default(ocp.PyTreeCheckpointHandler, "use_ocdbt") is True:
        raise Absent("use_ocdbt=False as the default")
    return _save(folder, content, use_ocdbt=True)


def ptc_noocdbt(folder, content):
    """A folder for each parameter, asked for."""
    import orbax.checkpoint as ocp
    if _default(ocp.PyTreeCheckpointHandler, "use_ocdbt") is not True:
        raise Absent("use_ocdbt=True as the default")
    return _save(folder, content, use_ocdbt=False)


def ptc_nomerge(folder, content):
    """OCDBT whose databases of the processes stay unmerged (`ocdbt_merge=False`)."""
    return _save(folder, content, use_ocdbt=True, ocdbt_merge=False)


def ptc_zarr3(folder, content):
    """OCDBT holding zarr3 arrays."""
    return _save(folder, content, use_zarr3=True)


def ptc_zarr3_noocdbt(folder, content):
    """A folder of zarr3 files for each parameter."""
    return _save(folder, content, use_zarr3=True, use_ocdbt=False)


def ptc_treemeta(folder, content):
    """`write_tree_metadata=True`: the first `_METADATA`."""
    return _save(folder, content, write_tree_metadata=True)


def ptc_notreemeta(folder, content):
    """`write_tree_metadata=False` after it had become the default."""
    import orbax.checkpoint as ocp
    if _default(ocp.PyTreeCheckpointHandler, "write_tree_metadata") is not True:
        raise Absent("write_tree_metadata as the default")
    return _save(folder, content, write_tree_metadata=False)


def ptc_cast(folder, content):
    """`SaveArgs(dtype=)`: float32 arrays of jax stored as bfloat16, of numpy as float16."""
    import orbax.checkpoint as ocp
    def args_of(leaf):
        dtype = _cast_dtype(leaf)
        return ocp.SaveArgs() if dtype is None else ocp.SaveArgs(dtype=dtype)
    facts = _save(folder, content, save_args=tree_map(args_of, content.tree))
    return dict(facts, tree=tree_map(_as_cast, content.tree))


def ptc_cast_agg(folder, content):
    """The same, aggregated."""
    import orbax.checkpoint as ocp
    def args_of(leaf):
        return ocp.SaveArgs(aggregate=True, dtype=_cast_dtype(leaf))
    facts = _save(folder, content, save_args=tree_map(args_of, content.tree))
    return dict(facts, tree=tree_map(_as_cast, content.tree))


def _cast_dtype(leaf):
    if isinstance(leaf, np.generic) or getattr(leaf, "dtype", None) != np.float32:
        return None
    return np.dtype(np.float16 if isinstance(leaf, np.ndarray) else jax.numpy.bfloat16)


def _as_cast(leaf):
    dtype = _cast_dtype(leaf)
    return leaf if dtype is None else leaf.astype(dtype)


def ptc_chunked(folder, content):
    """Chunks of 64 bytes at most."""
    import orbax.checkpoint as ocp
    _need(ocp.SaveArgs, "chunk_byte_size")
    args = tree_map(lambda _: ocp.SaveArgs(chunk_byte_size=64), content.tree)
    return _save(folder, content, save_args=args)


def ptc_chunked_zarr3(folder, content):
    """The same for zarr3."""
    import orbax.checkpoint as ocp
    _need(ocp.SaveArgs, "chunk_byte_size")
    args = tree_map(lambda _: ocp.SaveArgs(chunk_byte_size=64), content.tree)
    return _save(folder, content, save_args=args, use_zarr3=True)


def ptc_chunk_shapes(folder, content):
    """zarr3 whose chunks for writing hold smaller ones for reading (sharding codec)."""
    import orbax.checkpoint as ocp
    _need(ocp.SaveArgs, "write_chunk_shape")
    def args_of(leaf):
        shape = np.shape(leaf)
        if not shape or 0 in shape or isinstance(leaf, str):
            return ocp.SaveArgs()
        inner = tuple(_a_divisor(n) for n in shape)
        return ocp.SaveArgs(write_chunk_shape=shape, read_chunk_shape=inner)
    args = tree_map(args_of, content.tree)
    return _save(folder, content, save_args=args, use_zarr3=True)


def ptc_datafiles(folder, content):
    """`ocdbt_target_data_file_size`: many small data files."""
    return _save(folder, content, args_more={"ocdbt_target_data_file_size": 256}, use_zarr3=True)


def ptc_rich(folder, content):
    """Rich types: `_METADATA` also keeps containers and class names."""
    return _save(folder, content, pytree_metadata_options=_rich())


def ptc_nocompress(folder, content):
    """`use_compression=False`."""
    return _save(folder, content, use_compression=False)


def ptc_nocompress_zarr3(folder, content):
    """`use_compression=False` for zarr3."""
    return _save(folder, content, use_compression=False, use_zarr3=True)


def ptc_custom(folder, content):
    """`PyTreeSave(custom_metadata=)`."""
    facts = _save(folder, content, args_more={"custom_metadata": CUSTOM})
    return dict(facts, custom=CUSTOM)


def ptc_nosharding(folder, content):
    """No `_sharding` file (`ArrayHandler(enable_write_sharding_file=False)`)."""
    _array_handler(enable_write_sharding_file=False)
    return _save(folder, content)


def ptc_nostore(folder, content):
    """No `array_metadatas` (`ArrayHandler(array_metadata_store=None)`)."""
    _array_handler(array_metadata_store=None)
    return _save(folder, content)


def ptc_oldname(folder, content):
    """Arrays whose metadata file has another name (`ArrayHandler(metadata_key=)`)."""
    import orbax.checkpoint as ocp
    _need(getattr(ocp.type_handlers, "ArrayHandler", None), "metadata_key")
    _array_handler(metadata_key="array.json")
    return _save(folder, content)


def async_ptc(folder, content):
    """`AsyncCheckpointer`."""
    import orbax.checkpoint as ocp
    checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
    checkpointer.save(folder / "ckpt", content.tree)
    checkpointer.wait_until_finished()
    return {}


def std(folder, content):
    """`StandardCheckpointer`."""
    return _std(folder, content)


def std_noocdbt(folder, content):
    """`StandardCheckpointHandler(use_ocdbt=False)`."""
    return _std(folder, content, use_ocdbt=False)


def std_rich(folder, content):
    """`StandardCheckpointHandler` with rich types."""
    return _std(folder, content, pytree_metadata_options=_rich())


def std_cast(folder, content):
    """`StandardCheckpointer` with `save_args` that cast."""
    import orbax.checkpoint as ocp
    checkpointer = _known(ocp, "StandardCheckpointer")()
    args = tree_map(lambda leaf: ocp.SaveArgs(dtype=_cast_dtype(leaf)), content.tree)
    checkpointer.save(folder / "ckpt", content.tree, save_args=args)
    _wait(checkpointer)
    return {"tree": tree_map(_as_cast, content.tree)}


def array(folder, content):
    """`ArrayCheckpointHandler`: one array, without any tree."""
    import orbax.checkpoint as ocp
    handler = _known(ocp, "ArrayCheckpointHandler")()
    one = _some_array(content.tree)
    ocp.Checkpointer(handler).save(folder / "ckpt", one)
    return {"tree": {"checkpoint": one}}


def mixed_slash(folder, content):
    """Two saves in one process: after one to OCDBT, 0.3 writes every save as OCDBT."""
    import orbax.checkpoint as ocp
    _need(ocp.PyTreeCheckpointHandler, "use_ocdbt")
    first = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True))
    first.save(folder / "other", {"a": np.arange(3)})
    return _save(folder, content, use_ocdbt=False)


# --- managers


def mgr_legacy(folder, content):
    """`CheckpointManager` as before `args`: one checkpointer, every step."""
    manager = _old_manager(folder, _ptc())
    for step, tree in sorted(content.trees.items()):
        manager.save(step, tree)
    _wait(manager)
    return {"item": "default", **_steps(content)}


def mgr_legacy_multi(folder, content):
    """Checkpointers by item: a tree and a JSON item."""
    import orbax.checkpoint as ocp
    checkpointers = {"state": _ptc(), "meta": ocp.Checkpointer(ocp.JsonCheckpointHandler())}
    manager = _old_manager(folder, checkpointers)
    manager.save(content.step, {"state": content.tree, "meta": META})
    _wait(manager)
    return {"item": "state", "json_items": {"meta": META}}


def mgr_legacy_async(folder, content):
    """`CheckpointManager` over an `AsyncCheckpointer`."""
    import orbax.checkpoint as ocp
    manager = _old_manager(folder, ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler()))
    for step, tree in sorted(content.trees.items()):
        manager.save(step, tree)
        _wait(manager)
    return {"item": "default", **_steps(content)}


def mgr_best(folder, content):
    """Metrics, the best two steps kept, beside the JSON that says how good they were."""
    manager = _old_manager(
        folder, _ptc(), best_fn=lambda metrics: metrics["acc"], best_mode="max", max_to_keep=2)
    values = {}
    for step, tree in sorted(content.trees.items()):
        values[step] = {"acc": 0.5 + step / 100, "loss": 1.0 / step, "n": step, "name": "é"}
        manager.save(step, tree, metrics=values[step])
        _wait(manager)
    steps = sorted(content.trees)[-2:]
    metrics = {str(step): values[step] for step in steps}
    return {"item": "default", "metrics": metrics, **_steps(content, steps)}


def mgr_metadata(folder, content):
    """Metadata of the whole run."""
    manager = _old_manager(folder, _ptc(), run_metadata=META)
    manager.save(content.step, content.tree)
    _wait(manager)
    return {"item": "default", "root_metadata": META}


def mgr_prefix(folder, content):
    """`step_prefix`."""
    manager = _old_manager(folder, _ptc(), step_prefix="run")
    for step, tree in sorted(content.trees.items()):
        manager.save(step, tree)
    _wait(manager)
    return {"item": "default", **_steps(content)}


def mgr_fixed(folder, content):
    """`step_format_fixed_length`, with a prefix."""
    manager = _old_manager(folder, _ptc(), step_prefix="step", step_format_fixed_length=8)
    for step, tree in sorted(content.trees.items()):
        manager.save(step, tree)
    _wait(manager)
    return {"item": "default", **_steps(content)}


def mgr_fixed_bare(folder, content):
    """`step_format_fixed_length` without a prefix."""
    manager = _old_manager(folder, _ptc(), step_format_fixed_length=6)
    for step, tree in sorted(content.trees.items()):
        manager.save(step, tree)
    _wait(manager)
    return {"item": "default", **_steps(content)}


def mgr_args(folder, content):
    """`StandardSave`, one unnamed item, every step."""
    args = _args()
    manager = _manager(folder)
    for step, tree in sorted(content.trees.items()):
        manager.save(step, args=args.StandardSave(tree))
    _wait(manager)
    return {"item": "default", **_steps(content)}


def mgr_sync(folder, content):
    """`PyTreeSave` without threads (`enable_async_checkpointing=False`)."""
    args = _args()
    manager = _manager(folder, enable_async_checkpointing=False)
    for step, tree in sorted(content.trees.items()):
        manager.save(step, args=args.PyTreeSave(tree))
    _wait(manager)
    return {"item": "default", **_steps(content)}


def mgr_zarr3(folder, content):
    """A named item with its own handler: zarr3, no OCDBT."""
    import orbax.checkpoint as ocp
    args = _args()
    _need(ocp.PyTreeCheckpointHandler, "use_zarr3")
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=True)
    manager = _manager(folder, item_handlers={"state": handler})
    manager.save(content.step, args=args.Composite(state=args.PyTreeSave(content.tree)))
    _wait(manager)
    return {"item": "state"}


def mgr_args_multi(folder, content):
    """A tree, a JSON document, a typed and a raw key of jax, and a second tree."""
    args = _args()
    if not hasattr(args, "JaxRandomKeySave"):
        raise Absent("JaxRandomKeySave")
    keys = {"rng": jax.random.PRNGKey(7)}
    if hasattr(jax.random, "key"):
        keys["typed"] = jax.random.key(8)
    extra = {"ema": {"decay": 0.5, "on": True}, "best": [1, 2], "seen": np.arange(4)}
    manager = _manager(folder, item_names=("state", "meta", "extra", *keys))
    saves = {name: args.JaxRandomKeySave(key) for name, key in keys.items()}
    manager.save(content.step, args=args.Composite(
        state=args.StandardSave(content.tree), meta=args.JsonSave(META),
        extra=args.PyTreeSave(extra), **saves))
    _wait(manager)
    return {"item": "state", "json_items": {"meta": META},
            "steps": _items(content, extra=extra, **keys)}


def mgr_key_name(folder, content):
    """A jax key whose folder has a name of its own (`JaxRandomKeyCheckpointHandler(key_name=)`)."""
    import orbax.checkpoint as ocp
    args = _args()
    handler = _known(ocp, "JaxRandomKeyCheckpointHandler")(key_name="dropout")
    manager = _manager(
        folder, item_handlers={"state": ocp.StandardCheckpointHandler(), "rng": handler})
    key = jax.random.key(8) if hasattr(jax.random, "key") else jax.random.PRNGKey(8)
    manager.save(content.step, args=args.Composite(
        state=args.StandardSave(content.tree), rng=args.JaxRandomKeySave(key)))
    _wait(manager)
    return {"item": "state", "steps": _items(content, rng=key)}


def mgr_numpy_random(folder, content):
    """`NumpyRandomKeySave` of the state that numpy gives, as a tuple and as a dict."""
    args = _args()
    if not hasattr(args, "NumpyRandomKeySave"):
        raise Absent("NumpyRandomKeySave")
    random = np.random.RandomState(3)
    keys = {"legacy": random.get_state(), "new": random.get_state(legacy=False)}
    manager = _manager(folder, item_names=("state", *keys))
    manager.save(content.step, args=args.Composite(
        state=args.StandardSave(content.tree),
        **{name: args.NumpyRandomKeySave(key) for name, key in keys.items()}))
    _wait(manager)
    return {"item": "state", "steps": _items(content, **keys)}


def mgr_array(folder, content):
    """An `ArraySave` item beside the tree."""
    args = _args()
    manager = _manager(folder, item_names=("state", "weights", "lr"))
    weights = _some_array(content.tree)
    manager.save(content.step, args=args.Composite(
        state=args.StandardSave(content.tree), weights=args.ArraySave(weights),
        lr=args.ArraySave(0.5)))
    _wait(manager)
    items = _items(content, weights={"checkpoint": weights}, lr={"checkpoint": 0.5})
    return {"item": "state", "steps": items}


def mgr_proto(folder, content):
    """A `ProtoSave` item beside the tree: text that only its message class explains."""
    import orbax.checkpoint as ocp
    args = _args()
    if not hasattr(args, "ProtoSave"):
        raise Absent("ProtoSave")
    from google.protobuf import struct_pb2
    message = struct_pb2.Struct()
    message.update({"a": 1.5, "b": "text"})
    handlers = {"state": ocp.StandardCheckpointHandler(),
                "config": ocp.ProtoCheckpointHandler("config.pbtxt")}
    manager = _manager(folder, item_handlers=handlers)
    manager.save(content.step, args=args.Composite(
        state=args.StandardSave(content.tree), config=args.ProtoSave(message)))
    _wait(manager)
    return {"item": "state", "unknown_items": ["config"]}


def mgr_args_best(folder, content):
    """Metrics with `args`."""
    args = _args()
    manager = _manager(folder, best_fn=lambda metrics: metrics["acc"])
    metrics = {"acc": 0.75, "loss": 1e-3}
    manager.save(content.step, args=args.StandardSave(content.tree), metrics=metrics)
    _wait(manager)
    return {"item": "default", "metrics": {str(content.step): metrics}}


def mgr_args_custom(folder, content):
    """`save(custom_metadata=)` and metadata of the run."""
    import orbax.checkpoint as ocp
    args = _args()
    _need(ocp.CheckpointManager.save, "custom_metadata")
    manager = _manager(folder, metadata=META)
    manager.save(content.step, args=args.StandardSave(content.tree), custom_metadata=CUSTOM)
    _wait(manager)
    return {"item": "default", "custom": CUSTOM, "root_metadata": META}


def mgr_name_format(folder, content):
    """`step_name_format`: a prefix and a fixed length, as in emergency checkpoints."""
    import orbax.checkpoint as ocp
    args = _args()
    if not hasattr(ocp, "path") or not hasattr(ocp.path, "step"):
        raise Absent("ocp.path.step")
    names = ocp.path.step.standard_name_format(step_prefix="ckpt-v2", step_format_fixed_length=4)
    manager = _manager(folder, step_name_format=names)
    for step, tree in sorted(content.trees.items()):
        manager.save(step, args=args.StandardSave(tree))
    _wait(manager)
    return {"item": "default", **_steps(content)}


# --- Orbax v1


def v1(folder, content):
    """`v1.save_pytree`."""
    return _v1(folder, content)


def v1_custom(folder, content):
    """With custom metadata."""
    return dict(_v1(folder, content, custom_metadata=CUSTOM), custom=CUSTOM)


def v1_multi(folder, content):
    """`v1.save_checkpointables`: two trees and a JSON document."""
    ocp = _v1_module()
    extra = {"ema": {"decay": 0.5, "name": "slow"}, "seen": np.arange(4)}
    ocp.save_checkpointables(
        folder / "ckpt", {"state": content.tree, "extra": extra, "meta": META})
    return {"item": "state", "steps": _items(content, extra=extra, meta=META)}


def v1_named(folder, content):
    """`v1.save(checkpointable_name=)`."""
    ocp = _v1_module()
    if not hasattr(ocp, "save"):
        raise Absent("v1.save")
    ocp.save(folder / "ckpt", content.tree, checkpointable_name="model")
    return {"item": "model"}


def v1_json(folder, content):
    """A checkpointable that v1 writes as JSON, by the registry."""
    ocp = _v1_module()
    handlers = ocp.handlers
    registry = handlers.local_registry()
    try:
        registry.add(handlers.JsonHandler, "meta")
    except TypeError:  # from 0.12 the name must be named
        registry.add(handlers.JsonHandler, checkpointable_name="meta")
    options = ocp.options.CheckpointablesOptions(registry=registry)
    with ocp.Context(checkpointables_options=options):
        ocp.save_checkpointables(folder / "ckpt", {"state": content.tree, "meta": META})
    return {"item": "state", "json_items": {"meta": META}}


def v1_zarr2(folder, content):
    """v1 with zarr2 arrays."""
    return _v1(folder, content, use_zarr3=False)


def v1_noocdbt(folder, content):
    """v1 without OCDBT."""
    return _v1(folder, content, use_ocdbt=False)


def v1_zarr2_noocdbt(folder, content):
    """v1 with a folder of zarr2 files for each parameter."""
    return _v1(folder, content, use_zarr3=False, use_ocdbt=False)


def v1_nocompress(folder, content):
    """v1 without compression."""
    return _v1(folder, content, use_compression=False)


def v1_datafiles(folder, content):
    """v1 with small chunks and many data files."""
    ocp = _v1_module()
    storage = ocp.options.ArrayOptions.Saving.StorageOptions(chunk_byte_size=64)
    return _v1(folder, content, storage_options=storage, ocdbt_target_data_file_size=256)


def v1_cast(folder, content):
    """v1 that stores float32 as bfloat16, chosen leaf by leaf."""
    ocp = _v1_module()
    options, storage = ocp.options, ocp.options.ArrayOptions.Saving.StorageOptions
    def chosen(_, leaf):
        return storage(dtype=_cast_dtype(leaf))
    if "create_array_storage_options_fn" in _parameters(options.PyTreeOptions.Saving):
        saving = options.PyTreeOptions.Saving(create_array_storage_options_fn=chosen)
        more = {"pytree_options": options.PyTreeOptions(saving=saving)}
    else:
        saving = options.ArrayOptions.Saving(scoped_storage_options_creator=chosen)
        more = {"array_options": options.ArrayOptions(saving=saving)}
    with ocp.Context(**more):
        ocp.save_pytree(folder / "ckpt", content.tree)
    return {"item": _v1_item(folder), "tree": tree_map(_as_cast, content.tree)}


def v1_rich(folder, content):
    """v1 with rich types."""
    ocp = _v1_module()
    saving = ocp.options.PyTreeOptions.Saving(pytree_metadata_options=_rich())
    with ocp.Context(pytree_options=ocp.options.PyTreeOptions(saving=saving)):
        ocp.save_pytree(folder / "ckpt", content.tree)
    return {"item": _v1_item(folder)}


def v1_nosharding(folder, content):
    """v1 without `_sharding`."""
    return _v1(folder, content, enable_write_sharding_file=False)


def v1_nostore(folder, content):
    """v1 without `array_metadatas`."""
    return _v1(folder, content, array_metadata_store=None)


def v1_training(folder, content):
    """`v1.training.Checkpointer`: a run of steps, with metrics."""
    ocp = _v1_module()
    metrics = {}
    with ocp.training.Checkpointer(folder / "mgr", custom_metadata=META) as run:
        for step, tree in sorted(content.trees.items()):
            metrics[str(step)] = {"acc": 0.5 + step / 100}
            run.save_pytree(step, tree, metrics=metrics[str(step)])
    step = str(content.step)
    return {"item": _v1_item(folder / "mgr" / step), **_steps(content),
            "metrics": metrics, "root_metadata": META}


def v1_partial(folder, content):
    """`v1.partial`: two saves into one checkpoint, then `finalize`."""
    ocp = _v1_module()
    partial = getattr(ocp, "partial", None)
    save = getattr(partial, "save_pytree", None) or getattr(partial, "save", None)
    if save is None:
        raise Absent("v1.partial")
    if not isinstance(content.tree, dict) or len(content.tree) < 2:
        raise Absent("a dict to save in parts")
    names = sorted(content.tree)
    half = len(names) // 2
    for part in (names[:half], names[half:]):
        save(folder / "ckpt", {name: content.tree[name] for name in part})
    partial.finalize(folder / "ckpt")
    return {"item": _v1_item(folder)}


def v1_async(folder, content):
    """`v1.save_pytree_async`."""
    ocp = _v1_module()
    ocp.save_pytree_async(folder / "ckpt", content.tree).result()
    return {"item": _v1_item(folder)}


# --- help


def _steps(content, steps=None):
    """The facts of a run: its steps, and the truths of those before the last."""
    steps = sorted(content.trees) if steps is None else steps
    trees = {f"_step{n}": (content.trees[n], {"step": n}) for n in steps if n != content.step}
    return {"all_steps": steps, "steps": trees}


def _items(content, **trees):
    """The truths of the other trees of a step."""
    return {f"_item_{name}": (tree, {"step": content.step, "item": name})
            for name, tree in trees.items()}


def _save(folder, content, save_args=None, args_more=None, **options):
    """Save the tree as `ckpt` with a handler made with the options given."""
    import orbax.checkpoint as ocp
    for name in options:
        _need(ocp.PyTreeCheckpointHandler, name)
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options))
    more = {} if save_args is None else {"save_args": save_args}
    if args_more:
        for name in args_more:
            _need(_args().PyTreeSave, name)
        args = _args().PyTreeSave(content.tree, **args_more, **more)
        checkpointer.save(folder / "ckpt", args=args)
    else:
        checkpointer.save(folder / "ckpt", content.tree, **more)
    return {}


def _std(folder, content, **options):
    import orbax.checkpoint as ocp
    if not options:
        checkpointer = _known(ocp, "StandardCheckpointer")()
    else:
        handler = _known(ocp, "StandardCheckpointHandler")
        for name in options:
            _need(handler, name)
        checkpointer = ocp.Checkpointer(handler(**options))
    checkpointer.save(folder / "ckpt", content.tree)
    _wait(checkpointer)
    return {}


def _ptc():
    import orbax.checkpoint as ocp
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler())


def _old_manager(folder, checkpointers, run_metadata=None, **options):
    import orbax.checkpoint as ocp
    for name in options:
        _need(ocp.CheckpointManagerOptions, name)
    (folder / "mgr").mkdir()
    more = {} if run_metadata is None else {"metadata": run_metadata}
    return ocp.CheckpointManager(
        folder / "mgr", checkpointers, ocp.CheckpointManagerOptions(**options), **more)


def _manager(folder, metadata=None, item_names=None, item_handlers=None, **options):
    import orbax.checkpoint as ocp
    for name in options:
        _need(ocp.CheckpointManagerOptions, name)
    more = {"metadata": metadata, "item_names": item_names, "item_handlers": item_handlers}
    more = {name: value for name, value in more.items() if value is not None}
    return ocp.CheckpointManager(
        folder / "mgr", options=ocp.CheckpointManagerOptions(**options), **more)


def _args():
    import orbax.checkpoint as ocp
    return _known(ocp, "args")


def _rich():
    try:
        from orbax.checkpoint._src.metadata.tree import PyTreeMetadataOptions
    except ImportError as error:
        raise Absent("PyTreeMetadataOptions") from error
    return PyTreeMetadataOptions(support_rich_types=True)


def _array_handler(**options):
    """Make arrays of jax be written by a handler with these options."""
    import orbax.checkpoint as ocp
    handler = getattr(getattr(ocp, "type_handlers", None), "ArrayHandler", None)
    for name in options:
        _need(handler, name)
    ocp.type_handlers.register_type_handler(jax.Array, handler(**options), override=True)


def _v1_module():
    try:
        import orbax.checkpoint.experimental.v1 as ocp
    except ImportError as error:
        raise Absent("orbax.checkpoint.experimental.v1") from error
    return ocp


def _v1(folder, content, custom_metadata=None, **options):
    ocp = _v1_module()
    for name in options:
        _need(ocp.options.ArrayOptions.Saving, name)
    more = {} if custom_metadata is None else {"custom_metadata": custom_metadata}
    saving = ocp.options.ArrayOptions.Saving(**options)
    with ocp.Context(array_options=ocp.options.ArrayOptions(saving=saving)):
        ocp.save_pytree(folder / "ckpt", content.tree, **more)
    return {"item": _v1_item(folder / "ckpt")}


def _v1_item(folder):
    """The item that `save_pytree` made: its name differs by release."""
    names = [name for name in ("pytree", "state") if (folder / name).is_dir()
             or (folder / "ckpt" / name).is_dir()]
    return names[0]


def _wait(saver):
    if hasattr(saver, "wait_until_finished"):
        saver.wait_until_finished()


def _initialize_distributed():
    """Orbax before 0.4 wants it for asynchronous saves, even of one process."""
    if _release() >= (0, 4):
        return
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    jax.distributed.initialize(f"localhost:{port}", num_processes=1, process_id=0)


def _some_array(tree):
    leaves = [leaf for leaf in jax.tree_util.tree_leaves(tree)
              if isinstance(leaf, (np.ndarray, jax.Array)) and leaf.size
              and not _is_key(leaf)]
    if not leaves:
        raise Absent("an array in the tree")
    return leaves[0]


def _is_key(leaf):
    extended = getattr(jax.dtypes, "prng_key", None)
    return extended is not None and jax.dtypes.issubdtype(leaf.dtype, extended)


def _a_divisor(n):
    return next(k for k in (4, 3, 2, 5, 1) if n % k == 0)


def _known(module, name):
    if not hasattr(module, name):
        raise Absent(name)
    return getattr(module, name)


def _need(function, name):
    """Refuse, unless the function has a parameter of this name."""
    if function is None or name not in _parameters(function):
        raise Absent(f"{getattr(function, '__name__', function)}({name}=)")


def _parameters(function):
    return inspect.signature(function).parameters


def _default(function, name):
    parameter = _parameters(function).get(name)
    return None if parameter is None else parameter.default


async_ptc.before = mgr_legacy_async.before = _initialize_distributed


# --- what is not on disk


WITHOUT_STORE = ("_nostore", "ptc_nosharding")  # a handler of the user's has none by default
AGGREGATED = ("ptc_agg", "ptc_cast_agg", "ptc_guide", "flax_orbax", "flax_orbax_steps")


def losses(tree, writer):
    """The leaves that this release does not store as they were, and why."""
    leaves = list(truth.walk(tree))
    is_aggregated = writer in AGGREGATED and _release() < (0, 5, 16)
    names = collections.Counter(".".join(path) for path, _ in leaves)
    for path, leaf in leaves:
        why = None
        if (0, 1, 2) <= _release() < (0, 5, 16) and _has_no_handler(leaf):
            why = "this release wrote None for a leaf of this type"
        elif not is_aggregated and names[".".join(path)] > 1:
            why = "two leaves share one storage name"
        elif is_aggregated and not getattr(leaf, "dtype", np.dtype("f4")).isnative:
            why = "the byte order of aggregated arrays was not written"
        elif path == ("",) and (0, 3) <= _release() < (0, 4) and writer in ("ptc_ocdbt", "std"):
            why = "OCDBT of this release does not write the empty name"
        elif is_aggregated and str(leaf).startswith("PLACEHOLDER://"):
            why = "aggregated text that looks like what stands for an array"
        elif _is_array(leaf) and _is_key(leaf) and writer.endswith(WITHOUT_STORE):
            why = "what tells a key from numbers is in array_metadatas alone"
        if why:
            yield {"path": list(path), "why": why}


def _release():
    from importlib import metadata
    for name in ("orbax-checkpoint", "orbax"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return tuple(int(part) for part in metadata.version(name).split(".")[:3])
    return (0,)


def _has_no_handler(leaf):
    """Scalars that are no number to numpy (bool, bfloat16), and Python's complex."""
    if isinstance(leaf, np.generic):
        return not isinstance(leaf, np.number)
    return isinstance(leaf, complex)


def _is_array(leaf):
    return isinstance(leaf, (np.ndarray, jax.Array))


def _noting_losses(writer):
    @functools.wraps(writer)
    def written(folder, content):
        facts = writer(folder, content)
        found = list(losses(facts.get("tree", content.tree), writer.__name__))
        return dict(facts, losses=found) if found else facts
    return written


WRITERS = {name: _noting_losses(value) for name, value in sorted(globals().items())
           if inspect.isfunction(value) and value.__module__ == __name__
           and not name.startswith("_") and name not in ("cells", "losses")}

EVERYTHING = ("ptc", "ptc_agg", "ptc_noocdbt", "ptc_ocdbt", "ptc_zarr3", "ptc_treemeta",
              "ptc_rich", "std", "v1")
SOME = ("mlp_params", "bundle", "typed_key")


def cells(contents):
    """All contents with the writers that differ in layout, a few contents with all writers."""
    for content in contents:
        if content == "odd_keys_mixed":
            continue  # no pytree: keys that cannot be sorted
        for writer in WRITERS:
            if writer in EVERYTHING or content in SOME:
                yield content, writer
