"""What a typed restore says when target and file do not fit, or leaves cannot be read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from legacy.errors import DamagedCheckpoint
from legacy.leaves import Leaf, LeafPath, format_path

if TYPE_CHECKING:
    from legacy.checkpoint import Checkpoint

__all__ = ["how_many", "misfit", "refuse_unreadable"]

SHOWN: Final = 30


def refuse_unreadable(checkpoint: Checkpoint, leaves: list[Leaf]) -> None:
    """Raise once for all leaves that were asked for and cannot be read.

    Args:
        checkpoint: where they are.
        leaves: of kind ``unreadable``; none is fine.

    Raises:
        DamagedCheckpoint: there are some; ``.problems`` has each with its reason.
    """
    problems = [f"{format_path(leaf.path)}: {leaf.problem}" for leaf in leaves]
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:SHOWN])
        more = f"\n  and {len(problems) - SHOWN} more (see .problems)"
        raise DamagedCheckpoint(
            f"{checkpoint.path}: {how_many(len(problems))} cannot be read:\n{shown}"
            f"{more if len(problems) > SHOWN else ''}\n"
            "Restore a part without them with at=, or take another step or a backup.",
            path=checkpoint.path,
            leaf=leaves[0].path,
            problems=problems,
        )


def misfit(checkpoint: Checkpoint, problems: list[str], ignored: list[LeafPath]) -> str:
    """The message of a :class:`~legacy.errors.TargetMismatch`: all places, and what to do."""
    lines = [f"  {problem}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"  and {len(problems) - SHOWN} more (see .problems)")
    if ignored:
        shown = ", ".join(format_path(path) for path in ignored[:SHOWN])
        more = f", and {len(ignored) - SHOWN} more" if len(ignored) > SHOWN else ""
        lines.append(f"  Only the file has: {shown}{more}.")
    count = "1 place" if len(problems) == 1 else f"{len(problems)} places"
    first = (
        f"{checkpoint.path}: the target and the checkpoint ({checkpoint.format.name}) do not fit "
        f"in {count}:"
    )
    last = (
        "Change the target, restore a part of the file with at=, or name what may be missing with "
        "defaults=[...]."
    )
    return "\n".join([first, *lines, last])


def how_many(count: int) -> str:
    """A number of leaves in words.

    >>> how_many(1), how_many(2)
    ('1 leaf', '2 leaves')
    """
    return "1 leaf" if count == 1 else f"{count} leaves"
