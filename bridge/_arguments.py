"""What the command line accepts; every flag is a keyword of a public function."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

__all__ = ["make_parser"]

_STEPS = re.compile(r"all|latest|-?\d+(\.\d+)?(,-?\d+(\.\d+)?)*")

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B?)", re.IGNORECASE)

Command = Callable[[argparse.Namespace], int]


class _Parser(argparse.ArgumentParser):
    """A parser that knows what was meant."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self.flags: list[str] = []
        self.commands: list[str] = []

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """Remember the flags, then do as argparse does."""
        self.__dict__.setdefault("flags", []).extend(n for n in names if n.startswith("--"))
        return super().add_argument(*names, **options)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and answer a misspelt command or flag with the nearest one."""
        given: Sequence[str] = sys.argv[1:] if args is None else args
        first = next((a for a in given if not a.startswith("-")), None)
        if first is not None and first not in self.commands:
            self.error(f"there is no command {first!r}{_near(first, self.commands)}")
        parsed, unknown = self.parse_known_args(given, namespace)
        if unknown:
            parser: _Parser = parsed.parser
            name = unknown[0].partition("=")[0]
            parser.error(f"unrecognized argument {name!r}{_near(name, parser.flags)}")
        parsed.check(parsed)
        return parsed


def _near(word: str, known: Sequence[str]) -> str:
    import difflib  # noqa: PLC0415 - only after a mistake

    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"


def make_parser(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """The parser of ``linen2nnx``.

    Args:
        commands: the function that carries out each command.
    """
    parser = _Parser(
        prog="linen2nnx",
        description="Turns Flax Linen checkpoints of every era into NNX checkpoints.",
        epilog="Exit codes: 0 done; 1 a checkpoint failed, or a problem or a difference was found; "
        "2 wrong usage, and of diff any other failure.",
    )
    parser.add_argument("--version", action=_Version, help="print the version and exit")
    parser.add_argument("--debug", action="store_true", help="show where an error was raised")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (text, fill) in _COMMANDS.items():
        sub: _Parser = subparsers.add_parser(
            name, help=text, description=f"{text}.", epilog=_EPILOGS.get(name)
        )
        sub.set_defaults(run=commands[name], parser=sub, check=lambda _: None)
        fill(sub)
        sub.add_argument("--json", action="store_true", help="print one JSON document")
        sub.add_argument(
            "--debug",
            action="store_true",
            default=argparse.SUPPRESS,
            help="show where an error was raised",
        )
        parser.commands.append(name)
    return parser


class _Version(argparse.Action):
    """Looks the version up only when it is asked for: importlib.metadata is slow."""

    def __init__(self, **options: Any) -> None:
        super().__init__(nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

        try:
            found = version("linen-nnx-bridge")
        except PackageNotFoundError:
            found = "(not installed)"
        parser.exit(0, f"linen2nnx {found}\n")


def _inspect(parser: _Parser) -> None:
    parser.add_argument("path", metavar="PATH", help="a checkpoint, a run, or a folder of runs")
    _step(parser)
    parser.add_argument("--leaf", metavar="LEAF", help="read one leaf, such as params/Dense_0/bias,"
                        " or all below a path, and show what is in it")  # fmt: skip


def _plan(parser: _Parser) -> None:
    parser.add_argument("path", metavar="PATH", help="a checkpoint or a run (its last step)")
    _target(parser)
    _step(parser)
    parser.add_argument("-o", "--output", metavar="PLAN", help="store the plan as JSON")
    parser.add_argument("--suggest", metavar="TOML", help="write a rule for everything that is "
                        "left, to edit and give as --rules")  # fmt: skip
    parser.add_argument(
        "--save-target", metavar="SPEC", help="store the target as JSON, for use without the model"
    )
    parser.set_defaults(check=lambda args: _check_target(parser, args))


def _convert(parser: _Parser) -> None:
    parser.add_argument("paths", metavar="PATH", nargs="+", help="checkpoints, runs, or folders of "
                        "runs")  # fmt: skip
    parser.add_argument("--out", metavar="DIR", required=True, help="the new run; several runs "
                        "go to DIR/RUN/STEP, those of several PATHs to DIR/NAME")  # fmt: skip
    parser.add_argument("--plan", metavar="PLAN", help="a stored plan (then no --model)")
    parser.add_argument("--fleet", metavar="TOML", help="which model, tx and rules belong to "
                        "which runs (then no --model and no --plan)")  # fmt: skip
    _target(parser)
    parser.add_argument(
        "--steps",
        type=_steps,
        default="latest",
        metavar="STEPS",
        help="all, latest (default), or numbers such as 1000,2000",
    )
    parser.add_argument("--layout", choices=("composite", "single"), default="composite")
    parser.add_argument("--link", action="store_true", help="hard-link data files where possible")
    parser.add_argument("--overwrite", action="store_true", help="replace steps that are there")
    parser.add_argument("--verify", choices=("full", "values", "fast", "none"),
                        help="default: full; of several runs: values, and full for the first "
                        "of each structure")  # fmt: skip
    parser.add_argument("--no-sync", dest="sync", action="store_false", help="leave writing to the "
                        "disk to the system")  # fmt: skip
    parser.add_argument("--compression", default="keep", metavar="HOW", help="of arrays: keep "
                        "(default: stored bytes stay), none, zstd or zstd:LEVEL")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="plan and check, write nothing")
    parser.add_argument("--jobs", type=_positive, default=1, metavar="N", help="worker processes")
    parser.add_argument("--max-memory", type=_bytes, metavar="SIZE", help="of all workers "
                        "together, such as 4GB")  # fmt: skip
    stop = parser.add_mutually_exclusive_group()
    stop.add_argument("--fail-fast", action="store_true", help="begin nothing new after a failure")
    stop.add_argument("--keep-going", dest="fail_fast", action="store_false", help="the default")
    parser.set_defaults(check=lambda args: _check_convert(parser, args))


def _status(parser: _Parser) -> None:
    parser.add_argument("path", metavar="DIR", help="the output (--out) of a conversion of several "
                        "runs; also while it is running")  # fmt: skip
    parser.add_argument("--failed", action="store_true", help="show what failed, and why")


def _verify(parser: _Parser) -> None:
    parser.add_argument("src", metavar="SRC", help="the old checkpoint or run")
    parser.add_argument("dst", metavar="DST", help="the converted checkpoint or run")
    parser.add_argument("--plan", metavar="PLAN", help="the stored plan; default: the one in DST")
    _step(parser)
    parser.add_argument("--level", choices=("full", "fast"), default="full")
    parser.add_argument("--model", metavar="MOD:FN", help="the NNX model, to be run")
    parser.add_argument("--tx", metavar="MOD:FN", help="the optimizer: both sides are trained, too")
    _run(parser)
    parser.add_argument("--steps", type=_positive, default=3, metavar="K", help="steps to train")
    parser.set_defaults(check=lambda args: _check_verify(parser, args))


def _diff(parser: _Parser) -> None:
    parser.add_argument("a", metavar="A", help="a checkpoint of any format")
    parser.add_argument("b", metavar="B", help="another one")
    parser.add_argument("--values", action=argparse.BooleanOptionalAction, default=True,
                        help="compare values bit for bit (default); --no-values compares structure "
                        "only and reads no array")  # fmt: skip
    parser.add_argument("--full", action="store_true", help="list every difference")
    parser.add_argument("--step-a", type=_number, metavar="N", help="of A; default: the last")
    parser.add_argument("--step-b", type=_number, metavar="N", help="of B; default: the last")


def _golden(parser: _Parser) -> None:
    from bridge.cli_golden import fill  # noqa: PLC0415 - the actions are a module of their own

    fill(parser, {"number": _number, "at": _at, "size": _bytes})


_COMMANDS: Mapping[str, tuple[str, Callable[[_Parser], None]]] = {
    "inspect": ("Show what is here: format, era, steps, roles, tree; no array is read", _inspect),
    "plan": ("Show where every leaf goes and why; nothing is written", _plan),
    "convert": ("Write StandardSave checkpoints and verify them", _convert),
    "status": ("Show what became of each checkpoint of several runs", _status),
    "verify": ("Read source and output again and compare them leaf by leaf", _verify),
    "diff": ("Compare two checkpoints of any format", _diff),
    "golden": ("Make and check goldens: small folders that regression tests hold on to", _golden),
}

_EPILOGS: Mapping[str, str] = {
    "verify": "Exit codes: 0 all values are right, and with --linen both models do the same; 1 a "
    "value is wrong, or they do not; 2 wrong usage.",
    "status": "Exit codes: 0 nothing failed so far; 1 something is failed, or there is no ledger.",
    "inspect": "Exit codes: 0 all leaves can be read, as far as that is known without reading "
    "them; 1 there is no checkpoint, or some of its leaves cannot be read; 2 wrong usage.",
    "diff": "Exit codes: 0 the same; 1 different (a leaf that cannot be read is never the same); "
    "2 wrong usage, or A or B cannot be opened.",
}


def _target(parser: _Parser) -> None:
    parser.add_argument("--model", metavar="MOD:FN", help="returns an nnx.Module; also file.py:fn")
    parser.add_argument("--tx", metavar="MOD:FN", help="returns the optax transformation")
    parser.add_argument("--target", metavar="SPEC", help="a target stored by --save-target")
    _run(parser)
    parser.add_argument("--rules", metavar="TOML", help="user rules")
    parser.add_argument("--allow-order", action="store_true", help="also write what only the "
                        "order of numbered layers suggests")  # fmt: skip
    parser.add_argument(
        "--at",
        type=_at,
        action="append",
        default=[],
        metavar="ITEM=PATH",
        help="which part of the checkpoint feeds an item",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of new PRNG streams")
    parser.add_argument("--rngs", choices=("keep", "reseed", "drop"), default="keep", help="PRNG "
                        "keys: keep them in extras (default), start the model's streams from "
                        "them, or leave them behind")  # fmt: skip


def _run(parser: _Parser) -> None:
    parser.add_argument("--linen", metavar="MOD:FN", help="returns the Linen module of the "
                        "checkpoint: both models are run and compared")  # fmt: skip
    parser.add_argument("--input", metavar="SPEC", help="how both are called: "
                        "f32[2,28,28,1], several by comma, a .npy/.npz file, MOD:FN")  # fmt: skip
    parser.add_argument("--method", action="append", metavar="NAME", help="a further method to "
                        "call with the same input")  # fmt: skip


def _step(parser: _Parser) -> None:
    parser.add_argument("--step", type=_number, metavar="N", help="default: the last one")


def _check_target(parser: _Parser, args: argparse.Namespace) -> None:
    if args.target is not None and (args.model is not None or args.tx is not None):
        parser.error("--target is instead of --model and --tx")
    if args.tx is not None and args.model is None:
        parser.error("--tx needs --model")
    _check_run(parser, args)
    if getattr(args, "save_target", None) is not None and args.model is None:
        parser.error("--save-target needs --model")


def _check_run(parser: _Parser, args: argparse.Namespace) -> None:
    if args.linen is not None and args.model is None:
        parser.error("--linen needs --model, the NNX model that it is compared with")
    if (args.linen is None) != (args.input is None):
        parser.error("--linen and --input go together")
    if args.method and args.linen is None:
        parser.error("--method needs --linen and --input")


def _check_verify(parser: _Parser, args: argparse.Namespace) -> None:
    if args.linen is None and (args.model is not None or args.tx is not None):
        parser.error("--model and --tx need --linen and --input, which they are compared with")
    _check_run(parser, args)


def _check_convert(parser: _Parser, args: argparse.Namespace) -> None:
    _check_target(parser, args)
    named = [f for f in ("model", "tx", "target", "linen", "rules") if getattr(args, f) is not None]
    if args.plan is not None and (named or args.at):
        parser.error(f"--plan is instead of --{named[0] if named else 'at'}")
    if args.fleet is not None and (args.plan is not None or named or args.at):
        given = "plan" if args.plan is not None else named[0] if named else "at"
        parser.error(f"--fleet is instead of --{given}: the file says it for each group")


def _number(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        return float(text)


_number.__name__ = "number"  # argparse: "invalid number value"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 up")
    return value


def _bytes(text: str) -> int:
    found = _SIZE.fullmatch(text)
    if found is None or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a size such as 4GB or 512MiB")
    base = 1024 if "i" in found[2].lower() else 1000
    return int(float(found[1]) * base ** (1 + "KMGT".index(found[2][0].upper())))


def _steps(text: str) -> str:
    if not _STEPS.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected all, latest, or numbers such as 1000,2000"
        )
    return text


def _at(text: str) -> tuple[str, str]:
    item, equals, path = text.partition("=")
    if not (item and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r}: expected ITEM=PATH, such as model=ema_params")
    return item, path
