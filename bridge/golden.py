"""A golden: a small folder that remembers a checkpoint and what becomes of it.

What lies in it goes to git and is compared there, so its bytes depend on what it records and on
nothing else: keys in one order, numbers rounded where releases of numpy round them otherwise, no
time of day.

================  ================================================================================
``golden.json``   what it is: source, signature, how the plan is made, how the models are called
``plan.json``     the plan, target spec included
``digests.json``  digest, shape, dtype and a few numbers of every leaf, before and after
``outputs.npz``   inputs and recorded outputs, where there are any
``rules.toml``    the user's rules, where there are any
``source/``       the checkpoint, or a shrunken copy of it
================  ================================================================================
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import legacy
from bridge._plan import Plan
from bridge.errors import BridgeError
from bridge.golden_digests import structure

if TYPE_CHECKING:
    from bridge._convert import Converted
    from bridge._restore import Restored
    from bridge.golden_report import Report

__all__ = [
    "DIGESTS",
    "DOCUMENT",
    "OUTPUTS",
    "PLAN",
    "RULES",
    "SOURCE",
    "VERSION",
    "Golden",
    "GoldenError",
    "Kept",
    "find_goldens",
]

VERSION = 1
DOCUMENT, PLAN, DIGESTS = "golden.json", "plan.json", "digests.json"
OUTPUTS, RULES, SOURCE = "outputs.npz", "rules.toml", "source"

Kept: TypeAlias = Literal["copy", "shrunken", "reference", "digests"]
"""How a golden has its source: whole, as a smaller one of the same structure, where it lies
already (a path from the golden), or not at all."""


class GoldenError(BridgeError):
    """A golden cannot be made, or its folder is not what it should be."""


@dataclass(frozen=True, slots=True)
class Golden:
    """One golden.

    Args:
        path: its folder.
        document: what ``golden.json`` says.
    """

    path: Path
    document: Mapping[str, Any]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Golden:
        """Open the golden in a folder.

        Raises:
            GoldenError: there is none, it is damaged, or a newer release made it.

        >>> Golden.load("no/such/golden")
        Traceback (most recent call last):
            ...
        bridge.golden.GoldenError: no/such/golden: there is no golden (golden.json is missing). ...
        """
        folder = Path(path)
        try:
            data = json.loads((folder / DOCUMENT).read_text("utf-8"))
        except FileNotFoundError as error:
            raise GoldenError(
                f"{folder}: there is no golden ({DOCUMENT} is missing). Make one with "
                "`linen2nnx golden make`."
            ) from error
        except (OSError, ValueError) as error:
            raise GoldenError(f"{folder / DOCUMENT}: cannot be read: {error}") from error
        version = data.get("version") if isinstance(data, dict) else None
        if version != VERSION:
            raise GoldenError(
                f"{folder / DOCUMENT}: the golden has version {version!r}, this release reads "
                f"version {VERSION}. Make it again, or update linen-nnx-bridge."
            )
        if not isinstance(data.get("source"), dict) or data["source"].get("kept") not in get_args(
            Kept
        ):
            raise GoldenError(f"{folder / DOCUMENT}: `source` is not well formed. Make it again.")
        return cls(folder, data)

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.path.resolve().name

    @property
    def kept(self) -> Kept:
        """How it has its source."""
        found: Kept = self.document["source"]["kept"]
        return found

    @property
    def plan(self) -> Plan:
        """The stored plan.

        Raises:
            GoldenError: ``plan.json`` is missing.
            BridgeError: it is no plan.
        """
        return Plan.from_json(self.text(PLAN))

    @property
    def digests(self) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
        """The recorded leaves: ``source`` and ``target``, each by name."""
        try:
            found: dict[str, Any] = json.loads(self.text(DIGESTS))
        except ValueError as error:
            raise GoldenError(f"{self.path / DIGESTS}: cannot be read: {error}") from error
        return {side: found.get(side, {}) for side in ("source", "target")}

    @property
    def source(self) -> Path | None:
        """Where its checkpoint is; None when only digests are kept."""
        path = self.document["source"].get("path")
        return None if path is None else Path(os.path.normpath(self.path / path))

    @property
    def checkpoint(self) -> legacy.Checkpoint:
        """The source, opened; where only digests are kept, one whose leaves cannot be read.

        Raises:
            GoldenError: it is not there.
            legacy.LegacyError: it cannot be opened.
        """
        source = self.document["source"]
        if self.source is None:
            known = legacy.Format(source["format"], source["layout"], source["era"])
            table = structure(self.digests["source"], source.get("nodes", {}))
            return legacy.Checkpoint(self.path, known, source["step"], {"default": table})
        if not self.source.exists():
            raise GoldenError(
                f"{self.source}: the source of golden {self.name} is not there. Does git ignore "
                f"it (`git check-ignore -v {self.source}`)?"
            )
        return legacy.open(self.source)

    def text(self, name: str) -> str:
        """The text of one of its files.

        Raises:
            GoldenError: it cannot be read.
        """
        try:
            return (self.path / name).read_text("utf-8")
        except (OSError, ValueError) as error:
            raise GoldenError(f"{self.path / name}: cannot be read: {error}") from error

    def convert(self, out: str | os.PathLike[str], **options: Any) -> Converted:
        """Convert the source by the stored plan.

        Args:
            out: the root of the new run.
            options: see :func:`bridge.convert`.

        Raises:
            GoldenError: only digests are kept.
            BridgeError: as :func:`bridge.convert`.
        """
        from bridge._convert import convert  # noqa: PLC0415 - a golden is often only looked at

        if self.source is None:
            raise GoldenError(
                f"golden {self.name} keeps digests only: there is nothing to convert."
            )
        given = {"sync": False, **options}
        (done,) = convert(self.checkpoint.path, out, plan=self.plan, **given)
        return done

    def restore(self, *, model: Any = None, tx: Any = None) -> Restored:
        """Restore the source into live objects by the stored plan.

        Args:
            model: see :func:`bridge.restore`; default: the model that the golden names.
            tx: likewise.
        """
        from bridge._restore import restore  # noqa: PLC0415 - loads jax
        from bridge.golden_references import References  # noqa: PLC0415

        named = References.of(self)
        return restore(
            self.checkpoint,
            model=named.model() if model is None else model,
            tx=named.tx() if tx is None else tx,
            plan=self.plan,
        )

    def check(self, **options: Any) -> Report:
        """Hold it against today's code; see :func:`bridge.golden_check.check_golden`."""
        from bridge.golden_check import check_golden  # noqa: PLC0415

        return check_golden(self, **options)


def find_goldens(paths: Iterable[str | os.PathLike[str]]) -> list[Golden]:
    """The goldens at and below some folders, by name.

    Args:
        paths: goldens, and folders of goldens.

    Raises:
        GoldenError: a folder has none.
    """
    found: dict[Path, Golden] = {}
    for path in map(Path, paths):
        folders = sorted(p.parent for p in path.rglob(DOCUMENT)) or [path]
        for folder in folders:
            # a source may hold a file of this name
            if not any(SOURCE in folder.parts[n:] and _is_golden(folder, n)
                       for n in range(len(path.parts), len(folder.parts))):  # fmt: skip
                found.setdefault(folder.resolve(), Golden.load(folder))
    return list(found.values())


def _is_golden(folder: Path, n: int) -> bool:
    return (Path(*folder.parts[:n]) / DOCUMENT).is_file()
