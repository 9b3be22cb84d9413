"""Step numbers in the names of files and folders.

flax writes ``<prefix><number>`` with any prefix and any number, Orbax an int, alone or after
``<prefix>_``, with or without leading zeros.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["StepName", "split_step", "step_of", "step_of_only"]

# A sign belongs to the number only after an underscore or at the start: "checkpoint_-3" is step -3
# of flax, "ckpt-3" is step 3. A version such as 0.12.8 is no step.
_STEP: Final = re.compile(
    r"(?P<prefix>.*?)(?<![0-9])(?<![0-9]\.)"
    r"(?P<number>(?:(?:(?<=_)|(?<![\s\S]))[-+])?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)",
    re.DOTALL,
)
_TELLING: Final = re.compile(
    r"(?:|.*[_.\-])(?:checkpoint|ckpt|chkpt|cp|step|epoch|iter|iteration|update|model|state|params|"
    r"weights|best|last|latest|save|snapshot)s?[_\-]?",
    re.IGNORECASE | re.DOTALL,
)
# "vit_b16" is a model: of the letters after a separator only those of an epoch or step will do
_SEPARATED: Final = re.compile(r".+[_.\-](?:e|ep|s)?", re.IGNORECASE | re.DOTALL)


class StepName(NamedTuple):
    """A name of the form ``<prefix><number>``."""

    prefix: str
    number: int | float


@functools.lru_cache(maxsize=1 << 12)  # asked several times for each entry
def split_step(name: str) -> StepName | None:
    """Split a name into prefix and step number.

    Args:
        name: the last part of a path.

    Returns:
        The two, or None when the name does not end in a number.

    >>> [tuple(split_step(name)) for name in ("checkpoint_3", "ckpt_00075", "7")]
    [('checkpoint_', 3), ('ckpt_', 75), ('', 7)]
    >>> split_step("checkpoint_-0.5").number, split_step("ckpt-5").number
    (-0.5, 5)
    >>> split_step("model_3.ckpt") is None
    True
    """
    found = _STEP.fullmatch(name)
    if found is None:
        return None
    text = found["number"]
    number = int(text) if re.fullmatch(r"[-+]?[0-9]+", text) else float(text)
    if number in (float("inf"), float("-inf")):
        return None
    return StepName(found["prefix"], number)


def step_of(path: Path, *, has_items: bool) -> int | float | None:
    """The step that the name of a single checkpoint tells, if it tells one.

    ``resnet_50`` is a model and ``checkpoint_50`` a step: a prefix must be a telling one, unless
    the folder holds items, as only a manager's steps do.

    >>> from pathlib import Path
    >>> [step_of(Path(n), has_items=False) for n in ("checkpoint_3", "resnet_50")]
    [3, None]
    >>> step_of(Path("so3_7"), has_items=True)
    7
    """
    name = split_step(path.name)
    if name is None:
        return None
    if has_items or not name.prefix or _TELLING.fullmatch(name.prefix):
        return name.number
    return None


def step_of_only(path: Path) -> int | float | None:
    """The step that the name of the only checkpoint in a folder tells, if it tells one.

    flax keeps one step by default, under any prefix, so here a separator before the number is
    enough.

    >>> from pathlib import Path
    >>> [step_of_only(Path(n)) for n in ("agent_1500000", "ck-0.25", "weights_e12", "resnet50")]
    [1500000, 0.25, 12, None]
    """
    name = split_step(path.name)
    return name.number if name and _SEPARATED.fullmatch(name.prefix) else None
