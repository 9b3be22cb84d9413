"""What the libraries of today make of the golden checkpoints, measured.

    python today.py GOLDENS TODAY.json [ERA ...]

Run it with the newest flax and Orbax. For each golden three ordinary calls are made, those that a
user without the old code would try, all without a target, and what comes back is compared with the
truth. The README's table of formats is made from the result by `scripts/format_table.py`.

GOLDENS holds `<era>/<content>-<writer>` folders. What TODAY.json has already, of the same releases, is
kept, so it can be stopped, started again, and started for some eras beside another one.

exact: every leaf has its path, shape, dtype and bits. empties: only None and empty containers
differ. nothing: a tree without values, and no error. wrong: something came back, and it is not
what was saved. Else the name of the exception.
"""
import collections.abc
import contextlib
import fcntl
import json
import logging
import os
import pathlib
import signal
import sys

import flax
import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization
from flax.training import checkpoints

SECONDS = 60
BATCH = 40
EMPTY = ("none", "empty")
HANGS = {"flax": "hangs", "orbax": "hangs", "v1": "hangs"}
RELEASES = {"flax": flax.__version__, "orbax": ocp.__version__, "jax": jax.__version__}


def main():
    """Measure every golden, a few in one process."""
    root, out = map(pathlib.Path, sys.argv[1:3])
    names = [truth.parent.relative_to(root).as_posix() for truth in sorted(root.glob("*/*/truth.json"))]
    wanted = [name for name in names if not sys.argv[3:] or name.split("/")[0] in sys.argv[3:]]
    done = known(out)
    missing = [name for name in wanted if name not in done]
    while missing:
        found = in_child(root, missing[:BATCH])
        if len(found) < len(missing[:BATCH]):  # the child has ended in the middle of the next one
            found[missing[len(found)]] = HANGS
        missing = missing[len(found):]
        keep(out, found)
        print(*found, sep="\n", flush=True)


def known(out):
    """What was measured with the same releases."""
    document = json.loads(out.read_text()) if out.exists() else {}
    same = all(document.get(name) == release for name, release in RELEASES.items())
    return document["goldens"] if same else {}


def keep(out, found):
    """Add verdicts to the file: one line for each golden."""
    with open(out.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may do other eras
        goldens = sorted({**known(out), **found}.items())
        lines = [f"{json.dumps(name)}: {json.dumps(verdicts)}" for name, verdicts in goldens]
        head = json.dumps(RELEASES)[:-1]
        out.write_text(head + ', "goldens": {\n' + ",\n".join(lines) + "\n}}\n")


def in_child(root, names):
    """Measure some goldens in a fork; those before the one that hung or crashed."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        logging.disable(logging.CRITICAL)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 2)
        for name in names:
            signal.alarm(SECONDS)
            os.write(write, json.dumps([name, measure(root / name)]).encode() + b"\n")
        os._exit(0)
    os.close(write)
    with open(read) as pipe:
        lines = pipe.read().splitlines()
    os.waitpid(child, 0)
    return dict(json.loads(line) for line in lines)


def measure(folder):
    """The verdicts for one golden, by library."""
    info = json.loads((folder / "truth.json").read_text())
    names = [p.name for p in sorted(folder.iterdir()) if not p.name.startswith("truth")]
    path = folder / info.get("checkpoint", names[0])
    found = {}
    for name, read in READERS.items():
        with contextlib.redirect_stdout(sys.stderr):
            try:
                tree = read(path.absolute(), info)
            except NotMeant:
                continue
            except Exception as error:  # noqa: BLE001 - its name is the result
                found[name] = type(error).__name__
                continue
        found[name] = verdict(tree, info, folder)
    return found


class NotMeant(Exception):
    """The library was never meant for such a file."""


def _is_run(path):
    return path.is_dir() and not any(
        (path / n).exists() for n in ("_METADATA", "checkpoint", "manifest.ocdbt",
                                      "_CHECKPOINT_METADATA", "orbax.checkpoint"))


def with_flax(path, info):
    """`restore_checkpoint(path, target=None)`; `msgpack_restore` for a bare file of bytes."""
    if info["writer"].startswith("hf"):
        path = path / "flax_model.msgpack"
        if not path.exists():  # in shards, of which flax knows nothing
            raise NotMeant
    if path.is_file() and not path.name.startswith("checkpoint_"):
        return serialization.msgpack_restore(path.read_bytes())
    if "mgr" in info["writer"] or "v1" in info["writer"]:
        raise NotMeant
    return checkpoints.restore_checkpoint(str(path), None, prefix=_prefix(path, info))


def _prefix(path, info):
    """What the names of a run's steps begin with: a user knows that of his run."""
    end = str(info["step"])
    names = [p.name for p in path.iterdir() if p.name.endswith(end)] if _is_run(path) else []
    return names[0][:-len(end)] if names else "checkpoint_"


def with_orbax(path, info):
    """`CheckpointManager(path).restore(step)`, or `PyTreeCheckpointer().restore(path)`."""
    if path.is_file() or "v1" in info["writer"]:
        raise NotMeant
    if "mgr" in info["writer"]:
        with ocp.CheckpointManager(path) as manager:
            tree = manager.restore(info["step"])
        return tree[info["item"]] if isinstance(tree, ocp.args.Composite) else tree
    if _is_run(path):
        raise NotMeant
    return ocp.PyTreeCheckpointer().restore(path)


def with_v1(path, info):
    """`v1.load_pytree` of the folder, or of the step's folder."""
    from orbax.checkpoint import v1
    if path.is_file():
        raise NotMeant
    if "mgr" in info["writer"]:
        step = str(info["step"])
        named = [p for p in path.iterdir() if p.name.split("_")[-1].lstrip("0") == step]
        path = named[0] if named else path / step
    elif _is_run(path):
        raise NotMeant
    item = info.get("item")
    if item is None or item in ("state", "pytree") and "v1" in info["writer"]:
        return v1.load(path)
    return v1.load_pytree(path, checkpointable_name=item)


READERS = {"flax": with_flax, "orbax": with_orbax, "v1": with_v1}


def verdict(tree, info, folder):
    """Compare what came back with the truth."""
    with np.load(folder / "truth.npz") as stored:
        arrays = dict(stored)
    got = dict(walk(tree))
    lost = {tuple(loss["path"]) for loss in info.get("losses", ())}
    want = {tuple(leaf["path"]): leaf for leaf in info["leaves"]}
    values = {p: leaf for p, leaf in want.items() if leaf["kind"] not in EMPTY and p not in lost}
    if values and all(is_hollow(value) for value in got.values()):
        return "nothing"
    if any(p not in got or not same(got[p], leaf, arrays) for p, leaf in values.items()):
        return "wrong"
    if any(not is_hollow(v) for p, v in got.items() if p not in want):
        return "wrong"
    hollow = {p: leaf for p, leaf in want.items() if leaf["kind"] in EMPTY and p not in lost}
    alike = all(p in got and kind_of(got[p]) == leaf["kind"] for p, leaf in hollow.items())
    return "exact" if alike and not got.keys() - want.keys() - lost else "empties"


def walk(node, path=()):
    """Yield (path, leaf) of a tree of any containers."""
    if isinstance(node, collections.abc.Mapping):
        children = [(str(k), v) for k, v in node.items()]
    elif hasattr(node, "_fields"):
        children = [(n, getattr(node, n)) for n in node._fields]
    elif isinstance(node, (list, tuple)):
        children = [(str(n), v) for n, v in enumerate(node)]
    else:
        children = []
    if not children:
        yield path, node
    for name, child in children:
        yield from walk(child, (*path, name))


def is_hollow(value):
    """Whether a value is None or an empty container."""
    return kind_of(value) in EMPTY


def kind_of(value):
    """`none`, `empty` or `value`."""
    if value is None:
        return "none"
    return "empty" if isinstance(value, (collections.abc.Mapping, list, tuple)) else "value"


def same(value, leaf, arrays):
    """Whether a value has the bits of the truth; Python numbers may come as 0-d arrays."""
    if is_hollow(value):
        return False
    if leaf["kind"] == "key":
        typed = jax.dtypes.issubdtype(getattr(value, "dtype", None), jax.dtypes.prng_key)
        value = jax.random.key_data(value) if typed else value
    if "data" not in leaf:
        if leaf["kind"] in ("str", "bytes"):
            return isinstance(value, (str, bytes)) and plain(value) == leaf["value"]
        try:
            return bool(np.array_equal(value, number(leaf["value"]), equal_nan=True))
        except (TypeError, ValueError):
            return False
    want = arrays[leaf["data"]]
    want = want if want.dtype.isnative else want.astype(want.dtype.newbyteorder("="))
    if leaf["kind"] == "scalar" and isinstance(value, (bool, int, float)):
        return bool(np.array_equal(value, want, equal_nan=True))
    got = np.asarray(value)
    return (leaf["kind"] == "key" or got.dtype.name == leaf["dtype"]) and \
        list(got.shape) == list(want.shape if leaf["kind"] == "key" else leaf["shape"]) and \
        got.astype(got.dtype.newbyteorder("=")).tobytes() == want.tobytes()


def plain(value):
    """A string, or bytes as the truth spells them."""
    return value if isinstance(value, str) else value.hex()


def number(value):
    """A number as the truth spells it."""
    return complex(*value) if isinstance(value, list) else value


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
