"""Turns Flax Linen checkpoints of every era into NNX checkpoints, and never silently wrong.

The names below are loaded when they are used: ``import bridge`` loads neither jax, flax, Orbax
nor TensorStore, so the command line starts at once.

>>> import bridge
>>> plan = bridge.plan("runs/exp1", model=lambda: CNN(rngs=nnx.Rngs(0)))  # doctest: +SKIP
>>> bridge.convert("runs/exp1", "runs_nnx/exp1", plan=plan, steps="all")  # doctest: +SKIP
>>> model, optimizer, extras = bridge.restore("runs/exp1", model=..., tx=...)  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridge import errors, transforms
    from bridge._convert import Converted, convert
    from bridge._describe import describe
    from bridge._diff import Diff, LeafDifference, diff
    from bridge._plan import Ignored, Initialised, Plan, Problem, Step
    from bridge._restore import Restored, restore
    from bridge._verdict import Difference, Verdict
    from bridge._verify import verify
    from bridge.errors import (
        BridgeError,
        FleetError,
        OutputExists,
        PlanMismatch,
        PlanProblems,
        RuleError,
        TargetError,
        TransformError,
        VerifyFailed,
        WriteFailed,
    )
    from bridge.fleet import FleetReport, convert_fleet
    from bridge.ledger import LedgerRow, read_ledger
    from bridge.planning import plan
    from bridge.probe import Probe
    from bridge.rules import CastRule, Ignore, Init, Map, Rules
    from bridge.target import Empty, Slot, SlotRef, Target

__all__ = [
    "BridgeError",
    "CastRule",
    "Converted",
    "Diff",
    "Difference",
    "Empty",
    "FleetError",
    "FleetReport",
    "Ignore",
    "Ignored",
    "Init",
    "Initialised",
    "LeafDifference",
    "LedgerRow",
    "Map",
    "OutputExists",
    "Plan",
    "PlanMismatch",
    "PlanProblems",
    "Probe",
    "Problem",
    "Restored",
    "RuleError",
    "Rules",
    "Slot",
    "SlotRef",
    "Step",
    "Target",
    "TargetError",
    "TransformError",
    "Verdict",
    "VerifyFailed",
    "WriteFailed",
    "convert",
    "convert_fleet",
    "describe",
    "diff",
    "errors",
    "plan",
    "read_ledger",
    "restore",
    "transforms",
    "verify",
]

_MODULES = {
    "bridge._convert": ("Converted", "convert"),
    "bridge._diff": ("Diff", "LeafDifference", "diff"),
    "bridge._plan": ("Ignored", "Initialised", "Plan", "Problem", "Step"),
    "bridge._restore": ("Restored", "restore"),
    "bridge._verdict": ("Difference", "Verdict"),
    "bridge._verify": ("verify",),
    "bridge._describe": ("describe",),
    "bridge.errors": tuple(
        n for n in __all__ if n.endswith(("Error", "Exists", "Mismatch", "Problems", "Failed"))
    ),
    "bridge.fleet": ("FleetReport", "convert_fleet"),
    "bridge.ledger": ("LedgerRow", "read_ledger"),
    "bridge.planning": ("plan",),
    "bridge.probe": ("Probe",),
    "bridge.rules": ("CastRule", "Ignore", "Init", "Map", "Rules"),
    "bridge.target": ("Empty", "Slot", "SlotRef", "Target"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
_SUBMODULES = frozenset({"errors", "transforms"})


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    elif name in _SUBMODULES:
        value = importlib.import_module(f"bridge.{name}")
    else:
        raise AttributeError(f"module 'bridge' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
