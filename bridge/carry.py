"""Carries across what has no slot in a model, so that nothing is lost.

Copies of the params and an optimizer state without an optimizer follow the mapping made for
params, and get slots of their own. Everything else keeps its path: arrays go to the item
``extras``, strings and plain numbers to the JSON item ``metadata``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bridge._plan import Step
from bridge.draft import JSON_TYPE, Draft, spec_of
from bridge.errors import TransformError
from bridge.moments import Mapped, moment_transforms
from bridge.optimizer import ignore_moments
from bridge.optimizer_heads import cut
from bridge.rule_text import ignore_rules
from bridge.target import Empty, Slot, SlotPath
from bridge.transforms import Cast, Spec, Transform
from legacy import Leaf, LeafPath, format_path

__all__ = [
    "EXTRAS",
    "METADATA",
    "NOTHING",
    "carry",
    "carry_copy",
    "carry_optimizer",
    "metadata_kind",
]

EXTRAS = "extras"
METADATA = "metadata"
NOTHING = frozenset({"none", "empty"})
"""Kinds of leaves that hold no value."""

# what a Python int, float or bool becomes when Orbax writes it: no dtype is lost as plain JSON
PLAIN_DTYPES = frozenset({"int64", "float64", "bool"})


def metadata_kind(leaf: Leaf) -> bool:
    """Whether a leaf belongs into the JSON item: plain values, and arrays of size zero.

    StandardSave refuses strings and arrays without elements (measured with orbax 0.12.8).
    """
    if leaf.kind in ("str", "bytes", "number", "bool"):
        return True
    if leaf.kind == "scalar":
        return leaf.dtype is not None and leaf.dtype.name in PLAIN_DTYPES
    return leaf.kind == "array" and 0 in leaf.shape


def carry(draft: Draft, paths: Iterable[LeafPath], code: str) -> None:
    """Give leaves slots under their own path, in ``extras`` or ``metadata``.

    Args:
        draft: gets slots and steps.
        paths: full paths of leaves.
        code: the built-in rule that is named as the reason.
    """
    for path in paths:
        if not draft.open_source(path):
            continue
        leaf = draft.table[path]
        if leaf.kind in NOTHING:
            draft.ignore(path, "empty")
            continue
        if metadata_kind(leaf):
            dtype = "python" if leaf.dtype is None else leaf.dtype.name
            slot = Slot(METADATA, path, path, JSON_TYPE, "", leaf.shape, dtype)
            draft.add_json(path, slot, f"rule:{code}")
            continue
        spec = spec_of(leaf)
        slot = Slot(EXTRAS, path, path, "Array", "", spec.shape, spec.dtype, leaf.key_impl)
        if draft.create(slot, [path]):
            draft.add([path], [slot.ref], (), f"rule:{code}")


def carry_copy(
    draft: Draft, prefix: LeafPath, sources: Mapping[LeafPath, LeafPath], params: Mapped, code: str
) -> None:
    """Carry a copy of a collection to ``extras``, renamed and transformed like the collection.

    Args:
        draft: gets slots and steps.
        prefix: where the copy is; its slots start with the same path.
        sources: full path by path below the copy.
        params: what became of the collection that it copies.
        code: the built-in rule that is named when the collection's own reason is ``path``.
    """
    for step in params.steps:
        found = [sources[r] for p in step.sources if (r := params.rel[p]) in sources]
        if not found:
            continue
        if len(found) < len(step.sources):
            _incomplete(draft, prefix, found, len(step.sources))
            continue
        try:
            # a cast of the parameter is none of its copies: they are kept as they were saved
            moving = (t for t in step.transforms if not isinstance(t, Cast))
            transforms = tuple(t.for_moment(0) for t in moving)
            specs = draft.infer(found, transforms)
        except TransformError as error:
            rule = ignore_rules(found)
            draft.refuse("shape", f"copy {format_path(prefix)}: {error}", found, rule=rule)
            continue
        paths = [params.slot_paths.get(r, r.path) for r in step.slots]
        slots = [
            _array(EXTRAS, (*prefix, *path), spec) for path, spec in zip(paths, specs, strict=True)
        ]
        if all(draft.create(slot, found) for slot in slots):
            why = step.why if step.why.startswith("rule:") else f"rule:{code}"
            draft.add(found, [s.ref for s in slots], transforms, why)
    for rel, rule in params.ignored.items():
        if rel in sources and draft.open_source(sources[rel]):
            draft.ignore(sources[rel], rule)
    for rel, path in sources.items():
        # what the collection does not have is no copy of it: left open, it becomes a problem
        known = rel in params.sources and draft.table[path].kind not in NOTHING
        if known and draft.open_source(path):
            draft.follow(params.sources[rel], path)


def _incomplete(draft: Draft, prefix: LeafPath, found: list[LeafPath], want: int) -> None:
    draft.refuse(
        "shape",
        f"copy {format_path(prefix)} holds {len(found)} of {want} arrays that are put "
        "together for the model",
        found,
        rule=ignore_rules(found),
    )


def _array(item: str, path: SlotPath, spec: Spec) -> Slot:
    return Slot(item, path, path, "Array", "", spec.shape, spec.dtype)


def _variable(item: str, path: SlotPath, spec: Spec, kind: str) -> Slot:
    return Slot(item, path, (*path, "value"), kind, "opt_state", spec.shape, spec.dtype)


def carry_optimizer(
    draft: Draft,
    item: str,
    sources: Mapping[LeafPath, LeafPath],
    params: Mapped,
    wrapper: LeafPath,
) -> None:
    """Lay out an optimizer state as ``nnx.Optimizer`` would, without knowing the optimizer.

    What mirrors a parameter gets that parameter's slot path and transforms, counts keep theirs;
    so the result restores into ``nnx.Optimizer(model, tx)`` of the same optax transformation.

    Args:
        draft: gets slots and steps.
        item: the item of the optimizer.
        sources: full path by path below the optimizer state, empty leaves included.
        params: what became of the params.
        wrapper: see :func:`bridge.optimizer_heads.cut`.
    """
    heads: dict[LeafPath, dict[LeafPath, LeafPath]] = {}
    for rel, full in sources.items():
        found = cut(rel, params.sources, wrapper)
        if found is None:
            _scalar(draft, item, rel, full)
        else:
            heads.setdefault(found[0], {})[found[1]] = full
    for head, below in heads.items():
        _head(draft, item, head, below, params)


def _head(
    draft: Draft,
    item: str,
    head: LeafPath,
    below: Mapping[LeafPath, LeafPath],
    params: Mapped,
) -> None:
    """Lay out one copy of the parameters."""
    for step in params.steps:
        here = [below[r] for p in step.sources if (r := params.rel[p]) in below]
        kinds = {draft.table[p].kind for p in here}
        paths = [(*head, *params.slot_paths[r]) for r in step.slots if r in params.slot_paths]
        if kinds and kinds <= NOTHING:
            # a masked parameter: optax.MaskedNode has an entry in NNX's tree, but no array
            draft.empties += [Empty(item, ("opt_state", *p, "value")) for p in paths]
            for p in here:
                draft.ignore(p, "empty")
        elif here:
            _moments(draft, item, head, here, paths, step)
    ignore_moments(draft, below, params)
    for rel, full in below.items():
        if draft.open_source(full):
            if draft.table[full].kind in NOTHING:
                draft.ignore(full, "empty")
            else:
                draft.follow(params.sources[rel], full)


def _moments(
    draft: Draft,
    item: str,
    head: LeafPath,
    found: Sequence[LeafPath],
    paths: Sequence[SlotPath],
    step: Step,
) -> None:
    if len(found) < len(step.sources):
        _incomplete(draft, head, list(found), len(step.sources))
        return
    transforms = moment_transforms(draft, head, step, found)
    if transforms is None:
        return
    try:
        specs = draft.infer(found, transforms)
    except TransformError as error:
        rule = ignore_rules(found)
        draft.refuse("moments", f"{format_path(found[0])}: {error}", found, rule=rule)
        return
    slots = [
        _variable(item, ("opt_state", *path), spec, "OptVariable")
        for path, spec in zip(paths, specs, strict=True)
    ]
    if all(draft.create(slot, found) for slot in slots):
        why = step.why if step.why.startswith("rule:") else "rule:structural"
        draft.add(found, [s.ref for s in slots], transforms, why)


def _scalar(draft: Draft, item: str, rel: LeafPath, full: LeafPath) -> None:
    leaf = draft.table[full]
    if leaf.kind in NOTHING:
        draft.ignore(full, "empty")
    elif leaf.kind in ("array", "scalar", "key"):
        slot = _variable(item, ("opt_state", *rel), spec_of(leaf), "OptArray")
        if draft.create(slot, [full]):
            draft.add([full], [slot.ref], (), "rule:structural")
    else:
        carry(draft, [full], "keep")


def step_slot(item: str) -> Slot:
    """The slot of ``nnx.Optimizer.step``: an unsigned 32-bit counter."""
    return _variable(item, ("step",), Spec((), "uint32"), "OptState")


def step_cast(leaf: Leaf) -> tuple[Transform, ...]:
    """How a Linen step counter becomes NNX's; exact, so a negative step is an error."""
    return () if spec_of(leaf).dtype == "uint32" else (Cast("uint32", exact=True),)
