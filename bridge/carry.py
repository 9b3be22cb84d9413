"""Carries across what has no slot in a model, so that nothing is lost.

Copies of the params follow the mapping made for params, and get slots of their own. Everything
else keeps its path: arrays go to the item ``extras``, strings and plain numbers to the JSON item
``metadata``. An optimizer state without an optimizer is laid out by
:mod:`bridge.optimizer_carry`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bridge.draft import JSON_TYPE, Draft, spec_of
from bridge.errors import TransformError
from bridge.moments import Mapped
from bridge.rule_text import ignore_rules
from bridge.target import Slot, SlotPath
from bridge.transforms import Cast, Spec
from legacy import Leaf, LeafPath, format_path

__all__ = [
    "EXTRAS",
    "METADATA",
    "NOTHING",
    "carry",
    "carry_copy",
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
