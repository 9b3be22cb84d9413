"""Carries a plan out into live NNX objects.

Values go straight from the checkpoint to where they will live: an array that is copied is decoded
into the memory that the model takes over, several at a time, and of one that is sharded each
device's block alone is read. What must be computed comes first, and the largest of it first of
all, so that a transient copy never adds to a nearly finished model. What is returned is whole: a
slot without a value is an error, never a leftover.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from bridge._describe import places, target_of
from bridge._flight import IN_FLIGHT, WORKERS, Flight, held
from bridge._place import Fetched, fetch, put
from bridge._plan import Plan, Step
from bridge.apply import JSON_TYPE, initial_value, step_values
from bridge.errors import BridgeError, PlanMismatch
from bridge.items import HOMELESS, Items, gather
from bridge.target import Slot, SlotRef, Target
from legacy import Checkpoint, Leaf, LeafTable, format_path
from legacy import open as open_checkpoint

__all__ = ["Restored", "restore"]

_OPT_STATE = "opt_state"

_BESIDE = 15
"""What is held beside the arrays that are to stay is a fifteenth of them, or one chunk."""


class Restored(NamedTuple):
    """What :func:`restore` gives.

    Attributes:
        model: the module (or state); of several, a dict by item name. None when only an optimizer
            was asked for.
        optimizer: the ``nnx.Optimizer``, None without one; of several items, a dict by item name.
        extras: nested dict of what has no home in them: numpy arrays, typed PRNG keys and plain
            Python values.
    """

    model: Any
    optimizer: Any
    extras: dict[str, Any]


def restore(
    path: str | os.PathLike[str] | Checkpoint,
    *,
    model: Any,
    tx: Any = None,
    plan: Plan | None = None,
    rules: Any = None,
    transforms: Mapping[str, Any] | None = None,
    linen: Any = None,
    sample_input: Any = None,
    methods: Any = None,
    allow_order: bool = False,
    step: float | None = None,
    at: Any = None,
    seed: int = 0,
    rngs: str = "keep",
) -> Restored:
    """Restore an old Linen checkpoint into live NNX objects, ready to train on.

    Objects that are given are never changed: new ones of the same graph are returned, with every
    array from the checkpoint (or initialised by a rule that the plan names). Arrays go where the
    abstract ``model`` says: to ``jax.ShapeDtypeStruct.sharding``, to where a live array was
    committed, or, under ``jax.set_mesh``, to what the Variable's sharding annotation says; what
    mirrors a parameter in the optimizer goes where the parameter goes. Else to the default device.

    Args:
        path: a checkpoint file or folder, a run (then its last step), or an opened checkpoint.
        model: see :func:`bridge.describe`.
        tx: the same; gives the optimizer.
        plan: a plan made before; then no other word on the mapping may be given.
        rules: see :func:`bridge.plan`, as the rest.
        transforms: Orbax-style transforms.
        linen: the Linen module.
        sample_input: an example input.
        methods: further methods to call.
        allow_order: also take what only the order of numbered layers suggests.
        step: which step of a run.
        at: which part of the checkpoint feeds an item.
        seed: from which PRNG streams that no checkpoint holds are made.
        rngs: what becomes of PRNG keys: ``keep``, ``reseed`` or ``drop``, see :func:`bridge.plan`.

    Returns:
        Model, optimizer and extras. Without ``tx`` an old optimizer state is not read.

    Raises:
        legacy.LegacyError: the checkpoint cannot be opened or read.
        TargetError: the model cannot be described.
        PlanProblems: the plan has problems; nothing was read.
        PlanMismatch: the plan is for another checkpoint or another model.

    >>> import pathlib, tempfile
    >>> from flax import serialization
    >>> old = {"params": {"kernel": np.eye(2, dtype="f4"), "bias": np.ones(2, "f4")}}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "checkpoint_7")
    ...     _ = path.write_bytes(serialization.msgpack_serialize(old))
    ...     model, _, _ = restore(path, model=lambda: nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    >>> model(np.ones(2, "f4"))
    Array([2., 2.], dtype=float32)
    """
    items = gather(model, tx)
    if isinstance(path, Checkpoint):
        if step not in (None, path.step):
            raise BridgeError(
                f"step={step} was asked for, and the opened checkpoint is step {path.step}. Open "
                "that step, or give the path of the run."
            )
        checkpoint = path
    else:
        checkpoint = open_checkpoint(path, step=step)
    words = {
        "rules": rules,
        "transforms": transforms,
        "linen": linen,
        "sample_input": sample_input,
        "methods": methods,
        "at": at,
    }
    if plan is None:
        from bridge.planning import plan as make_plan  # noqa: PLC0415 - not for stored plans

        plan = make_plan(
            checkpoint, model=model, tx=tx, seed=seed, allow_order=allow_order, rngs=rngs, **words
        )
    elif given := [
        *(name for name, word in words.items() if word is not None),
        *(["allow_order"] if allow_order else []),
        *(["rngs"] if rngs != "keep" else []),
    ]:
        raise BridgeError(
            f"plan= says where everything goes, so {', '.join(given)}= would not be used. Give "
            "one or the other."
        )
    plan.require_ok()
    _check(plan, checkpoint, target_of(items.objects))
    return _carry_out(plan, checkpoint.leaves, items)


def _check(plan: Plan, checkpoint: Checkpoint, target: Target) -> None:
    if plan.signature != (found := checkpoint.leaves.signature()):
        raise PlanMismatch(
            f"the plan was made for a source of signature {plan.signature[:12]}, and "
            f"{checkpoint.path} has {found[:12]}: other paths, shapes or dtypes. Make a plan for "
            "this checkpoint."
        )
    ours = {s.ref: s for s in target.slots}
    theirs = {s.ref: s for s in plan.target.slots if s.item in target.items}
    problems = [f"{ref}: the model has it, the plan does not" for ref in ours.keys() - theirs]
    problems += [f"{ref}: the plan has it, the model does not" for ref in theirs.keys() - ours]
    for ref, slot in ours.items():
        if ref in theirs and _facts(slot) != _facts(theirs[ref]):
            problems.append(f"{ref}: the model has {_words(slot)}, the plan {_words(theirs[ref])}")
    problems += [
        f"{slot.ref}: the plan has an item {slot.item!r}, the model does not"
        for slot in plan.target.slots
        if slot.item not in (*target.items, *HOMELESS) and slot.collection != _OPT_STATE
    ]
    if problems:
        raise PlanMismatch(
            "the plan was made for another model:\n  "
            + "\n  ".join(sorted(problems))
            + "\nMake the plan with this model.",
            problems=sorted(problems),
        )


def _facts(slot: Slot) -> tuple[Any, ...]:
    return slot.disk_path, slot.shape, slot.dtype, slot.key_impl


def _words(slot: Slot) -> str:
    return f"shape {slot.shape} dtype {slot.dtype}" + (
        f" ({slot.key_impl} key)" if slot.key_impl else ""
    )


def _carry_out(plan: Plan, leaves: LeafTable, items: Items) -> Restored:
    hollow = _Hollow(items)
    extras: dict[str, Any] = {}
    slots = {s.ref: s for s in plan.target.slots}
    wanted = {*items.objects, *HOMELESS}

    def keep(slot: Slot, value: Any) -> None:
        if slot.item in HOMELESS:
            _nest(extras, slot, value)
        elif slot.item in items.objects:
            hollow.fill(slot, put(value, slot, hollow.sharding(slot)))

    steps = [s for s in plan.steps if any(ref.item in wanted for ref in s.slots)]
    steps.sort(key=lambda s: -_nbytes(s, leaves))
    copies = {id(s): leaf for s in steps if (leaf := _plain_copy(s, leaves, slots)) is not None}
    # what must be computed first: then only copies, which hold nothing else, add to a full model
    for step in (s for s in steps if id(s) not in copies):
        here = [slots[ref] for ref in step.slots]
        for slot, value in zip(here, step_values(step, leaves, slots), strict=True):
            keep(slot, value)
    pairs = [(copies[id(s)], slots[s.slots[0]]) for s in steps if id(s) in copies]
    for slot, fetched in _fetch_all(pairs, hollow):
        keep(slot, fetched)
    for init in plan.initialised:
        if init.slot.item in wanted:
            keep(slots[init.slot], initial_value(init, slots[init.slot]))
    return _restored(hollow.filled(), items.named, extras)


def _nbytes(step: Step, leaves: LeafTable) -> int:
    return sum(leaves[p].nbytes for p in step.sources if p in leaves)


def _plain_copy(step: Step, leaves: LeafTable, slots: Mapping[SlotRef, Slot]) -> Leaf | None:
    """The leaf, when a block of the slot is the same block of the leaf."""
    if step.transforms or len(step.sources) != 1 or len(step.slots) != 1:
        return None
    leaf, slot = leaves.get(step.sources[0]), slots[step.slots[0]]
    if leaf is None or leaf.kind != "array" or leaf.dtype is None or slot.key_impl is not None:
        return None
    same = leaf.shape == slot.shape and leaf.dtype.name == slot.dtype
    is_plain = slot.variable_type == JSON_TYPE or slot.item in HOMELESS
    return leaf if same and not is_plain else None


def _fetch_all(pairs: list[tuple[Leaf, Slot]], hollow: _Hollow) -> Iterator[tuple[Slot, Fetched]]:
    """Read leaves in several threads, with few bytes beside the arrays that are to stay."""
    limit = min(IN_FLIGHT, sum(leaf.nbytes for leaf, _ in pairs) // _BESIDE)
    flight = Flight(limit)
    # a thread that could only wait would keep memory of its own
    largest = max((held(leaf) for leaf, _ in pairs), default=1) or 1
    workers = min(WORKERS, max(1, limit // largest))

    def one(pair: tuple[Leaf, Slot]) -> tuple[Slot, Fetched]:
        leaf, slot = pair
        with flight.carrying(held(leaf)):
            return slot, fetch(leaf, slot, hollow.sharding(slot))

    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(one, pairs)  # after an error what has not begun is not read


class _Hollow:
    """Abstract objects whose leaves are being replaced by values.

    Items may share Variables; a shared one has a slot in each item and must get one value.
    """

    def __init__(self, items: Items) -> None:
        self._graphdef, state = nnx.split(dict(items.objects))
        structs, self._tree = jax.tree.flatten(state)
        self._items = tuple(items.objects)
        # numbers instead of arrays show which leaf each slot is, under all of its names
        numbered = nnx.merge(self._graphdef, self._tree.unflatten(range(len(structs))))
        self._index = {
            SlotRef(item, place.path): place.value
            for item, value in numbered.items()
            for place in places(value)
            if not place.empty
        }
        self._shardings = [x.sharding for x in structs]
        self._values: dict[int, Any] = {}

    def sharding(self, slot: Slot) -> Any:
        """Where the value of a slot goes; None for no matter where."""
        return self._shardings[self._index[slot.ref]] if slot.ref in self._index else None

    def fill(self, slot: Slot, value: Any) -> None:
        n = self._index[slot.ref]
        if n not in self._values:
            self._values[n] = value
        elif not _equal(self._values[n], value):
            raise PlanMismatch(
                f"slot {slot.ref} is a Variable that two items share, and the plan gives it "
                "another value there. Share it in neither, or feed both from one leaf."
            )

    def filled(self) -> dict[str, Any]:
        empty = sorted(str(ref) for ref, n in self._index.items() if n not in self._values)
        if empty:
            raise BridgeError(
                "the plan left these slots without a value: " + ", ".join(empty) + ". Make the "
                "plan again.",
                problems=empty,
            )
        values = [self._values[n] for n in range(len(self._shardings))]
        objects = nnx.merge(self._graphdef, self._tree.unflatten(values))
        return {item: objects[item] for item in self._items}


def _equal(a: Any, b: Any) -> bool:
    if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


def _nest(extras: dict[str, Any], slot: Slot, value: Any) -> None:
    if isinstance(value, np.ndarray | np.generic) and slot.variable_type != JSON_TYPE:
        # not a view of the source file, which may change
        value = np.array(value)
        if slot.key_impl is not None:
            value = put(value, slot, None)
    at: Any = extras
    for part in slot.path[:-1]:
        at = at.setdefault(part, {})
    if not slot.path or not isinstance(at, dict) or slot.path[-1] in at:
        raise BridgeError(
            f"extras: {format_path(slot.path)} is given twice, or lies below another value. "
            "Rename one of them in a rule."
        )
    at[slot.path[-1]] = value


def _restored(objects: dict[str, Any], named: bool, extras: dict[str, Any]) -> Restored:
    optimizers = {n: v for n, v in objects.items() if isinstance(v, nnx.Optimizer)}
    models = {n: v for n, v in objects.items() if n not in optimizers}
    if named:
        return Restored(models, optimizers, extras)
    optimizer = next(iter(optimizers.values()), None)
    if isinstance(optimizer, nnx.ModelAndOptimizer):
        return Restored(optimizer.model, optimizer, extras)
    return Restored(next(iter(models.values()), None), optimizer, extras)
