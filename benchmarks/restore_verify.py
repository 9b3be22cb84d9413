"""Measures restoring into live NNX objects, and a full verification (rows 9 and 10).

Makes an adamw ``TrainState`` of 1 GB of float32 arrays (122 of them, moments not zero, since zeros
compress to nothing) as Orbax saves it, as a msgpack file, and as a StandardSave checkpoint of the
same arrays, and converts the first two.

*Row 9.* ``bridge.restore`` with the stored plan, next to ``StandardRestore`` of the same arrays
into abstract leaves on the same single CPU device. Both end with every array in place.

*Row 10.* ``bridge.verify`` next to a script that reads every array of both checkpoints once and
compares nothing: many TensorStore reads at the same time (bytes in flight bounded, as any reader of
a large checkpoint must), and flax's own ``msgpack_restore`` for a msgpack file. A third way only
takes the bytes of the msgpack file through a buffer, which no reader of arrays can beat; it is told
beside.

    python benchmarks/restore_verify.py [--scale 1.0] [--runs 5] [--folder /tmp]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from common import (
    Measured,
    Options,
    Row,
    Run,
    clocked,
    inside,
    interleaved,
    options_of,
    ratio,
    show,
    workspace,
)
from states import LAYERS, linen_state, nnx_objects, plan_of, store_plan, width_for

SOURCES = ("orbax", "msgpack")
MOST_TIME, MOST_MEMORY, MOST_VERIFY = 1.0, 1.15, 1.2
IN_FLIGHT = 256 << 20
"""Bytes that the plain reader asks for at a time."""


# -- inputs ---------------------------------------------------------------------------------------


def make(folder: Path, width: int) -> None:
    """Write the sources, the plans and the conversions."""
    import optax
    import orbax.checkpoint as ocp
    from flax import nnx, serialization

    import bridge

    state = linen_state(width)
    ocp.PyTreeCheckpointer().save(folder / "orbax", state)
    (folder / "msgpack").write_bytes(serialization.to_bytes(state))
    plans = {name: store_plan(folder / name, width) for name in SOURCES}
    for name, plan in plans.items():
        bridge.convert(folder / name, folder / f"{name}_nnx", plan=plan, verify="none", sync=False)
    model, _ = objects(width)
    words = {"model": model, "tx": optax.adamw(1e-3), "plan": plans["orbax"]}
    restored = bridge.restore(folder / "orbax", **words)
    with ocp.StandardCheckpointer() as saver:
        saver.save(folder / "standard", tree_of(restored.model, restored.optimizer, nnx))


def objects(width: int) -> tuple[Any, Any]:
    """The NNX model and its optimizer, without arrays."""
    from flax import nnx

    return nnx.eval_shape(lambda: nnx_objects(width))


def tree_of(model: Any, optimizer: Any, nnx: Any) -> Any:
    return {"model": nnx.state(model), "optimizer": nnx.state(optimizer)}


# -- row 9 ----------------------------------------------------------------------------------------


def by_bridge(folder: Path, source: str, width: int) -> None:
    import jax
    import optax
    from flax import nnx

    import bridge

    jax.block_until_ready(jax.device_put(0.0))  # the device is there before the clock starts
    model, _ = objects(width)
    keep = []

    import tensorstore  # noqa: F401 - imported before the clock starts

    restore, plan_type = bridge.restore, bridge.Plan

    def work() -> dict[str, Any]:
        plan = plan_type.from_json(plan_of(folder / source).read_text())
        restored = restore(folder / source, model=model, tx=optax.adamw(1e-3), plan=plan)
        arrays = jax.tree.leaves(jax.block_until_ready(nnx.state(restored.optimizer)))
        keep.append(restored)
        return {"arrays": len(arrays)}

    clocked(work)


def by_orbax(folder: Path, width: int) -> None:
    import jax
    import orbax.checkpoint as ocp
    from flax import nnx

    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    jax.block_until_ready(jax.device_put(0.0))
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
        tree_of(*objects(width), nnx),
    )
    keep = []

    def work() -> dict[str, Any]:
        with ocp.StandardCheckpointer() as reader:
            restored = jax.block_until_ready(reader.restore(folder / "standard", abstract))
        keep.append(restored)
        return {"arrays": len(jax.tree.leaves(restored["optimizer"]))}

    clocked(work)


# -- row 10 ---------------------------------------------------------------------------------------


def verified(folder: Path, source: str, level: str) -> None:
    import jax
    import orbax.checkpoint  # noqa: F401 - imported before the clock starts
    import tensorstore  # noqa: F401

    import bridge._verify_orbax

    verify = bridge.verify
    jax.block_until_ready(jax.device_put(0.0))

    def work() -> dict[str, Any]:
        verdict = verify(folder / source, folder / f"{source}_nnx", level=level)
        return {"rung": verdict.require_ok().rung, "compared": verdict.compared}

    clocked(work)


def read_both(folder: Path, source: str, how: str) -> None:
    def work() -> dict[str, Any]:
        (step,) = (folder / f"{source}_nnx").iterdir()
        trees = [step / "model", step / "optimizer"]
        total = 0
        if source == "orbax":
            trees.insert(0, folder / source)
        else:
            total += flax_reads(folder / source) if how == "arrays" else bytes_of(folder / source)
        return {"bytes": total + sum(read(arrays(tree)) for tree in trees)}

    import jax  # noqa: F401 - imported before the clock starts
    import tensorstore  # noqa: F401
    from flax import serialization  # noqa: F401

    clocked(work)


def arrays(root: Path) -> list[Any]:
    """All arrays of an OCDBT database, opened."""
    import tensorstore as ts

    def ocdbt(path: str = "") -> dict[str, Any]:
        return {"driver": "ocdbt", "base": f"file://{root}/", "path": path}

    keys = ts.KvStore.open(ocdbt()).result().list().result()
    names = [k.decode().removesuffix("/.zarray") for k in keys if k.endswith(b"/.zarray")]
    context = ts.Context()
    specs = [{"driver": "zarr", "kvstore": ocdbt(f"{n}/"), "open": True} for n in names]
    return [f.result() for f in [ts.open(s, context=context, read=True) for s in specs]]


def read(stores: list[Any]) -> int:
    """Read every array, many at a time, and keep none."""
    running: list[Any] = []
    flying = total = 0
    for store in stores:
        size = store.dtype.numpy_dtype.itemsize * store.size
        while running and flying + size > IN_FLIGHT:
            done = running.pop(0).result().nbytes
            flying, total = flying - done, total + done
        running.append(store.read())
        flying += size
    return int(total + sum(r.result().nbytes for r in running))


def flax_reads(file: Path) -> int:
    """Every array of a msgpack file, as flax gives it."""
    import jax
    from flax import serialization

    tree = serialization.msgpack_restore(file.read_bytes())
    return sum(getattr(x, "nbytes", 0) for x in jax.tree.leaves(tree))


def bytes_of(file: Path) -> int:
    """Every byte of a file, taken through a buffer."""
    memory, total = bytearray(16 << 20), 0
    with file.open("rb", buffering=0) as stream:
        while got := stream.readinto(memory):
            total += got
    return total


# -- rows -----------------------------------------------------------------------------------------


def rows(options: Options) -> list[Row]:
    """Rows 9 and 10."""
    width = width_for(1e3 * options.scale)

    def way(*words: Any) -> Any:
        def run() -> Run:
            return inside(__file__, "--measure", *words)

        return run

    with workspace(options, "restore") as folder:
        inside(__file__, "--measure", "make", folder, width)
        restoring = interleaved(
            {
                "StandardRestore": way("by_orbax", folder, width),
                "bridge.restore, Orbax": way("by_bridge", folder, "orbax", width),
                "bridge.restore, msgpack": way("by_bridge", folder, "msgpack", width),
            },
            options.runs,
        )
        verifying = interleaved(
            {
                "read both, Orbax": way("read_both", folder, "orbax", "arrays"),
                "verify full, Orbax": way("verified", folder, "orbax", "full"),
                "verify fast, Orbax": way("verified", folder, "orbax", "fast"),
                "read both, msgpack": way("read_both", folder, "msgpack", "arrays"),
                "read both, msgpack as bytes": way("read_both", folder, "msgpack", "bytes"),
                "verify full, msgpack": way("verified", folder, "msgpack", "full"),
                "verify fast, msgpack": way("verified", folder, "msgpack", "fast"),
            },
            options.runs,
        )
    nbytes = 3 * 4 * LAYERS * (width * width + width)
    return [_restore_row(restoring, nbytes), _verify_row(verifying)]


def _above(measured: Measured) -> int:
    """The peak above what the process held before the clock started."""
    return max(r.peak - r.told["before"] for r in measured.runs)


def _lines(found: dict[str, Measured]) -> tuple[str, ...]:
    return tuple(f"{n}: {m.text()}, {_above(m) / 1e6:.0f} MB above" for n, m in found.items())


def _restore_row(found: dict[str, Measured], nbytes: int) -> Row:
    names = ("bridge.restore, Orbax", "bridge.restore, msgpack")
    times = [ratio(found[n], found["StandardRestore"]) for n in names]
    memory = [_above(found[n]) / nbytes for n in names]
    return Row(
        9,
        f"bridge.restore into live NNX state, {nbytes / 1e9:.2f} GB, Orbax and msgpack",
        "no slower than StandardRestore; memory <= 1.15 x the arrays",
        f"{times[0]:.2f} x and {times[1]:.2f} x its time; "
        f"{memory[0]:.3f} x and {memory[1]:.3f} x the arrays",
        max(times) <= MOST_TIME and max(memory) <= MOST_MEMORY,
        _lines(found),
    )


def _verify_row(found: dict[str, Measured]) -> Row:
    times = [
        ratio(found[f"verify full, {s}"], found[f"read both, {s}"]) for s in ("Orbax", "msgpack")
    ]
    bare = ratio(found["verify full, msgpack"], found["read both, msgpack as bytes"])
    return Row(
        10,
        "verify full, Orbax and msgpack",
        "<= 1.2 x the time to read both checkpoints once",
        f"{times[0]:.2f} x and {times[1]:.2f} x",
        max(times) <= MOST_VERIFY,
        (*_lines(found), f"msgpack next to taking the bytes of the file alone: {bare:.2f} x"),
    )


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        name, folder, *words = sys.argv[2:]
        if name == "make":
            clocked(lambda: make(Path(folder), int(words[0])))
        # the only numbers among the words are widths
        arguments = [int(w) if w.isdigit() else w for w in words]
        {
            "by_bridge": by_bridge,
            "by_orbax": by_orbax,
            "verified": verified,
            "read_both": read_both,
        }[name](Path(folder), *arguments)
    show(rows(options_of(None, __doc__)))


if __name__ == "__main__":
    main()
