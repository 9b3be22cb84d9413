"""Recorded outputs: what a model gives with the values of a checkpoint, kept and compared.

They come from Linen where its module is given, so that a golden still knows what the old model did
when its code is gone. They are kept in float64, too, where both models compute in it: there, what
another release of XLA rounds otherwise is invisible, and an epsilon of 1e-6 for 1e-5 is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bridge._bits import measure
from bridge._plan import Plan
from bridge._verify_output import Output
from bridge.calls import Model
from bridge.feeds import model_items
from bridge.forward import check
from bridge.golden import OUTPUTS, Golden, GoldenError
from bridge.golden_leaves import far
from bridge.golden_probes import probe_from_json, probe_json
from bridge.golden_sides import Recorded, Side, kept_dtype, on_host
from bridge.items import live
from bridge.nnx_calls import nnx_model
from bridge.precision import EXACT, compared
from bridge.probe import by_item, probes_of
from bridge.probes import require_calls, trouble
from bridge.target import SlotPath
from bridge.twins import concrete, slot_values, twins
from legacy import Checkpoint

__all__ = [
    "ModelsDiffer",
    "compare_outputs",
    "outputs_again",
    "record_outputs",
]

TOLERANCE = 1e-4
"""How far outputs may be apart in the model's own precision, in relation to the largest value:
other releases, and other processors, round otherwise."""


class ModelsDiffer(GoldenError):
    """The Linen module and the NNX model do not give the same with the values of the source."""


def record_outputs(
    checkpoint: Checkpoint,
    plan: Plan,
    *,
    model: Any,
    linen: Any,
    sample_input: Any,
    methods: Any = None,
    allowed: float | None = None,
) -> Recorded:
    """Run the models on the values of a checkpoint.

    Args:
        checkpoint: the source.
        plan: what becomes of it.
        model: see :func:`bridge.describe`.
        linen: the Linen module; None records what the NNX model gives.
        sample_input: see :func:`bridge.plan`.
        methods: further methods to call.
        allowed: the tolerance; None for what the precision of the model asks for.

    Raises:
        ModelsDiffer: the two models do not give the same.
        GoldenError: an input cannot be kept.
        BridgeError: a model cannot be called.
    """
    kept = Recorded({"from": "nnx" if linen is None else "linen", "calls": []})
    for item, probes, ours, theirs, values in (
        _alone(checkpoint, plan, model, sample_input, methods)
        if linen is None
        else _both(checkpoint, plan, model, linen, sample_input, methods)
    ):
        nnx = Side(theirs.calls, values)
        for n, probe in enumerate(probes):
            inputs = concrete(theirs.calls[n].inputs)
            name = f"{item}.{len(kept.document['calls'])}"
            entry: dict[str, Any] = {
                "item": item,
                "probe": probe_json(probe, inputs, name, kept.arrays),
            }
            native, wide = _taken(ours or nnx, nnx, n, inputs)
            limit = max(TOLERANCE, nnx.narrowest(n, inputs)) if allowed is None else allowed
            entry |= {"outputs": len(native), "tolerance": float(f"{limit:.3g}")}
            for k, x in enumerate(native):
                kept.arrays[f"{name}.out.{k}"] = x
            if wide is not None:
                entry["float64"] = True
                kept.arrays |= {f"{name}.wide.{k}": np.asarray(x) for k, x in enumerate(wide)}
            kept.document["calls"].append(entry)
    return kept


def _taken(first: Side, nnx: Side, n: int, inputs: Sequence[Any]) -> tuple[Any, Any]:
    """Outputs to keep: Linen's, unless the two give their parts in another order."""
    ours, theirs = first.outputs(n, inputs), nnx.outputs(n, inputs)
    same = len(ours) == len(theirs) and all(
        compared("", a, b, TOLERANCE).state != "differs" for a, b in zip(ours, theirs, strict=True)
    )
    side = first if same else nnx
    wide, other = side.wide(n, inputs), nnx.wide(n, inputs)
    if (
        wide is None
        or other is None
        or not all(
            compared("", a, b, EXACT).state != "differs" for a, b in zip(wide, other, strict=True)
        )
    ):
        wide = None
    return [on_host(x) for x in (ours if same else theirs)], wide


def _both(
    checkpoint: Checkpoint, plan: Plan, model: Any, linen: Any, sample_input: Any, methods: Any
) -> Iterator[tuple[str, Sequence[Any], Side | None, Model, Mapping[SlotPath, Any]]]:
    table = checkpoint.leaves
    given = {"model": model, "linen": linen, "sample_input": sample_input, "methods": methods}
    for twin in twins(table, plan, **given):
        ours, theirs = twin.models(table)
        old = twin.linen_values(table, ours.specs)
        new = _values(checkpoint, plan, twin.item, twin.prefix, theirs, None)
        found = check(twin, (ours, theirs), old, new)
        if not found.same:
            raise ModelsDiffer(
                f"item {twin.item}: Linen and NNX do not give the same, so no golden is made: "
                f"{found}"
            )
        yield twin.item, twin.probes, Side(ours.calls, old), theirs, new


def _alone(
    checkpoint: Checkpoint, plan: Plan, model: Any, sample_input: Any, methods: Any
) -> Iterator[tuple[str, Sequence[Any], Side | None, Model, Mapping[SlotPath, Any]]]:
    makers = live(model)
    places = {i: p for i, p in model_items(plan.target).items() if i in makers}
    for item, given in by_item(sample_input, tuple(places), "sample_input=", shared=True).items():
        probes = probes_of(given, methods)
        theirs = nnx_model(makers[item], probes, _paths(plan, item, places[item]))
        require_calls(theirs)
        values = _values(checkpoint, plan, item, places[item], theirs, None)
        yield item, probes, None, theirs, values


def _paths(plan: Plan, item: str, prefix: SlotPath) -> list[SlotPath]:
    slots = (s for s in plan.target.slots if s.item == item and s.collection != "opt_state")
    return [s.path[len(prefix) :] for s in slots]


def _values(
    checkpoint: Checkpoint,
    plan: Plan,
    item: str,
    prefix: SlotPath,
    model: Model,
    output: Output | None,
) -> dict[SlotPath, Any]:
    found, n = slot_values(checkpoint, plan, [item], output)[item], len(prefix)
    return {path[n:]: x for path, x in found.items() if path[n:] in model.specs}


def compare_outputs(golden: Golden, plan: Plan, model: Any, output: Output) -> list[str]:
    """Run today's model on a converted checkpoint, and say what differs from what was recorded.

    Args:
        golden: the golden.
        plan: by which it was converted.
        model: today's model.
        output: the source of the golden, converted.
    """
    lines: list[str] = []
    try:
        arrays = _stored(golden)
        for name, entry, side in _sides(golden, plan, model, output, arrays):
            lines += [side] if isinstance(side, str) else _differing(name, entry, side, arrays)
    except Exception as error:  # noqa: BLE001 - it runs the user's code
        lines.append(f"the model cannot be run: {type(error).__name__}: {error}")
    return lines


def outputs_again(golden: Golden, plan: Plan, model: Any, output: Output) -> Recorded:
    """The same calls with what today's model gives.

    Args:
        golden: the golden.
        plan: by which it was converted.
        model: today's model.
        output: the source of the golden, converted.

    Raises:
        GoldenError: the model cannot be called any more as it was.
    """
    stored = _stored(golden)
    kept = Recorded({"from": "nnx", "calls": []})
    kept.arrays |= {name: x for name, x in stored.items() if ".in." in name}
    for name, entry, side in _sides(golden, plan, model, output, stored):
        if isinstance(side, str):
            raise GoldenError(side)
        inputs = concrete(side.calls[0].inputs)
        native, wide = _taken(side, side, 0, inputs)
        new = {**entry, "outputs": len(native), "float64": wide is not None}
        kept.arrays |= {f"{name}.out.{k}": x for k, x in enumerate(native)}
        kept.arrays |= {f"{name}.wide.{k}": np.asarray(x) for k, x in enumerate(wide or ())}
        kept.document["calls"].append(new)
    return kept


def _stored(golden: Golden) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(golden.path / OUTPUTS, allow_pickle=False) as stored:
        return dict(stored)


def _sides(
    golden: Golden, plan: Plan, model: Any, output: Output, arrays: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any], Side | str]]:
    """Each recorded call with today's model; why it cannot be called, where it cannot."""
    makers, places = live(model), model_items(plan.target)
    for n, entry in enumerate(golden.document["outputs"]["calls"]):
        item = entry["item"]
        probe = probe_from_json(entry["probe"], arrays)
        theirs = nnx_model(makers[item], [probe], _paths(plan, item, places[item]))
        why = trouble(theirs, theirs.calls[0])
        values = {} if why else _values(output.checkpoint, plan, item, places[item], theirs, output)
        yield f"{item}.{n}", entry, why or Side(theirs.calls, values)


def _differing(
    name: str, entry: Mapping[str, Any], side: Side, arrays: Mapping[str, Any]
) -> Iterator[str]:
    """What differs in one call: in float64 where that was recorded, which no rounding disturbs."""
    inputs = concrete(side.calls[0].inputs)
    method = entry["probe"].get("method")
    called = f"{entry['item']}{f'.{method}' if method else ''}: output"
    wide = side.wide(0, inputs) if entry.get("float64") else None
    # the same program in its own precision has these shapes and dtypes, without being compiled
    found = side.shapes(0, inputs) if wide is not None else side.outputs(0, inputs)
    if len(found) != entry["outputs"]:
        yield f"{called}: {entry['outputs']} arrays were recorded, {len(found)} today"
        return
    for k, x in enumerate(found):
        one = called if len(found) == 1 else f"{called} {k}"
        was = arrays[f"{name}.out.{k}"]
        if was.shape != x.shape or was.dtype != kept_dtype(x.dtype):
            yield f"{one}: {was.dtype} {was.shape} was recorded, {x.dtype} {x.shape} today"
        elif wide is None:
            yield from _apart(one, was, on_host(x), entry["tolerance"])
        else:
            for said in _apart(one, arrays[f"{name}.wide.{k}"], np.asarray(wide[k]), EXACT):
                yield f"{said}, in float64, where this is no rounding"


def _apart(
    name: str, was: np.ndarray[Any, Any], now: np.ndarray[Any, Any], allowed: float
) -> Iterator[str]:
    """How two arrays differ, in words."""
    if compared("", was, now, allowed).state == "differs":
        yield (f"{name}: {measure(was, now)}{far(was, now)}; allowed are {allowed:g} of the "
               "largest value")  # fmt: skip
