"""Saves live state with Orbax: the one place that calls ``StandardSave``.

Files that only change their names go through :mod:`bridge.repack` instead; both give one layout.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from bridge.errors import BridgeError, OutputExists
from bridge.layout import METADATA_ITEM
from legacy.paths import absolute

__all__ = ["save"]


def save(
    out: str | os.PathLike[str],
    step: int,
    items: Mapping[str, Any],
    *,
    metadata: Mapping[str, Any] | None = None,
    custom_metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Save live state as one step, and wait until it is on disk.

    Args:
        out: the root of the run, as a ``CheckpointManager`` knows it.
        step: a number that is not there yet.
        items: a state (``nnx.state(model)``), module or tree of arrays by item name.
        metadata: plain JSON values, saved with JsonSave as the item ``metadata``.
        custom_metadata: plain JSON values for Orbax's custom metadata.

    Returns:
        The step folder.

    Raises:
        OutputExists: the step is there already.
        BridgeError: an item is called ``metadata`` although ``metadata`` is given.
        ValueError: Orbax cannot save a leaf (a string, an array without elements).

    >>> save("runs_nnx/exp1", 100, {"model": nnx.state(model)})  # doctest: +SKIP
    """
    if metadata is not None and METADATA_ITEM in items:
        raise BridgeError("metadata= was given and there is an item of that name; rename the item.")
    place = absolute(out) / str(step)
    if place.exists():
        raise OutputExists(f"{place} is there already. Choose another step or output.")
    saves: dict[str, Any] = {
        name: ocp.args.StandardSave(_as_state(item)) for name, item in items.items()
    }
    if metadata is not None:
        saves[METADATA_ITEM] = ocp.args.JsonSave(dict(metadata))
    with ocp.CheckpointManager(place.parent) as manager:
        manager.save(
            step,
            args=ocp.args.Composite(**saves),
            custom_metadata=None if custom_metadata is None else dict(custom_metadata),
        )
        manager.wait_until_finished()
    return place


def _as_state(item: Any) -> Any:
    from flax import nnx  # noqa: PLC0415 - only live objects need it

    return nnx.state(item) if isinstance(item, nnx.Module | nnx.Optimizer) else item
