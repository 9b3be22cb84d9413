"""Rungs e and f: runs both models on what was verified. Loads JAX only when it runs something."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bridge._plan import Plan
from bridge._verdict import Verdict
from bridge._verify_output import Output
from bridge.behaviour_values import Training
from bridge.errors import BridgeError
from legacy import Checkpoint

__all__ = ["check_given", "run_models"]


def run_models(
    verdict: Verdict,
    checked: tuple[Checkpoint, Plan, Output | None],
    given: Mapping[str, Any],
    *,
    methods: Any = None,
    training: Mapping[str, Any] | None = None,
) -> Verdict:
    """Climb rungs e and f.

    Args:
        verdict: what the rungs below said.
        checked: source, plan and output.
        given: ``model``, ``linen`` and ``sample_input`` of :func:`verify`.
        methods: see the same.
        training: ``tx``, ``linen_tx``, ``steps`` and ``loss`` of
            :func:`bridge.training.training_check`; not trained without ``tx``.
    """
    from bridge.forward import forward_check  # noqa: PLC0415 - loads jax

    started = time.perf_counter()
    source, plan, output = checked
    forward = forward_check(source, plan, **given, methods=methods, output=output)
    trained: tuple[Training, ...] = ()
    if training and training["tx"] is not None and training["steps"] > 0:
        from bridge.training import training_check  # noqa: PLC0415 - loads jax

        trained = training_check(source, plan, **given, **training, output=output)
    seconds = verdict.seconds + time.perf_counter() - started
    return replace(verdict.with_behaviour(forward, trained), seconds=seconds)


def check_given(others: Mapping[str, Any], *, linen: Any) -> None:
    """Refuse words about running models without the models, before anything is read.

    Raises:
        BridgeError: something is given without what it is about.
    """
    given = [name for name, value in others.items() if value is not None]
    if linen is None and given:
        raise BridgeError(
            f"verify: {', '.join(given)}= say how linen= is compared with the NNX model; give "
            "linen=, too, or leave them out to verify up to rung d."
        )
    missing = [name for name in ("model", "sample_input") if others[name] is None]
    if linen is not None and missing:
        raise BridgeError(
            f"verify: linen= is run and compared with the NNX model; give {', '.join(missing)}=, "
            "too."
        )
