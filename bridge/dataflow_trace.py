"""Traces a model without running it and reads its data flow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend import core

from bridge.dataflow_flow import Flow, flow_of
from bridge.dataflow_graph import View
from bridge.dataflow_loops import ALL_HANDLERS
from bridge.dataflow_read import Numbers, Reader
from bridge.dataflow_slices import push_slices
from bridge.probes import Call, Model

__all__ = ["Path", "Program", "Traced", "program", "read"]

Path = tuple[str, ...]
_JAXPRS = (core.Jaxpr, core.ClosedJaxpr)


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A traced model.

    Attributes:
        model: what was traced.
        leaves: paths by number.
        kinds: the collection of each.
        calls: for each call the jaxpr of leaves and inputs, shapes of the inputs, and the leaves
            whose new values follow its outputs.
    """

    model: Model
    leaves: tuple[Path, ...]
    kinds: tuple[str, ...]
    calls: tuple[tuple[Any, tuple[tuple[int, ...], ...], tuple[int, ...]], ...]

    def loops(self) -> bool:
        """Whether there is any loop."""
        seen: set[int] = set()
        waiting = [jaxpr for jaxpr, _, _ in self.calls]
        while waiting:
            jaxpr = waiting.pop()
            if id(jaxpr) in seen:
                continue
            seen.add(id(jaxpr))
            for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
                if eqn.primitive.name == "scan":
                    return True
                waiting += [p for p in eqn.params.values() if isinstance(p, _JAXPRS)]
        return False


@dataclass(frozen=True, slots=True, eq=False)
class Traced:
    """A model's data flow.

    Attributes:
        name: ``Linen`` or ``NNX``.
        flow: all its calls in one graph.
        leaves: paths by the numbers that the graph's parameters have.
        shapes: of the leaves.
        kinds: of the leaves.
    """

    name: str
    flow: Flow
    leaves: tuple[Path, ...]
    shapes: tuple[tuple[int, ...], ...]
    kinds: tuple[str, ...]

    def used(self) -> set[int]:
        """Leaves that some output depends on."""
        return {op.leaf for op in self.flow.ops if op.leaf >= 0}


def program(model: Model, kind: Callable[[Path], str]) -> Program:
    """Trace all calls of a model; no array is made.

    Args:
        model: the model; only shapes and dtypes of its arrays are used.
        kind: the collection of a leaf.

    Raises:
        Exception: whatever the model raises when it is traced.
    """
    paths = tuple(sorted(model.specs))
    kinds = tuple(kind(p) for p in paths)
    return Program(model, paths, kinds, tuple(_call(model, c, paths, kinds) for c in model.calls))


def _call(
    model: Model, call: Call, paths: tuple[Path, ...], kinds: tuple[str, ...]
) -> tuple[Any, tuple[tuple[int, ...], ...], tuple[int, ...]]:
    updated: list[int] = []

    def run(values: list[Any], inputs: list[Any]) -> list[Any]:
        out = call.run(dict(zip(paths, values, strict=True)), inputs)
        updated[:] = [n for n, p in enumerate(paths) if p in out.updates and kinds[n] != "params"]
        return [*out.outputs, *(out.updates[paths[n]] for n in updated)]

    specs = [model.specs[p] for p in paths]
    inputs = [jax.ShapeDtypeStruct(jax.numpy.shape(x), x.dtype) for x in call.inputs]
    jaxpr = jax.make_jaxpr(run)(specs, inputs)
    return jaxpr, tuple(tuple(x.shape) for x in inputs), tuple(updated)


def read(traced: Program, numbers: Numbers, *, unroll: bool = False) -> Traced:
    """Read a traced model into one graph.

    Args:
        traced: the model.
        numbers: constants; one for both models.
        unroll: unroll every loop of known length, not only those over parameters.

    Raises:
        Uneven: an axis is cut in ways that do not nest.
    """
    reader = Reader(ALL_HANDLERS, numbers, unroll=unroll)
    graph = reader.graph
    shapes = tuple(tuple(traced.model.specs[p].shape) for p in traced.leaves)
    params = [graph.leaf("param", (n,), s) for n, s in enumerate(shapes)]
    for number, (jaxpr, given, updated) in enumerate(traced.calls):
        inputs = [graph.leaf("input", (number, k), s) for k, s in enumerate(given)]
        outs = reader.call(jaxpr, [*params, *inputs], [True] * len(jaxpr.out_avals))
        plain = len(outs) - len(updated)
        for k, out in enumerate(outs[:plain]):
            _root(reader, "output", (number, k), [out])
        for n, out in zip(updated, outs[plain:], strict=True):
            if out != params[n]:
                _root(reader, "update", (number, traced.kinds[n]), [out, params[n]])
    push_slices(graph)
    return Traced(traced.model.name, flow_of(graph), traced.leaves, shapes, traced.kinds)


def _root(reader: Reader, op: str, key: Any, views: list[View]) -> None:
    rank = len(views[0].axes)
    labels = [("axis", k) for k in range(rank)]
    roles = {x: x for x in labels} if op == "output" else {}
    view = reader.graph.make(op, key, views, [labels] * len(views), labels, roles=roles, keep=True)
    reader.graph.roots.append(view.node)
