"""What a plan can tell of the NNX side alone: layers and optimizers that do not go on as before.

Their values are carried exactly, and still the numbers will be others: an NNX layer computes
something else than the Linen layer of its name, or an optimizer treats a tensor as a whole that was
cut, stacked or fused on the way.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flax import nnx

from bridge._plan import Step
from bridge.recording import nnx_modules
from bridge.target import SlotPath
from bridge.transforms import Cast, Copy
from legacy import format_path

__all__ = ["per_tensor_parts", "target_warnings"]

_SHOWN = 3

_PER_TENSOR: Mapping[str, str] = {
    "scale_by_trust_ratio": "the trust ratio (lamb, lars, fromage)",
    "scale_by_factored_rms": "factored second moments (adafactor)",
    "scale_by_novograd": "one second moment for a tensor (novograd)",
    "scale_by_muon": "orthogonalised updates (muon)",
    "clip_by_block_rms": "clipping by the RMS of a tensor",
    "scale_by_param_block_norm": "scaling by the norm of a tensor",
    "scale_by_param_block_rms": "scaling by the RMS of a tensor",
    "adaptive_grad_clip": "adaptive clipping",
    "normalize_by_update_norm": "normalising by the norm of a tensor",
}
"""Transformations of optax that look at a tensor as a whole, by the name of their function."""

_DEPTH = 12


def target_warnings(objects: Mapping[str, Any], steps: Sequence[Step] = ()) -> tuple[str, ...]:
    """Traps of the target.

    Args:
        objects: abstract modules and optimizers by item name (:func:`bridge.items.gather`).
        steps: the steps of the plan; they tell which tensors were cut, stacked or fused.

    Returns:
        One sentence for each kind of trap in each item.

    >>> norm = nnx.eval_shape(lambda: nnx.SpectralNorm(nnx.Linear(2, 2, rngs=nnx.Rngs(0)),
    ...                                                rngs=nnx.Rngs(0)))
    >>> [text] = target_warnings({"model": norm})
    >>> "training does not continue equivalently" in text
    True
    """
    found: list[str] = []
    for item, value in objects.items():
        if isinstance(value, nnx.Optimizer):
            found += _optimizer(item, value, steps)
            value = getattr(value, "model", None)  # noqa: PLW2901 - a ModelAndOptimizer
        if isinstance(value, nnx.Module):
            found += _layers(item, value)
    return tuple(found)


def _layers(item: str, model: Any) -> Iterator[str]:
    modules = nnx_modules(model)
    writing = [p for p, m in modules.items() if isinstance(m, nnx.WeightNorm | nnx.SpectralNorm)]
    if writing:
        yield (
            f"{_some(item, writing)}: WeightNorm and SpectralNorm of NNX overwrite the kernel that "
            "they wrap at every call, in evaluation too. The values are mapped; training does not "
            "continue equivalently"
        )
    grouped = [
        p
        for p, m in modules.items()
        if isinstance(m, nnx.GroupNorm) and m.reduction_axes is not None
    ]
    if grouped:
        yield (
            f"{_some(item, grouped)}: GroupNorm of NNX computes wrong numbers when it is given "
            "reduction_axes (it repeats group statistics along axis 1). Leave them out, or write "
            "the layer yourself"
        )


def _optimizer(item: str, optimizer: Any, steps: Sequence[Step]) -> Iterator[str]:
    cut = [
        step.slots[0].path
        for step in steps
        if any(not isinstance(t, Cast | Copy) for t in step.transforms)
        and step.slots[0].item != item
    ]
    parts = per_tensor_parts(optimizer.tx) if cut else ()
    if parts:
        yield (
            f"item {item!r} has {', '.join(parts)}, which act on a tensor as a whole, and "
            f"{_some('', cut)} were cut, stacked, fused or reshaped: from the first step on their "
            "updates are not those of the old run"
        )


def per_tensor_parts(tx: Any) -> tuple[str, ...]:
    """Parts of an optax transformation that treat each tensor as a whole.

    Its state does not show them (a trust ratio has none), so the names of the functions that it
    is made of are looked at.

    >>> import optax
    >>> per_tensor_parts(optax.lamb(1e-3))
    ('the trust ratio (lamb, lars, fromage)',)
    >>> per_tensor_parts(optax.adamw(1e-3))
    ()
    """
    names = {name.partition(".")[0] for name in _functions(tx, set(), _DEPTH)}
    return tuple(text for name, text in _PER_TENSOR.items() if name in names)


def _functions(value: Any, seen: set[int], depth: int) -> Iterator[str]:
    """Qualified names of all functions inside closures, partials, tuples and dicts."""
    if id(value) in seen or depth == 0:
        return
    seen.add(id(value))
    inside: list[Any] = []
    if isinstance(value, Mapping):
        inside += value.values()
    elif isinstance(value, list | tuple):
        inside += value
    elif isinstance(value, functools.partial):
        inside += [value.func, *value.args, *value.keywords.values()]
    elif callable(value):
        yield getattr(value, "__qualname__", "")
        owner = getattr(value, "__self__", None)  # of a method, as in MultiSteps
        inside += [getattr(value, "__wrapped__", None), *getattr(owner, "__dict__", {}).values()]
        for cell in getattr(value, "__closure__", None) or ():
            try:
                inside.append(cell.cell_contents)
            except ValueError:  # not filled yet
                continue
    for one in inside:
        yield from _functions(one, seen, depth - 1)


def _some(item: str, paths: Sequence[SlotPath]) -> str:
    named = [format_path(p) if p else "the model" for p in paths]
    more = len(named) - _SHOWN
    text = ", ".join(named[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
    return f"{item}:{text}" if item else text
