"""The ways in which flax itself saved to msgpack, with the public calls of each era.

See `matrix.py` for what a writer is. `checkpoint` in the facts is what to open, if the golden's
folder holds several things.
"""
import contextlib
import inspect
import os
from importlib import util

import flax
import numpy as np
from flax import serialization

from matrix_contents import release
from truth import walk

BYTE_ORDER = ("the dtype is written by name, which does not tell the byte order (flax 0.3.0 and "
              "newer): the bytes are read as if they were little-endian")


def flax_msgpack(folder, content):
    """`flax.training.checkpoints.save_checkpoint`: one file `checkpoint_3`."""
    _save(folder, content.tree, content.step)
    return {"checkpoint": f"checkpoint_{content.step}", **_facts(content)}


def flax_to_bytes(folder, content):
    """`flax.serialization.to_bytes` into a file of any name."""
    (folder / "model.msgpack").write_bytes(serialization.to_bytes(content.tree))
    return {"checkpoint": "model.msgpack", **_facts(content)}


def flax_serialize(folder, content):
    """`flax.serialization.msgpack_serialize` of a state dict."""
    state = serialization.to_state_dict(content.tree)
    (folder / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(state))
    return {"checkpoint": "flax_model.msgpack", **_facts(content)}


def flax_steps(folder, content):
    """Several steps in one folder, of which the last three are kept; step 10 is not before 9."""
    numbers = dict(zip((9, 10, 100), (content.trees[step] for step in sorted(content.trees))))
    _save(folder / "run", content.trees[1], 8, keep=3)
    for number, tree in numbers.items():
        _save(folder / "run", tree, number, keep=3)
    if len(os.listdir(folder / "run")) != 3:  # flax 0.1 counts the file it is writing
        numbers = {n: t for n, t in numbers.items()
                   if (folder / "run" / f"checkpoint_{n}").exists()}
    steps = {f"_step{n}": (tree, {"step": n, "open_step": n}) for n, tree in numbers.items()}
    return {"checkpoint": "run", "step": 100, "steps": steps}


def flax_steps_keep_every(folder, content):
    """`keep_every_n_steps`, which spares some of the old ones."""
    for number in range(1, 8):
        _save(folder / "run", content.trees[number % 3 + 1], number, keep=1, keep_every_n_steps=3)
    found = sorted(int(name.split("_")[1]) for name in os.listdir(folder / "run"))
    steps = {f"_step{n}": (content.trees[n % 3 + 1], {"step": n, "open_step": n}) for n in found}
    return {"checkpoint": "run", "step": 7, "tree": content.trees[7 % 3 + 1], "steps": steps}


def flax_steps_overwrite(folder, content):
    """A step that is saved twice, and one before it, with `overwrite`."""
    _save(folder / "run", content.trees[1], 5, keep=9)
    _save(folder / "run", content.trees[2], 7, keep=9)
    _save(folder / "run", content.trees[3], 6, keep=9, overwrite=True)
    return {"checkpoint": "run", "step": 6}


def flax_steps_float(folder, content):
    """Steps that are no whole numbers, as a metric may be."""
    for number, tree in zip((0.5, 2.0, 11.25), content.trees.values()):
        _save(folder / "run", tree, number, keep=9)
    return {"checkpoint": "run", "step": 11.25}


def flax_steps_negative(folder, content):
    """Negative steps: a loss that is best when it is greatest."""
    for number, tree in zip((-30, -2, -1), content.trees.values()):
        _save(folder / "run", tree, number, keep=9)
    return {"checkpoint": "run", "step": -1}


def flax_steps_prefix(folder, content):
    """A prefix of one's own."""
    for number, tree in zip((9, 10, 100), content.trees.values()):
        _save(folder / "run", tree, number, keep=9, prefix="agent_")
    return {"checkpoint": "run", "step": 100}


def flax_steps_dash(folder, content):
    """A prefix that ends in a dash, which newer releases take for a sign."""
    for number, tree in zip((9, 10, 100), content.trees.values()):
        _save(folder / "run", tree, number, keep=9, prefix="agent-")
    return {"checkpoint": "run", "step": 100}


def flax_steps_tmp(folder, content):
    """A run whose last save was interrupted: the release's own temporary file stays behind."""
    for number, tree in zip((1, 2, 3), content.trees.values()):
        _save(folder / "run", tree, number, keep=9)
    before = set(os.listdir(folder / "run"))
    _interrupted(folder / "run", content.trees[1])
    if set(os.listdir(folder / "run")) == before:
        raise NotImplementedError("this release leaves nothing behind")
    return {"checkpoint": "run", "step": 3}


def flax_async(folder, content):
    """`save_checkpoint` with an AsyncManager."""
    from flax.training.checkpoints import AsyncManager
    manager = AsyncManager()
    _save(folder, content.tree, content.step, async_manager=manager)
    manager.wait_previous_save()
    return {"checkpoint": f"checkpoint_{content.step}", **_facts(content)}


def flax_multiprocess(folder, content):
    """`save_checkpoint_multiprocess`, by one process."""
    from flax.training import checkpoints
    _no_orbax()
    checkpoints.save_checkpoint_multiprocess(str(folder), content.tree, content.step)
    return {"checkpoint": f"checkpoint_{content.step}", **_facts(content)}


def flax_msgpack_chunked(folder, content):
    """`save_checkpoint` with the chunk limit of 1 GiB brought down to 256 bytes."""
    with _small_chunks():
        return flax_msgpack(folder, content)


def flax_to_bytes_chunked(folder, content):
    """`to_bytes` with the chunk limit of 1 GiB brought down to 256 bytes."""
    with _small_chunks():
        return flax_to_bytes(folder, content)


def flax_to_bytes_inplace(folder, content):
    """`msgpack_serialize(in_place=True)`, which chunks in the tree it was given."""
    with _small_chunks():
        state = serialization.to_state_dict(content.tree)
        data = serialization.msgpack_serialize(state, in_place=True)
    (folder / "model.msgpack").write_bytes(data)
    return {"checkpoint": "model.msgpack"}


WRITERS = {function.__name__: function for function in (
    flax_msgpack, flax_to_bytes, flax_serialize, flax_steps, flax_steps_keep_every,
    flax_steps_overwrite, flax_steps_float, flax_steps_negative, flax_steps_prefix, flax_steps_dash,
    flax_steps_tmp,
    flax_async, flax_multiprocess, flax_msgpack_chunked, flax_to_bytes_chunked,
    flax_to_bytes_inplace)}
for function in WRITERS.values():
    function.shares_process = True


@contextlib.contextmanager
def _small_chunks():
    usual = serialization.MAX_CHUNK_SIZE
    serialization.MAX_CHUNK_SIZE = 256
    try:
        yield
    finally:
        serialization.MAX_CHUNK_SIZE = usual


def cells(contents):
    """Every content as one file; runs and other calls with a few contents."""
    for name in contents:
        if name == "bert" and not util.find_spec("transformers"):
            continue
        yield name, "flax_msgpack"
        yield name, "flax_to_bytes"
    for name in ("mlp_params", "bundle", "cnn_state", "odd_nest", "optim_bare"):
        yield name, "flax_serialize"
    for name in WRITERS:
        if name.startswith("flax_steps"):
            yield "mlp_params", name
    for name in ("cnn_state", "optim_bare"):
        yield name, "flax_steps"
    for name in ("mlp_params", "cnn_state"):
        yield name, "flax_async"
        yield name, "flax_multiprocess"
    for name in ("chunked", "chunked_root", "cnn_state", "mlp_frozen", "prelinen_optim"):
        yield name, "flax_msgpack_chunked"
        yield name, "flax_to_bytes_chunked"
    yield "chunked", "flax_to_bytes_inplace"


def _no_orbax():
    """Choose flax's own backend, in the releases that have two."""
    config = getattr(flax, "config", None)
    if hasattr(config, "flax_use_orbax_checkpointing"):
        if hasattr(config, "update"):
            config.update("flax_use_orbax_checkpointing", False)
        else:  # a plain module until 0.6.3
            config.flax_use_orbax_checkpointing = False


def _save(folder, tree, step, **options):
    from flax.training import checkpoints
    _no_orbax()
    known = inspect.signature(checkpoints.save_checkpoint).parameters
    missing = [name for name in options if name not in known]
    if missing:
        raise NotImplementedError(f"save_checkpoint has no {missing} yet")
    checkpoints.save_checkpoint(str(folder), tree, step, **options)


def _interrupted(folder, tree):
    """A save that is killed as it writes: it dies in the middle of the call of the release."""
    from flax.training import checkpoints
    child = os.fork()
    if not child:
        for owner in (os, getattr(checkpoints, "gfile", None), getattr(checkpoints, "io", None)):
            for name in ("rename", "replace"):
                if hasattr(owner, name):
                    setattr(owner, name, lambda *_, **__: os._exit(0))
        _save(folder, tree, 4, keep=9)
        os._exit(0)
    os.waitpid(child, 0)


def _facts(content):
    """What this release does not keep of the tree."""
    losses = []
    if release() >= (0, 3, 0):
        for path, leaf in walk(content.truth):
            dtype = getattr(leaf, "dtype", None)
            if isinstance(dtype, np.dtype) and not dtype.isnative:
                losses.append({"path": list(path), "why": BYTE_ORDER})
    return {"losses": losses} if losses else {}


