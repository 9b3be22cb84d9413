"""Aligns an old optax state with the state of an ``nnx.Optimizer``.

An optax state holds arrays for each parameter (``mu``, ``nu``, ``trace``, accumulated gradients)
under the parameter's own path, and a few scalars (``count``). Both sides are cut the same way:
*head* (where in the state) and parameter path. Heads are paired; below them, everything follows
the mapping that was made for params, transforms included (LAYERS.md section 2.1).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import prod

from bridge._plan import Step
from bridge.draft import Draft
from bridge.moments import Mapped, anew, moment_order, moment_transforms
from bridge.names import is_index
from bridge.optimizer_heads import cut_all, only, pair_heads
from bridge.rule_text import ignore_rules
from bridge.target import Slot, SlotPath, SlotRef
from legacy import LeafPath, format_path
from legacy.leaves import natural_key

__all__ = ["align", "ignore_moments"]


def align(
    draft: Draft,
    sources: Mapping[LeafPath, LeafPath],
    slots: Mapping[SlotPath, Slot],
    params: Mapped,
    wrapper: LeafPath,
) -> None:
    """Map an optimizer state onto the slots of an ``nnx.Optimizer``.

    Args:
        draft: gets the steps and problems.
        sources: full path by path below the optimizer state; leaves with data only.
        slots: slot by path below ``opt_state``.
        params: what became of the params.
        wrapper: see :func:`bridge.optimizer_heads.cut`.
    """
    ours, our_rest = cut_all(sources, params.sources, wrapper)
    names = {path: ref for ref, path in params.slot_paths.items()}
    theirs, their_rest = cut_all(slots, names, ())
    images = _images(params)
    mapped = {path for paths in images.values() for path in paths}
    heads = pair_heads(
        {h: frozenset(p for rel in v for p in images.get(rel, ())) for h, v in ours.items()},
        {h: frozenset(mapped.intersection(v)) for h, v in theirs.items()},
    )
    for head, (other, why) in heads.items():
        _follow(draft, head, ours[head], theirs[other], params, why)
    for head, below in ours.items():
        if head not in heads:
            ignore_moments(draft, below, params)
    for head, fields in theirs.items():
        if all(head != other for other, _ in heads.values()):
            _initialise(draft, head, fields, params)
    _flat_vectors(draft, our_rest, params)
    _scalars(draft, our_rest, their_rest, {h[:-1]: o[:-1] for h, (o, _) in heads.items()})


def _images(params: Mapped) -> dict[LeafPath, list[SlotPath]]:
    """The slot paths that each parameter path maps onto."""
    found: dict[LeafPath, list[SlotPath]] = defaultdict(list)
    for step in params.steps:
        paths = [params.slot_paths[r] for r in step.slots if r in params.slot_paths]
        for source in step.sources:
            found[params.rel[source]] += paths
    return found


def ignore_moments(draft: Draft, below: Mapping[LeafPath, LeafPath], params: Mapped) -> None:
    """Moments of an ignored parameter are left behind by the same rule.

    Args:
        draft: gets the ignored leaves.
        below: full path by parameter path, under one head.
        params: what became of the params.
    """
    for rel, path in below.items():
        if rel in params.ignored and draft.open_source(path):
            draft.ignore(path, params.ignored[rel])


def _initialise(
    draft: Draft, head: tuple[str, ...], theirs: Mapping[SlotPath, Slot], params: Mapped
) -> None:
    """Moments of a parameter that a rule initialises start at zero, as optax starts them."""
    if moment_order(head) not in (1, 2):
        return
    for ref, rule in params.initialised.items():
        slot = theirs.get(params.slot_paths[ref])
        if slot is not None and draft.open_slot(slot.ref):
            draft.initialise(slot.ref, rule, "zeros")


def _follow(
    draft: Draft,
    head: tuple[str, ...],
    ours: Mapping[LeafPath, LeafPath],
    theirs: Mapping[SlotPath, Slot],
    params: Mapped,
    why: str,
) -> None:
    """One head: each array goes where its parameter went."""
    odd: list[tuple[Step, list[LeafPath], list[SlotRef]]] = []
    for step in params.steps:
        sources = [ours.get(params.rel[p]) for p in step.sources]
        slots = [theirs.get(params.slot_paths[r]) for r in step.slots if r in params.slot_paths]
        found = [p for p in sources if p is not None and draft.open_source(p)]
        refs = [s.ref for s in slots if s is not None and draft.open_slot(s.ref)]
        if found and not refs and not _trainable(draft, step):
            # the parameter became a buffer, which no optimizer tracks
            for path in found:
                draft.ignore(path, "moments-of-a-buffer")
        elif (found or refs) and (len(found) < len(sources) or len(refs) < len(step.slots)):
            odd.append((step, found, refs))
        elif found:
            _one_moment(draft, head, step, found, refs, why)
    if odd:
        _masked_otherwise(draft, head, odd)
    ignore_moments(draft, ours, params)
    _initialise(draft, head, theirs, params)
    _attach(draft, ours, theirs, params)


def _masked_otherwise(
    draft: Draft, head: tuple[str, ...], odd: Sequence[tuple[Step, list[LeafPath], list[SlotRef]]]
) -> None:
    """One problem for a head that holds other parameters than the checkpoint's."""
    sources = [p for _, found, _ in odd for p in found]
    refs = [r for _, _, slots in odd for r in slots]
    step, found, slots = odd[0]
    draft.refuse(
        "moments",
        f"optimizer field {'/'.join(head)!r}: the checkpoint has {len(found)} of "
        f"{len(step.sources)} arrays for {len(slots)} of {len(step.slots)} slots of "
        f"{format_path(step.sources[0])}"
        + (f", and {len(odd) - 1} more parameters are alike" if len(odd) > 1 else "")
        + ": is the optimizer masked differently?",
        sources,
        refs,
        anew(sources, refs),
    )


def _one_moment(
    draft: Draft,
    head: tuple[str, ...],
    step: Step,
    found: Sequence[LeafPath],
    refs: Sequence[SlotRef],
    why: str,
) -> None:
    transforms = moment_transforms(draft, head, step, found, refs)
    if transforms is not None:
        draft.add(found, refs, transforms, step.why if why == "path" else why)


def _trainable(draft: Draft, step: Step) -> bool:
    """Whether some slot of a step is a trainable parameter."""
    return any(r not in draft.slots or draft.slots[r].collection == "params" for r in step.slots)


def _attach(
    draft: Draft,
    ours: Mapping[LeafPath, LeafPath],
    theirs: Mapping[SlotPath, Slot],
    params: Mapped,
) -> None:
    """Arrays of parameters that have a problem share it."""
    for rel, path in ours.items():
        if draft.open_source(path):
            draft.follow(params.sources[rel], path)
    fed = {r for s in params.steps for r in s.slots} | params.initialised.keys()
    for ref, slot_path in params.slot_paths.items():
        slot = theirs.get(slot_path)
        if slot is not None and draft.open_slot(slot.ref) and ref not in fed:
            draft.follow_slot(ref, slot.ref)


def _scalars(
    draft: Draft,
    ours: Mapping[LeafPath, LeafPath],
    theirs: Mapping[SlotPath, Slot],
    containers: Mapping[tuple[str, ...], tuple[str, ...]],
) -> None:
    """Counts and other values that belong to no parameter.

    First those beside an array that is paired, then those at the same path in a container that
    no other one was paired with, then the only ones of a name.
    """
    taken = {o: c for c, o in containers.items()}
    for placed in (True, False):
        for path, full in ours.items():
            home = path[:-1]
            if not draft.open_source(full) or placed != (home in containers):
                continue
            slot = theirs.get((*containers.get(home, home), path[-1]))
            free = placed or home not in taken
            if slot is not None and free and draft.open_slot(slot.ref):
                same = slot.path[1:] == path
                draft.add([full], [slot.ref], (), "path" if same else "unique")
    left = {p: frozenset[SlotPath]() for p, f in ours.items() if draft.open_source(f)}
    right = {p: frozenset[SlotPath]() for p, s in theirs.items() if draft.open_slot(s.ref)}
    a, b = only(left, lambda p, _: p[-1:]), only(right, lambda p, _: p[-1:])
    for name in a:
        if name in b and not is_index(a[name][-1]):  # the only `0` of two lists proves nothing
            draft.add([ours[a[name]]], [theirs[b[name]].ref], (), "unique")


def _flat_vectors(draft: Draft, ours: Mapping[LeafPath, LeafPath], params: Mapped) -> None:
    """Refuse ``optax.flatten`` states unless both sides put the parameters in one order.

    Such a state is one vector over all parameters in the order of their names; under other names
    the same vector means other parameters.
    """
    leaves = [draft.table[p] for p in params.sources.values()]
    total = sum(prod(leaf.shape) for leaf in leaves)
    flat = [p for p in ours.values() if draft.open_source(p) and draft.table[p].shape == (total,)]
    if not flat or len(leaves) == 1 or _same_order(params):
        return
    draft.refuse(
        "moments",
        f"{format_path(flat[0])} is one vector over all {total} numbers of the parameters "
        "(optax.flatten), in the order of their old names, which is not that of the new names",
        flat,
        rule=ignore_rules(flat),
    )


def _same_order(params: Mapped) -> bool:
    """Whether the parameters are copied one by one and their order by name stays."""
    whole = all(len(s.sources) == len(s.slots) == 1 and not s.transforms for s in params.steps)
    if not whole or len(params.steps) != len(params.sources):
        return False
    steps = sorted(params.steps, key=lambda s: params.rel[s.sources[0]])
    paths = [params.slot_paths[s.slots[0]] for s in steps]
    return paths == sorted(paths) == sorted(paths, key=natural_key)
