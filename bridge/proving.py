"""Settles by running or tracing both models what names cannot settle, and checks what they say.

Names are a promise that somebody made to himself; what a parameter does in a model is a fact. With
the Linen module at hand the facts decide: where both models compute the same function under a
mapping, and under no other, that mapping is taken, and a name that says otherwise is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bridge.claims import canonical
from bridge.draft import Draft
from bridge.errors import BridgeError, TargetError
from bridge.feeds import Feed
from bridge.match import match
from bridge.probe import Probe, probes_of
from bridge.proof import Pairing, Proof
from bridge.roles import PARAMS
from bridge.target import SlotPath, SlotRef
from bridge.transforms import Cast
from bridge.work import Work
from legacy import LeafPath, format_path

if TYPE_CHECKING:
    from bridge.probes import Model

__all__ = ["Given", "prove"]

_SHOWN = 4


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
    modules = _by_item(given.linen, work.feeds, "linen")
    inputs = _by_item(given.sample_input, [f for f in work.feeds if f.item in modules], "input")
    for feed in work.feeds:
        if feed.item in modules:
            if inputs.get(feed.item) is None:
                raise BridgeError(
                    f"linen= was given for item {feed.item!r} without sample_input=: how is it "
                    "called? Give an example input (or its shape, a jax.ShapeDtypeStruct)."
                )
            probes = _probes(inputs[feed.item], given.methods, modules[feed.item])
            _Prover(work, feed, modules[feed.item], given.makers[feed.item], probes).prove()


def _by_item(value: Any, feeds: Sequence[Feed], what: str) -> dict[str, Any]:
    items = [f.item for f in feeds]
    if isinstance(value, Mapping) and value and (what == "linen" or set(value) <= set(items)):
        unknown = sorted(set(value) - set(items))
        if unknown:
            raise TargetError(f"{what} names {', '.join(unknown)}; there are {', '.join(items)}.")
        return dict(value)
    if len(items) > 1:
        raise TargetError(
            f"{what} is one for the items {', '.join(items)}; give a dict by item name."
        )
    return dict.fromkeys(items, value)


def _probes(sample: Any, methods: Any, module: Any) -> tuple[Probe, ...]:
    """The user's probes; a dict that names no argument of the method is the one argument."""
    from bridge.probes import takes  # noqa: PLC0415 - loads jax

    probes = probes_of(sample, methods)
    first = probes[0]
    if first.kwargs and not first.args and not takes(module, first):
        # a batch that is a dict, not keyword arguments
        probes = (replace(first, args=(dict(first.kwargs),), kwargs={}), *probes[1:])
    return probes


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
        proof = self._compare(hints)
        self.work.warnings += proof.warnings
        for tie in proof.ties:
            self.work.warnings.append(
                f"{tie}: no input tells them apart, so either answer is right; names chose"
            )
        if proof.unproven:
            shown = ", ".join(format_path(p) for p in proof.unproven[:_SHOWN])
            more = len(proof.unproven) - _SHOWN
            shown += f" and {more} more" if more > 0 else ""
            self.work.warnings.append(
                f"no output depends on {shown}: paired because nothing else is left for them"
            )
        if proof.parted:
            self.work.warnings.append(f"the models compute different things: {proof.parted}")
        if proof.verified or (proof.way == "dataflow" and proof.pairings):
            self._take(proof, hints)

    def _compare(self, hints: Sequence[Pairing]) -> Proof:
        """Fingerprints; where they prove nothing, the data flow."""
        from bridge.dataflow import dataflow  # noqa: PLC0415 - loads jax
        from bridge.fingerprint import fingerprint  # noqa: PLC0415 - loads jax

        ours, theirs = self._models()
        kinds = {path: slot.collection for path, slot in self.slots.items()}
        fixed = self._fixed()
        found = fingerprint(ours, theirs, kinds, fixed=fixed, hints=hints, seed=self.work.seed)
        if found.verified:
            return found
        flow = dataflow(ours, theirs, kinds, fixed=fixed, hints=hints)
        return replace(
            flow,
            apart=max(found.apart, flow.apart),
            warnings=(*found.warnings, *flow.warnings),
            parted=flow.parted or found.parted,
        )

    def _models(self) -> tuple[Model, Model]:
        """Both models with all probes that can be traced on both sides.

        Raises:
            BridgeError: a probe of the user's cannot.
        """
        from bridge.probes import linen_model, nnx_model, trouble  # noqa: PLC0415 - loads jax

        leaves = {
            path: (leaf.shape, leaf.dtype.name)
            for path, full in self.full.items()
            if (leaf := self.work.table[full]).dtype is not None and leaf.kind != "unreadable"
        }
        ours = linen_model(self.linen, self.probes, leaves)
        theirs = nnx_model(self.make, self.probes, self.slots)
        told = [t for model in (ours, theirs) for c in model.calls if (t := trouble(model, c))]
        if told:
            raise BridgeError(
                "the models cannot be called with the sample input:\n  "
                + "\n  ".join(told)
                + "\nWhere the two take different arguments, give "
                "bridge.Probe(args, kwargs, nnx_args=..., nnx_kwargs=..., nnx_method=...)."
            )
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
        return ours, theirs

    def _hints(self) -> list[Pairing]:
        """What names say, about leaves that no rule has claimed."""
        pairs = match(self.work.open_sources(self.feed), self.work.open_slots(self.feed))
        n = len(self.feed.prefix)
        return [
            Pairing((self.short[p.source],), (p.slot.path[n:],))
            for p in pairs
            if p.why == "path" and isinstance(p.source, tuple) and isinstance(p.slot, SlotRef)
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
            self.draft.add(sources, refs, pairing.transforms, why)
        if against and proof.same:
            self._report(against, len(proven))
        elif against:
            self._refuse(against)

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
