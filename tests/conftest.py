"""``--sample N``: of the cases of each test function only every Nth, for a second set of releases.

The newest releases run everything. The oldest run every test function too, but of a hundred cases
that differ in their input alone a part is enough to show that the releases serve.
"""

from __future__ import annotations

import pytest


def pytest_addoption(parser):
    parser.addoption(
        "--sample",
        type=int,
        default=1,
        metavar="N",
        help="of the cases of each test function run every Nth",
    )


def pytest_collection_modifyitems(config, items):
    every = config.getoption("--sample")
    if every == 1:
        return
    seen: dict[object, int] = {}
    kept, left = [], []
    for item in items:
        if not isinstance(item, pytest.Function):
            kept.append(item)
            continue
        n = seen[item.path, item.originalname] = seen.get((item.path, item.originalname), -1) + 1
        (left if n % every else kept).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = kept


@pytest.fixture
def call(capsys, monkeypatch):
    """Run the command line in this process: exit code, standard output, standard error."""
    from bridge import cli

    monkeypatch.setenv("COLUMNS", "80")

    def called(*args):
        code = cli.main([str(a) for a in args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return called
