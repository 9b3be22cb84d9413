"""The fuzz targets without a fuzzer: what it once found, and a few hundred seeded mutations.

For coverage-guided fuzzing see the README of this folder.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from mutators import generator, mutate, mutate_json
from targets import BINARY, TARGETS

REGRESSIONS = sorted((Path(__file__).parent / "regressions").glob("*/*"))
MUTATIONS = 200
LARGEST = 4096
"""Mutations of small seeds hit more often what matters."""


def test_there_are_regressions_of_known_targets():
    assert {path.parent.name for path in REGRESSIONS} <= TARGETS.keys()
    assert REGRESSIONS


@pytest.mark.parametrize("file", REGRESSIONS, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_what_was_once_a_finding_is_an_answer_now(file):
    assert TARGETS[file.parent.name].run(file.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_are_read(name):
    answers = [TARGETS[name].run(data) for data in TARGETS[name].seeds()]
    assert any(answer.startswith("read") for answer in answers)


@pytest.mark.parametrize("name", TARGETS)
def test_mutations_of_the_seeds_are_refused_or_agree_with_another_reading(name):
    target = TARGETS[name]
    seeds = [data for data in target.seeds() if len(data) <= LARGEST]
    answers = set()
    for number in range(MUTATIONS):
        rng = generator(name, number)
        data = rng.choice(seeds)
        for _ in range(rng.randint(1, 3)):
            data = (mutate if name in BINARY else mutate_json)(data, rng)
        answers.add(target.run(data))
    assert any(answer.startswith("refused") for answer in answers)
