"""The metadata of many arrays is read from the tree of an OCDBT database as key by key."""

from __future__ import annotations

from pathlib import Path

import pytest

import legacy
from legacy.orbax_stores import Database

GOLDENS = Path(__file__).parents[1] / "goldens"
DATABASES = sorted(
    file.parent
    for file in GOLDENS.rglob("manifest.ocdbt")
    if not file.parent.name.startswith("ocdbt.process_")
)


def database(folder):
    for leaf in legacy.open(folder).leaves.values():
        store = getattr(getattr(leaf.reader, "found", None), "store", None)
        if isinstance(store, Database):
            return store
    return None


def test_there_are_databases_to_look_at():
    assert DATABASES


@pytest.mark.parametrize("folder", DATABASES, ids=lambda p: "-".join(p.relative_to(GOLDENS).parts))
def test_what_lies_in_the_tree_is_what_is_read_key_by_key(folder):
    store = database(folder)
    if store is None:
        pytest.skip("no leaf of it is an array of this database")
    found = store._inline(store.arrays)
    # releases of 2023 put no text of this size into the tree: those are read key by key
    assert set(found) in (set(), set(store.arrays))
    assert found or "latest" not in folder.parts
    one_by_one = store.metadata(found)
    assert found == one_by_one


def test_a_tree_that_is_read_at_once_gives_the_same_leaves(monkeypatch):
    before = dict(legacy.open(DATABASES[0]).leaves)
    monkeypatch.setattr("legacy.orbax_stores._BATCH", 1)
    assert dict(legacy.open(DATABASES[0]).leaves) == before
