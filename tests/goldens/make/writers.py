"""One function per way of saving; each uses only the public calls of the era it is run in.

A writer gets the golden's folder and a `Content`, saves into the folder, and returns the facts
to note in the truth (which item holds the tree, and what other items hold).
"""
import flax
from flax import serialization
from flax.training import checkpoints

META = {"name": "run-ü", "seed": 7, "classes": ["cat", "dog"], "lr": 0.01, "note": None}


def flax_msgpack(folder, content):
    """`flax.training.checkpoints.save_checkpoint` in its msgpack form: one file."""
    _use_orbax_in_flax(False)
    checkpoints.save_checkpoint(str(folder), content.tree, content.step)
    return {}


def flax_msgpack_chunked(folder, content):
    """The same with the chunk limit of 1 GiB brought down to 256 bytes."""
    serialization.MAX_CHUNK_SIZE = 256
    return flax_msgpack(folder, content)


def flax_orbax(folder, content):
    """`save_checkpoint` on flax's Orbax backend: a folder `checkpoint_<step>`."""
    _use_orbax_in_flax(True)
    checkpoints.save_checkpoint(str(folder), content.tree, content.step)
    return {}


def ptc(folder, content):
    """`PyTreeCheckpointer` with the defaults of the release."""
    import orbax.checkpoint as ocp
    ocp.PyTreeCheckpointer().save(folder / "ckpt", content.tree)
    return {}


def ptc_agg(folder, content):
    """`PyTreeCheckpointer` with every leaf aggregated into the one msgpack file."""
    import jax
    import orbax.checkpoint as ocp
    args = jax.tree_util.tree_map(lambda _: ocp.SaveArgs(aggregate=True), content.tree)
    ocp.PyTreeCheckpointer().save(folder / "ckpt", content.tree, save_args=args)
    return {}


def ptc_ocdbt(folder, content):
    """OCDBT, asked for: in 2023 it was not yet the default."""
    import orbax.checkpoint as ocp
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True)
    ocp.Checkpointer(handler).save(folder / "ckpt", content.tree)
    return {}


def ptc_zarr3(folder, content):
    """OCDBT holding zarr3 arrays."""
    import orbax.checkpoint as ocp
    ocp.PyTreeCheckpointer(use_zarr3=True).save(folder / "ckpt", content.tree)
    return {}


def std(folder, content):
    """`StandardCheckpointer`."""
    import orbax.checkpoint as ocp
    ocp.StandardCheckpointer().save(folder / "ckpt", content.tree)
    return {}


def mgr_legacy(folder, content):
    """`CheckpointManager` as before `args`: checkpointers by item, here a tree and a JSON item."""
    import orbax.checkpoint as ocp
    checkpointers = {"state": ocp.PyTreeCheckpointer(),
                     "meta": ocp.Checkpointer(ocp.JsonCheckpointHandler())}
    manager = ocp.CheckpointManager(folder / "mgr", checkpointers)
    manager.save(content.step, {"state": content.tree, "meta": META})
    return {"item": "state", "json_items": {"meta": META}}


def mgr_args(folder, content):
    """`CheckpointManager` with `StandardSave` and one unnamed item, all steps kept."""
    import orbax.checkpoint as ocp
    with ocp.CheckpointManager(folder / "mgr") as manager:
        for step, tree in content.trees.items():
            manager.save(step, args=ocp.args.StandardSave(tree))
        manager.wait_until_finished()
    return {"item": "default"}


def _use_orbax_in_flax(value):
    """Choose flax's backend, in the releases that have more than one."""
    if hasattr(getattr(flax, "config", None), "flax_use_orbax_checkpointing"):
        flax.config.update("flax_use_orbax_checkpointing", value)
