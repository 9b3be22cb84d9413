"""Rows 5 and 11: memory that does not grow with the checkpoint, and one pass over the data.

The peak is that of ``RssAnon`` in the converting process, imports included. For row 11 a stack of
64 layers (``nn.scan``) becomes a list of layers and, from there, a stack again; bytes read are
those that the process asked the kernel for (``rchar`` of ``/proc/self/io``).
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from common import (
    ROOT,
    Options,
    Row,
    clocked,
    fresh,
    inside,
    interleaved,
    nbytes,
    options_of,
    show,
    workspace,
)
from states import LAYERS, linen_state, make, plan_of, store_plan, width_for

WAYS = Path(__file__).with_name("ways.py")
DEPTH = 64
FLAT = 200e6
TRANSPOSED = "".join(
    f"""
[[map]]
from = "params/Dense_{i}/{{leaf}}"
to = "layers/{i}/{{leaf}}"
"""
    for i in range(LAYERS // 3, LAYERS)
) + "".join(
    f"""
[[map]]
from = "params/Dense_{i}/kernel"
to = "layers/{i}/kernel"
transforms = [{{op = "transpose", axes = [1, 0]}}]

[[map]]
from = "params/Dense_{i}/bias"
to = "layers/{i}/bias"
"""
    for i in range(LAYERS // 3)
)


def stacks(folder: Path, megabytes: float) -> None:
    """A checkpoint with params and moments of 64 layers in one stack each, and the plans."""
    import jax
    import jax.numpy as jnp
    import optax
    import orbax.checkpoint as ocp
    from flax import nnx

    import bridge

    width = round((megabytes * 1e6 / (3 * DEPTH * 4)) ** 0.5)
    state = linen_state(16)
    rng = jax.random.key(0)

    def stacked(n):
        return {"layers": {"kernel": jax.random.normal(jax.random.fold_in(rng, n),
                                                       (DEPTH, width, width)),
                           "bias": jnp.full((DEPTH, width), n + 1.0)}}  # fmt: skip

    adam = state.opt_state[0]._replace(mu=stacked(1), nu=stacked(2))
    state = state.replace(params=stacked(0), opt_state=(adam, *state.opt_state[1:]))
    ocp.PyTreeCheckpointer().save(folder / "stack", state)

    class Layers(nnx.Module):
        def __init__(self, rngs):
            made = [nnx.Linear(width, width, rngs=rngs) for _ in range(DEPTH)]
            self.layers = nnx.List(made)

    class Stack(nnx.Module):
        def __init__(self):
            @nnx.vmap(in_axes=0)
            def layer(keys):
                return nnx.Linear(width, width, rngs=keys)

            self.layers = layer(nnx.Rngs(0).fork(split=DEPTH))

    tx = optax.adamw(1e-3)
    plan = bridge.plan(folder / "stack", model=lambda: Layers(nnx.Rngs(0)), tx=tx).require_ok()
    plan_of(folder / "stack").write_text(plan.to_json())
    bridge.convert(folder / "stack", folder / "lists", plan=plan, verify="none")
    # and back: what is a StandardSave checkpoint is read like any other
    back = bridge.plan(
        folder / "lists",
        model=Stack,
        tx=tx,
        at={"model": "model", "optimizer": "optimizer"},
    ).require_ok()
    plan_of(folder / "lists").write_text(back.to_json())


def _largest(source: Path) -> int:
    import legacy

    return max(leaf.nbytes for leaf in legacy.open(source).leaves.values())


def ours(source: Path, out: Path, *flags: str):
    """One conversion, with the bytes that were read."""
    fresh(out)
    return inside(WAYS, "ours", source, out, *flags)


def rows(options: Options) -> list[Row]:
    """Rows 5 and 11."""
    sys.path.insert(0, str(ROOT))
    return [_flat(options), _scanned(options)]


def _flat(options: Options) -> Row:
    sizes = [options.scale * s for s in (250.0, 1000.0, 4000.0)]
    details, peaks, good = [], [], True
    for kind in ("msgpack", "zarr", "ocdbt"):
        row = []
        for size in sizes:
            with workspace(options, "memory") as folder:
                source = make(kind, folder, size)
                limit = FLAT
                if kind == "ocdbt":
                    inside(__file__, "transposed", source, size)
                    limit = max(FLAT, 2 * _largest(source) + 100e6)
                m = interleaved({"x": partial(ours, source, folder / "out")}, min(options.runs, 3))
                peak = m["x"].peak
                good = good and peak <= limit
                row.append(f"{peak / 1e6:.0f}")
                name = "OCDBT, a third transposed" if kind == "ocdbt" else kind
                largest = _largest(source) / 1e6
                details.append(f"{name}, {size:.0f} MB (largest array {largest:.0f} MB): "
                               f"{m['x'].text()}")  # fmt: skip
        peaks.append(f"{kind} {'/'.join(row)} MB")
    return Row(
        5,
        "peak memory at 0.25 / 1 / 4 GB: msgpack, zarr, OCDBT with a third transposed",
        "<= 200 MB, or twice the largest array where one is transformed",
        "; ".join(peaks),
        good,
        tuple(details),
    )


def _scanned(options: Options) -> Row:
    size = 1000 * options.scale
    with workspace(options, "scan") as folder:
        inside(__file__, "stacks", folder, size)
        m = {}
        details, good = [], True
        for name in ("stack", "lists"):
            source = folder / name
            m = interleaved({"x": partial(ours, source, folder / "out")}, min(options.runs, 3))["x"]
            largest, held = size * 1e6 / 3, nbytes(source)
            checked = m.runs[0].told["read"] / held
            read = ours(source, folder / "out", "--verify=none").told["read"] / held
            # a stack is one chunk in the source: it is there as it is stored, and decoded
            good = good and m.peak <= 2 * largest + 100e6 and read < 1.1
            details.append(f"{name}: {m.text()}; one stack is {largest / 1e6:.0f} MB; read "
                           f"{read:.2f} x the source's bytes, {checked:.2f} x with the check of "
                           "both sides")  # fmt: skip
    return Row(
        11,
        f"a stack of {DEPTH} layers ({size:.0f} MB with moments) into a list, and back",
        "bounded (<= twice one stack + 100 MB); one pass over the data",
        "; ".join(d.split("; one")[0] for d in details),
        good,
        tuple(details),
    )


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if sys.argv[1:2] == ["transposed"]:
        width = width_for(float(sys.argv[3]))
        # a plan that turns a third of the kernels, and their moments with them
        clocked(partial(store_plan, Path(sys.argv[2]), width, TRANSPOSED))
    elif sys.argv[1:2] == ["stacks"]:
        clocked(partial(stacks, Path(sys.argv[2]), float(sys.argv[3])))
    else:
        show(rows(options_of(None, __doc__)))
