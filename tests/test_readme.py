"""The README says what is so."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from bridge.layer_rules import LAYER_RULES
from bridge.rules import Rules
from bridge.transforms import TRANSFORMS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# codes that a step, an ignored leaf or an initialised slot can carry without a user's rule
SOURCE = "\n".join(p.read_text(encoding="utf-8") for p in sorted((ROOT / "bridge").glob("*.py")))


def table(after: str) -> list[list[str]]:
    """The rows of the first table behind a heading or a phrase."""
    lines = README[README.index(after) :].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_the_toml_example_is_a_set_of_rules():
    (block,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    assert len(Rules.from_toml(block).rules) == 5


def test_the_table_of_transforms_is_the_registry():
    assert [row[0].strip("`") for row in table("| transform |")] == list(TRANSFORMS)


def test_the_table_of_layer_rules_is_the_registry():
    def cell(lines):
        return "<br>".join(f"`{line}`" for line in lines)

    wanted = [[f"`{r.code}`", r.text, cell(r.before), cell(r.after)] for r in LAYER_RULES.values()]
    assert table("| layer rule |") == wanted


def test_the_table_of_built_in_rules_is_what_the_planner_uses():
    codes = {row[0].strip("`") for row in table("| code |")}
    used = set(re.findall(r'rule:([a-z][a-z-]+)"', SOURCE))
    used |= set(re.findall(r'(?:ignore|carry|carry_copy|initialise)\([^()]*?"([a-z-]+)"', SOURCE))
    used -= {"zeros", "rng"}
    assert used <= codes, used - codes
    assert all(f'"{code}"' in SOURCE or f'rule:{code}"' in SOURCE for code in codes)


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_links_lead_somewhere(path):
    assert (ROOT / path).exists()


def test_the_two_commands_exist():
    for script in ("scripts/demo.sh", "scripts/test.sh"):
        assert script in README
        assert (ROOT / script).stat().st_mode & 0o100


def test_the_oldest_tested_releases_are_the_floors():
    tested = dict(
        line.split("==") for line in (ROOT / "tests/oldest.txt").read_text().splitlines()
        if "==" in line
    )  # fmt: skip
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"]:
        name, floor = requirement.split(">=")
        assert tested[name].startswith(floor), name
