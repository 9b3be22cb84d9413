"""What running or tracing both models proved about their parameters. Plain values, no JAX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from bridge.target import SlotPath
from bridge.transforms import Transform
from legacy import LeafPath

__all__ = ["Pairing", "Proof", "Way"]

Way: TypeAlias = Literal["fingerprint", "dataflow"]


@dataclass(frozen=True, slots=True)
class Pairing:
    """Leaves of the checkpoint and the slots that they feed together.

    Attributes:
        sources: variable paths, collection first.
        slots: slot paths below the model.
        transforms: what makes the one of the other; none for a plain copy.
    """

    sources: tuple[LeafPath, ...]
    slots: tuple[SlotPath, ...]
    transforms: tuple[Transform, ...] = ()


@dataclass(frozen=True, slots=True)
class Proof:
    """What one way of comparing two models found.

    Attributes:
        way: which one.
        pairings: what it paired; each leaf in one pairing, each slot in one.
        same: whether both compute the same function, as far as it can see.
        verified: whether both gave the same outputs for independent random values in every leaf
            under ``pairings``.
        apart: the largest relative difference of the outputs; 0.0 when none was computed.
        ties: groups of leaves that no input can tell apart, as text; one choice was made by name.
        unproven: leaves of the pairings that no output or gradient depends on: they were paired
            by exclusion, and outputs say nothing about them.
        warnings: for the plan.
        parted: where the models part and the likely cause; empty when they do not.
    """

    way: Way
    pairings: tuple[Pairing, ...] = ()
    same: bool = False
    verified: bool = False
    apart: float = 0.0
    ties: tuple[str, ...] = ()
    unproven: tuple[LeafPath, ...] = ()
    warnings: tuple[str, ...] = ()
    parted: str = ""
