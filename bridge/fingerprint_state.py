"""What a search has found so far, and the numbers that both models are run with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from bridge.fingerprint_match import Unit, pieces_of
from bridge.fingerprint_pairs import Piece
from bridge.fingerprint_readings import Leaves, Path, Reading, options
from bridge.fingerprint_run import Runner, Values
from bridge.fingerprint_values import Classes, Random, role_of
from bridge.proof import Pairing
from bridge.target import SlotPath
from bridge.transforms import apply_all

__all__ = ["Given", "Level", "State", "settled"]

Array: TypeAlias = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Level:
    """How freely leaves are read.

    Attributes:
        roles: different numbers for leaves of different names (bias, scale, ...).
        orders: all orders of axes that shapes allow.
        everything: unlikely cuts, too.
        without: zeros for biases where one side has more of them.
        pick: only this reading of each leaf; by which axis a stack is cut, say.
    """

    roles: bool = True
    orders: bool = False
    everything: bool = False
    without: bool = False
    pick: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """What a search starts from.

    Attributes:
        linen: runs the Linen model.
        nnx: runs the NNX model.
        kinds: of the slots.
        fixed: pairings that are settled.
        hints: pairings by name.
        initial: what rules put into slots that no leaf feeds.
        rng: random numbers by name.
    """

    linen: Runner
    nnx: Runner
    kinds: Mapping[SlotPath, str]
    fixed: tuple[Pairing, ...]
    hints: tuple[Pairing, ...]
    initial: Mapping[Path, Array]
    rng: Random


@dataclass
class State:
    """Which pieces are matched, at one level.

    Args:
        given: models and settled pairings.
        level: how leaves are read.

    Attributes:
        partners: the piece of a slot by the piece of a Linen leaf.
        back: the reverse.
        weak: pieces of Linen leaves that were paired by exclusion.
    """

    given: Given
    level: Level
    partners: dict[Piece, Piece] = field(default_factory=dict)
    back: dict[Piece, Piece] = field(default_factory=dict)
    weak: set[Piece] = field(default_factory=set)
    _values: tuple[Values, Values] | None = None

    def __post_init__(self) -> None:
        used = {p for pairing in self.given.fixed for p in pairing.sources}
        filled = {p for pairing in self.given.fixed for p in pairing.slots}
        filled |= self.given.initial.keys()
        self.linen: Leaves = _shapes(self.given.linen, used)
        self.nnx: Leaves = _shapes(self.given.nnx, filled)
        self.ours, self.theirs = options(
            self.linen,
            self.nnx,
            role_of if self.level.roles else lambda _: "",
            orders=self.level.orders,
            everything=self.level.everything,
        )
        if self.level.pick is not None:
            self.ours = _picked(self.ours, self.level.pick)
            self.theirs = _picked(self.theirs, self.level.pick)
        self.classes = Classes(
            self.linen, self.nnx, self.ours, self.theirs, self.given.rng,
            roles=self.level.roles, without=self.level.without,
        )  # fmt: skip
        self.fixed = settled(self.given, self.classes)

    def signature(self) -> object:
        """Equal for states in which the models are run with the same numbers."""
        first = [sorted(x.items()) for x in (self.ours, self.theirs)]
        return repr(first), self.classes.signature()

    def flat(self) -> bool:
        """Whether some leaf has one number in all places."""
        return any(x.size > 1 and np.ptp(x.real) == 0 and x.flat[0] != 0 for x in self.spread())

    def spread(self) -> list[Array]:
        """The numbers of all leaves that are to be paired."""
        ours, theirs = self.values()
        return [*(ours[p] for p in self.linen), *(theirs[p] for p in self.nnx)]

    def unmatched(self) -> list[Path]:
        """Leaves and slots with a piece that has no partner."""
        ours, theirs = self.open_units()
        return list(dict.fromkeys(u.path for u in (*ours, *theirs)))

    def match(self, ours: Unit, theirs: Unit) -> bool:
        """Note that two units are one thing; false when that contradicts what is known."""
        a, b = (ours.path, ours.piece), (theirs.path, theirs.piece)
        fits = ours.reading in self.ours[ours.path] and theirs.reading in self.theirs[theirs.path]
        if not fits or a in self.partners or b in self.back:
            return False
        self.ours[ours.path] = (ours.reading,)
        self.theirs[theirs.path] = (theirs.reading,)
        self._values = None
        self.partners[a] = b
        self.back[b] = a
        return True

    def proven(self) -> dict[Piece, Piece]:
        """Partners without those by exclusion."""
        return {a: b for a, b in self.partners.items() if a not in self.weak}

    def open_units(self) -> tuple[list[Unit], list[Unit]]:
        """The units of both sides that are not matched."""
        return (
            [u for u in pieces_of(self.ours, _sizes(self.linen))
             if (u.path, u.piece) not in self.partners],
            [u for u in pieces_of(self.theirs, _sizes(self.nnx))
             if (u.path, u.piece) not in self.back],
        )  # fmt: skip

    def own(self, piece: Piece, name: str = "own") -> Array:
        """Numbers that only one piece of a Linen leaf has."""
        path, n = piece
        size = math.prod(self.linen[path]) // self.ours[path][0].count
        noise = self.given.rng(f"{name} {n} " + "\0".join(path), size)
        return self.classes.styled(role_of(path), size, noise, zero=False)

    def values(self) -> tuple[Values, Values]:
        """Numbers for all leaves: their own if they are matched, else those of their class."""
        if self._values is None:
            self._values = self._made()
        return dict(self._values[0]), dict(self._values[1])

    def _made(self) -> tuple[Values, Values]:
        ours = {p: self._built(p, self.linen, self.ours, self._ours) for p in self.linen}
        theirs = {p: self._built(p, self.nnx, self.theirs, self._theirs) for p in self.nnx}
        return (
            self._typed(self.given.linen, ours | self.fixed[0]),
            self._typed(self.given.nnx, theirs | self.fixed[1]),
        )

    def _ours(self, piece: Piece, size: int) -> Array:
        return self.own(piece) if piece in self.partners else self.classes.vector(piece[0], size)

    def _theirs(self, piece: Piece, size: int) -> Array:
        if piece in self.back:
            return self.own(self.back[piece])
        return self.classes.vector(piece[0], size)

    @staticmethod
    def _built(
        path: Path, shapes: Leaves, readings: Mapping[Path, Sequence[Reading]],
        numbers: Callable[[Piece, int], Array],
    ) -> Array:  # fmt: skip
        shape, reading = shapes[path], readings[path][0]
        size = math.prod(shape) // reading.count
        return reading.built([numbers((path, n), size) for n in range(reading.count)], shape)

    @staticmethod
    def _typed(runner: Runner, values: Values) -> Values:
        specs = runner.model.specs
        full = {p: values[p].astype(np.complex128) * (1 + 0.5j)
                if np.issubdtype(specs[p].dtype, np.complexfloating)
                and not np.iscomplexobj(values[p]) else values[p]
                for p in runner.floats}  # fmt: skip
        return full | {p: np.asarray(values.get(p, np.ones(specs[p].shape)), specs[p].dtype)
                       for p in runner.others}  # fmt: skip


def _picked(
    readings: Mapping[Path, tuple[Reading, ...]], pick: int
) -> dict[Path, tuple[Reading, ...]]:
    return {p: (rs[min(pick, len(rs) - 1)],) for p, rs in readings.items()}


def _shapes(runner: Runner, without: set[Path]) -> dict[Path, tuple[int, ...]]:
    specs = runner.model.specs
    return {p: tuple(specs[p].shape) for p in runner.floats if p not in without}


def _sizes(shapes: Leaves) -> dict[Path, int]:
    return {p: math.prod(s) for p, s in shapes.items()}


def settled(given: Given, classes: Classes, name: str = "own") -> tuple[Values, Values]:
    """Numbers for the leaves of settled pairings; exact in bfloat16, so that casts change nothing.

    Args:
        given: models and pairings.
        classes: say what sort of numbers suit a leaf.
        name: for other numbers another name.
    """
    ours: Values = {}
    theirs: Values = dict(given.initial)
    for pairing in given.fixed:
        arrays = []
        for path in pairing.sources:
            spec = given.linen.model.specs[path]
            noise = given.rng(f"{name} " + "\0".join(path), spec.size)
            flat = classes.styled(role_of(path), spec.size, noise, zero=False)
            coarse = (flat.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
            arrays.append(coarse.astype(np.float64).reshape(spec.shape))
        ours |= dict(zip(pairing.sources, arrays, strict=True))
        if not pairing.slots or not pairing.sources:  # ignored; initialised
            continue
        made = apply_all(pairing.transforms, arrays)
        if len(made) == 1 and len(pairing.slots) > 1:
            made = made * len(pairing.slots)
        theirs |= {p: np.asarray(x).astype(np.float64)
                   for p, x in zip(pairing.slots, made, strict=True)}  # fmt: skip
    return ours, theirs
