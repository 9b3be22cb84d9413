"""Runs the code blocks of pages, and holds their printed output to what a page shows.

    python docs/blocks.py PAGE...            compare; exit code 1 when a page shows something else
    python docs/blocks.py --write PAGE...    put what was printed into the page

A page that was never run is wrong sooner or later, so no output on a page is typed by hand. The
blocks of a page run in its order, in one empty folder:

- ``python`` runs in the one namespace of the page; a ``text`` block right behind it is its output;
- with a caption, a block of any language is a file of that name;
- ``console`` holds commands behind ``$`` with their output (``python`` is this interpreter);
- ``toml`` is a set of rules;
- ``sh`` is installation, which a test compares with what the project's own scripts do.

Times and digests are not compared, nor how lines wrap, nor what Orbax logs on a slow machine; a
line ``...`` stands for any output.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_FENCE = re.compile(r"^(`{3,})(\{[\w-]+\})? ?(.*)$")
_OPTION = re.compile(r"^:(\w+): (.*)$")
_SECONDS = re.compile(r"\d+(\.\d+)? ?s\b")
_DIGEST = re.compile(r"\b[0-9a-f]{12,16}\b")
_SHELL = set("|&;<>$`*?")
_LOGGED = "WARNING:absl:"  # what Orbax logs when a machine is slow
ANYTHING = "..."


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: lines ``start`` to ``stop`` of its page are its text."""

    language: str
    caption: str
    start: int
    stop: int
    text: str


@dataclass(frozen=True, slots=True)
class Shown:
    """An output that a page shows, and the one that was printed."""

    start: int
    stop: int
    code: str
    expected: str
    printed: str

    @property
    def same(self) -> bool:
        """Whether the page is right."""
        return matches(self.expected, self.printed)

    def __str__(self) -> str:
        lines = difflib.unified_diff(
            self.expected.splitlines(), self.printed.splitlines(), "page", "printed", lineterm=""
        )
        return "\n".join([f"line {self.start + 1}: {self.code}", *lines])


def blocks(text: str) -> list[Block]:
    r"""All fenced blocks of a page.

    >>> blocks("```toml\na = 1\n```")[0].text
    'a = 1\n'
    """
    found: list[Block] = []
    lines = text.splitlines()
    n = 0
    while n < len(lines):
        fence = _FENCE.match(lines[n])
        n += 1
        if fence is None:
            continue
        caption = ""
        while fence[2] and (option := _OPTION.match(lines[n])):
            caption = option[2] if option[1] == "caption" else caption
            n += 1
        start, n = n, lines.index(fence[1], n)
        if fence[2] in {None, "{code-block}"}:  # other directives are no code
            text = "\n".join([*lines[start:n], ""])
            found.append(Block(fence[3].strip(), caption, start, n, text))
        n += 1
    return found


def matches(expected: str, printed: str) -> bool:
    r"""Whether an output is the one shown.

    >>> matches("a 1.5 s\n...", "a  30 s and\nmore")
    True
    """
    pieces = re.split(rf"^[ \t]*{re.escape(ANYTHING)}[ \t]*$", expected, flags=re.MULTILINE)
    pattern = ".*?".join(re.escape(_plain(piece)) for piece in pieces)
    return re.fullmatch(pattern, _plain(printed), re.DOTALL) is not None


def _plain(text: str) -> str:
    """Without what differs: times, how lines break for them, digests of what releases write."""
    return "".join(_DIGEST.sub("DIGEST", _SECONDS.sub("N s", text)).split())


@dataclass
class Page:
    """A page and the folder and namespace in which its blocks run."""

    path: Path
    folder: Path
    shown: list[Shown] = field(default_factory=list)
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})

    def run(self) -> list[Shown]:
        """Run every block.

        Returns:
            Each output that the page shows.

        Raises:
            Exception: whatever a block raises.
        """
        found = blocks(self.path.read_text(encoding="utf-8"))
        with _beside(self.folder):
            for n, block in enumerate(found):
                after = found[n + 1] if n + 1 < len(found) else None
                self._run(block, after)
        return self.shown

    def _run(self, block: Block, after: Block | None) -> None:
        if block.caption:
            target = self.folder / block.caption
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            printed = self._python(block)
            if after is not None and after.language == "text" and after.start - block.stop <= 3:  # noqa: PLR2004
                self._show(
                    after.start, after.stop, f"python, line {block.start + 1}", after.text, printed
                )
            elif printed:
                raise AssertionError(f"line {block.start + 1} prints what no page shows: {printed}")
        elif block.language == "console":
            self._console(block)
        elif block.language == "toml":
            _toml(block.text)
        elif block.language not in {"text", "sh"}:
            raise AssertionError(f"line {block.start}: nobody runs blocks of {block.language!r}")

    def _show(self, start: int, stop: int, code: str, expected: str, printed: str) -> None:
        printed = printed.replace(str(self.folder), "/home/you")
        self.shown.append(Shown(start, stop, code, expected, printed))

    def _python(self, block: Block) -> str:
        # the lines of the page, so that a traceback names them
        code = compile("\n" * block.start + block.text, str(self.path), "exec", dont_inherit=True)
        with contextlib.redirect_stdout(io.StringIO()) as out, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(code, self.names)  # noqa: S102 - that is what pages are here for
        return out.getvalue()

    def _console(self, block: Block) -> None:
        lines = block.text.splitlines()
        starts = [n for n, line in enumerate(lines) if line.startswith("$ ")]
        for n, stop in zip(starts, [*starts[1:], len(lines)], strict=True):
            first = n
            command = lines[n][2:]
            while command.endswith("\\"):
                first += 1
                command = f"{command[:-1]} {lines[first].strip()}"
            expected = "\n".join([*lines[first + 1 : stop], ""])
            printed = _command(command, self.folder)
            self._show(block.start + first + 1, block.start + stop, command, expected, printed)


def _command(command: str, folder: Path) -> str:
    """What a command prints on either stream; ``linen2nnx`` runs here, all else in a shell."""
    if command.startswith("linen2nnx ") and not _SHELL & set(command):
        from bridge.cli import main  # noqa: PLC0415 - pages without it need no bridge

        out = io.StringIO()
        with (
            _as_new_process(folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(out),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            code = main(shlex.split(command, comments=True)[1:])
        printed = out.getvalue()
    else:
        scripts = Path(sys.executable).parent
        done = subprocess.run(  # noqa: S602 - pages show pipes, too
            command,
            shell=True,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            env={
                **os.environ,
                "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
                "PYTHONWARNINGS": "ignore",
            },
        )
        code, printed = done.returncode, done.stdout
    lines = (line.rstrip() for line in printed.splitlines() if not line.startswith(_LOGGED))
    printed = "".join(f"{line}\n" for line in lines)
    return f"{printed}[exit code {code}]\n" if code else printed


def _toml(text: str) -> None:
    data = tomllib.loads(text)
    if data.keys() <= {"map", "ignore", "init", "cast"}:
        from bridge import Rules  # noqa: PLC0415

        Rules.from_toml(text)
    else:
        raise AssertionError("a block that is no set of rules needs a caption, and a use")


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[None]:
    """Run in a folder, at 80 columns on the CPU, and leave no imported module of it behind."""
    before, path, environ = Path.cwd(), list(sys.path), dict(os.environ)
    os.environ |= {"COLUMNS": "80", "JAX_PLATFORMS": "cpu", "NO_COLOR": "1"}
    os.environ.pop("CI", None)  # a page is what a person sees; goldens are not updated in CI
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = path
        os.environ.clear()
        os.environ.update(environ)
        _forget(folder)


@contextlib.contextmanager
def _as_new_process(folder: Path) -> Iterator[None]:
    """Import the modules of a folder as they are now, and leave those of the page alone."""
    mine = _forget(folder)
    try:
        yield
    finally:
        _forget(folder)
        sys.modules.update(mine)


def _forget(folder: Path) -> dict[str, Any]:
    """Take the modules of a folder out of those that are imported."""
    mine = {
        name: module
        for name, module in sys.modules.items()
        if str(getattr(module, "__file__", None) or "").startswith(str(folder))
    }
    for name in mine:
        del sys.modules[name]
    importlib.invalidate_caches()
    return mine


def run(path: Path) -> list[Shown]:
    """Run one page in a folder of its own.

    Args:
        path: the page; where it is that of the examples, they are in the folder, too.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        if path.parent.name == "conversion_examples":
            (folder / path.parent.name).symlink_to(path.parent.absolute())
        return Page(path, folder).run()


def write(path: Path, shown: list[Shown]) -> None:
    """Put what was printed into a page, where it is not what the page shows."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for one in reversed(shown):
        if not one.same:
            lines[one.start : one.stop] = (
                one.printed.rstrip("\n").split("\n") if one.printed else []
            )
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Compare or write pages; 1 when one shows what was not printed."""
    wrong = 0
    for name in arguments:
        if name.startswith("--"):
            continue
        path = Path(name).absolute()
        shown = run(path)
        differ = [one for one in shown if not one.same]
        if "--write" in arguments:
            write(path, shown)
        elif differ:
            wrong += len(differ)
            sys.stderr.write("".join(f"{name}, {one}\n" for one in differ))
        sys.stderr.write(f"{name}: {len(shown)} outputs, {len(differ)} differed\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
