"""Aligns an old optax state with the state of an ``nnx.Optimizer``.

An optax state holds arrays for each parameter (``mu``, ``nu``, ``trace``, accumulated gradients)
under the parameter's own path, and a few scalars (``count``). Both sides are cut the same way:
*head* (where in the state) and parameter path. Heads are paired; below them, everything follows
the mapping that was made for params, transforms included (LAYERS.md section 2.1).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from bridge._plan import Step
from bridge.draft import Draft
from bridge.errors import TransformError
from bridge.flax_optim import RULE, by_head, count_cast, is_flax_optim
from bridge.moments import Mapped, anew, moment_order, way
from bridge.optimizer_flat import flat_vectors, noise
from bridge.optimizer_heads import Path, container, cut_all, homes, pair_heads
from bridge.optimizer_scalars import pair_scalars
from bridge.target import Slot, SlotPath, SlotRef
from bridge.transforms import Scale
from legacy import LeafPath, format_path

__all__ = ["PER_TENSOR", "align", "ignore_moments", "note_transforms", "trainable"]

PER_TENSOR = (
    "parameters were put together or taken apart, and their optimizer's arrays with them. What an "
    "optimizer does tensor by tensor (lamb, lars, novograd, adafactor, muon, "
    "clip_by_block_rms) is another computation afterwards; adam, adamw and sgd are elementwise"
)
_INFINITY_NORM = (
    "'nu' is scaled by 1/f² where its parameter is scaled by f, as Adam's second moment is; the "
    "infinity norm that adamax keeps under this name would be scaled by 1/f"
)

Arrays = Mapping[Path, Mapping[LeafPath, LeafPath]]


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
    names = {path: ref for ref, path in params.slot_paths.items()}
    theirs, their_rest = cut_all(slots, names, ())
    images = _images(params)
    if is_flax_optim(sources):
        _align_flax_optim(draft, sources, theirs, their_rest, images, params)
        return
    ours, our_rest = cut_all(sources, params.sources, wrapper)
    mapped = {path for paths in images.values() for path in paths}
    heads = pair_heads(
        {h: frozenset(p for rel in v for p in images.get(rel, ())) for h, v in ours.items()},
        {h: frozenset(mapped.intersection(v)) for h, v in theirs.items()},
    )
    for head, (other, why) in heads.items():
        _Field(draft, ours, head, theirs[other], params, why).follow()
    for head, below in ours.items():
        if head not in heads:
            ignore_moments(draft, below, params)
    for head, fields in theirs.items():
        if all(head != other for other, _ in heads.values()):
            _initialise(draft, head, fields, params)
    note_transforms(draft, ours, params)
    flat = flat_vectors(draft, our_rest, params)
    noise(draft, our_rest, params)
    arrays = (frozenset(map(container, ours)), frozenset(map(container, theirs)))
    pair_scalars(draft, our_rest, their_rest, homes(heads), flat, arrays)


def _align_flax_optim(
    draft: Draft,
    sources: Mapping[LeafPath, LeafPath],
    theirs: Mapping[Path, Mapping[SlotPath, Slot]],
    rest: Mapping[SlotPath, Slot],
    images: Mapping[LeafPath, list[SlotPath]],
    params: Mapped,
) -> None:
    """A state of ``flax.optim``: its arrays by the fields of optax, its step in every count."""
    ours = by_head(draft, sources, images, theirs, params.sources)
    for head, below in theirs.items():
        if head in ours:
            _Field(draft, ours, head, below, params, RULE).follow()
        else:
            _initialise(draft, head, below, params)
    note_transforms(draft, ours, params)
    for step in (sources[p] for p in sources if p == ("step",)):
        for path, slot in rest.items():
            if path[-1] == "count" and slot.shape == () and draft.open_slot(slot.ref):
                draft.add([step], [slot.ref], count_cast(draft, step), RULE)


def note_transforms(draft: Draft, ours: Arrays, params: Mapped) -> None:
    """Say what transforms of parameters mean for their optimizer, which a state does not name.

    Args:
        draft: gets the notes.
        ours: the arrays of the state.
        params: what became of the params.
    """
    for step in params.steps:
        held = [h for h, below in ours.items() if any(params.rel[p] in below for p in step.sources)]
        if held and any(t.joins or t.splits for t in step.transforms):
            draft.notes.append(PER_TENSOR)
        if any(h[-1:] == ("nu",) for h in held) and any(
            isinstance(t, Scale) for t in step.transforms
        ):
            draft.notes.append(_INFINITY_NORM)


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


def trainable(draft: Draft, step: Step) -> bool:
    """Whether some slot of a step is a trainable parameter."""
    return any(r not in draft.slots or draft.slots[r].collection == "params" for r in step.slots)


class _Field:
    """One head: each array goes where its parameter went."""

    def __init__(
        self,
        draft: Draft,
        arrays: Arrays,
        head: Path,
        theirs: Mapping[SlotPath, Slot],
        params: Mapped,
        why: str,
    ) -> None:
        self.draft = draft
        self.arrays = arrays
        self.head = head
        self.ours = arrays[head]
        self.theirs = theirs
        self.params = params
        self.why = why
        self.fed: dict[LeafPath, SlotRef] = {}

    def follow(self) -> None:
        draft, params = self.draft, self.params
        odd: list[tuple[Step, list[LeafPath], list[SlotRef]]] = []
        for step in params.steps:
            rels = [params.rel[p] for p in step.sources]
            found = [self.ours[r] for r in rels if r in self.ours]
            slots = [
                self.theirs.get(params.slot_paths[r]) for r in step.slots if r in params.slot_paths
            ]
            refs = [s.ref for s in slots if s is not None and draft.open_slot(s.ref)]
            twice = [p for p in found if p in self.fed]
            open_ = [p for p in found if draft.open_source(p)]
            if twice and refs:
                self._shared(step, twice, refs)
            elif open_ and not refs and not trainable(draft, step):
                # the parameter became a buffer, which no optimizer tracks
                for path in open_:
                    draft.ignore(path, "moments-of-a-buffer")
            elif (found or refs) and (len(found) < len(rels) or len(refs) < len(step.slots)):
                odd.append((step, open_, refs))
            elif found:
                self._moment(step, found, refs)
        odd = [o for o in odd if o[1] or o[2]]
        if odd:
            self._masked_otherwise(odd)
        ignore_moments(draft, self.ours, params)
        _initialise(draft, self.head, self.theirs, params)
        self._attach()

    def _moment(self, step: Step, found: Sequence[LeafPath], refs: Sequence[SlotRef]) -> None:
        draft = self.draft
        error: TransformError | str = (
            "the optimizer keeps more of the new parameter than of the old"
        )
        try:
            goes = way(draft, self.arrays, self.head, step, self.params)
        except TransformError as found_wrong:
            goes, error = None, found_wrong
        if goes is None or (goes.placeholder and any(draft.slots[r].shape != (1,) for r in refs)):
            name, param = "/".join(self.head), format_path(step.sources[0])
            text = f"optimizer field {name!r} of {param}: {error}"
            left = [p for p in found if draft.open_source(p)]
            draft.refuse("moments", text, left, refs, anew(found, refs))
        elif goes.placeholder:
            for path in found:
                draft.ignore(path, "placeholder")
            for ref in refs:
                draft.initialise(ref, "placeholder", "zeros")
        else:
            if len(refs) == 1:
                self.fed |= dict.fromkeys(goes.sources, refs[0])
            why = step.why if self.why == "path" else self.why
            draft.add(goes.sources, refs, goes.transforms, why)

    def _shared(self, step: Step, twice: Sequence[LeafPath], refs: Sequence[SlotRef]) -> None:
        """A tied parameter that is not tied any more: its moments are those of both together."""
        self.draft.refuse(
            "moments",
            f"{format_path(twice[0])} feeds {self.fed[twice[0]]} already. Its parameter "
            f"{format_path(step.sources[0])} was one and is two now: the old moments are of the "
            "sum of both gradients, and belong to neither alone. To accept new ones for the "
            "second, initialise them",
            (),
            refs,
            anew((), refs),
        )

    def _masked_otherwise(self, odd: Sequence[tuple[Step, list[LeafPath], list[SlotRef]]]) -> None:
        """One problem for a head that holds other parameters than the checkpoint's."""
        sources = [p for _, found, _ in odd for p in found]
        refs = [r for _, _, slots in odd for r in slots]
        step, found, slots = odd[0]
        self.draft.refuse(
            "moments",
            f"optimizer field {'/'.join(self.head)!r}: the checkpoint has {len(found)} of "
            f"{len(step.sources)} arrays for {len(slots)} of {len(step.slots)} slots of "
            f"{format_path(step.sources[0])}"
            + (f", and {len(odd) - 1} more parameters are alike" if len(odd) > 1 else "")
            + ": is the optimizer masked differently?",
            sources,
            refs,
            anew(sources, refs),
        )

    def _attach(self) -> None:
        """Arrays of parameters that have a problem share it."""
        draft, params = self.draft, self.params
        for rel, path in self.ours.items():
            if draft.open_source(path):
                draft.follow(params.sources[rel], path)
        fed = {r for s in params.steps for r in s.slots} | params.initialised.keys()
        for ref, slot_path in params.slot_paths.items():
            slot = self.theirs.get(slot_path)
            if slot is not None and draft.open_slot(slot.ref) and ref not in fed:
                draft.follow_slot(ref, slot.ref)
