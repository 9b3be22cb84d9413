"""One call opens whatever a path points at, or says what is there instead."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

import legacy
from legacy import opening

CORPUS = Path(os.environ.get("BRIDGE_CORPUS", Path(__file__).parents[3] / "shared" / "corpus"))
GOLDENS = Path(__file__).parents[1] / "goldens"
MSGPACK = b"\x81\xa6params\x01"

needs_corpus = pytest.mark.skipif(not CORPUS.is_dir(), reason=f"no corpus at {CORPUS}")


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for step in (1, 2, 10):
        (folder / f"checkpoint_{step}").write_bytes(MSGPACK)
    return folder


@pytest.fixture
def manager_run(tmp_path):
    import orbax.checkpoint as ocp

    folder = tmp_path / "manager"
    tree = {"a": np.arange(3, dtype=np.float32)}
    with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions()) as manager:
        for step in (7, 12):
            items = {"model": ocp.args.StandardSave(tree), "config": ocp.args.JsonSave({"lr": 1})}
            manager.save(step, args=ocp.args.Composite(**items), custom_metadata={"by": "test"})
        manager.wait_until_finished()
    return folder


def test_a_file_opens_with_the_step_of_its_name(run):
    checkpoint = legacy.open(run / "checkpoint_10")
    assert (checkpoint.step, list(checkpoint.items)) == (10, ["default"])
    assert checkpoint.format.name == "flax-msgpack"
    assert list(checkpoint.leaves) == [("params",)]
    assert legacy.open(str(run / "checkpoint_10"), step=10).step == 10


def test_a_file_without_a_step_in_its_name_has_none(run):
    (run / "model.msgpack").write_bytes(MSGPACK)
    assert legacy.open(run / "model.msgpack").step is None


def test_a_run_opens_at_its_last_step_or_at_the_one_asked_for(run):
    assert legacy.open(run).step == 10
    assert legacy.open(run, step=2).path == run / "checkpoint_2"
    assert legacy.open(os.fspath(run) + "/").step == 10


def test_a_run_of_one_step_opens_at_it_under_any_prefix(tmp_path):
    file = tmp_path / "agent_1500000"
    file.write_bytes(MSGPACK)
    for checkpoint in (legacy.open(tmp_path), legacy.open(tmp_path, step=1500000)):
        assert (checkpoint.step, checkpoint.path) == (1500000, file)
        assert not any("not taken for a step" in fact for fact in checkpoint.format.evidence)
    with pytest.raises(legacy.CheckpointNotFound, match="has no step 7"):
        legacy.open(tmp_path, step=7)


def test_a_number_that_was_not_taken_for_a_step_is_told(tmp_path):
    (tmp_path / "resnet_50").write_bytes(MSGPACK)
    checkpoint = legacy.open(tmp_path / "resnet_50")
    assert checkpoint.step is None
    said = "the name resnet_50 ends in a number that was not taken for a step"
    assert said in checkpoint.format.evidence


def test_a_relative_path_is_opened_by_its_absolute_one(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    assert legacy.open("run").path == run / "checkpoint_10"


def test_an_epath_is_a_path(run):
    from etils import epath

    assert legacy.open(epath.Path(run)).step == 10


def test_a_run_of_a_manager_opens_with_items_and_metadata(manager_run):
    checkpoint = legacy.open(manager_run)
    assert checkpoint.step == 12
    assert set(checkpoint.items) == {"model", "config"}
    assert checkpoint.items["config"].json_file is not None
    assert list(checkpoint.leaves) == [("a",)]
    assert checkpoint.metadata == {"by": "test"}
    assert legacy.open(manager_run / "7").step == 7


def test_a_single_orbax_tree_opens(tmp_path):
    import orbax.checkpoint as ocp

    ocp.PyTreeCheckpointer().save(tmp_path / "ckpt", {"a": np.ones(2)})
    checkpoint = legacy.open(tmp_path / "ckpt")
    assert (checkpoint.step, checkpoint.format.name) == (None, "orbax")
    assert checkpoint.leaves["a",].read().sum() == 2


def test_what_was_skipped_in_a_run_is_told(run):
    (run / "checkpoint_tmp").write_bytes(b"")
    (skip,) = legacy.open(run).skipped
    assert skip.path == run / "checkpoint_tmp"


def test_detect_names_the_format(run, manager_run):
    assert legacy.detect(run, step=1).name == "flax-msgpack"
    assert legacy.detect(manager_run).layout == "ocdbt"


@pytest.mark.parametrize("path", ["gs://bucket/run", "s3://bucket/run"])
def test_a_path_on_another_machine_is_to_be_copied_first(path):
    with pytest.raises(legacy.UnsupportedCheckpoint, match=r"Copy it first \(for gs: gcloud"):
        legacy.open(path)


def test_a_wrong_path_names_the_nearest_folder_and_close_names(run):
    with pytest.raises(legacy.CheckpointNotFound, match=r"nearest folder.*in it: run") as caught:
        legacy.open(run.parent / "rum" / "checkpoint_1")
    assert isinstance(caught.value, FileNotFoundError)
    with pytest.raises(legacy.CheckpointNotFound, match="checkpoint_10"):
        legacy.open(run / "checkpoint_11")
    (run.parent / "empty").mkdir()
    with pytest.raises(legacy.CheckpointNotFound, match="and it is empty"):
        legacy.open(run.parent / "empty" / "x")


def test_a_wrong_path_below_a_closed_folder_says_so(run, monkeypatch):
    def closed(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(opening.Path, "iterdir", closed)
    with pytest.raises(legacy.CheckpointNotFound, match="may not be listed"):
        legacy.open(run / "nothing")


def test_an_unknown_step_names_the_near_ones(run):
    with pytest.raises(legacy.CheckpointNotFound, match=r"no step 3\. It has 3; near it: 1, 2, 10"):
        legacy.open(run, step=3)


def test_a_step_that_was_skipped_is_told_with_the_reason(run):
    (run / "checkpoint_3").mkdir()
    with pytest.raises(legacy.CheckpointNotFound, match="checkpoint_3 was left out: empty step"):
        legacy.open(run, step=3)


def test_a_run_of_which_every_step_was_skipped_is_not_found(manager_run):
    for step in (7, 12):
        document = manager_run / str(step) / "_CHECKPOINT_METADATA"
        content = json.loads(document.read_text()) | {"commit_timestamp_nsecs": None}
        document.write_text(json.dumps(content))
        (manager_run / str(step) / "commit_success.txt").unlink(missing_ok=True)
    with pytest.raises(legacy.CheckpointNotFound, match=r"no finished step\. Skipped: 7: not comm"):
        legacy.open(manager_run)


def test_a_single_checkpoint_is_only_of_its_own_step(run):
    with pytest.raises(legacy.CheckpointNotFound, match=r"step 3 was asked for.* is step 10"):
        legacy.open(run / "checkpoint_10", step=3)
    (run / "model").write_bytes(MSGPACK)
    with pytest.raises(legacy.CheckpointNotFound, match="does not say its step"):
        legacy.open(run / "model", step=3)


def test_two_entries_of_one_step_are_ambiguous(run):
    (run / "checkpoint_010").write_bytes(MSGPACK)
    with pytest.raises(legacy.AmbiguousCheckpoint, match="2 entries are step 10: checkpoint_010"):
        legacy.open(run)
    assert legacy.open(run, step=1).step == 1


@pytest.mark.usefixtures("manager_run")
def test_a_folder_of_runs_lists_them(run):
    with pytest.raises(legacy.AmbiguousCheckpoint, match="2 checkpoints or runs: manager, run"):
        legacy.open(run.parent)


@pytest.mark.parametrize("name", ["_METADATA", "manifest.ocdbt"])
def test_a_file_of_an_orbax_checkpoint_is_not_taken_for_a_checkpoint(name, tmp_path):
    import orbax.checkpoint as ocp

    ocp.PyTreeCheckpointer().save(tmp_path / "ckpt", {"a": np.ones(2)})
    with pytest.raises(legacy.NotACheckpoint, match="one file of the Orbax checkpoint in its fold"):
        legacy.open(tmp_path / "ckpt" / name)


def test_a_pipe_is_no_checkpoint(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(legacy.NotACheckpoint, match="neither a regular file nor a folder"):
        legacy.open(tmp_path / "pipe")


def test_a_path_that_may_not_be_looked_at_is_not_one_with_nothing_there(run, monkeypatch):
    def closed(*_, **__):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(opening.Path, "stat", closed)
        with pytest.raises(legacy.CannotLook, match="may not look there"):
            legacy.open(run)
    monkeypatch.setattr(opening, "read_head", closed)
    with pytest.raises(legacy.CannotLook, match="may not read it"):
        legacy.open(run)
    monkeypatch.setattr(opening, "_open_file", closed)
    with pytest.raises(legacy.CannotLook, match="may not read it"):
        legacy.open(run)


@needs_corpus
@pytest.mark.parametrize(
    ("path", "step", "items"),
    [
        ("so3lr/checkpoints", 5150000, {"params": 131, "metrics": 1}),
        ("so3lr/checkpoints/ckpt_5150000", 5150000, {"params": 131, "metrics": 1}),
        ("mlff/checkpoints", 75, {"params": 45, "metrics": 1}),
        ("tunix/checkpoints", 1, {"model_params": 4}),
        ("mujoco_playground/VisionMLP2ChanCIFAR10_OCP", None, {"default": 6}),
        ("phlippe/tutorial17/LogisticRegression_10.ckpt", None, {"default": 3}),
        ("t5x/test_t5_tiny.checkpoint_0", 0, {"default": 262}),
        ("scico/dncnn6L.mpk", None, {"default": 22}),
        ("fusion_surrogates/qlknn_7_11.qlknn", None, {"default": 14}),
    ],
)
def test_checkpoints_of_other_people_open(path, step, items):
    checkpoint = legacy.open(CORPUS / path)
    assert checkpoint.step == step
    assert {name: len(table) for name, table in checkpoint.items.items()} == items
    if "metrics" in items:
        assert checkpoint.items["metrics"].json_file is not None


@needs_corpus
@pytest.mark.parametrize("path", ["t5x/tiny_t5/checkpoint_1", "t5x/tiny_orbax/1"])
def test_checkpoints_of_which_a_part_is_missing_are_refused(path):
    with pytest.raises(legacy.UnsupportedCheckpoint, match="cannot be read"):
        legacy.open(CORPUS / path)


@needs_corpus
def test_a_folder_of_two_models_is_ambiguous():
    with pytest.raises(legacy.AmbiguousCheckpoint, match=r"DenseNet\.ckpt, ResNet\.ckpt"):
        legacy.open(CORPUS / "phlippe" / "tutorial5")


@needs_corpus
def test_the_root_of_many_checkpoints_never_opens_one_of_them():
    with pytest.raises(legacy.AmbiguousCheckpoint, match="checkpoints or runs: fusion_surrogates"):
        legacy.open(CORPUS)


@pytest.mark.parametrize(
    "truth", sorted(GOLDENS.glob("*/*/truth.json")) or [None], ids=lambda t: t and t.parent.name
)
def test_every_golden_checkpoint_is_found_and_opens_at_its_step(truth):
    if truth is None:
        pytest.skip("no golden checkpoints in tests/goldens")
    facts = json.loads(truth.read_text())
    (run,) = (r for r in legacy.find(truth.parent) if r.steps)
    checkpoint = legacy.open(run.path)
    assert checkpoint.step in (facts["step"], None)
    assert (checkpoint.step is None) == (run.path.name == "ckpt")
