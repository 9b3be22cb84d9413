"""How a batch shows how far it is: a live display for a terminal, lines for a pipe, JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from bridge._terminal import note, pipe, print_text, width
from bridge._text import size
from bridge.report_fleet import checkpoint_line, groups_json, groups_text

__all__ = ["Style", "showing", "style_of"]

Style = Literal["live", "lines", "json"]
Event = Callable[[Mapping[str, Any]], None]

_HIDDEN = ("looked", "planned")


def style_of(*, as_json: bool) -> Style:
    """How to show progress: live where somebody watches and nothing is piped."""
    if as_json:
        return "json"
    return "live" if sys.stdout.isatty() and sys.stderr.isatty() else "lines"


@contextmanager
def showing(style: Style) -> Iterator[Event]:
    """Show events as they come.

    Args:
        style: see :func:`style_of`.

    Yields:
        What is to be called with each event of :func:`bridge.fleet.convert_fleet`.
    """
    if style == "live":
        with _live() as tell:
            yield tell
    else:
        yield _json if style == "json" else _lines


def _json(event: Mapping[str, Any]) -> None:
    if event["event"] in _HIDDEN:
        return
    if event["event"] == "groups":
        event = groups_json(event["report"], event["tasks"])
    with pipe():
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()


def _lines(event: Mapping[str, Any]) -> None:
    if event["event"] == "groups":
        print_text(groups_text(event["report"], event["tasks"], width()))
    elif event["event"] == "checkpoint":
        print_text(checkpoint_line(event))
    elif event["event"] == "stopping":
        _say_stopping(event)
    with pipe():
        sys.stdout.flush()


def _say_stopping(event: Mapping[str, Any]) -> None:
    note(
        f"stopping: {event['in_hand']} in hand may finish within {event['seconds']:.0f} s, then "
        "they are rolled back; Ctrl-C again stops at once"
    )


@contextmanager
def _live() -> Iterator[Event]:
    from rich.console import Console  # noqa: PLC0415 - only on a terminal
    from rich.progress import (  # noqa: PLC0415 - same
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[about]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True) as bar:
        looking = bar.add_task("looking", total=None, about="")
        working: list[Any] = []
        sums = {"bytes": 0, "failed": 0}

        def about() -> str:
            spent = bar.tasks[-1].elapsed or 0.0
            rate = f", {size(int(sums['bytes'] / spent))}/s" if spent >= 1 else ""
            failed = f", [red]{sums['failed']} failed[/red]" if sums["failed"] else ""
            return f"{size(sums['bytes'])}{rate}{failed}"

        def tell(event: Mapping[str, Any]) -> None:
            kind = event["event"]
            if kind == "looked":
                bar.update(looking, completed=event["done"], total=event["of"])
            elif kind == "groups":
                bar.remove_task(looking)
                text = groups_text(event["report"], event["tasks"], width())
                console.print(text, markup=False, highlight=False, soft_wrap=True)
                working.append(bar.add_task("converting", total=event["tasks"], about=""))
            elif kind == "checkpoint":
                sums["bytes"] += event["nbytes"] if event["state"] == "done" else 0
                sums["failed"] += event["state"] == "failed"
                if event["state"] == "failed":
                    line = checkpoint_line(event)
                    console.print(line, markup=False, highlight=False, soft_wrap=True)
                bar.update(working[0], advance=1, about=about())
            elif kind == "stopping":
                _say_stopping(event)

        yield tell
