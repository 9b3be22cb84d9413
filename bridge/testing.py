"""The pytest plugin: goldens as tests. Installed with the package, and off unless it is used.

This module is loaded whenever pytest starts in an environment that has the package, so it imports
nothing but pytest, adds no hook that runs for each file or test of others, and takes no name that
a test suite may have given away already: ``--update-goldens`` is ours only where nobody else has
it (``--update-linen-goldens`` always is), and the fixture ``golden`` is left to pytest-golden.

.. code-block:: toml

    [tool.pytest.ini_options]
    linen_goldens = ["tests/goldens"]  # every golden below is a test

.. code-block:: python

    def test_our_old_run(assert_converts_to_golden):
        assert_converts_to_golden("exp1", model=make_model)
"""

from __future__ import annotations

import importlib
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from bridge.golden import Golden, GoldenError, find_goldens
    from bridge.golden_check import check_golden
    from bridge.golden_make import Small, make_golden
    from bridge.golden_report import Finding, Report
    from bridge.golden_update import Update, update_golden

__all__ = [
    "Finding",
    "Golden",
    "GoldenError",
    "Report",
    "Small",
    "Update",
    "check_golden",
    "find_goldens",
    "make_golden",
    "update_golden",
]

_HOME = {
    "Golden": "bridge.golden",
    "GoldenError": "bridge.golden",
    "find_goldens": "bridge.golden",
    "Finding": "bridge.golden_report",
    "Report": "bridge.golden_report",
    "check_golden": "bridge.golden_check",
    "Small": "bridge.golden_make",
    "make_golden": "bridge.golden_make",
    "Update": "bridge.golden_update",
    "update_golden": "bridge.golden_update",
}
_UPDATE = "--update-goldens"
_OURS = "--update-linen-goldens"


def __getattr__(name: str) -> Any:
    # no __dir__ beside it: pytest asks a plugin for everything that it names
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options and the setting."""
    group = parser.getgroup("linen goldens", "goldens of Flax checkpoints (linen-nnx-bridge)")
    group.addoption(
        "--linen-goldens",
        action="append",
        default=[],
        metavar="DIR",
        help="also run every golden at or below DIR as a test",
    )
    group.addoption(
        _OURS,
        action="store_true",
        default=False,
        dest="update_linen_goldens",
        help=f"show what changes in goldens that fail, and write them; {_UPDATE} is the same, "
        "where no other plugin has an option of that name",
    )
    parser.addini(
        "linen_goldens",
        type="paths",
        default=[],
        help="folders of goldens, each of which is a test",
    )


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(
    parser: pytest.Parser, args: list[str]
) -> Generator[None, object, object]:
    """Take ``--update-goldens`` where nobody else has it, once everybody has been asked."""
    result = yield
    if _UPDATE in args:
        _, unknown = parser.parse_known_and_unknown_args([_UPDATE])
        if _UPDATE in unknown:
            args[:] = [_OURS if arg == _UPDATE else arg for arg in args]
    return result


def pytest_configure(config: pytest.Config) -> None:
    """Switch on what is used."""
    from bridge.golden_pytest import switch_on  # noqa: PLC0415 - only once pytest is running

    switch_on(config)
