"""Calls a Linen model and an NNX model alike, as pure functions of their arrays.

Whatever compares the two (gradients, data flow, outputs, training steps) needs the same thing: a
function from arrays by path to outputs. The two sides are in :mod:`bridge.linen_calls` and
:mod:`bridge.nnx_calls`; what they share is in :mod:`bridge.calls`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax

from bridge.calls import Call, Called, Model, Name, shapes_text, tied
from bridge.errors import BridgeError
from bridge.linen_calls import (
    leaf_specs,
    linen_model,
    linen_of,
    linen_variables,
    settled,
    takes,
)
from bridge.nnx_calls import nnx_model
from bridge.probe import Probe, probes_of

__all__ = [
    "Call",
    "Called",
    "Model",
    "Probe",
    "leaf_specs",
    "linen_model",
    "linen_of",
    "linen_variables",
    "nnx_model",
    "probes_for",
    "require_calls",
    "takes",
    "tied",
    "trouble",
    "unlike",
]


def probes_for(module: Any, sample_input: Any, methods: Any) -> tuple[Probe, ...]:
    """A user's sample input as probes of a Linen module.

    Args:
        module: the Linen module.
        sample_input: see :func:`bridge.probe.probes_of`.
        methods: see the same.
    """
    return tuple(settled(module, probe) for probe in probes_of(sample_input, methods))


def require_calls(*models: Model) -> None:
    """Refuse models that cannot be called with their probes.

    Raises:
        BridgeError: names every call that fails.
    """
    told = [t for model in models for call in model.calls if (t := trouble(model, call))]
    if told:
        raise BridgeError(
            "the models cannot be called with the sample input:\n  "
            + "\n  ".join(told)
            + "\nWhere the two take different arguments, give "
            "bridge.Probe(args, kwargs, nnx_args=..., nnx_kwargs=..., nnx_method=...)."
        )


def trouble(model: Model, call: Call) -> str:
    """Why a call cannot be traced; empty when it can."""
    try:
        jax.eval_shape(call.run, dict(model.specs), list(call.inputs))
    except Exception as error:  # noqa: BLE001 - the user's code may raise anything
        shown = shapes_text(call.inputs)
        name = call.probe.nnx_name() if model.name == "NNX" else call.probe.method or "__call__"
        return f"{model.name}: {name}({shown}) fails: {type(error).__name__}: {error}"
    return ""


def unlike(ours: Model, theirs: Model) -> str:
    """Why equal places in the calls of two models need not mean equal things; mostly empty.

    Args:
        ours: the Linen model, whose calls have been traced (:func:`trouble`).
        theirs: the NNX model, likewise.
    """
    for a, b in zip(ours.calls, theirs.calls, strict=True):
        if a.probe.nnx_args is None:
            moved = [n for n in a.takes if n in b.takes and a.takes.index(n) != b.takes.index(n)]
            if moved:
                return (
                    f"the Linen module takes ({', '.join(a.takes)}), the NNX model "
                    f"({', '.join(b.takes)}): the same arguments in another order. Give "
                    "bridge.Probe(args, nnx_args=...) with the arguments of each"
                )
        if a.names != b.names and not (_by_position(a.names) and _by_position(b.names)):
            shapes = jax.eval_shape(a.run, dict(ours.specs), list(a.inputs)).outputs
            most = max(Counter((x.shape, x.dtype) for x in shapes).values(), default=0)
            if most > 1:
                return (
                    f"the Linen module returns {_told(a.names)}, the NNX model {_told(b.names)}, "
                    f"and {most} of these have one shape, so which is which cannot be told. Give "
                    "bridge.Probe(..., method=a function that returns what the NNX model returns)"
                )
    return ""


def _by_position(names: list[Name]) -> bool:
    return all(kind == 0 for name in names for kind, _ in name)


def _told(names: list[Name]) -> str:
    parts = ["/".join(str(int(p)) if kind == 0 else p for kind, p in name) for name in names]
    return f"({', '.join(parts)})"
