"""The commands of batches: ``convert`` with several runs, and ``status``."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from bridge._terminal import DONE, FAILED, INTERRUPTED, note, print_text, show, width

__all__ = ["convert_runs", "is_fleet", "status"]


def is_fleet(args: argparse.Namespace) -> bool:
    """Whether ``convert`` is given more than one checkpoint or one run."""
    if len(args.paths) > 1 or args.fleet is not None or args.jobs > 1:
        return True
    if not Path(args.paths[0]).is_dir():
        return False
    import legacy  # noqa: PLC0415

    try:
        legacy.steps_of(args.paths[0])
    except legacy.AmbiguousCheckpoint:
        return True
    except legacy.LegacyError:
        return False  # converting it says what is wrong
    return False


def convert_runs(args: argparse.Namespace, planning: dict[str, Any]) -> int:
    """Convert everything below some folders.

    Args:
        args: of ``convert``.
        planning: keywords of :func:`bridge.plan`, imported.

    Returns:
        The exit code.
    """
    from bridge.fleet import convert_fleet  # noqa: PLC0415
    from bridge.fleet_progress import showing, style_of  # noqa: PLC0415
    from bridge.report_fleet import summary_json, summary_text  # noqa: PLC0415

    style = style_of(as_json=args.json)
    with showing(style) as tell:
        report = convert_fleet(
            args.paths,
            args.out,
            config=args.fleet,
            plan=args.plan,
            steps=args.steps,
            jobs=args.jobs,
            max_memory=args.max_memory,
            dry_run=args.dry_run,
            fail_fast=args.fail_fast,
            layout=args.layout,
            link=args.link,
            overwrite=args.overwrite,
            verify=args.verify or "values",
            sync=args.sync,
            compression=args.compression,
            on_event=tell,
            **planning,
        )
    if style == "json":
        import json  # noqa: PLC0415

        print_text(json.dumps(summary_json(report)))
    else:
        print_text(summary_text(report, _again(args), width()))
    if report.interrupted:
        note("interrupted; complete checkpoints stay, what was begun is or will be removed")
        return INTERRUPTED
    return DONE if report.ok else FAILED


def _again(args: argparse.Namespace) -> str:
    """The command that goes on with a batch: the same one, and never with ``--overwrite``."""
    given = [a for a in getattr(args, "argv", sys.argv[1:]) if a != "--overwrite"]
    return shlex.join(["linen2nnx", *given])


def status(args: argparse.Namespace) -> int:
    """Show the ledger of a batch.

    Args:
        args: of ``status``.

    Returns:
        The exit code: 1 while anything is failed.
    """
    from bridge.ledger import read_ledger  # noqa: PLC0415
    from bridge.report_fleet import status_json, status_text  # noqa: PLC0415

    rows = read_ledger(args.path)
    show(
        args,
        lambda: status_text(rows, failed=args.failed, width=width()),
        lambda: status_json(rows, failed=args.failed),
    )
    return FAILED if any(row.state == "failed" for row in rows) else DONE
