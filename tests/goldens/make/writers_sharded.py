"""Writes goldens from eight devices, or from two processes.

    python writers_sharded.py OUT CONTENT-WRITER ...

Contents: `sharded8`, `slashes8` and `bare8` are saved by one process with eight (pretended) CPU devices;
`gda8` is `sharded8` as GlobalDeviceArrays; `mp2` and `mp2x2` by two real processes with one and two
devices each, connected by `jax.distributed` (`mp2_large`: larger arrays); `mp2_unmerged` is a copy of such a save without the merged
database. Writers are the functions of this module without an underscore, each with public calls only.

It sets its own environment. Libraries are imported once for all goldens of one set of devices, and each golden is
written by a forked process (two for `mp2`), since some releases keep state for the whole process.
"""
import inspect
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from importlib import metadata

LATEST = "0.12.12"
LONGEST = 100  # seconds for one golden
DEVICES = {"mp2": 1, "mp2x2": 2, "mp2_unmerged": 1, "mp2_large": 1}
TREES = {"slashes8": "slashes8", "bare8": "bare8", "large8": "large8", "mp2_large": "large8"}
WRITERS = {}
"""None for `matrix.py`: these goldens need their devices and processes before jax is imported."""
UNMERGED = "manifest.ocdbt and d/ removed from a copy of a finished save of two processes"


def cells(contents):
    """Nothing for `matrix.py`."""
    return ()


def main():
    """Start the processes of each set of goldens, or be one of them."""
    out, names = pathlib.Path(sys.argv[1]).absolute(), sys.argv[2:]
    if "GOLDEN_PROCESS" in os.environ:
        _work(out, names, int(os.environ["GOLDEN_PROCESS"]), int(os.environ["GOLDEN_COUNT"]))
        return
    groups = {}
    for name in names:
        content = name.split("-")[0]
        key = DEVICES.get(content, 8), 2 if content.startswith("mp2") else 1
        groups.setdefault(key, []).append(name)
    for (devices, count), members in groups.items():
        _start(out, members, devices, count)


def _start(out, names, devices, count):
    addresses = [_free_address() for _ in names]
    flags = "--xla_force_host_platform_device_count=%d" % devices
    processes = []
    for number in range(count):
        env = dict(os.environ, XLA_FLAGS=flags, GOLDEN_PROCESS=str(number), GOLDEN_COUNT=str(count),
                   GOLDEN_ADDRESSES=",".join(addresses))
        command = [sys.executable, "-W", "ignore", __file__, str(out), *names]
        processes.append(subprocess.Popen(command, env=env))
    for process in processes:
        process.wait()


def _free_address():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return "localhost:%d" % free.getsockname()[1]


def _work(out, names, number, count):
    import compat
    compat.install()
    import jax
    from flax.training import checkpoints  # noqa: F401 - imported once, before the forks
    if count > 1:
        _collectives(jax)
    for name, address in zip(names, os.environ["GOLDEN_ADDRESSES"].split(",")):
        child = os.fork()
        if child == 0:
            signal.alarm(LONGEST)
            code = 1
            try:
                _write(out, name, number, count, address)
                code = 0
            except BaseException as error:
                said = str(error).strip().splitlines() or [""]
                print(name, number, "FAILED", type(error).__name__, said[0][:200], flush=True)
                if "GOLDEN_TRACE" in os.environ:
                    traceback.print_exc()
            finally:
                os._exit(code)
        if os.waitpid(child, 0)[1] & 0x7f:
            print(name, number, "KILLED", flush=True)


def _write(out, name, number, count, address):
    import jax
    content, writer_name = name.split("-")
    if count > 1 or writer_name == "flax_gda":
        jax.distributed.initialize(address, count, number)
    import contents_sharded as contents
    from truth import record
    if jax.device_count() != DEVICES.get(content, 8) * count:
        raise RuntimeError("this release connects no CPU processes: %s" % jax.devices())
    release = metadata.version("flax")
    era = "latest" if release == LATEST else "flax" + release.replace(".", "")
    folder = out / era / name
    folder.mkdir(parents=True, exist_ok=True)
    tree = getattr(contents, TREES.get(content, "spread8"))()
    place = contents.global_device_arrays if content == "gda8" else contents.device
    if writer_name == "flax_gda" and count == 1:
        place = contents.global_device_arrays
    writer = globals()[writer_name]
    facts = writer(folder, place(tree, contents.mesh()), contents.STEP)
    count = 1 if writer is ptc_killed else count  # then the other process waits in vain
    _together(count)
    if number == 0:
        if content == "mp2_unmerged":
            facts["how_unmerged"] = UNMERGED
            _unmerge(folder)
            facts["losses"] = _not_stored(folder)
        record(folder, contents.host(tree), contents.STEP, era=era, writer=writer_name,
               how=inspect.getdoc(writer), devices=jax.device_count(),
               processes=jax.process_count(), **facts)
        print(era, name, flush=True)
    _together(count)


def _collectives(jax):
    """Let CPU processes talk; the option had three names."""
    for option, value in (("jax_cpu_collectives_implementation", "gloo"),
                          ("jax_cpu_enable_gloo_collectives", True)):
        try:
            jax.config.update(option, value)
            return
        except AttributeError:
            continue


def _together(count):
    if count > 1:
        from jax.experimental import multihost_utils
        multihost_utils.sync_global_devices("golden")


def _unmerge(folder):
    found = [path.parent for path in folder.rglob("manifest.ocdbt")
             if not path.parent.name.startswith("ocdbt.process_")]
    if not found:
        raise RuntimeError("nothing was merged")
    for root in found:
        (root / "manifest.ocdbt").unlink()
        shutil.rmtree(root / "d")


def _not_stored(folder):
    """Zeros that the zarr3 of Orbax 0.5-0.9 does not store: like a process that was stopped."""
    text = next(folder.rglob("_METADATA")).read_text(encoding="utf-8")
    if '"use_zarr3": true' not in text or "store_array_data_equal_to_fill_value" in text:
        return []
    return [{"path": ["opt_state", "1", "mu"], "why": "zeros are not stored, nor is it merged"}]


def flax_gda(folder, tree, step):
    """`save_checkpoint_multiprocess` in its msgpack form: a file and a folder `_gda`."""
    _use_orbax_in_flax(False)
    from flax.training import checkpoints
    try:
        from jax.experimental.array_serialization.serialization import GlobalAsyncCheckpointManager
    except ImportError:
        from jax.experimental.gda_serialization.serialization import GlobalAsyncCheckpointManager
    manager = GlobalAsyncCheckpointManager()
    checkpoints.save_checkpoint_multiprocess(str(folder), tree, step, gda_manager=manager)
    manager.wait_until_finished()
    return {}


def flax_orbax(folder, tree, step):
    """`save_checkpoint_multiprocess` on flax's Orbax backend: a folder `checkpoint_<step>`."""
    _use_orbax_in_flax(True)
    from flax.training import checkpoints
    checkpoints.save_checkpoint_multiprocess(str(folder), tree, step)
    return {}


def ptc(folder, tree, step):
    """`PyTreeCheckpointer` with the defaults of the release."""
    import orbax.checkpoint as ocp
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).save(folder / "ckpt", tree)
    return {}


def ptc_ocdbt(folder, tree, step):
    """OCDBT, asked for: in 2023 it was not yet the default."""
    import orbax.checkpoint as ocp
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True)
    ocp.Checkpointer(handler).save(folder / "ckpt", tree)
    return {}


def ptc_noocdbt(folder, tree, step):
    """One zarr folder for each array."""
    import orbax.checkpoint as ocp
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False)
    ocp.Checkpointer(handler).save(folder / "ckpt", tree)
    return {}


def ptc_zarr3(folder, tree, step):
    """OCDBT holding zarr3 arrays."""
    import orbax.checkpoint as ocp
    handler = ocp.PyTreeCheckpointHandler(use_zarr3=True)
    ocp.Checkpointer(handler).save(folder / "ckpt", tree)
    return {}


def ptc_zarr3_noocdbt(folder, tree, step):
    """One zarr3 folder for each array."""
    import orbax.checkpoint as ocp
    handler = ocp.PyTreeCheckpointHandler(use_zarr3=True, use_ocdbt=False)
    ocp.Checkpointer(handler).save(folder / "ckpt", tree)
    return {}


def ptc_small_files(folder, tree, step):
    """OCDBT holding zarr3, with a data file for every few thousand bytes."""
    import orbax.checkpoint as ocp
    args = ocp.args.PyTreeSave(tree, ocdbt_target_data_file_size=4000)
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_zarr3=True)).save(folder / "ckpt", args=args)
    return {}


def ptc_small_chunks(folder, tree, step):
    """OCDBT with chunks of 64 bytes at most."""
    import jax
    import orbax.checkpoint as ocp
    save = ocp.SaveArgs(chunk_byte_size=64)
    args = ocp.args.PyTreeSave(tree, save_args=jax.tree_util.tree_map(lambda _: save, tree))
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).save(folder / "ckpt", args=args)
    return {}


def ptc_killed(folder, tree, step):
    """`PyTreeCheckpointer`, killed before the databases of the processes are merged."""
    import orbax.checkpoint as ocp

    class Handler(ocp.PyTreeCheckpointHandler):
        def finalize(self, directory):
            raise InterruptedError

    try:
        ocp.Checkpointer(Handler()).save(folder / "ckpt", tree)
    except InterruptedError:
        pass
    return {"checkpoint": next(path.name for path in folder.iterdir() if "tmp" in path.name)}


def std(folder, tree, step):
    """`StandardCheckpointer`."""
    import orbax.checkpoint as ocp
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(folder / "ckpt", tree)
    if hasattr(checkpointer, "wait_until_finished"):
        checkpointer.wait_until_finished()
    return {}


def mgr_legacy(folder, tree, step):
    """`CheckpointManager` as before `args`, one unnamed item."""
    import orbax.checkpoint as ocp
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    (folder / "mgr").mkdir(exist_ok=True)  # the first managers do not make their folder
    manager = ocp.CheckpointManager(folder / "mgr", checkpointer)
    manager.save(step, tree)
    return {"item": "default"}


def mgr_args(folder, tree, step):
    """`CheckpointManager` with `StandardSave` and one unnamed item."""
    import orbax.checkpoint as ocp
    (folder / "mgr").mkdir(exist_ok=True)
    try:
        manager = ocp.CheckpointManager(folder / "mgr")
    except TypeError:  # Orbax 0.4 wants to be told that there will be args
        manager = ocp.CheckpointManager(folder / "mgr", None)
    manager.save(step, args=ocp.args.StandardSave(tree))
    manager.wait_until_finished()
    return {"item": "default"}


def v1(folder, tree, step):
    """`orbax.checkpoint.experimental.v1.save_pytree`."""
    from orbax.checkpoint.experimental import v1 as ocp
    ocp.save_pytree(folder / "ckpt", tree)
    return {"item": "pytree" if (folder / "ckpt" / "pytree").exists() else "state"}


def _use_orbax_in_flax(value):
    import flax
    config = getattr(flax, "config", None)
    if not hasattr(config, "flax_use_orbax_checkpointing"):
        return
    if hasattr(config, "update"):
        config.update("flax_use_orbax_checkpointing", value)
    else:  # flax 0.6.3: a module
        config.flax_use_orbax_checkpointing = value


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # some releases leave threads behind that never end
