"""Checkpoints that other people made: converted without a model, or refused in clear words."""

from __future__ import annotations

import hashlib
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from compatibility import FILE, ROOT, folders, outcome, table
from corpus import CORPUS, READABLE, REFUSED, needs_corpus

import bridge
import legacy

pytestmark = needs_corpus


def digest(root: Path) -> str:
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    hashes = (hashlib.sha256(p.read_bytes()).hexdigest() + str(p) for p in files)
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


@pytest.mark.parametrize("name", READABLE)
def test_a_checkpoint_of_the_corpus_converts_and_climbs_the_whole_ladder(name, tmp_path):
    source = CORPUS / name
    before = digest(source)
    checkpoint = legacy.open(source)
    assert len(checkpoint.leaves) == READABLE[name]

    (done,) = bridge.convert(source, tmp_path / "out")

    assert done.verdict.ok
    assert done.verdict.rung == "d"
    assert digest(source) == before
    written = legacy.open(tmp_path / "out")
    # every array of the source is in the output, bit for bit, whatever its new name
    plan = bridge.plan(source)
    slots = {s.ref: s for s in plan.target.slots}
    for step in plan.steps:
        slot = slots[step.slots[0]]
        if step.transforms or slot.variable_type == "Json":
            continue
        ours = checkpoint.leaves[step.sources[0]].read()
        theirs = written.items[slot.item][slot.disk_path].read()
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes(), step


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_whose_arrays_are_missing_is_refused_by_name(name, tmp_path):
    with pytest.raises(legacy.LegacyError, match=REFUSED[name]):
        bridge.convert(CORPUS / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_in_use_that_orbax_cannot_open_comes_out_as_one_that_it_opens(tmp_path):
    bridge.convert(CORPUS / "so3lr/checkpoints", tmp_path / "out")
    with ocp.CheckpointManager(tmp_path / "out") as manager:
        restored = manager.restore(manager.latest_step())
    assert manager.latest_step() == 5150000
    assert len(jax.tree.leaves(restored["model"])) == 131
    assert restored["metrics"]


def test_the_compatibility_folders_of_orbax_are_read_or_refused_and_none_is_wrong():
    outcomes = {str(f.relative_to(ROOT)): outcome(f) for f in folders()}
    assert len(outcomes) == 44
    assert not [name for name, (what, _) in outcomes.items() if what == "WRONG"]
    # the only copy of something was removed, or an item that no release can read was added
    lost = ("missing_pytree_data_dir_d", "deleted_checkpointable", "dummy_checkpointable_added")
    for name, (what, why) in outcomes.items():
        assert (what == "read") is not name.endswith(lost), (name, why)
        assert what == "read" or name in why
    assert FILE.read_text(encoding="utf-8") == table()
