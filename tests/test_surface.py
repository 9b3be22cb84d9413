"""The public surface: a short list, documented, with names that keep meaning what they mean."""

from __future__ import annotations

import doctest
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import bridge
import legacy

ROOT = Path(__file__).parents[1]

LEGACY = """
    AmbiguousCheckpoint CannotLook Checkpoint CheckpointNotFound DamagedCheckpoint Format Leaf
    LeafPath LeafTable LegacyError NotACheckpoint Run Skipped StepEntry TargetMismatch
    UnsupportedCheckpoint detect find format_path open parse_path restore steps_of
""".split()

BRIDGE = """
    BridgeError CastRule Converted Diff Difference Empty FleetError FleetReport Ignore Ignored
    Init Initialised LeafDifference LedgerRow Map OutputExists Plan PlanMismatch PlanProblems Probe
    Problem Restored RuleError Rules Slot SlotRef Step Target TargetError TransformError Verdict
    VerifyFailed WriteFailed convert convert_fleet describe diff errors plan read_ledger restore
    transforms verify
""".split()

# what scripts outside the project call; a keyword here is a promise
KEYWORDS = {
    legacy.open: {"step"},
    legacy.restore: {"target", "step", "item", "at", "defaults"},
    bridge.plan: {
        "model", "tx", "linen", "sample_input", "methods", "allow_order", "rules", "transforms",
        "step", "at", "seed", "rngs",
    },
    bridge.restore: {"model", "tx", "plan"},
    bridge.convert: {
        "plan", "model", "tx", "rules", "steps", "layout", "link", "overwrite", "verify",
    },
    bridge.verify: {"plan", "linen", "sample_input"},
}  # fmt: skip

PUBLIC = [(legacy, n) for n in LEGACY] + [(bridge, n) for n in BRIDGE]
MODULES = sorted(
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in ("legacy", "bridge")
    for p in (ROOT / package).rglob("*.py")
    if p.stem != "__main__"
)


def test_the_public_names_are_these():
    assert sorted(legacy.__all__) == LEGACY
    assert sorted(bridge.__all__) == BRIDGE


@pytest.mark.parametrize(("package", "name"), PUBLIC, ids=lambda v: getattr(v, "__name__", v))
def test_a_public_name_is_documented(package, name):
    thing = getattr(package, name)
    if inspect.isclass(thing) or inspect.isfunction(thing):
        assert thing.__doc__
        assert not thing.__doc__.startswith(f"{name}("), "a dataclass's own signature says nothing"


@pytest.mark.parametrize(
    "function",
    [legacy.open, legacy.find, legacy.restore, bridge.plan, bridge.restore, bridge.convert,
     bridge.verify, bridge.diff, bridge.describe],
    ids=lambda f: f"{f.__module__}.{f.__name__}",
)  # fmt: skip
def test_a_public_function_says_what_it_takes_returns_and_raises_and_shows_a_call(function):
    text = function.__doc__
    for part in ("Args:", "Returns:", "Raises:", ">>> "):
        assert part in text, part


@pytest.mark.parametrize("function", KEYWORDS, ids=lambda f: f"{f.__module__}.{f.__name__}")
def test_the_keywords_that_scripts_use_stay(function):
    assert KEYWORDS[function] <= set(inspect.signature(function).parameters)


def test_a_function_never_hides_a_module_nor_a_module_a_function():
    code = (
        "import importlib, bridge\n"
        f"for m in {MODULES!r}: importlib.import_module(m)\n"
        "for n in ('plan', 'restore', 'convert', 'verify', 'diff', 'describe'):\n"
        "    assert callable(getattr(bridge, n)), n\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_opens_with_why_it_exists_and_its_examples_run(name):
    module = importlib.import_module(name)
    assert module.__doc__, "a module says why it exists"
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
