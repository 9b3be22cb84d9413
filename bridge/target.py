"""The target as plain values: slots, with no JAX in sight.

A slot is a place in the new checkpoint that wants one array. Slots are described once from
abstract NNX objects (:mod:`bridge._describe`) or from a source without a model
(:mod:`bridge.structural`), and stored in the plan, so that a worker which converts by a stored
plan never loads JAX.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from bridge.errors import TargetError
from legacy import format_path

__all__ = ["Empty", "Slot", "SlotPath", "SlotRef", "Target"]

SlotPath: TypeAlias = tuple[str, ...]

EPHEMERAL: frozenset[str] = frozenset(
    {"RngState", "RngKey", "RngCount", "Cache", "Intermediate", "Perturbation"}
)
"""Variable types whose values no old checkpoint owes us: initialised unasked, and reported."""


@dataclass(frozen=True, slots=True, order=True)
class SlotRef:
    """The name of a slot: its item and its path in that item."""

    item: str
    path: SlotPath

    def __str__(self) -> str:
        return f"{self.item}:{format_path(self.path)}"


@dataclass(frozen=True, slots=True)
class Slot:
    """One array of the target.

    Attributes:
        item: the item of the new checkpoint, such as ``model`` or ``optimizer``.
        path: attribute names, dict keys and list indices as strings; without the ``value`` that
            every Variable adds on disk.
        disk_path: the path in the saved tree, ``value`` included.
        variable_type: class name such as ``Param`` or ``BatchStat``; ``Array`` for a raw array.
        collection: the Linen collection that feeds it (``params``, ``batch_stats``, ...).
        shape: of the array; for PRNG keys of the key data (``(..., 2)`` for threefry).
        dtype: numpy name of the dtype; ``uint32`` for key data.
        key_impl: the PRNG algorithm, for typed keys.
        ephemeral: whether it may be initialised without a rule (:data:`EPHEMERAL`).
        sequence_at: positions in ``disk_path`` that are indices of a tuple or list inside a
            Variable's value; Orbax restores such a tree only when its metadata says so.
        stream: the name of the random stream, for its key.
        constant: the value that the model's code gives it, when no checkpoint could feed it: the
            bytes of the array, in C order, compressed by zlib, as base64.
    """

    item: str
    path: SlotPath
    disk_path: SlotPath
    variable_type: str
    collection: str
    shape: tuple[int, ...]
    dtype: str
    key_impl: str | None = None
    ephemeral: bool = False
    sequence_at: tuple[int, ...] = ()
    stream: str | None = None
    constant: str | None = field(default=None, repr=False, compare=False)

    @property
    def may_be_constant(self) -> bool:
        """Whether no kind of checkpoint is known to feed Variables of its class."""
        known = ("params", "batch_stats", "opt_state", "rngs")
        return not self.ephemeral and self.collection not in known

    @property
    def ref(self) -> SlotRef:
        """Its name."""
        return SlotRef(self.item, self.path)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; :meth:`from_json` reads them back."""
        return {
            "item": self.item,
            "path": list(self.path),
            "disk_path": list(self.disk_path),
            "variable_type": self.variable_type,
            "collection": self.collection,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "key_impl": self.key_impl,
            "ephemeral": self.ephemeral,
            "sequence_at": list(self.sequence_at),
        } | {k: v for k in ("stream", "constant") if (v := getattr(self, k)) is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Slot:
        """Read a slot of a target spec.

        Raises:
            TargetError: a field is missing or of the wrong type; names the slot.
        """
        try:
            return cls(
                item=_text(data["item"]),
                path=_texts(data["path"]),
                disk_path=_texts(data["disk_path"]),
                variable_type=_text(data["variable_type"]),
                collection=_text(data["collection"]),
                shape=_sizes(data["shape"]),
                dtype=_text(data["dtype"]),
                key_impl=None if data.get("key_impl") is None else _text(data["key_impl"]),
                ephemeral=bool(data.get("ephemeral", False)),
                sequence_at=_sizes(data.get("sequence_at", [])),
                stream=None if data.get("stream") is None else _text(data["stream"]),
                constant=None if data.get("constant") is None else _text(data["constant"]),
            )
        except (KeyError, TypeError) as error:
            raise TargetError(
                f"target spec: slot {data!r} is not well formed ({error!r}). "
                "Write target specs with `linen2nnx plan --save-target`."
            ) from error


@dataclass(frozen=True, slots=True)
class Empty:
    """A place of the saved tree that holds no array but has an entry (``None``, ``{}``).

    ``nnx.Optimizer`` has them where optax masks a parameter (``MaskedNode``).
    """

    item: str
    disk_path: SlotPath
    value_type: str = "None"
    sequence_at: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """All slots of the new checkpoint.

    Attributes:
        slots: in the order of their description.
        empties: entries without arrays.
        structural: made from the source, because no model was given.

    Raises:
        TargetError: two slots of one name or of one place on disk.
    """

    slots: tuple[Slot, ...]
    empties: tuple[Empty, ...] = ()
    structural: bool = False

    def __post_init__(self) -> None:
        seen: dict[SlotRef, Slot] = {}
        disk: dict[tuple[str, str], Slot] = {}
        problems = []
        for slot in self.slots:
            if slot.ref in seen:
                problems.append(f"slot {slot.ref} occurs twice (an int and a str key of one name?)")
            # Orbax joins with dots and escapes nothing, so 'a.b' and a/b are one place
            place = (slot.item, ".".join(slot.disk_path))
            if place in disk and slot.ref not in seen:
                problems.append(f"slots {disk[place].ref} and {slot.ref} share one name on disk")
            seen[slot.ref] = slot
            disk[place] = slot
        if problems:
            raise TargetError(
                "the target cannot be saved by Orbax without loss:\n  "
                + "\n  ".join(problems)
                + "\nRename one of each pair in the model.",
                problems=problems,
            )

    @property
    def items(self) -> tuple[str, ...]:
        """Item names in order of first use."""
        return tuple(dict.fromkeys([s.item for s in self.slots] + [e.item for e in self.empties]))

    def to_json(self) -> dict[str, Any]:
        """The target spec: plain JSON values."""
        return {
            "slots": [s.to_json() for s in self.slots],
            "empties": [
                {
                    "item": e.item,
                    "disk_path": list(e.disk_path),
                    "value_type": e.value_type,
                    "sequence_at": list(e.sequence_at),
                }
                for e in self.empties
            ],
            "structural": self.structural,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Target:
        """Read a target spec back.

        Raises:
            TargetError: the spec is not well formed.

        >>> Target.from_json(Target(()).to_json()) == Target(())
        True
        """
        try:
            return cls(
                slots=tuple(Slot.from_json(s) for s in data["slots"]),
                empties=tuple(
                    Empty(
                        _text(e["item"]),
                        _texts(e["disk_path"]),
                        _text(e["value_type"]),
                        _sizes(e.get("sequence_at", [])),
                    )
                    for e in data.get("empties", ())
                ),
                structural=bool(data.get("structural", False)),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise TargetError(
                f"target spec: {error!r}; expected an object with a list `slots`. "
                "Write target specs with `linen2nnx plan --save-target`."
            ) from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list of strings")
    return tuple(_text(v) for v in value)


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(v) is int and v >= 0 for v in value):
        raise TypeError(f"{value!r} is not a shape")
    return tuple(value)
