"""Settles by running or tracing both models what names cannot settle, and checks what they say.

Names are a promise that somebody made to himself; what a parameter does in a model is a fact. With
the Linen module at hand the facts decide: where both models compute the same function under a
mapping, and under no other, that mapping is taken, and a name that says otherwise is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bridge.apply import initial_value
from bridge.claims import canonical
from bridge.draft import Draft, spec_of
from bridge.errors import BridgeError, TransformError
from bridge.feeds import Feed
from bridge.match import Pair, match
from bridge.pairing import lost
from bridge.probe import Probe, by_item
from bridge.proof import Pairing, Proof
from bridge.roles import PARAMS
from bridge.target import SlotPath
from bridge.transforms import (
    Cast,
    DropZero,
    Join,
    Reshape,
    Split,
    Stack,
    Transform,
    Unstack,
    infer_all,
)
from bridge.work import Work
from legacy import LeafPath, format_path

if TYPE_CHECKING:
    from bridge.probes import Model

__all__ = ["Given", "prove"]

_SHOWN = 4
_TRAINS_OTHERWISE = (
    "in evaluation mode the models compute the same; in training mode their outputs or statistics "
    "differ, so training will not continue equivalently"
)


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """What the user gave for running the models.

    Attributes:
        linen: a Linen module (or what makes one), or several by item.
        sample_input: see :func:`bridge.probe.probes_of`, or several by item.
        methods: further methods to call.
        makers: what makes the NNX module of each item.
    """

    linen: Any
    sample_input: Any
    methods: Any
    makers: Mapping[str, Callable[[], Any]]


def prove(work: Work, given: Given) -> None:
    """Pair what running both models proves, for each item whose Linen module is known.

    Args:
        work: gets steps, warnings and problems.
        given: the models and what they are called with.

    Raises:
        BridgeError: a module cannot be traced, or is not the one of the checkpoint.
        TargetError: it is not clear which module belongs to which item.
    """
    from bridge.probes import probes_for  # noqa: PLC0415 - loads jax

    items = [f.item for f in work.feeds if f.groups]
    modules = by_item(given.linen, items, "linen=")
    inputs = by_item(given.sample_input, tuple(modules), "sample_input=", shared=True)
    for feed in work.feeds:
        if feed.item in modules:
            if inputs.get(feed.item) is None:
                raise BridgeError(
                    f"linen= was given for item {feed.item!r} without sample_input=: how is it "
                    "called? Give an example input (or its shape, a jax.ShapeDtypeStruct)."
                )
            probes = probes_for(modules[feed.item], inputs[feed.item], given.methods)
            _Prover(work, feed, modules[feed.item], given.makers[feed.item], probes).prove()


class _Prover:
    """The proof of one item."""

    def __init__(
        self, work: Work, feed: Feed, linen: Any, make: Callable[[], Any], probes: tuple[Probe, ...]
    ) -> None:
        self.work = work
        self.draft: Draft = work.draft
        self.feed = feed
        self.linen = linen
        self.make = make
        self.probes = probes
        self.trained = False  # whether the last call of the models is one in training mode
        self.full = canonical(feed)
        self.short = {full: path for path, full in self.full.items()}
        n = len(feed.prefix)
        self.slots = {
            s.path[n:]: s
            for s in self.draft.slots.values()
            if s.item == feed.item and s.collection != "opt_state" and not s.ephemeral
        }

    def prove(self) -> None:
        hints = self._hints()
        models = self._models()
        reason = self._unlike(*models)
        if reason:
            self.work.uncompared.add(self.feed.item)
            self.work.warnings.append(f"the models were not compared: {reason}")
            return
        proof = self._compare(models, hints)
        self.work.warnings += proof.warnings
        self.work.warnings += proof.ties
        if proof.unproven:
            shown = ", ".join(format_path(p) for p in proof.unproven[:_SHOWN])
            more = len(proof.unproven) - _SHOWN
            shown += f" and {more} more" if more > 0 else ""
            self.work.warnings.append(
                f"no output depends on {shown}: paired because nothing else is left for them"
            )
        if not proof.same and (proof.apart or proof.parted):
            self.work.warnings.append(_different(proof))
        elif not proof.pairings:
            self.work.warnings.append(
                "both models were run and traced, and nothing could be proven about their "
                "parameters: what follows rests on names and rules alone"
            )
        if proof.verified and proof.same:
            self.work.proven.add(self.feed.item)
        if proof.verified or (proof.way == "dataflow" and proof.pairings):
            self._take(proof, hints)

    @staticmethod
    def _unlike(ours: Model, theirs: Model) -> str:
        from bridge.probes import unlike  # noqa: PLC0415 - loads jax

        return unlike(ours, theirs)

    def _compare(self, models: tuple[Model, Model], hints: Sequence[Pairing]) -> Proof:
        """Fingerprints; where they prove nothing, the data flow."""
        from bridge.dataflow import dataflow  # noqa: PLC0415 - loads jax
        from bridge.fingerprint import fingerprint  # noqa: PLC0415 - loads jax

        ours, theirs = models
        kinds = {path: slot.collection for path, slot in self.slots.items()}
        words: dict[str, Any] = {"fixed": self._fixed(), "hints": hints}
        told: tuple[str, ...] = ()
        apart = 0.0
        try:
            run = {**words, "initial": self._initial(), "seed": self.work.seed}
            found = fingerprint(ours, theirs, kinds, **run)
            if found.verified and found.same:
                return found
            if self.trained:
                one, other = (replace(m, calls=m.calls[:-1]) for m in models)
                plain = fingerprint(one, other, kinds, **run)
                if plain.verified and plain.same:
                    return replace(plain, warnings=(*plain.warnings, _TRAINS_OTHERWISE))
            told, apart = found.warnings, found.apart
        except Exception as error:  # noqa: BLE001 - it runs the user's code in a way of its own
            told = (f"the models could not be run for fingerprints ({_short(error)})",)
        try:
            flow = dataflow(ours, theirs, kinds, **words)
        except Exception as error:  # noqa: BLE001 - likewise
            said = f"their programs could not be compared ({_short(error)})"
            return Proof("dataflow", apart=apart, warnings=(*told, said))
        # what fingerprints have to tell is about a map that was not taken
        return replace(flow, apart=max(apart, flow.apart), warnings=(*told, *flow.warnings))

    def _models(self) -> tuple[Model, Model]:
        """Both models with all probes that can be traced on both sides.

        Raises:
            BridgeError: a probe of the user's cannot.
        """
        from bridge.probes import (  # noqa: PLC0415 - loads jax
            leaf_specs,
            linen_model,
            nnx_model,
            require_calls,
            trouble,
        )

        leaves = leaf_specs(self.work.table, self.full)
        ours = linen_model(self.linen, self.probes, leaves)
        theirs = nnx_model(self.make, self.probes, self.slots)
        require_calls(ours, theirs)
        # batch statistics move in training mode only, and so does what dropout hides
        train = replace(self.probes[0], train=True)
        if self.probes[0].train or not any(g.collection != PARAMS for g in self.feed.groups):
            return ours, theirs
        try:
            more = (
                linen_model(self.linen, [train], leaves),
                nnx_model(self.make, [train], self.slots),
            )
        except BridgeError:
            return ours, theirs
        if any(trouble(m, m.calls[0]) for m in more):
            self.work.warnings.append(
                "the models could not be called in training mode, so what they do to their "
                "statistics was not compared"
            )
            return ours, theirs
        both = zip((ours, theirs), more, strict=True)
        ours, theirs = (replace(m, calls=(*m.calls, *t.calls)) for m, t in both)
        self.trained = True
        return ours, theirs

    def _hints(self) -> list[Pairing]:
        """What names say, about leaves that no rule has claimed."""
        pairs = match(self.work.open_sources(self.feed), self.work.open_slots(self.feed))
        n = len(self.feed.prefix)
        return [
            Pairing((self.short[p.source],), (p.slot.path[n:],))
            for p in pairs
            if p.why == "path" and len(p.sources) == len(p.slots) == 1 and not p.transforms
        ]

    def _fixed(self) -> list[Pairing]:
        """What user rules have settled; nothing on one side means ignored or initialised."""
        n = len(self.feed.prefix)
        found = [
            Pairing(
                tuple(self.short[p] for p in step.sources),
                tuple(r.path[n:] for r in step.slots),
                tuple(t for t in step.transforms if not isinstance(t, Cast)),
            )
            for step in self.draft.steps
            if all(p in self.short for p in step.sources)
            and all(r.item == self.feed.item and r.path[n:] in self.slots for r in step.slots)
        ]
        found += [
            Pairing((path,), ())
            for path, full in self.full.items()
            if full in self.draft.ignored and self.draft.ignored[full] != "empty"
        ]
        found += [
            Pairing((), (path,))
            for path, slot in self.slots.items()
            if slot.ref in self.draft.initialised
        ]
        return found

    def _initial(self) -> dict[SlotPath, Any]:
        """The arrays that rules put into slots: with other numbers the models would differ."""
        return {
            path: initial_value(self.draft.initialised[slot.ref], slot)
            for path, slot in self.slots.items()
            if slot.ref in self.draft.initialised and slot.key_impl is None
        }

    def _take(self, proof: Proof, hints: Iterable[Pairing]) -> None:
        """Make steps of what is proven; names that say otherwise are reported or refused."""
        named = {h.sources[0]: h.slots[0] for h in hints}
        proven = {p for pairing in proof.pairings for p in pairing.sources}
        against: list[tuple[LeafPath, SlotPath, SlotPath]] = []
        for pairing in proof.pairings:
            refs = [self.slots[p].ref for p in pairing.slots]
            sources = [self.full[p] for p in pairing.sources]
            if not sources or not refs or not all(map(self.draft.open_slot, refs)):
                continue
            if not all(map(self.draft.open_source, sources)):
                continue
            plain = len(sources) == len(refs) == 1 and not pairing.transforms
            said = named.get(pairing.sources[0]) if plain else None
            if said is not None and said != pairing.slots[0]:
                against.append((pairing.sources[0], said, pairing.slots[0]))
                if not proof.same:  # two kinds of evidence against each other, neither a proof
                    continue
            why = "path" if said == pairing.slots[0] else proof.way
            self._add(pairing, why)
        self._take_siblings(proof)
        if against and proof.same:
            self._report(against, len(proven))
        elif against:
            self._refuse(against)

    def _add(self, pairing: Pairing, why: str) -> None:
        """Make a step of a pairing; a bias that only counts while it is zero comes along."""
        one = Pair(
            tuple(self.full[p] for p in pairing.sources),
            tuple(self.slots[p].ref for p in pairing.slots),
            why,
            pairing.transforms,
        )
        extra = _hidden_bias(pairing)
        full = self.full.get(extra) if extra is not None else None
        if full is not None and self.draft.open_source(full):
            one = replace(
                one, sources=(*one.sources, full), transforms=(DropZero(), *one.transforms)
            )
            if lost(self.draft, one):
                return
        self.draft.add(one.sources, one.slots, one.transforms, one.why)

    def _take_siblings(self, proof: Proof) -> None:
        """A module whose kernel is proven is proven: what is open in it can only go to its like.

        Two biases that are added to each other do the same, so no output tells them apart; each
        belongs to its kernel all the same.
        """
        done = {p for pairing in proof.pairings for p in (*pairing.sources, *pairing.slots)}
        for pairing in (*proof.pairings, *self._fixed()):
            for own in self._siblings(pairing, done):
                done |= {*own.sources, *own.slots}
                self._add(own, proof.way)

    def _siblings(self, pairing: Pairing, done: set[LeafPath]) -> Iterable[Pairing]:
        if not pairing.sources or not pairing.slots:
            return
        names = {p[-1] for p in self.full if p[:-1] == pairing.sources[0][:-1]}
        for name in sorted(names):
            sources = tuple((*p[:-1], name) for p in pairing.sources)
            slots = tuple((*p[:-1], name) for p in pairing.slots)
            known = all(p in self.full and p not in done for p in sources)
            if not known or not all(p in self.slots and p not in done for p in slots):
                continue
            if not all(self.draft.open_source(self.full[p]) for p in sources):
                continue
            if not all(self.draft.open_slot(self.slots[p].ref) for p in slots):
                continue
            ndim = len(self.work.table[self.full[pairing.sources[0]]].shape)
            how = _alike(pairing.transforms, ndim, self.slots[slots[0]].shape)
            specs = tuple(spec_of(self.work.table[self.full[p]]) for p in sources)
            try:
                made = [spec.shape for spec in infer_all(how, specs)]
            except TransformError:
                continue
            if made == [self.slots[p].shape for p in slots]:
                yield Pairing(sources, slots, tuple(how))

    def _report(self, against: Sequence[tuple[LeafPath, SlotPath, SlotPath]], total: int) -> None:
        source, said, found = against[0]
        self.work.warnings.append(
            f"names mislead for {len(against)} of {total} leaves: {format_path(source)} is called "
            f"like {format_path(said)}, and does what {format_path(found)} does, which was taken"
        )

    def _refuse(self, against: Sequence[tuple[LeafPath, SlotPath, SlotPath]]) -> None:
        for source, said, found in against:
            refs = [self.slots[p].ref for p in (said, found)]
            self.draft.refuse(
                "ambiguous",
                f"{format_path(source)} is called like {format_path(said)}, and its place in the "
                f"data flow is that of {format_path(found)}; the models differ, so neither is "
                "proven: map it by a rule",
                [self.full[source]],
                [r for r in refs if self.draft.open_slot(r)],
                candidates=[format_path(said), format_path(found)],
            )


def _hidden_bias(pairing: Pairing) -> LeafPath | None:
    """The one bias of a Linen GRU that has no place beside the joined ones of its gates."""
    gates = tuple(p[-2:-1] for p in pairing.sources)
    if sorted(gates) != [("in",), ("ir",), ("iz",)] or pairing.sources[0][-1] != "bias":
        return None
    return (*pairing.sources[0][:-2], "hn", "bias")


def _alike(transforms: Sequence[Transform], ndim: int, shape: tuple[int, ...]) -> list[Transform]:
    """What a parameter's transforms say for another one of its module, of this shape at the end."""
    kept: list[Transform] = []
    for t in transforms:
        if isinstance(t, (Join, Split)) and t.axis in (-1, ndim - 1):
            # the last axis of a kernel is the axis of its bias
            kept.append(Join(-1) if isinstance(t, Join) else Split(-1, t.sizes))
        elif isinstance(t, (Stack, Unstack, Join, Split)):
            kept.append(t)
    return [*kept, Reshape(shape)] if any(isinstance(t, Reshape) for t in transforms) else kept


def _different(proof: Proof) -> str:
    """What to say of two models that do not compute the same under any mapping."""
    text = "the models compute different things"
    if proof.apart:
        text += (
            f": with the same numbers in all parameters of one kind and size, their outputs are "
            f"{proof.apart:.2g} of the largest value apart, so no fingerprint can be believed"
        )
    text += f". {proof.parted[0].upper()}{proof.parted[1:]}" if proof.parted else ""
    return text


def _short(error: Exception) -> str:
    first = str(error).splitlines()[:1]
    return f"{type(error).__name__}: {first[0][:200] if first else ''}"
