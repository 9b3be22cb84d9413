"""The goldens are tests already (`linen_goldens` in pyproject.toml); these ask for more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import nnx
from tiny_lab.models import Tagger


def test_the_old_run_can_be_trained_on(golden: Callable[[str], Any]) -> None:
    model, optimizer, _ = golden("tagger").restore()
    assert isinstance(model, Tagger)
    assert int(optimizer.step[...]) == 3


def test_the_classifier_that_is_served_reads_the_old_run(
    assert_converts_to_golden: Callable[..., Any],
) -> None:
    # a test can give the model itself, instead of the one that the golden names
    assert_converts_to_golden("tagger", model=lambda: Tagger(nnx.Rngs(7)), behaviour=False)
