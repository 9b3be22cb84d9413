"""Checkpoints that other people made: converted without a model, or refused in clear words."""

from __future__ import annotations

import hashlib
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
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


def compatibility() -> list[str]:
    root = CORPUS / "orbax" / "compatibility"
    found = set()
    for marker in ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt", "orbax.checkpoint"):
        for path in root.rglob(marker):
            folder = path.parent
            if "ocdbt.process_" not in folder.name:
                found.add(str(folder.relative_to(CORPUS)))
    # items inside a step are read with their step
    return sorted(f for f in found if str(Path(f).parent) not in found)


# what all 44 hold, from Orbax's own scripts for them; five had the only copy of something removed
COMPATIBILITY = {"a": np.arange(8, dtype=np.int32), "c": np.arange(1, 4, dtype=np.int32)}
BROKEN = ("missing_pytree_data_dir_d", "dummy_checkpointable_added", "deleted_checkpointable")


@pytest.mark.parametrize("name", compatibility() if CORPUS.is_dir() else [])
def test_a_compatibility_checkpoint_reads_right_or_is_refused(name):
    if name.endswith(BROKEN):
        with pytest.raises(legacy.LegacyError, match=r"manifest\.ocdbt|_METADATA"):
            legacy.open(CORPUS / name)
        return
    leaves = legacy.open(CORPUS / name).leaves
    assert {p[-1] for p in leaves} == set(COMPATIBILITY)
    for path, leaf in leaves.items():
        expected = COMPATIBILITY[path[-1]]
        assert leaf.dtype == expected.dtype
        np.testing.assert_array_equal(leaf.read(), expected)
