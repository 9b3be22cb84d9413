"""The documentation says what is so: blocks run, tables are made, and nothing is left out."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

import bridge
import legacy

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
ERRORS = (DOCS / "errors.md").read_text(encoding="utf-8")


def tool(name):
    """A module of ``docs``, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


_KIND = re.compile(r"[a-z]+(-[a-z]+)*")  # transforms refuse, too, in sentences

blocks = tool("blocks")
generate = tool("generate")


def in_page(page):
    return blocks.blocks(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(b.language != "sh" for b in in_page(p))], ids=lambda p: p.stem
)
def test_the_blocks_of_a_page_print_what_it_shows(page):
    wrong = [str(shown) for shown in blocks.run(page) if not shown.same]
    assert not wrong, "\n".join(wrong)


def test_a_page_that_shows_something_else_is_found_out(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1.5, 's')\n```\n\n```text\n2 s\n3\n```\n")
    (shown,) = blocks.run(page)
    assert not shown.same
    blocks.write(page, [shown])
    assert page.read_text().endswith("```text\n1.5 s\n```\n")
    (shown,) = blocks.run(page)
    assert shown.same


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```python\nprint(1)\n```\n", "no page shows"),
        ("```fortran\nx\n```\n", "nobody runs"),
        ("```toml\n[[mapp]]\n```\n", "no set of rules"),
    ],
)
def test_a_block_that_nobody_checks_is_refused(tmp_path, text, error):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(AssertionError, match=error):
        blocks.run(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_generated_parts_are_current(page):
    assert generate.made(page) == page.read_text(encoding="utf-8")


def test_every_generated_part_is_on_a_page():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert set(re.findall(r"made by docs/generate\.py: ([\w-]+)", text)) == set(generate.PARTS)


def test_the_installation_is_that_of_the_project():
    """What the tests cannot run without a network is what ``scripts/setup.sh`` does."""
    (block,) = [b for b in in_page(DOCS / "quickstart.md") if b.language == "sh"]
    make, activate, install = map(shlex.split, block.text.splitlines())
    setup = (ROOT / "scripts" / "setup.sh").read_text()
    assert make == ["python3", "-m", "venv", ".venv"]
    assert '-m venv --clear "$venv"' in setup
    assert activate == [".", ".venv/bin/activate"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert install == ["pip", "install", f"./{project['name']}"]
    assert "-m pip install" in setup


@functools.cache
def nodes():
    """Every class and every call of both packages."""
    return [
        node
        for package in ("bridge", "legacy")
        for path in sorted((ROOT / package).glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.ClassDef, ast.Call))
    ]


def name_of(node):
    """The last part of a dotted name."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def errors():
    """Every public error, wherever it lives."""
    classes = [node for node in nodes() if isinstance(node, ast.ClassDef)]
    found = {"BridgeError", "LegacyError"}
    while more := {c.name for c in classes if {name_of(base) for base in c.bases} & found} - found:
        found |= more
    return {name for name in found if not name.startswith("_")}


def headings():
    return set(re.findall(r"^#{2,3} `([\w-]+)`$", ERRORS, re.MULTILINE))


def kinds():
    """Every kind of problem that some module can make."""
    found = set()
    for node in nodes():
        if isinstance(node, ast.Call) and name_of(node.func) in {"Problem", "refuse"}:
            first = [*node.args, *(k.value for k in node.keywords if k.arg == "kind")][0]
            # ``"ambiguous" if same else "unmatched-source"`` makes two
            either = isinstance(first, ast.IfExp)
            parts = (first.body, first.orelse) if either else (first,)
            said = {part.value for part in parts if isinstance(part, ast.Constant)}
            found |= {kind for kind in said if re.fullmatch(_KIND, kind)}
    return found


def test_every_error_and_every_kind_of_problem_has_an_entry_and_no_other():
    assert {"unmatched-source", "unfilled-slot", "ambiguous", "loss"} <= kinds()
    assert {"PlanProblems", "DamagedCheckpoint"} <= errors()
    assert headings() == errors() | kinds()


def test_the_docstring_of_problems_names_every_kind():
    named = set(re.findall(r"``([a-z-]+)``", bridge.Problem.__doc__.split("message:")[0]))
    assert named == kinds()


def test_every_entry_says_what_to_do():
    entries = re.split(r"^#{2,3} `", ERRORS, flags=re.MULTILINE)[1:]
    silent = [e.partition("`")[0] for e in entries if "**Do:**" not in e]
    assert silent == ["LegacyError"]  # a root that is never raised itself


@pytest.mark.parametrize("package", [bridge, legacy], ids=lambda p: p.__name__)
def test_everything_public_is_in_the_reference(package):
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    documented = set(re.findall(rf"^\.\. auto\w+:: {package.__name__}\.(\w+)$", text, re.MULTILINE))
    assert documented == set(package.__all__)


def test_every_example_is_run_by_its_page():
    folder = ROOT / "conversion_examples"
    page = (folder / "README.md").read_text(encoding="utf-8")
    run = re.findall(r"^\$ .*conversion_examples/(\w+\.py)", page, re.MULTILINE)
    assert sorted(run) == sorted(p.name for p in folder.glob("*.py"))
    assert "Traceback" not in page


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_page_can_be_reached(page):
    trees = re.findall(r"```\{toctree\}.*?```", (DOCS / "index.md").read_text(), re.DOTALL)
    listed = {line for tree in trees for line in tree.splitlines()}
    assert page.stem == "index" or page.stem in listed
