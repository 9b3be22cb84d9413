"""Writes the files of a golden, so that what they say depends on nothing but what they record."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import legacy
from bridge._convert import convert
from bridge._json import dumps
from bridge._plan import Plan
from bridge._text import size
from bridge._verdict import Level
from bridge._verify_output import Output
from bridge._versions import installed
from bridge.golden import DIGESTS, OUTPUTS, PLAN, GoldenError
from bridge.golden_check import output_leaves
from bridge.golden_digests import named_leaves, records
from legacy import Checkpoint

if TYPE_CHECKING:
    from bridge.golden_sides import Recorded

__all__ = ["ATTRIBUTES", "Files", "document_text", "tools"]

ATTRIBUTES: Final = ".gitattributes"
"""Tells git to leave every byte as it is."""

_TOOLS: Final = ("linen-nnx-bridge", "numpy", "jax", "flax", "optax", "orbax-checkpoint")


class Files:
    """Writes the files of a golden.

    Args:
        folder: its folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def text(self, name: str, text: str) -> None:
        """Write a text file."""
        (self.folder / name).write_text(text, encoding="utf-8", newline="\n")

    def plan(self, plan: Plan) -> None:
        """Write the plan, a step a line: so git shows what changed."""
        self.text(PLAN, dumps(json.loads(plan.to_json())) + "\n")

    def leaves(self, checkpoint: Checkpoint, plan: Plan, verify: Level) -> dict[str, Any]:
        """Convert it once, and keep the digests of both sides."""
        with tempfile.TemporaryDirectory(prefix="golden-") as scratch:
            out = Path(scratch) / "out"
            (done,) = convert(checkpoint.path, out, plan=plan, verify=verify, sync=False)
            written = Output(legacy.open(done.output), plan)
            found = {
                "source": records(named_leaves(checkpoint)),
                "target": records(output_leaves(written)),
            }
        self.text(DIGESTS, dumps(found) + "\n")
        return found

    def outputs(self, found: Recorded | None, max_size: int) -> None:
        """Keep recorded outputs.

        Raises:
            GoldenError: they are too large to be kept.
        """
        if found is None:
            return
        from bridge.golden_sides import write_arrays  # noqa: PLC0415 - loads jax

        if found.nbytes > max_size:
            raise GoldenError(
                f"inputs and outputs take {size(found.nbytes)}, and a golden should be small (at "
                f"most {size(max_size)}). Give a smaller --input, or a larger --max-size."
            )
        write_arrays(self.folder / OUTPUTS, found.arrays)


def document_text(document: Mapping[str, Any]) -> str:
    """``golden.json``."""
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def tools() -> dict[str, str]:
    """The releases that make a golden."""
    return installed(_TOOLS)
