"""The command line: a thin shell over the public functions.

Starts without numpy and without JAX; each command imports what it needs. Standard output carries
the result and nothing else, so that it can be piped; everything else goes to standard error.

Exit codes: 0 done; 1 a checkpoint failed or has leaves that cannot be read, a plan has problems,
or a difference was found; 2 wrong usage, or (``diff``) there was no way to compare; 130
interrupted.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bridge._arguments import make_parser
from bridge._terminal import (
    DONE,
    FAILED,
    INTERRUPTED,
    NOT_COMPARED,
    fail,
    no_collections,
    note,
    pipe,
    print_text,
    progress,
    show,
    width,
    write_spec,
    write_suggestions,
)

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``linen2nnx``.

    Args:
        argv: the arguments; default: those of the process.

    Returns:
        The exit code.

    Raises:
        SystemExit: after ``--help`` and ``--version`` (0) and after wrong usage (2).

    >>> main(["inspect", "/no/such/checkpoint"])
    1
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower() != "utf-8":
        sys.stdout.reconfigure(errors="backslashreplace")
    args = make_parser(COMMANDS).parse_args(argv)
    args.argv = list(sys.argv[1:] if argv is None else argv)
    try:
        code: int = args.run(args)
    except KeyboardInterrupt:
        return fail("interrupted", INTERRUPTED)
    except Exception as error:
        if args.debug or not _expected(error):
            raise
        if getattr(args, "json", False):
            told = {"error": {"kind": type(error).__name__, "message": str(error)}}
            show(args, str, lambda: told)
        return fail(f"error: {error}", _exit_code(args, error))
    with pipe():
        sys.stdout.flush()
    return code


def _exit_code(args: argparse.Namespace, error: Exception) -> int:
    from bridge.errors import FleetError  # noqa: PLC0415 - only after an error

    return NOT_COMPARED if args.run is _diff or isinstance(error, FleetError) else FAILED


def _inspect(args: argparse.Namespace) -> int:
    with no_collections():  # of what is imported, too
        from bridge import report_inspect as report  # noqa: PLC0415
        from bridge.report_json import run_json  # noqa: PLC0415

        runs, checkpoint = _look(args.path, args.step)
        listed = {"runs": [run_json(run) for run in runs], "checkpoint": None}
        if checkpoint is None:
            if args.leaf is not None:
                _refuse_leaf(args, runs)
            return show(args, lambda: report.runs_text(runs, width()), lambda: listed)
        if args.leaf is not None:
            return _leaves(args, checkpoint)
        return _whole(args, listed, runs, checkpoint)


def _whole(args: argparse.Namespace, listed: Any, runs: tuple[Any, ...], checkpoint: Any) -> int:
    from dataclasses import replace  # noqa: PLC0415

    from bridge import report_inspect as report  # noqa: PLC0415
    from bridge.report_json import checkpoint_json  # noqa: PLC0415
    from bridge.roles import find_roles  # noqa: PLC0415

    roles = find_roles(checkpoint.leaves)

    def text() -> str:
        if not runs or (runs[0].kind == "single" and not runs[0].skipped):
            return report.checkpoint_text(checkpoint, roles, width())
        alone = replace(checkpoint, skipped=())  # the run above it has told them
        said = report.checkpoint_text(alone, roles, width())
        return f"{report.run_text(runs[0], width())}\n\n{said}"

    show(args, text, lambda: {**listed, "checkpoint": checkpoint_json(checkpoint, roles)})
    lost = report.unreadable_count(checkpoint)
    if lost:
        return fail(f"{lost:,} {'leaf' if lost == 1 else 'leaves'} cannot be read")
    return DONE


def _look(path: str, step: float | None) -> tuple[tuple[Any, ...], Any]:
    """The runs at a path and the checkpoint to show: none of it when there are several."""
    import legacy  # noqa: PLC0415

    try:
        checkpoint = legacy.open(path, step=step)
    except (
        legacy.AmbiguousCheckpoint,
        legacy.NotACheckpoint,
        legacy.CheckpointNotFound,
    ):
        runs = legacy.find(path) if step is None and Path(path).is_dir() else ()
        if not any(run.steps for run in runs):
            raise
        return runs, None
    if not Path(path).is_dir() or checkpoint.path.samefile(path):
        return (), checkpoint
    return (legacy.steps_of(path),), checkpoint


def _leaves(args: argparse.Namespace, checkpoint: Any) -> int:
    from bridge import report_leaf as report  # noqa: PLC0415
    from bridge._stats import find_leaves, look  # noqa: PLC0415
    from legacy import parse_path  # noqa: PLC0415

    seen = [look(path, leaf) for path, leaf in find_leaves(checkpoint, args.leaf).items()]
    if len(seen) == 1 and (seen[0].path == () or parse_path(args.leaf) != ()):
        show(args, lambda: report.look_text(seen[0], width()), lambda: report.look_json(seen[0]))
    else:
        data = {"path": args.leaf, "leaves": report.looks_json(seen)}
        show(args, lambda: report.looks_text(seen, width()), lambda: data)
    return FAILED if any(one.problem is not None for one in seen) else DONE


def _refuse_leaf(args: argparse.Namespace, runs: tuple[Any, ...]) -> None:
    from bridge.errors import BridgeError  # noqa: PLC0415

    first = next(run for run in runs if run.steps)
    raise BridgeError(
        f"{args.path} holds {len(runs)} runs and checkpoints; --leaf needs the path of one, such "
        f"as {first.path}."
    )


def _plan(args: argparse.Namespace) -> int:
    from bridge import planning, report  # noqa: PLC0415

    running = _running(args)
    model, tx = _target(args)
    if args.save_target:
        from bridge._describe import describe  # noqa: PLC0415

        write_spec(args.save_target, describe(model, tx).to_json())
    made = planning.plan(
        args.path,
        model=model,
        tx=tx,
        rules=args.rules,
        step=args.step,
        at=dict(args.at) or None,
        seed=args.seed,
        **running,
    )
    if args.suggest:
        note(write_suggestions(args.suggest, made))
    if args.output and made.ok:
        Path(args.output).write_text(made.to_json(), encoding="utf-8")
        note(f"plan written to {args.output}")
    elif args.output:
        note(f"the plan has problems, so {args.output} was not written")
    show(args, lambda: report.plan_text(made, width()), lambda: report.plan_json(made))
    return DONE if made.ok else FAILED


def _convert(args: argparse.Namespace) -> int:
    with no_collections():
        from bridge import report_outcome as report  # noqa: PLC0415
        from bridge._batch import convert_one  # noqa: PLC0415
        from bridge.cli_fleet import convert_runs, is_fleet  # noqa: PLC0415
        from bridge.fleet_lock import beside  # noqa: PLC0415
    if is_fleet(args):
        return convert_runs(args, {} if args.fleet is not None else _planning(args))
    path = Path(args.paths[0])
    options = _convert_options(args)
    try:
        with progress(quiet=args.json) as (before, on_progress), beside(Path(args.out).absolute()):
            before(path)
            outcome = convert_one(path, Path(args.out), on_progress=on_progress, **options)
    except KeyboardInterrupt:
        note("interrupted: complete steps stay, what was begun has been removed")
        return INTERRUPTED
    if outcome.error is not None:
        _report_failure(args, outcome)
    if not args.json:
        print_text(report.outcome_text(outcome, width(), dry_run=args.dry_run))
    show(
        args,
        lambda: report.outcomes_text([outcome], dry_run=args.dry_run),
        lambda: [outcome.to_json()],
    )
    return FAILED if outcome.error is not None else DONE


def _planning(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords of a plan; none when there is one."""
    if args.plan is not None:
        return {}
    running = _running(args)
    model, tx = _target(args)
    if model is None:
        note("no --model and no --plan: the target is structural (the source's own paths)")
    return {
        "model": model,
        "tx": tx,
        "rules": args.rules,
        **running,
        "at": dict(args.at) or None,
        "seed": args.seed,
    }


def _convert_options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "plan": _load_plan(args.plan),
        **_planning(args),
        "steps": args.steps,
        "layout": args.layout,
        "link": args.link,
        "overwrite": args.overwrite,
        "verify": args.verify or "full",
        "sync": args.sync,
        "compression": args.compression,
        "dry_run": args.dry_run,
    }


def _report_failure(args: argparse.Namespace, outcome: Any) -> None:
    if args.debug or not _expected(outcome.error):
        import traceback  # noqa: PLC0415

        traceback.print_exception(outcome.error)
    said = str(outcome.error)
    note(f"error: {said}" if str(outcome.path) in said else f"error: {outcome.path}: {said}")


def _verify(args: argparse.Namespace) -> int:
    from bridge import verify  # noqa: PLC0415
    from bridge.report_outcome import verdict_text  # noqa: PLC0415

    sample = _sample(args)  # a typo in --input is seen before the models are imported
    verdict = verify(
        args.src,
        args.dst,
        plan=_load_plan(args.plan),
        step=args.step,
        level=args.level,
        model=_object(args.model),
        tx=_object(args.tx),
        linen=_object(args.linen),
        sample_input=sample,
        methods=args.method,
        train_steps=args.steps,
    )
    show(args, lambda: verdict_text(verdict, width()), verdict.to_json)
    return DONE if verdict.ok and verdict.behaviour != "differs" else FAILED


def _status(args: argparse.Namespace) -> int:
    from bridge.cli_fleet import status  # noqa: PLC0415

    return status(args)


def _diff(args: argparse.Namespace) -> int:
    from bridge import diff  # noqa: PLC0415
    from bridge.report_diff import diff_text  # noqa: PLC0415

    with no_collections():
        found = diff(args.a, args.b, values=args.values, step_a=args.step_a, step_b=args.step_b)
        show(args, lambda: diff_text(found, width(), full=args.full), found.to_json)
    return DONE if found.same else FAILED


def _golden(args: argparse.Namespace) -> int:
    from bridge.cli_golden import run  # noqa: PLC0415

    return run(args)


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "inspect": _inspect,
    "plan": _plan,
    "convert": _convert,
    "status": _status,
    "verify": _verify,
    "diff": _diff,
    "golden": _golden,
}


def _target(args: argparse.Namespace) -> tuple[Any, Any]:
    """What ``--model``, ``--tx`` and ``--target`` name."""
    if args.target is not None:
        import json  # noqa: PLC0415

        from bridge.errors import TargetError  # noqa: PLC0415
        from bridge.target import Target  # noqa: PLC0415

        try:
            return Target.from_json(json.loads(Path(args.target).read_text("utf-8"))), None
        except OSError as error:
            raise TargetError(
                f"{args.target}: {error.strerror or error}. Give the file of a target spec."
            ) from error
        except ValueError as error:
            raise TargetError(f"{args.target} is no target spec: {error}") from error
    return _object(args.model), _object(args.tx)


def _object(name: str | None) -> Any:
    """What ``MOD:FN`` or ``file.py:FN`` names."""
    from bridge.spec import resolve  # noqa: PLC0415

    if name is None:
        return None
    module, colon, attribute = name.partition(":")
    if module.endswith(".py"):  # a file anywhere: its folder is where it imports from
        sys.path.insert(0, str(Path(module).absolute().parent))
        name = f"{Path(module).stem}{colon}{attribute}"
    return resolve(name)


def _running(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of a plan that say how both models are run."""
    sample = _sample(args)  # a typo in --input is seen before the models are imported
    return {
        "linen": _object(args.linen),
        "sample_input": sample,
        "methods": args.method,
        "allow_order": args.allow_order,
        "rngs": args.rngs,
    }


def _sample(args: argparse.Namespace) -> Any:
    if args.input is None:
        return None
    from bridge.inputs import read_input  # noqa: PLC0415 - loads jax

    return read_input(args.input)


def _load_plan(path: str | None) -> Any:
    if path is None:
        return None
    from bridge._plan import read_plan  # noqa: PLC0415

    return read_plan(path)


def _expected(error: BaseException) -> bool:
    """Whether an error is one for the user rather than for us."""
    from bridge.errors import BridgeError  # noqa: PLC0415
    from legacy.errors import LegacyError  # noqa: PLC0415

    return isinstance(error, (BridgeError, LegacyError, OSError))
