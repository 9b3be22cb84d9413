"""Damage at any byte of any file of a golden gives an error, or changes only what it hit.

``damage.py`` says what may happen and what can never be noticed; run it by hand for many more
mutations than these. The goldens themselves are held against their truth in ``tests/e2e``.
"""

from __future__ import annotations

import damage
import pytest
from damage import GOLDENS, Outcome, Subject, archives, goldens, unpack
from mutators import generator

import legacy

MUTATIONS = 16


@pytest.mark.parametrize("name", goldens())
def test_damage_is_an_error_or_stays_where_it_is(name, tmp_path):
    subject, outcome = Subject(GOLDENS / name, tmp_path / "golden"), Outcome()
    for number in range(MUTATIONS):
        subject.damage(generator(name, number), outcome)
    assert sum(outcome.count.values()) == MUTATIONS
    assert damage.read(subject.path, subject.step).keys() == subject.truth.keys()


@pytest.mark.parametrize("archive", archives(), ids=lambda path: path.name.split(".")[0])
def test_damage_in_goldens_of_an_era_is_an_error_or_stays_where_it_is(archive, tmp_path):
    era = archive.name.split(".")[0]
    outcome = Outcome()
    for folder in unpack(archive, tmp_path / "packed", some=4):
        try:
            subject = Subject(folder, tmp_path / folder.name)
        except legacy.LegacyError:  # some are kept because they must be refused
            continue
        for number in range(4):
            subject.damage(generator(era, folder.name, number), outcome)
    assert outcome.count


def test_the_mutations_meet_every_kind_of_answer(tmp_path):
    outcome = Outcome()
    for name in ("flax036/bundle-flax_msgpack", "latest/boxed-ptc"):
        subject = Subject(GOLDENS / name, tmp_path / name.replace("/", "-"))
        for number in range(40):
            subject.damage(generator("answers", number), outcome)
    assert outcome.count.keys() >= {"right", "refused", "in part", "payload"}


def test_a_silent_change_would_be_seen(tmp_path, monkeypatch):
    """The check itself is checked: a reader that takes the wrong bytes is found out."""
    subject = Subject(GOLDENS / "flax036" / "bundle-flax_msgpack", tmp_path / "golden")
    good = damage.read(subject.path, subject.step)
    leaf = next(leaf for leaf, value in good.items() if value.kind == "array")
    wrong = {**good, leaf: damage.Value("array", good[leaf].value + 1)}
    monkeypatch.setattr(damage, "read_and_told", lambda *_: (wrong, False))
    with pytest.raises(damage.Defect, match="does not own these bytes"):
        _damage_often(subject)


def _damage_often(subject):
    for number in range(20):
        subject.damage(generator("often", number), Outcome())
