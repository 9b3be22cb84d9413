"""The commands ``linen2nnx golden make | check | update``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

__all__ = ["fill", "in_ci", "run"]

_Types: TypeAlias = Mapping[str, Callable[[str], Any]]


def fill(parser: Any, types: _Types) -> None:
    """Say what the commands accept.

    Args:
        parser: of ``linen2nnx golden``.
        types: how a ``number``, an ``at`` and a ``size`` are read.
    """
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name, (text, arguments) in _ACTIONS.items():
        sub: Any = actions.add_parser(name, help=text, description=f"{text}.")
        sub.set_defaults(action=name, parser=sub, check=lambda _: None)
        arguments(sub, types)
        sub.add_argument("--json", action="store_true", help="print one JSON document")
        sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS,
                         help="show where an error was raised")  # fmt: skip


def _make(parser: Any, types: _Types) -> None:
    add = parser.add_argument
    add("path", metavar="CHECKPOINT", help="a checkpoint or a run (its last step)")
    add("-o", "--output", metavar="DIR", required=True, help="the golden, e.g. tests/goldens/NAME")
    add("--model", metavar="MOD:FN", help="returns an nnx.Module; also file.py:fn")
    add("--tx", metavar="MOD:FN", help="returns the optax transformation")
    add("--linen", metavar="MOD:FN", help="the Linen module: its outputs are recorded")
    add("--input", metavar="SPEC", help="how it is called: f32[2,28,28,1], several by comma, a "
        ".npy/.npz file, MOD:FN; without --linen the NNX model's outputs are recorded")  # fmt: skip
    add("--method", metavar="NAME", action="append", default=[], help="a further method to call")
    add("--rules", metavar="TOML", help="user rules; the file is copied")
    add("--plan", metavar="PLAN", help="a stored plan; default: one is made")
    add("--step", type=types["number"], metavar="N", help="default: the last one")
    add("--at", type=types["at"], action="append", default=[], metavar="ITEM=PATH",
        help="which part of the checkpoint feeds an item")  # fmt: skip
    add("--seed", type=int, default=0, metavar="N", help="of new PRNG streams")
    add("--rngs", choices=("keep", "reseed", "drop"), default="keep", help="PRNG keys")
    add("--allow-order", action="store_true", help="also take what only the order suggests")
    add("--max-size", type=types["size"], default=1_000_000, metavar="SIZE", help="up to which "
        "the source is copied (default 1MB); of a larger one only digests are kept")  # fmt: skip
    add("--small-model", metavar="MOD:FN", help="the model with small sizes: keep a shrunken copy")
    add("--small-tx", metavar="MOD:FN", help="its optimizer, where it is another one")
    add("--small-linen", metavar="MOD:FN", help="the Linen module of its sizes")
    add("--small-input", metavar="SPEC", help="an input of its sizes")
    add("--reference", action="store_true", help="keep the source where it is, by its path")
    add("--tolerance", type=float, metavar="X", help="how far outputs may be apart later, in "
        "relation to the largest (default 1e-4)")  # fmt: skip
    add("--overwrite", action="store_true", help="replace a golden of that name")
    parser.set_defaults(check=lambda args: _check_make(parser, args))


def _check_make(parser: Any, args: argparse.Namespace) -> None:
    for flag, needs in (("tx", "model"), ("linen", "model"), ("linen", "input"),
                        ("input", "model"), ("method", "input"), ("small_tx", "small_model"),
                        ("small_linen", "small_model"), ("small_input", "small_model"),
                        ("small_model", "model")):  # fmt: skip
        if getattr(args, flag) and not getattr(args, needs):
            names = (f"--{name.replace('_', '-')}" for name in (flag, needs))
            parser.error(" needs ".join(names))
    if args.reference and args.small_model:
        parser.error("--reference keeps the source as it is, and --small-model makes a smaller one")
    if args.small_model and args.input and not args.small_input:
        parser.error("--input with --small-model needs --small-input: the small one is run")


def _check(parser: Any, _: _Types) -> None:
    _goldens(parser)


def _update(parser: Any, _: _Types) -> None:
    _goldens(parser)
    add = parser.add_argument
    add("--dry-run", action="store_true", help="show what would change, write nothing")
    add("--accept-outputs", action="store_true", help="record what the model gives today, where "
        "it differs")  # fmt: skip
    add("--model", metavar="MOD:FN", help="another name of the model from now on")
    add("--tx", metavar="MOD:FN", help="another name of the optimizer from now on")


def _goldens(parser: Any) -> None:
    parser.add_argument("paths", metavar="DIR", nargs="+", help="goldens, or folders of goldens")


_ACTIONS: dict[str, tuple[str, Callable[[Any, _Types], None]]] = {
    "make": ("Make a small golden of a checkpoint", _make),
    "check": ("Hold goldens against today's code", _check),
    "update": ("Show what changes in goldens, and write them", _update),
}


def run(args: argparse.Namespace) -> int:
    """Carry a command out."""
    actions = {"make": _run_make, "check": _run_check, "update": _run_update}
    return actions[args.action](args)


def _run_make(args: argparse.Namespace) -> int:
    from bridge._plan import read_plan  # noqa: PLC0415 - a command imports what it needs
    from bridge._terminal import show  # noqa: PLC0415
    from bridge.golden_make import Small, make_golden  # noqa: PLC0415

    small = None
    if args.small_model:
        small = Small(args.small_model, args.small_tx, args.small_linen, args.small_input)
    made = make_golden(
        args.path,
        args.output,
        model=args.model,
        tx=args.tx,
        linen=args.linen,
        sample_input=args.input,
        methods=args.method,
        rules=args.rules,
        plan=None if args.plan is None else read_plan(args.plan),
        step=args.step,
        at=dict(args.at) or None,
        seed=args.seed,
        rngs=args.rngs,
        allow_order=args.allow_order,
        max_size=args.max_size,
        small=small,
        reference=args.reference,
        tolerance=args.tolerance,
        overwrite=args.overwrite,
    )
    files = {p.name: p.stat().st_size for p in sorted(made.path.iterdir()) if p.is_file()}
    about = {"path": str(made.path), "kept": made.kept, "files": files}
    return show(args, lambda: made_text(made), lambda: about)


def made_text(golden: Any) -> str:
    """What was made, in words."""
    from bridge._text import count, size  # noqa: PLC0415

    how = {
        "copy": "a copy of the source",
        "shrunken": "a shrunken copy of the source",
        "reference": f"the source where it is ({golden.document['source'].get('path')})",
        "digests": "digests of the source only (give --max-size or --small-model for more)",
    }
    digests = golden.digests
    nbytes = sum(p.stat().st_size for p in golden.path.rglob("*") if p.is_file())
    lines = [
        f"{golden.path}: {size(nbytes)}, with {how[golden.kept]}",
    ]
    counts = (
        f"{count(len(digests['source']), 'leaf', 'leaves')} of the source",
        f"{count(len(golden.plan.steps), 'step')} of the plan",
        f"{count(len(digests['target']), 'leaf', 'leaves')} of the output",
    )
    lines.append(f"  {', '.join(counts)}")
    outputs = golden.document.get("outputs")
    if outputs:
        number = sum(call["outputs"] for call in outputs["calls"])
        who = "the Linen module" if outputs["from"] == "linen" else "the NNX model"
        lines.append(f"  {count(number, 'output')} of {who} recorded")
    return "\n".join(lines)


def _run_check(args: argparse.Namespace) -> int:
    from bridge._terminal import DONE, FAILED, print_text, show  # noqa: PLC0415
    from bridge.golden import find_goldens  # noqa: PLC0415
    from bridge.golden_check import check_golden  # noqa: PLC0415

    reports = []
    for golden in find_goldens(args.paths):
        report = check_golden(golden)
        reports.append(report)
        if not args.json:
            print_text(str(report))
    bad = sum(not report.ok for report in reports)
    show(args, lambda: f"{len(reports)} checked, {bad} not as recorded",
         lambda: [r.to_json() for r in reports])  # fmt: skip
    return FAILED if bad else DONE


def _run_update(args: argparse.Namespace) -> int:
    from bridge._terminal import DONE, print_text, show  # noqa: PLC0415
    from bridge.golden import GoldenError, find_goldens  # noqa: PLC0415
    from bridge.golden_update import update_golden  # noqa: PLC0415

    if in_ci() and not args.dry_run:
        raise GoldenError(
            "goldens are not updated where CI is set: nobody would see what changes. Update them "
            "at home and commit them, or give --dry-run."
        )
    done = []
    for golden in find_goldens(args.paths):
        update = update_golden(
            golden,
            model=args.model,
            tx=args.tx,
            accept_outputs=args.accept_outputs,
            dry_run=args.dry_run,
            tell=(lambda _: None) if args.json else lambda found: print_text(str(found)),
        )
        done.append(update)
    changed, written = sum(bool(u.changes) for u in done), sum(u.written for u in done)
    said = [{"golden": u.golden.name, "changes": list(u.changes), "written": u.written}
            for u in done]  # fmt: skip
    show(args, lambda: f"{len(done)} looked at, {changed} with changes, {written} written",
         lambda: said)  # fmt: skip
    return DONE


def in_ci() -> bool:
    """Whether this runs in continuous integration, as ``CI`` says."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false", "no")
