"""How commands speak: results to standard output, everything else to standard error."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

__all__ = [
    "fail",
    "no_collections",
    "note",
    "pipe",
    "print_text",
    "progress",
    "show",
    "width",
    "write_spec",
    "write_suggestions",
]

DONE, FAILED, NOT_COMPARED, INTERRUPTED = 0, 1, 2, 130
_MIN_WIDTH = 40


def fail(message: str, code: int = FAILED) -> int:
    """Say what went wrong, and give the exit code."""
    note(message)
    return code


def note(message: str) -> None:
    """Say something that is not the result."""
    with pipe():
        sys.stderr.write(f"linen2nnx: {message}\n")


def show(args: argparse.Namespace, text: Callable[[], str], data: Callable[[], Any]) -> int:
    """Print the result in the form that was asked for."""
    if args.json:
        from bridge._json import dumps  # noqa: PLC0415

        print_text(dumps(data()))
    else:
        print_text(text())
    return DONE


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """Leave the garbage alone: a command that ends soon makes none, and many leaves to look at.

    Nor is it looked for when the process ends.
    """
    import atexit  # noqa: PLC0415
    import gc  # noqa: PLC0415

    enabled = gc.isenabled()
    gc.disable()
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def print_text(text: str) -> None:
    """Print the result."""
    from bridge._text import printable  # noqa: PLC0415

    with pipe():
        sys.stdout.write(f"{printable(text)}\n")


@contextlib.contextmanager
def pipe() -> Iterator[None]:
    """A reader that has enough (``| head``) is no error, and does not stop a conversion."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_spec(path: str, data: Any) -> None:
    """Write a target spec to a file, and say so."""
    import json  # noqa: PLC0415

    Path(path).write_text(json.dumps(data, indent=1), encoding="utf-8")
    note(f"target spec written to {path}")


def write_suggestions(path: str, plan: Any) -> str:
    """Write suggested rules to a new file, and give what to say.

    Raises:
        OutputExists: the file is there; rules that somebody edited are not written over.
    """
    from bridge.errors import OutputExists  # noqa: PLC0415
    from bridge.suggest_file import suggestions  # noqa: PLC0415

    try:
        with Path(path).open("x", encoding="utf-8") as file:
            file.write(suggestions(plan))
    except FileExistsError as error:
        raise OutputExists(f"{path} is there already; give --suggest another name.") from error
    return f"suggested rules for {len(plan.problems)} problem(s) written to {path}"


def width() -> int:
    """Columns of the terminal; 80 where there is none."""
    import shutil  # noqa: PLC0415

    return max(_MIN_WIDTH, shutil.get_terminal_size((80, 24)).columns)


@contextlib.contextmanager
def progress(
    *, quiet: bool
) -> Iterator[tuple[Callable[[Path], None], Callable[[int, int], None] | None]]:
    """A progress bar on standard error, when somebody is watching."""
    if quiet or not sys.stderr.isatty():
        yield (lambda _: None), None
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import DownloadColumn, Progress, TextColumn  # noqa: PLC0415

    columns = (
        TextColumn("{task.description}"),
        *Progress.get_default_columns()[1:],
        DownloadColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        yield (
            lambda path: bar.update(task, description=path.name),
            lambda done, total: bar.update(task, completed=done, total=total),
        )
