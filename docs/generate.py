"""Writes the parts of the documentation that the program itself knows better than any author.

    python docs/generate.py [--check]

A page marks such a part by ``<!-- made by docs/generate.py: NAME -->`` and ``<!-- end -->``. With
``--check`` nothing is written, and the exit code is 1 when a page has something else.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"
sys.path.insert(0, str(DOCS.parent))

from bridge import rules_toml  # noqa: E402 - from this checkout
from bridge._arguments import make_parser  # noqa: E402
from bridge.cli import COMMANDS  # noqa: E402
from bridge.layer_rules import LAYER_RULES  # noqa: E402
from bridge.transforms import TRANSFORMS  # noqa: E402

_PART = re.compile(
    r"(?P<begin><!-- made by docs/generate\.py: (?P<name>[\w-]+) -->\n).*?(?P<end><!-- end -->)",
    re.DOTALL,
)


def main(arguments: list[str]) -> int:
    """Write or check all pages; 1 when one was not current."""
    pages = sorted(DOCS.glob("*.md"))
    stale = [page.name for page in pages if made(page) != page.read_text("utf-8")]
    if "--check" not in arguments:
        for name in stale:
            (DOCS / name).write_text(made(DOCS / name), encoding="utf-8")
        return 0
    for name in stale:
        sys.stderr.write(f"docs/{name} is not current: run python docs/generate.py\n")
    return 1 if stale else 0


def made(page: Path) -> str:
    """The text of a page with all generated parts as they should be."""

    def part(found: re.Match[str]) -> str:
        return f"{found['begin']}\n{PARTS[found['name']]().strip()}\n\n{found['end']}"

    return _PART.sub(part, page.read_text(encoding="utf-8"))


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    r"""A table in Markdown.

    >>> table(["a"], [["x|y"]]).splitlines()
    ['| a |', '|---|', '| x\\|y |']
    """
    head = list(head)
    lines = [head, *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    made = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([made[0], "|---" * len(head) + "|", *made[1:]])


def layer_rules() -> str:
    """Every layer rule with its example."""

    def cell(lines: Iterable[str]) -> str:
        return "<br>".join(f"`{line}`" for line in lines)

    return table(
        ["code", "what it does", "in the checkpoint", "in the model"],
        ([f"`{r.code}`", r.text, cell(r.before), cell(r.after)] for r in LAYER_RULES.values()),
    )


def transforms() -> str:
    """Every transform with its fields and the first sentence of its docstring."""
    return table(
        ["`op`", "fields", "what it does"],
        (
            [
                f"`{op}`",
                ", ".join(f"`{f.name}`" for f in fields(kind) if f.compare) or "–",
                sentence(kind.__doc__ or ""),
            ]
            for op, kind in TRANSFORMS.items()
        ),
    )


def sentence(text: str) -> str:
    """The first paragraph of a docstring, as Markdown."""
    first = " ".join(text.strip().split("\n\n")[0].split())
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", first).replace("``", "`")


def rule_tables() -> str:
    """The kinds of tables that a file of rules may have, with their keys."""
    return table(
        ["table", "needs", "may have"],
        (
            [
                f"`[[{name}]]`",
                ", ".join(f"`{k}`" for k in kind.needed),
                ", ".join(f"`{k}`" for k in kind.keys if k not in kind.needed),
            ]
            for name, kind in rules_toml._TABLES.items()  # noqa: SLF001 - the registry itself
        ),
    )


def from_readme(begin: str) -> Callable[[], str]:
    """The table of the README that comes first behind a text; tests hold it to the code."""

    def part() -> str:
        lines = README.read_text(encoding="utf-8").split(begin, 1)[1].splitlines()
        start = next(n for n, line in enumerate(lines) if line.startswith("|"))
        stop = next(n for n, line in enumerate(lines) if n > start and not line.startswith("|"))
        return "\n".join(lines[start:stop])

    return part


def command_line() -> str:
    """Every command with its arguments, without the layout that differs between Pythons."""
    parser = make_parser(COMMANDS)
    found = [sentence(parser.epilog or "")]
    for path, sub in commands(parser, ("linen2nnx",)):
        found += [f"## {' '.join(path)}", sentence(sub.description or ""), f"`{usage(path, sub)}`"]
        rows = [
            [spelling(action), (action.help or "").replace("%%", "%") or default(action)]
            for action in sub._actions  # noqa: SLF001 - argparse shows them nowhere else
            if action.dest != "help"
            and not isinstance(action, argparse._SubParsersAction)  # noqa: SLF001
            and action.help != argparse.SUPPRESS
        ]
        found += [table(["argument", "meaning"], rows)]
        if sub.epilog:
            found.append(sentence(sub.epilog))
    return "\n\n".join(found)


def commands(
    parser: argparse.ArgumentParser, path: tuple[str, ...]
) -> Iterable[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Every command that has no commands below it, with its words."""
    below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]  # noqa: SLF001
    if not below:
        yield path, parser
    for action in below:
        for name, sub in action.choices.items():
            yield from commands(sub, (*path, name))


def usage(path: tuple[str, ...], parser: argparse.ArgumentParser) -> str:
    """The words of a command, then what it cannot do without."""
    needed = []
    for action in parser._actions:  # noqa: SLF001
        name = f"{action.metavar or action.dest}"
        if not action.option_strings:
            many = {"+": f"{name}...", "*": f"[{name}...]", "?": f"[{name}]"}
            needed.append(many.get(str(action.nargs), name))
        elif action.required:
            needed.append(f"{action.option_strings[-1]} {name}")
    return " ".join([*path, *needed, "[options]"])


def spelling(action: argparse.Action) -> str:
    """How an argument is written."""
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    value = ""
    if action.nargs != 0:
        choices = "|".join(map(str, action.choices)) if action.choices else action.dest.upper()
        value = f" {action.metavar or choices}"
    return ", ".join(f"`{name}{value}`" for name in action.option_strings)


def default(action: argparse.Action) -> str:
    """What an argument without a help text is when it is not given."""
    return f"default: `{action.default}`"


def api(package: str, groups: Mapping[str, Iterable[str]]) -> Callable[[], str]:
    """Directives for everything public in a package, in groups; the rest of ``__all__`` last."""

    def part() -> str:
        module = __import__(package)
        left = [n for n in module.__all__ if not any(n in names for names in groups.values())]
        found = []
        for title, names in {**groups, "More": left}.items():
            present = [n for n in names if n in module.__all__]
            if present:
                found += [f"### {title}", *(directive(package, module, n) for n in present)]
        return "\n\n".join(found)

    return part


def directive(package: str, module: object, name: str) -> str:
    """How Sphinx is told to document one name."""
    value = getattr(module, name)
    kind, options = "autodata", ":no-value:"
    if isinstance(value, type):
        # the fields of a namedtuple are members already, and documented as attributes
        kind, options = "autoclass", "" if hasattr(value, "_fields") else ":members:"
        if issubclass(value, Exception):
            kind, options = "autoexception", ""
    elif callable(value):
        kind, options = "autofunction", ""
    elif hasattr(value, "__path__") or type(value).__name__ == "module":
        kind, options = "automodule", ":no-index:"
    lines = [f".. {kind}:: {package}.{name}", *([f"   {options}"] if options else [])]
    return "\n".join(["```{eval-rst}", *lines, "```"])


def sources() -> str:
    """Every example, whole."""
    found = []
    folder = DOCS.parent / "conversion_examples"
    for path in sorted(folder.glob("*.py")):
        found += [f"### {path.name}", f"```{{literalinclude}} ../{folder.name}/{path.name}\n```"]
    return "\n\n".join(found)


PARTS: Mapping[str, Callable[[], str]] = {
    "layer-rules": layer_rules,
    "transforms": transforms,
    "rule-tables": rule_tables,
    "built-in-rules": from_readme("The rules that the bridge brings itself"),
    "formats": from_readme("<!-- made by tests/e2e/format_table.py -->"),
    "whys": from_readme("Each pairing says why"),
    "places": from_readme("## Where things go"),
    "command-line": command_line,
    "sources": sources,
    "api-bridge": api(
        "bridge",
        {
            "What is called": "plan convert restore verify diff describe".split(),
            "Plans": "Plan Step Ignored Initialised Problem".split(),
            "Rules": "Rules Map Ignore Init CastRule Probe".split(),
            "Targets": "Target Slot SlotRef Empty".split(),
            "Results": "Converted Restored Verdict Difference Diff LeafDifference".split(),
            "Many checkpoints": "convert_fleet FleetReport read_ledger LedgerRow".split(),
        },
    ),
    "api-legacy": api(
        "legacy",
        {
            "What is called": "open find steps_of detect restore format_path parse_path".split(),
            "What comes back": "Checkpoint Format Run StepEntry Skipped LeafTable Leaf".split(),
        },
    ),
}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
