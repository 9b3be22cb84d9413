"""Imports run one way: ``bridge`` may use ``legacy``; ``legacy`` knows neither it nor JAX."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("legacy", "bridge")
LEGACY_MAY_IMPORT = {"legacy", "numpy", "ml_dtypes", "msgpack", "tensorstore"}
HEAVY = ("jax", "jaxlib", "flax", "orbax", "optax", "tensorstore", "bridge")

MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path, *, at_load=False):
    """The modules that a file imports; with ``at_load``, only those imported when it is loaded."""
    waiting = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif at_load and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        elif at_load and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
        else:
            waiting.extend(ast.iter_child_nodes(node))


def test_there_are_modules_to_look_at():
    assert {name_of(path) for path in MODULES} >= {"legacy", "legacy.opening", "legacy.leaves"}


@pytest.mark.parametrize("path", sorted((ROOT / "legacy").rglob("*.py")), ids=name_of)
def test_legacy_imports_only_what_reads_files(path):
    roots = {name.partition(".")[0] for name in imports(path)}
    assert roots - set(sys.stdlib_module_names) <= LEGACY_MAY_IMPORT


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_itself_by_a_detour(package):
    known = {name_of(path): path for path in MODULES if name_of(path).startswith(package)}
    arrows = {
        name: {other for other in imports(path, at_load=True) if other in known} - {name, package}
        for name, path in known.items()
    }
    done: set[str] = set()

    def visit(name, above):
        assert name not in above, " -> ".join([*above, name])
        if name not in done:
            for other in sorted(arrows[name]):
                visit(other, [*above, name])
            done.add(name)

    for name in arrows:
        visit(name, [])


def test_importing_legacy_loads_neither_jax_nor_tensorstore():
    code = f"import sys, legacy; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
