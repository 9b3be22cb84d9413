r"""Reads Flax checkpoints of every era: msgpack files, Orbax folders, and runs of either.

It knows old formats and nothing of NNX; importing it loads neither jax, flax nor Orbax.

>>> import tempfile, pathlib
>>> import legacy
>>> with tempfile.TemporaryDirectory() as folder:
...     _ = pathlib.Path(folder, "checkpoint_3").write_bytes(b"\x81\xa1a\x01")
...     checkpoint = legacy.open(folder)
...     legacy.restore(checkpoint, {"a": 0})
{'a': 1}
"""

from typing import TYPE_CHECKING, Any

from legacy.checkpoint import Checkpoint, Format, Run, Skipped, StepEntry
from legacy.errors import (
    AmbiguousCheckpoint,
    CannotLook,
    CheckpointNotFound,
    DamagedCheckpoint,
    LegacyError,
    NotACheckpoint,
    TargetMismatch,
    UnsupportedCheckpoint,
)
from legacy.leaves import Leaf, LeafPath, LeafTable, format_path, parse_path
from legacy.opening import detect, open  # noqa: A004 - read as legacy.open
from legacy.runs import find, steps_of

if TYPE_CHECKING:
    from legacy.typed import restore

__all__ = [
    "AmbiguousCheckpoint",
    "CannotLook",
    "Checkpoint",
    "CheckpointNotFound",
    "DamagedCheckpoint",
    "Format",
    "Leaf",
    "LeafPath",
    "LeafTable",
    "LegacyError",
    "NotACheckpoint",
    "Run",
    "Skipped",
    "StepEntry",
    "TargetMismatch",
    "UnsupportedCheckpoint",
    "detect",
    "find",
    "format_path",
    "open",
    "parse_path",
    "restore",
    "steps_of",
]


def __getattr__(name: str) -> Any:
    if name == "restore":  # the only part that most commands do without
        from legacy.typed import restore  # noqa: PLC0415

        globals()[name] = restore
        return restore
    raise AttributeError(f"module 'legacy' has no attribute {name!r}")
