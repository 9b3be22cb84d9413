"""Abstract NNX objects as a :class:`~bridge.target.Target`.

What Orbax's StandardSave would write for ``nnx.state(model)`` decides: each array it would save is
a slot, each empty entry an :class:`~bridge.target.Empty`. A test holds this to real checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from flax import nnx

from bridge._constants import constants, encoded
from bridge._describe_places import EPHEMERAL_TYPES, Place, places
from bridge.apply import slot_dtype
from bridge.errors import TargetError
from bridge.items import gather
from bridge.spec import resolve
from bridge.target import Empty, Slot, Target

__all__ = ["Place", "describe", "described", "places", "resolve", "target_of"]

_OWN_COLLECTIONS: tuple[tuple[type[Any], str], ...] = (
    (nnx.OptState, "opt_state"),
    (nnx.RngState, "rngs"),
)


def describe(model: Any, tx: Any = None) -> Target:
    """Describe where each array of a model, and of its optimizer, goes in an NNX checkpoint.

    Nothing is allocated: factories are traced as ``nnx.eval_shape`` does, and of live objects only
    shapes, dtypes and shardings are used. Sharding annotations need no mesh. A model that hides
    arrays where nnx does not see them (in a closure or a ``functools.partial``) cannot be traced
    into something that runs: give it as a live object.

    Args:
        model: one of

            - a function without arguments that returns an ``nnx.Module`` or an ``nnx.Optimizer``,
              a tuple of one module and one optimizer, or a dict of objects by item name. A class
              or function whose only required argument is ``rngs`` is called with
              ``nnx.Rngs(0)``;
            - a live or abstract module, optimizer or ``nnx.State``, or ``(graphdef, state)``;
            - a dict of these by item name; a tuple of a module and its optimizer is the items
              ``name`` and ``name_optimizer``.
        tx: an optax transformation, or a function without arguments that returns one; for a dict
            of models a dict by the model's name. Adds ``nnx.Optimizer(model, tx,
            wrt=nnx.Param)``. For another ``wrt`` give the optimizer in ``model``.

    Returns:
        Slots of the items ``model`` and ``optimizer``; for a dict of the items that it names, and
        ``<name>_optimizer``.

    Raises:
        TargetError: the model is none of these, cannot be traced, or holds what no checkpoint can
            keep.

    >>> import optax
    >>> from flax import nnx
    >>> target = describe(lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)), optax.sgd(0.1))
    >>> [(str(slot.ref), slot.variable_type) for slot in target.slots]
    [('model:bias', 'Param'), ('model:kernel', 'Param'), ('optimizer:step', 'OptState')]
    """
    return described(gather(model, tx).objects, model)


def described(objects: Mapping[str, Any], model: Any) -> Target:
    """The target of objects that have been traced already, with the constants of the model.

    Args:
        objects: :attr:`bridge.items.Items.objects` of the model.
        model: see :func:`describe`.
    """
    target = target_of(objects)
    if not any(slot.may_be_constant for slot in target.slots):
        return target
    values = constants(model)
    return replace(
        target,
        slots=tuple(
            replace(s, constant=encoded(values[s.ref].astype(slot_dtype(s), copy=False)))
            if s.ref in values and s.shape == values[s.ref].shape
            else s
            for s in target.slots
        ),
    )


def target_of(objects: Mapping[str, Any]) -> Target:
    """The target of abstract objects by item name.

    Args:
        objects: :attr:`bridge.items.Items.objects`.

    Raises:
        TargetError: two places of one name on disk, or a container that Orbax does not know.
    """
    slots: list[Slot] = []
    empties: list[Empty] = []
    for item, value in objects.items():
        for place in places(value):
            if place.empty:
                if place.disk_path:
                    kind = _empty_type(item, place)
                    empties.append(Empty(item, place.disk_path, kind, place.sequence_at))
            else:
                slots.append(_slot(item, place))
    return Target(tuple(slots), tuple(empties))


def _empty_type(item: str, place: Place) -> str:
    value = place.value
    if value is None or hasattr(value, "_fields"):
        return "None"  # optax.MaskedNode and its like
    for kind, name in ((list, "List"), (tuple, "Tuple"), (Mapping, "Dict")):
        if isinstance(value, kind):
            return name
    raise TargetError(
        f"{item}: {'/'.join(place.path)} holds an empty {type(value).__name__}, which Orbax cannot "
        "save. Remove it from the state (nnx.static)."
    )


def _slot(item: str, place: Place) -> Slot:
    kind, struct = place.kind, place.value
    key_impl = None
    if jax.dtypes.issubdtype(struct.dtype, jax.dtypes.prng_key):
        struct, key_impl = _key_data(struct)
    return Slot(
        item=item,
        path=place.path,
        disk_path=place.disk_path,
        variable_type="Array" if kind is None else kind.__name__,
        collection="" if kind is None else _collection(kind),
        shape=tuple(struct.shape),
        dtype=np.dtype(struct.dtype).name,
        key_impl=key_impl,
        ephemeral=kind is not None and issubclass(kind, EPHEMERAL_TYPES),
        sequence_at=place.sequence_at,
        stream=place.stream,
    )


def _key_data(key: jax.ShapeDtypeStruct) -> tuple[jax.ShapeDtypeStruct, str]:
    impl: list[str] = []

    def data(k: Any) -> Any:
        impl.append(str(jax.random.key_impl(k)))
        return jax.random.key_data(k)

    found: jax.ShapeDtypeStruct = jax.eval_shape(data, jax.ShapeDtypeStruct(key.shape, key.dtype))
    return found, impl[0]


def _collection(kind: type[Any]) -> str:
    """The Linen collection of a Variable class: its own, its nearest parent's, or by its name."""
    for own, name in _OWN_COLLECTIONS:
        if issubclass(kind, own):
            return name
    for parent in kind.__mro__:
        try:
            return str(nnx.variable_name_from_type(parent))
        except ValueError:
            continue
    # nnx.bridge names the class it makes for a collection like the collection
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind.__name__).lower()
