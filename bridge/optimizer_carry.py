"""Lays out an optimizer state when no optimizer is given.

Arrays that mirror a parameter go where the parameter went, with its transforms; everything else
keeps its path. What comes out is what ``nnx.Optimizer(model, tx)`` of the same optax
transformation would save.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bridge._plan import Step
from bridge.carry import NOTHING, carry
from bridge.draft import Draft, spec_of
from bridge.errors import TransformError
from bridge.flax_optim import RULE, as_optax, count_cast, is_flax_optim
from bridge.moments import Mapped, moment_order, way
from bridge.names import is_index
from bridge.optimizer import ignore_moments, note_transforms, trainable
from bridge.optimizer_flat import flat_vectors, noise
from bridge.optimizer_heads import Path, container, cut
from bridge.optimizer_scalars import LOOKAHEAD, SINCE_SYNC
from bridge.rule_text import ignore_rules
from bridge.target import Empty, Slot, SlotPath, SlotRef
from bridge.transforms import Cast, Spec, Transform
from legacy import Leaf, LeafPath, format_path

__all__ = ["carry_optimizer", "step_cast", "step_slot"]


def _variable(
    item: str, path: SlotPath, spec: Spec, kind: str, *, impl: str | None = None, inside: int = 0
) -> Slot:
    """A slot of an optimizer; the last ``inside`` parts of its path are in a list it holds."""
    end = len(path) - inside
    at = tuple(range(end + 1, end + 1 + inside))
    disk = (*path[:end], "value", *path[end:])
    return Slot(item, path, disk, kind, "opt_state", spec.shape, spec.dtype, impl, sequence_at=at)


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
    if is_flax_optim(sources):
        sources = _flax_optim(draft, item, sources, params)
    if (SINCE_SYNC,) in sources and any(p[0] == "fast_state" for p in sources):
        draft.notes.append(LOOKAHEAD)
        draft.ignore(sources[SINCE_SYNC,], "lookahead")
        sources = {p[1:]: full for p, full in sources.items() if p[0] == "fast_state"}
    heads: dict[Path, dict[LeafPath, LeafPath]] = {}
    rest: dict[LeafPath, LeafPath] = {}
    for rel, full in sources.items():
        found = cut(rel, params.sources, wrapper)
        if found is None:
            rest[rel] = full
        else:
            heads.setdefault(found[0], {})[found[1]] = full
    filled = {h: _with_data(draft, below) for h, below in heads.items()}
    arrays = {h: below for h, below in filled.items() if below}
    flat = flat_vectors(draft, _with_data(draft, rest), params)
    noise(draft, _with_data(draft, rest), params)
    for rel, full in rest.items():
        if draft.open_source(full):
            _scalar(draft, item, rel, full, flat.get(full, ()))
    layout = _Layout(draft, item, params, heads, arrays)
    for head in heads:
        layout.head(head)
    note_transforms(draft, arrays, params)


def _flax_optim(
    draft: Draft,
    item: str,
    sources: Mapping[LeafPath, LeafPath],
    params: Mapped,
) -> Mapping[LeafPath, LeafPath]:
    """The state of ``optax.adam`` and its like for one of ``flax.optim``."""
    made = as_optax(draft, _with_data(draft, sources), params.sources)
    if made is None:
        draft.notes.append(
            "the state of flax.optim has no single counterpart in optax (a MultiOptimizer, or "
            "WeightNorm); it is kept in extras as it is. Give the new optimizer, tx=, to map it"
        )
        carry(draft, [p for p in sources.values() if draft.open_source(p)], "keep")
        return {}
    arrays, counts = made
    for step in (sources[p] for p in sources if p == ("step",)):
        for path in counts:
            slot = _variable(item, ("opt_state", *path), Spec((), "int32"), "OptArray")
            if draft.create(slot, [step]):
                draft.add([step], [slot.ref], count_cast(draft, step), RULE)
    for rel, full in sources.items():
        if draft.table[full].kind in NOTHING:
            draft.ignore(full, "empty")
        elif rel[:1] != ("param_states",) and rel != ("step",):
            carry(draft, [full], "keep")
    return arrays


def _with_data(draft: Draft, below: Mapping[LeafPath, LeafPath]) -> dict[LeafPath, LeafPath]:
    return {rel: full for rel, full in below.items() if draft.table[full].kind not in NOTHING}


class _Layout:
    """Slots for the arrays of one optimizer state."""

    def __init__(
        self,
        draft: Draft,
        item: str,
        params: Mapped,
        heads: Mapping[Path, Mapping[LeafPath, LeafPath]],
        arrays: Mapping[Path, Mapping[LeafPath, LeafPath]],
    ) -> None:
        self.draft = draft
        self.item = item
        self.params = params
        self.heads = heads
        self.arrays = arrays

    def head(self, head: Path) -> None:
        """Lay out one copy of the parameters."""
        draft, params, below = self.draft, self.params, self.heads[head]
        for step in params.steps:
            here = [below[r] for p in step.sources if (r := params.rel[p]) in below]
            kinds = {draft.table[p].kind for p in here}
            paths = [params.slot_paths[r] for r in step.slots if r in params.slot_paths]
            if here and not trainable(draft, step):
                for p in here:
                    draft.ignore(p, "moments-of-a-buffer")
            elif kinds and kinds <= NOTHING:
                self._empty(head, here, paths)
            elif any(not draft.open_source(p) for p in here):
                self._shared(step, here)
            elif here:
                self._moments(head, here, paths, step)
        ignore_moments(draft, below, params)
        self._initialise(head)
        for rel, full in below.items():
            if draft.open_source(full):
                if draft.table[full].kind in NOTHING:
                    draft.ignore(full, "empty")
                else:
                    draft.follow(params.sources[rel], full)

    def _place(self, head: Path, path: SlotPath) -> SlotPath:
        """Where the array of a parameter lies; a position in a list comes after its name."""
        end = len(container(head)) + 1
        return ("opt_state", *head[:end], *path, *head[end:])

    def _inside(self, head: Path) -> int:
        return len(head) - len(container(head)) - 1

    def _empty(self, head: Path, here: Sequence[LeafPath], paths: Sequence[SlotPath]) -> None:
        # a masked parameter: optax.MaskedNode has an entry in NNX's tree, but no array; and of a
        # number sm3 keeps an empty list
        listed = any(h[:-1] == head and is_index(h[-1]) for h in self.arrays)
        kind = "List" if listed else "None"
        places = [(*self._place(head, p), "value") for p in paths]
        self.draft.empties += [Empty(self.item, p, kind) for p in places]
        for p in here:
            self.draft.ignore(p, "empty")

    def _moments(
        self, head: Path, found: Sequence[LeafPath], paths: Sequence[SlotPath], step: Step
    ) -> None:
        draft = self.draft
        rule = ignore_rules(found)
        where = f"optimizer field {'/'.join(head)!r} of {format_path(step.sources[0])}"
        if len(found) < len(step.sources):
            many = f"{len(found)} of {len(step.sources)} arrays that are put together"
            draft.refuse("moments", f"{where}: it holds {many}", found, rule=rule)
            return
        try:
            goes = way(draft, self.arrays, head, step, self.params)
            specs = draft.infer(goes.sources, goes.transforms)
        except TransformError as error:
            draft.refuse("moments", f"{where}: {error}", found, rule=rule)
            return
        if goes.placeholder:
            specs = (specs[0],) * len(paths)
        slots = [
            _variable(self.item, self._place(head, p), s, "OptVariable", inside=self._inside(head))
            for p, s in zip(paths, specs, strict=True)
        ]
        if not all(draft.create(slot, found) for slot in slots):
            return
        if goes.placeholder:
            for path in found:
                draft.ignore(path, "placeholder")
            for slot in slots:
                draft.initialise(slot.ref, "placeholder", "zeros")
            return
        why = step.why if step.why.startswith("rule:") else "rule:structural"
        draft.add(goes.sources, [s.ref for s in slots], goes.transforms, why)

    def _shared(self, step: Step, here: Sequence[LeafPath]) -> None:
        """A tied parameter that is not tied any more."""
        self.draft.refuse(
            "moments",
            f"{format_path(here[0])} has its place already. Its parameter "
            f"{format_path(step.sources[0])} was one and is two now: the old moments are of the "
            "sum of both gradients, and belong to neither alone. Give the optimizer, tx=, and "
            "initialise the second ones by a rule",
        )

    def _initialise(self, head: Path) -> None:
        """Moments of new parameters start at zero, where every other parameter has some."""
        draft, params = self.draft, self.params
        below = self.arrays.get(head, {})
        if moment_order(head) not in (1, 2) or self._inside(head):
            return
        whole = all(draft.table[p].shape == draft.table[params.sources[r]].shape
                    for r, p in below.items())  # fmt: skip
        known = [r for r in params.sources if r not in params.ignored]
        dtypes = {d.name for p in below.values() if (d := draft.table[p].dtype) is not None}
        tracked = whole and len(dtypes) == 1 and all(r in below for r in known)
        for ref, rule in params.initialised.items():
            slot = draft.slots.get(ref)
            if slot is None or slot.collection != "params" or not below:
                continue
            if tracked:
                place = self._place(head, params.slot_paths[ref])
                made = _variable(self.item, place, Spec(slot.shape, *dtypes), "OptVariable")
                if draft.create(made, []):
                    draft.initialise(made.ref, rule, "zeros")
            else:
                draft.notes.append(
                    f"{SlotRef(self.item, ('opt_state', *head))}: whether the optimizer tracks "
                    f"{ref} cannot be told from the checkpoint; give the optimizer, tx="
                )


def _scalar(
    draft: Draft, item: str, rel: LeafPath, full: LeafPath, transforms: Sequence[Transform]
) -> None:
    leaf = draft.table[full]
    if leaf.kind in NOTHING:
        draft.ignore(full, "empty")
    elif leaf.kind in ("array", "scalar", "key"):
        slot = _variable(item, ("opt_state", *rel), spec_of(leaf), "OptArray", impl=leaf.key_impl)
        if draft.create(slot, [full]):
            draft.add([full], [slot.ref], transforms, "rule:structural")
    else:
        carry(draft, [full], "keep")


def step_slot(item: str) -> Slot:
    """The slot of ``nnx.Optimizer.step``: an unsigned 32-bit counter."""
    return _variable(item, ("step",), Spec((), "uint32"), "OptState")


def step_cast(leaf: Leaf) -> tuple[Transform, ...]:
    """How a Linen step counter becomes NNX's; exact, so a negative step is an error."""
    return () if spec_of(leaf).dtype == "uint32" else (Cast("uint32", exact=True),)
