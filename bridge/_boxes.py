"""Names of axes: what Linen keeps in boxes, and NNX in the metadata of Variables.

Neither is in any file: a checkpoint holds the plain array, and where it lies on devices comes from
the target. A rewritten model that names its axes otherwise is sharded otherwise, which no shape
shows; so where the Linen module is at hand, both are compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
from flax import linen, nnx
from flax.core import meta

from bridge._plan import Step
from bridge.target import SlotPath, SlotRef
from legacy import LeafPath, format_path

__all__ = ["axis_names", "box_differences", "box_names", "names_in"]

Names = tuple[Any, ...]


def box_names(module: linen.Module, *args: Any, **kwargs: Any) -> dict[LeafPath, Names]:
    """Names of axes by variable path, for what a Linen module puts into boxes.

    Args:
        module: is initialised without making arrays.
        args: an example input, as for ``module.init``.
        kwargs: the same.

    >>> init = linen.with_partitioning(linen.initializers.ones, ("in", "out"))
    >>> box_names(linen.Dense(3, kernel_init=init), jax.numpy.ones((1, 2)))
    {('params', 'kernel'): ('in', 'out')}
    """
    return names_in(jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **kwargs)))


def names_in(variables: Any) -> dict[LeafPath, Names]:
    """Names of axes by variable path, in variables that are still in their boxes."""
    found, _ = jax.tree_util.tree_flatten_with_path(
        variables, is_leaf=lambda x: isinstance(x, meta.AxisMetadata)
    )
    return {
        tuple(str(getattr(k, "key", getattr(k, "idx", k))) for k in path): tuple(box.names)
        for path, box in found
        if isinstance(box, meta.Partitioned | linen.LogicallyPartitioned)
    }


def axis_names(model: Any) -> dict[SlotPath, Names]:
    """Names of axes by slot path, for the Variables of a model that name theirs.

    Args:
        model: an nnx module or state, live or abstract.
    """
    found = {}
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        known = variable.get_metadata() if isinstance(variable, nnx.Variable) else {}
        names = known.get("out_sharding") or known.get("sharding_names")
        if names:
            found[tuple(map(str, path))] = tuple(names)
    return found


def box_differences(
    steps: Iterable[Step],
    ours: Mapping[LeafPath, Names],
    theirs: Mapping[SlotRef, Names],
) -> list[str]:
    """What is named otherwise in the model than in the Linen module, in words.

    Args:
        steps: those without transforms are compared; a stack or a reshape changes the axes.
        ours: names by full source path.
        theirs: names by slot.
    """
    found = []
    for step in steps:
        if step.transforms or len(step.sources) != 1 or len(step.slots) != 1:
            continue
        one, other = ours.get(step.sources[0]), theirs.get(step.slots[0])
        if one != other and (one is not None or other is not None):
            found.append(
                f"{format_path(step.sources[0])} has axes {_shown(one)} in the Linen module, slot "
                f"{step.slots[0]} {_shown(other)}: it will be sharded otherwise"
            )
    return found


def _shown(names: Names | None) -> str:
    return "without names" if names is None else f"named {names}"
