"""What the pytest plugin does once it is used: fixtures, one test for each golden, updates.

Loaded when pytest is configured; jax, numpy and flax only come with the first golden.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bridge.cli_golden import in_ci

if TYPE_CHECKING:
    from bridge.golden import Golden
    from bridge.golden_report import Report

__all__ = ["Collector", "Fixtures", "GoldenFile", "GoldenItem", "switch_on"]

_DOCUMENT, _SOURCE = "golden.json", "source"  # as bridge.golden names them, which loads numpy
_NOTE = "linen_golden_note"
_USUAL = ("tests/goldens", "goldens")
"""Where a golden is looked for, from the root folder, when no setting says it."""


def switch_on(config: pytest.Config) -> None:
    """Register what a run of pytest uses.

    Args:
        config: of the run.

    Raises:
        pytest.UsageError: goldens would be updated where nobody sees it, or by several processes.
    """
    folders = golden_folders(config)
    if config.getoption("update_linen_goldens"):
        _refuse_update(config)
    if folders:
        for folder in folders:
            if not folder.is_dir():
                raise pytest.UsageError(f"linen_goldens: there is no folder {folder}")
        config.pluginmanager.register(Collector(folders), "linen-goldens-collector")
        _also_collect(config, folders)
    # pytest-golden has a fixture of that name: a suite that uses it keeps it
    shared = config.pluginmanager.hasplugin("golden") and not folders
    config.pluginmanager.register(Asserts() if shared else Fixtures(), "linen-goldens-fixtures")


def golden_folders(config: pytest.Config) -> list[Path]:
    """The folders of goldens that the settings and the command line name."""
    asked = config.getoption("linen_goldens")
    here = config.invocation_params.dir
    return list(dict.fromkeys([*config.getini("linen_goldens"), *(here / p for p in asked)]))


def _refuse_update(config: pytest.Config) -> None:
    if in_ci():
        raise pytest.UsageError(
            "goldens are not updated where CI is set: nobody would see what changes. Update them "
            "at home and commit them."
        )
    workers = config.getoption("numprocesses", None) or hasattr(config, "workerinput")
    if workers:
        raise pytest.UsageError(
            "goldens are not updated by several processes at once: leave -n away (-n 0)."
        )


def _also_collect(config: pytest.Config, folders: Iterable[Path]) -> None:
    """Folders that pytest would not come by: asked for by option, or with no path at all."""
    asked = {config.invocation_params.dir / p for p in config.getoption("linen_goldens")}
    source, of = config.args_source, pytest.Config.ArgsSource
    in_root = config.invocation_params.dir == config.rootpath
    everything = source == of.TESTPATHS or (source == of.INVOCATION_DIR and in_root)
    given = [(config.invocation_params.dir / str(a).partition("::")[0]).resolve()
             for a in config.args]  # fmt: skip
    for folder in folders:
        place = folder.resolve()
        if (everything or folder in asked) and not any(
            g == place or g in place.parents for g in given
        ):
            config.args.append(str(place))


class Collector:
    """Turns ``golden.json`` below some folders into tests.

    Args:
        folders: where goldens are.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders = [folder.resolve() for folder in folders]

    def _ours(self, path: Path) -> bool:
        place = path.resolve()
        return any(folder == place or folder in place.parents for folder in self._folders)

    def pytest_collect_file(
        self, file_path: Path, parent: pytest.Collector
    ) -> pytest.Collector | None:
        """A golden is a file with one test."""
        if file_path.name == _DOCUMENT and self._ours(file_path):
            found: pytest.Collector = GoldenFile.from_parent(parent, path=file_path)
            return found
        return None

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        """The source of a golden is data, whatever its files are called."""
        if collection_path.name != _SOURCE or not self._ours(collection_path):
            return None
        return True if (collection_path.parent / _DOCUMENT).is_file() else None

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say what passed with a note."""
        notes = []
        for report in terminalreporter.stats.get("passed", ()):
            notes += [text for key, text in report.user_properties if key == _NOTE]
        if notes:
            terminalreporter.section("linen goldens")
            for note in notes:
                terminalreporter.line(note)


class GoldenFile(pytest.File):
    """The file ``golden.json`` of one golden."""

    def collect(self) -> Iterator[pytest.Item]:
        """Its one test."""
        yield GoldenItem.from_parent(self, name=self.path.parent.name)


class GoldenItem(pytest.Item):
    """One golden, as a test."""

    def runtest(self) -> None:
        """Hold it against today's code."""
        from bridge.golden import Golden  # noqa: PLC0415 - loads numpy

        _hold(self, Golden.load(self.path.parent))

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        """What differs is the whole story: no traceback of ours."""
        from bridge.errors import BridgeError  # noqa: PLC0415

        if isinstance(excinfo.value, (AssertionError, BridgeError)):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Where it is."""
        return self.path, None, f"golden {self.name}"


def _hold(item: pytest.Item, golden: Golden, **given: Any) -> Report:
    """Check a golden, or bring it up to date where that was asked for."""
    __tracebackhide__ = True
    report = golden.check(**given)
    if not report.ok and item.config.getoption("update_linen_goldens"):
        if any(value is not None for value in given.values()):
            raise AssertionError(
                f"{report}\n  not updated: the test gives the model itself, which a golden cannot "
                "name. Make the golden with --model, and leave the model of the test away."
            )
        report = _updated(item, golden)
    if not report.ok:
        raise AssertionError(str(report))
    item.user_properties += [(_NOTE, f"{report.name}: {note}") for note in report.notes]
    return report


def _updated(item: pytest.Item, golden: Golden) -> Report:
    from bridge.golden_update import update_golden  # noqa: PLC0415 - loads numpy

    def tell(update: Any) -> None:
        """Show the change on the terminal, whatever is captured."""
        capture: Any = item.config.pluginmanager.get_plugin("capturemanager")
        reporter: Any = item.config.pluginmanager.get_plugin("terminalreporter")
        with capture.global_and_fixture_disabled():
            reporter.ensure_newline()
            reporter.line(str(update))

    done = update_golden(golden, tell=tell)
    said = f"{golden.name}: updated; look at `git diff {golden.path}` before you commit"
    item.user_properties.append((_NOTE, said))
    return done.golden.check()


class Asserts:
    """The fixture that no other plugin has."""

    @pytest.fixture
    def assert_converts_to_golden(self, request: pytest.FixtureRequest) -> Callable[..., Report]:
        """Assert that today's code does with a golden what was recorded.

        ``assert_converts_to_golden("NAME")``; with ``model=`` and ``tx=`` instead of those that
        the golden names, and ``behaviour=False`` without running the model.
        """

        def hold(name: str | os.PathLike[str], **given: Any) -> Report:
            __tracebackhide__ = True
            return _hold(request.node, find(request, name), **given)

        return hold


class Fixtures(Asserts):
    """All fixtures."""

    @pytest.fixture
    def golden(self, request: pytest.FixtureRequest) -> Callable[[str], Golden]:
        """Give a golden by name: its plan, checkpoint, ``convert(out)`` and ``restore()``."""
        return lambda name: find(request, name)


def find(request: pytest.FixtureRequest, name: str | os.PathLike[str]) -> Golden:
    """The golden of a name: in the folders of the settings, else beside the test or where usual.

    Args:
        request: of the test.
        name: a name, or a path from the test's folder.

    Raises:
        GoldenError: there is none; says which there are.
    """
    from bridge.golden import Golden, GoldenError  # noqa: PLC0415 - loads numpy

    config, here = request.config, request.path.parent
    roots = golden_folders(config) or [
        here / "goldens", *(config.rootpath / usual for usual in _USUAL)
    ]  # fmt: skip
    for root in (*roots, here):
        if (root / name / _DOCUMENT).is_file():
            return Golden.load(root / name)
    known = sorted({p.parent.relative_to(root).as_posix() for root in roots if root.is_dir()
                    for p in root.rglob(_DOCUMENT)})  # fmt: skip
    import difflib  # noqa: PLC0415 - only after a mistake

    near = difflib.get_close_matches(str(name), known, n=1) or known[:8]
    said = f" There {'is' if len(near) == 1 else 'are'} {', '.join(near)}." if near else ""
    raise GoldenError(
        f"there is no golden {str(name)!r} in {', '.join(map(str, roots))}.{said} Make one with "
        f"`linen2nnx golden make CHECKPOINT --model pkg.mod:fn -o {roots[-1] / name}`."
    )
