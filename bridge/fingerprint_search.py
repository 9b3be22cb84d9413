"""Runs two models with more and more leaves told apart, until every leaf has a partner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from bridge.fingerprint_compare import Outputs, first_weights
from bridge.fingerprint_match import Found, Sketches, Unit, alike, clusters, sums
from bridge.fingerprint_poke import poked
from bridge.fingerprint_quiet import quiet_pairs, siblings
from bridge.fingerprint_readings import Path
from bridge.fingerprint_run import Ran, Runner, Values
from bridge.fingerprint_state import Given, Level, State
from bridge.fingerprint_verify import verified
from bridge.proof import Proof
from legacy import format_path
from legacy.leaves import natural_key

__all__ = ["Given", "Search"]

Array: TypeAlias = np.ndarray[Any, Any]
Compile: TypeAlias = Callable[[Sequence[tuple[Runner, Any, Any]]], None]

_LEVELS = (
    Level(pick=0),
    Level(pick=1),
    Level(pick=2),
    Level(roles=False, pick=0),
    Level(roles=False, pick=1),
    Level(pick=0, without=True),
    Level(pick=1, without=True),
    Level(),
    Level(roles=False),
    Level(without=True),
    Level(orders=True),
    Level(roles=False, orders=True, everything=True),
    Level(orders=True, without=True),
)
"""From the likeliest; the later ones tie more numbers to each other and show less."""
_ROUNDS = 200
_NAMES = 6


class Search:
    """One search.

    Args:
        given: models and settled pairings.
        compile_all: compiles both models at once.
    """

    def __init__(self, given: Given, compile_all: Compile) -> None:
        self._given = given
        self._compile = compile_all
        self._sketches = Sketches(given.rng)
        self._first = first_weights(given.linen, given.nnx, given.rng)
        self._outputs = Outputs([], self._first, 0, again=False)
        self._told: set[Unit] = set()
        self._silent: set[Path] = set()

    def proof(self) -> Proof:
        """What the models prove."""
        best: tuple[Any, Proof] | None = None
        seen = set()
        for level in _LEVELS:
            state = State(self._given, level)
            what = state.signature()
            if what in seen:
                continue
            seen.add(what)
            flat = state.flat()  # before anything has a number of its own
            now = self._at(state)
            if now.pairings and self._lost_on_both(state, flat=flat):
                # what is left has tied numbers, maybe one number in all places, and with such
                # numbers leaves look alike that are not: nothing may be chosen or excluded then
                state = State(self._given, level)
                now = _nothing(now) if flat else self._at(state, sure=True)
            rank = (now.verified, now.same, len(state.partners), -now.apart)
            if best is None or rank > best[0]:
                best = rank, now
            if now.verified and not state.unmatched():
                break
        assert best is not None  # noqa: S101 - there is at least one level
        return best[1]

    def _at(self, state: State, *, sure: bool = False) -> Proof:
        """Search with one way to read leaves; ``sure``: pair only what shows itself."""
        self._outputs = Outputs([], self._first, 0, again=False)
        ran = self._run(state)
        self._outputs = Outputs.of(*ran, self._first, self._same)
        apart = self._outputs.apart(*ran)
        if apart > self._same:
            return Proof("fingerprint", apart=apart)
        if self._outputs.again:
            ran = self._run(state)
        ties: list[str] = []
        self._told = set()
        self._poked: set[frozenset[Unit]] = set()
        for _ in range(_ROUNDS):
            found = self._look(state, ran)
            new = self._matched(state, found)
            if not new:
                new = self._poke(state, ran, found)
            if not new and not sure:
                new = self._tie(state, found, ties)
            if not new and not sure:
                pairs = self._quiet(state, found)
                fresh = [a for a, b in pairs if state.match(a, b)]
                state.weak |= {(u.path, u.piece) for u in fresh}
                new = bool(fresh)
            if not new:
                break
            ran = self._run(state)
            apart = max(apart, self._outputs.apart(*ran))
            if apart > self._same:
                return Proof("fingerprint", apart=apart)
        made, ok, last, texts, moved = verified(
            state, self._outputs, self._run_values, self._same, self._tolerance
        )
        left = self._look(state, ran)
        moved += self._moved(left)
        apart = max(apart, last)
        quiet = [p for p in state.linen if any(p == path for path, _ in state.weak)]
        paired = {p for pairing in made for p in pairing.sources}
        self._silent = {
            unit.path
            for pair in left
            for side in pair
            for unit, silent in zip(side.units, side.silent, strict=True)
            if silent
        }
        lost = state.unmatched()
        same = ok and not moved and not (state.level.without and lost)
        warnings = [*texts, *self._warnings(state, left)]
        return Proof(
            "fingerprint", tuple(made), same=same, verified=ok, apart=apart, ties=tuple(ties),
            unproven=tuple(p for p in quiet if p in paired),
            warnings=tuple(warnings), parted=_parted(moved),
        )  # fmt: skip

    def _lost_on_both(self, state: State, *, flat: bool) -> bool:
        """Whether both sides have leaves without a partner, that may matter."""
        lost = set(state.unmatched())
        if not flat:
            lost -= self._silent  # no output depends on them
        return any(p in state.linen for p in lost) and any(p in state.nnx for p in lost)

    @staticmethod
    def _moved(found: list[tuple[Found, Found]]) -> list[Path]:
        """Leaves that a training step changes as it changes no slot."""
        return [
            unit.path
            for ours, theirs in found
            for unit, moved in zip(ours.units, ours.moved, strict=True)
            if moved and theirs.moved.any()
        ]

    @property
    def _same(self) -> float:
        """Relative difference of outputs that are equal."""
        if not self._exact:
            return 1e-5
        return 5e-8 if self._given.linen.narrow or self._given.nnx.narrow else 1e-9

    @property
    def _tolerance(self) -> float:
        """Relative difference of gradients that are equal."""
        if not self._exact:
            return 3e-4
        return 1e-5 if self._given.linen.narrow or self._given.nnx.narrow else 1e-8

    @property
    def _exact(self) -> bool:
        return self._given.linen.exact and self._given.nnx.exact

    def _run(self, state: State) -> tuple[Ran, Ran]:
        return self._run_values(state.values())

    def _run_values(self, values: tuple[Values, Values]) -> tuple[Ran, Ran]:
        given, weights = self._given, self._outputs.weights
        self._compile([(given.linen, values[0], weights[0]), (given.nnx, values[1], weights[1])])
        return given.linen.run(values[0], weights[0]), given.nnx.run(values[1], weights[1])

    def _look(self, state: State, ran: tuple[Ran, Ran]) -> list[tuple[Found, Found]]:
        """Sketches of what is open, by size."""
        values, units = state.values(), state.open_units()
        floor = (1e-13 if self._exact else 1e-6) * max(
            (float(np.linalg.norm(g)) for g in ran[0].grads.values()), default=0.0
        )
        ours, theirs = (self._sketches.of(r, v, u, floor)
                        for r, v, u in zip(ran, values, units, strict=True))  # fmt: skip
        return [(ours[n], theirs[n]) for n in ours if n in theirs]

    def _matched(self, state: State, found: list[tuple[Found, Found]]) -> bool:
        """Note what certainly belongs together; whether there was anything."""
        certain, doubtful = [], []
        for ours, theirs in found:
            one, other = alike(ours, theirs, self._tolerance)
            certain += one
            doubtful += other
        new = [pair for pair in certain if state.match(*pair)]
        new = new or [pair for pair in doubtful if state.match(*pair)]
        if new or not any(ours.moved.any() for ours, _ in found):
            return bool(new)
        for ours, theirs in found:  # the same place, but another new value in training mode
            pairs = alike(ours.still(), theirs.still(), self._tolerance)[0]
            new += [pair for pair in pairs if state.match(*pair)]
        return bool(new)

    def _poke(self, state: State, ran: tuple[Ran, Ran], found: list[tuple[Found, Found]]) -> bool:
        """Match leaves without a gradient by what changes when they do."""
        units = tuple([u for pair in found
                       for u, silent in zip(pair[n].units, pair[n].silent, strict=True) if silent]
                      for n in (0, 1))  # fmt: skip
        if frozenset(units[0]) in self._poked:
            return False
        self._poked.add(frozenset(units[0]))
        changes = poked((units[0], units[1]), (state.linen, state.nnx), state.values(), ran,
                        self._outputs, self._run_values, self._given.rng)  # fmt: skip
        pairs = [p for a, b in changes for p in alike(a, b, 100 * self._tolerance)[0]]
        return bool([pair for pair in pairs if state.match(*pair)])

    def _tie(self, state: State, found: list[tuple[Found, Found]], ties: list[str]) -> bool:
        """Choose one pair of leaves that nothing tells apart; whether there was one."""
        groups = [g for a, b in found for g in clusters(a, b, self._tolerance)]
        groups = [(tuple(sorted(a, key=_natural)), tuple(sorted(b, key=_natural)))
                  for a, b in groups]  # fmt: skip
        hinted = {h.sources[0]: h.slots[0] for h in self._given.hints
                  if len(h.sources) == 1 and len(h.slots) == 1}  # fmt: skip
        ordered = sorted(groups, key=lambda g: _natural(g[0][0]))
        # two biases that are added to each other do the same; each belongs to its kernel
        readings = (state.ours, state.theirs)
        ways = [("as the leaves beside them are", g, siblings(*g, state.proven(), readings))
                for g in ordered]  # fmt: skip
        ways += [("as their names suggest", g, [
            (a, b) for a in g[0] for b in g[1] if hinted.get(a.path) == b.path
        ]) for g in ordered]  # fmt: skip
        ways += [("in the order of their names", g, [(g[0][0], g[1][0])]) for g in ordered]
        for by, (ours, theirs), pairs in ways:
            if not any(state.match(*pair) for pair in pairs[:1]):
                continue
            if not self._told.issuperset(ours):
                ties.append(
                    f"{_listed(ours)} cannot be told apart by any input, nor can "
                    f"{_listed(theirs)}: paired {by}."
                )
            self._told |= set(ours)
            return True
        return False

    def _quiet(self, state: State, found: list[tuple[Found, Found]]) -> list[tuple[Unit, Unit]]:
        kinds = self._given.kinds
        ours = {p: p[0] == "params" for p in state.linen}
        theirs = {p: kinds.get(p, "params") == "params" for p in state.nnx}
        return quiet_pairs(
            [u for a, _ in found for u, silent in zip(a.units, a.silent, strict=True) if silent],
            [u for _, b in found for u, silent in zip(b.units, b.silent, strict=True) if silent],
            state.proven(), (state.ours, state.theirs), (ours, theirs), self._given.hints,
        )  # fmt: skip

    def _warnings(self, state: State, found: list[tuple[Found, Found]]) -> list[str]:
        texts = []
        for ours, theirs in found:
            for one, other, whose in ((ours, theirs, "Linen leaf"), (theirs, ours, "slot")):
                for unit, parts in sums(one, other, self._tolerance):
                    texts.append(
                        f"the gradient of the {whose} {format_path(unit.path)} is the sum of those "
                        f"of {_listed(parts)}: it is shared on one side and not on the other, and "
                        "was left unpaired."
                    )
        lost = state.unmatched()
        if state.level.without and lost:
            texts.append(
                f"the models compute the same only when {_listed(lost)} are zero: they have no "
                "partner on the other side."
            )
        if self._outputs.left_over:
            texts.append(
                f"{self._outputs.left_over} outputs of one model have no counterpart in the other "
                "and were not compared."
            )
        if not self._exact:
            texts.append("the models could not be run in float64; differences below 1e-5 are not "
                         "seen.")  # fmt: skip
        return texts


def _nothing(proof: Proof) -> Proof:
    return replace(proof, pairings=(), same=False, verified=False, ties=(), unproven=())


def _parted(moved: Sequence[Path]) -> str:
    if not moved:
        return ""
    return (
        f"in training mode the new values of {_listed(moved)} are others than those of the "
        "slots; a likely cause is another momentum or decay."
    )


def _natural(unit: Unit) -> tuple[Any, ...]:
    return natural_key(unit.path), unit.piece


def _listed(units: Sequence[Unit] | Sequence[Path]) -> str:
    paths = list(dict.fromkeys(u.path if isinstance(u, Unit) else u for u in units))
    text = ", ".join(map(format_path, paths[:_NAMES]))
    return text + (f" and {len(paths) - _NAMES} more" if len(paths) > _NAMES else "")
