"""Runs and their steps are found by what they are; what is left out is named with a reason."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

import legacy
from legacy import runs, survey
from legacy.step_names import split_step

TREE = {"params": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}
MSGPACK = b"\x81\xa6params\x01"


def put(folder, *names, data=MSGPACK):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(data)
    return folder


def reasons(run):
    return {skip.path.name: skip.reason for skip in run.skipped}


def steps(run):
    return [entry.step for entry in run.steps]


@pytest.fixture
def save_tree():
    import orbax.checkpoint as ocp

    def save(path):
        ocp.PyTreeCheckpointer().save(path, TREE)
        return path

    return save


@pytest.fixture
def save_run():
    import orbax.checkpoint as ocp

    def save(path, numbers, **options):
        options = ocp.CheckpointManagerOptions(**options)
        with ocp.CheckpointManager(path, options=options) as manager:
            for number in numbers:
                items = {
                    "params": ocp.args.StandardSave(TREE),
                    "config": ocp.args.JsonSave({"lr": number}),
                }
                manager.save(number, args=ocp.args.Composite(**items))
            manager.wait_until_finished()
        return path

    return save


@pytest.mark.parametrize(
    ("name", "prefix", "number"),
    [
        ("checkpoint_3", "checkpoint_", 3),
        ("checkpoint_0.5", "checkpoint_", 0.5),
        ("checkpoint_-0.196", "checkpoint_", -0.196),
        ("checkpoint_1e-05", "checkpoint_", 1e-5),
        ("00000075", "", 75),
        ("-2", "", -2),
        ("ckpt_00075", "ckpt_", 75),
        ("ckpt-5", "ckpt-", 5),
        ("step5", "step", 5),
        ("vit_16_1000", "vit_16_", 1000),
    ],
)
def test_a_step_is_a_prefix_and_a_number(name, prefix, number):
    found = split_step(name)
    assert tuple(found) == (prefix, number)
    assert type(found.number) is type(number)


@pytest.mark.parametrize("name", ["", "params", "model_3.ckpt", "0.12.8", "checkpoint_1e999", "²"])
def test_a_name_without_a_number_at_its_end_is_no_step(name):
    assert split_step(name) is None


def test_steps_of_flax_are_sorted_as_numbers(tmp_path):
    import flax.training.checkpoints as flax_checkpoints

    for step in (-3, 9, 20.5, 100):
        flax_checkpoints.save_checkpoint(tmp_path, TREE, step, keep=9)
    run = legacy.steps_of(tmp_path)
    assert run.kind == "flax"
    assert steps(run) == [-3, 9, 20.5, 100]


def test_files_and_orbax_folders_of_one_run_go_together(tmp_path, save_tree):
    put(tmp_path, "checkpoint_1")
    save_tree(tmp_path / "checkpoint_2")
    run = legacy.steps_of(tmp_path)
    assert (run.kind, steps(run)) == ("flax", [1, 2])


@pytest.mark.parametrize("options", [{}, {"step_prefix": "ckpt"}, {"step_format_fixed_length": 8}])
def test_steps_of_a_manager_are_found_under_each_naming(tmp_path, save_run, options):
    run = legacy.steps_of(save_run(tmp_path / "run", [9, 10], **options))
    assert (run.kind, steps(run)) == ("orbax-manager", [9, 10])
    assert run.skipped == ()


def test_one_step_of_a_manager_is_a_run_of_one_step(tmp_path, save_run):
    run = legacy.steps_of(save_run(tmp_path / "run", [7]))
    assert (run.kind, steps(run)) == ("orbax-manager", [7])


def test_the_step_folder_of_a_manager_is_itself_a_checkpoint(tmp_path, save_run):
    path = save_run(tmp_path / "run", [7]) / "7"
    run = legacy.steps_of(path)
    assert (run.kind, run.path, steps(run)) == ("single", path, [7])


def test_leftovers_of_interrupted_saves_are_skipped_with_the_reason(tmp_path):
    put(tmp_path, "checkpoint_1", "checkpoint_tmp", "notes.tmp")
    (tmp_path / "checkpoint_2.orbax-checkpoint-tmp-17").mkdir()
    (tmp_path / "checkpoint_5").mkdir()
    run = legacy.steps_of(tmp_path)
    assert steps(run) == [1]
    assert reasons(run) == {
        "checkpoint_2.orbax-checkpoint-tmp-17": (
            "temporary folder of an Orbax save that did not finish"
        ),
        "checkpoint_5": "empty step folder",
        "checkpoint_tmp": "temporary file of a flax save that did not finish",
        "notes.tmp": "temporary by its name",
    }


def test_a_gda_folder_belongs_to_its_file_and_is_named_only_without_it(tmp_path):
    put(tmp_path, "checkpoint_1")
    (tmp_path / "checkpoint_1_gda").mkdir()
    (tmp_path / "checkpoint_2_gda").mkdir()
    run = legacy.steps_of(tmp_path)
    assert steps(run) == [1]
    assert reasons(run) == {
        "checkpoint_2_gda": "arrays of the msgpack file 'checkpoint_2', which is not here"
    }


@pytest.mark.parametrize(
    ("stamp", "marker", "skipped"),
    [(None, False, True), (None, True, False), (17, False, False), ("absent", False, False)],
)
def test_only_a_step_that_says_so_itself_is_not_committed(
    tmp_path, save_run, stamp, marker, skipped
):
    folder = save_run(tmp_path / "run", [1, 2])
    document = folder / "2" / "_CHECKPOINT_METADATA"
    content = json.loads(document.read_text()) | {"commit_timestamp_nsecs": stamp}
    if stamp == "absent":
        del content["commit_timestamp_nsecs"]
    document.write_text(json.dumps(content))
    if marker:  # orbax 0.12.0 writes none, later releases do
        (folder / "2" / "commit_success.txt").write_text("")
    else:
        (folder / "2" / "commit_success.txt").unlink(missing_ok=True)
    run = legacy.steps_of(folder)
    assert steps(run) == ([1] if skipped else [1, 2])
    if skipped:
        assert "not committed" in reasons(run)["2"]
        evidence = legacy.open(folder / "2").format.evidence
        assert any("not committed" in fact for fact in evidence)


def test_pain_17_a_copy_without_commit_success_is_a_step(tmp_path, save_run):
    folder = save_run(tmp_path / "run", [1])
    for file in folder.rglob("commit_success.txt"):
        file.unlink()
    assert steps(legacy.steps_of(folder)) == [1]


def test_a_damaged_last_step_stays_a_step_and_is_not_passed_over(tmp_path):
    put(tmp_path, "checkpoint_1")
    put(tmp_path, "checkpoint_2", data=b"version https://git-lfs.github.com/spec/v1\n")
    assert steps(legacy.steps_of(tmp_path)) == [1, 2]
    with pytest.raises(legacy.NotACheckpoint, match="Git LFS pointer"):
        legacy.open(tmp_path)


def test_a_gutted_step_folder_stays_a_step(tmp_path, save_tree):
    save_tree(tmp_path / "checkpoint_1")
    (tmp_path / "checkpoint_2").mkdir()
    (tmp_path / "checkpoint_2" / "notes.txt").write_text("gone")
    assert steps(legacy.steps_of(tmp_path)) == [1, 2]
    with pytest.raises(legacy.NotACheckpoint, match=r"neither a checkpoint.*notes\.txt"):
        legacy.open(tmp_path)


def test_two_prefixes_in_one_folder_are_two_runs(tmp_path):
    put(tmp_path, "checkpoint_1", "checkpoint_2", "best_2")
    with pytest.raises(legacy.AmbiguousCheckpoint, match=r"steps of 2 runs.*best_2"):
        legacy.steps_of(tmp_path)
    assert [steps(run) for run in legacy.find(tmp_path)] == [[2], [1, 2]]


def test_checkpoints_beside_the_steps_are_named(tmp_path):
    put(tmp_path, "checkpoint_1", "best.msgpack")
    run = legacy.steps_of(tmp_path)
    assert steps(run) == [1]
    assert "beside the steps" in reasons(run)["best.msgpack"]


def test_a_model_with_a_number_in_its_name_is_no_step(tmp_path):
    put(tmp_path, "resnet_50", "notes.txt")
    (tmp_path / "notes.txt").write_text("hello")
    (run,) = legacy.find(tmp_path)
    assert (run.kind, run.path.name, steps(run)) == ("single", "resnet_50", [None])


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("agent_1500000", 1500000),
        ("exp1_500", 500),
        ("net-30", 30),
        ("ckpt.500", 500),
        ("ck-0.25", 0.25),
        ("weights_e12", 12),
    ],
)
def test_the_only_checkpoint_of_a_run_has_the_step_of_its_name(tmp_path, save_tree, name, step):
    run = legacy.steps_of(put(tmp_path / "files", name, f"{name}.tmp"))
    assert (run.kind, run.path, steps(run)) == ("flax", tmp_path / "files", [step])
    assert list(reasons(run)) == [f"{name}.tmp"]
    save_tree(tmp_path / "trees" / name)
    assert steps(legacy.steps_of(tmp_path / "trees")) == [step]


@pytest.mark.parametrize("name", ["resnet50", "vit_b16", "0.12.8"])
def test_a_number_that_nothing_separates_is_no_step_of_the_only_checkpoint(tmp_path, name):
    assert steps(legacy.steps_of(put(tmp_path, name))) == [None]


def test_what_is_named_like_the_only_step_and_damaged_is_named(tmp_path):
    put(tmp_path, "agent_1")
    put(tmp_path, "agent_2", data=b"version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "agent_3").mkdir()
    run = legacy.steps_of(tmp_path)
    assert steps(run) == [1]
    assert set(reasons(run)) == {"agent_2", "agent_3"}


@pytest.mark.parametrize(
    ("names", "items"),
    [
        (["run_9", "run_10"], ["default"]),
        (["e_000009"], ["default"]),
        (["run_9", "run_10"], ["params", "opt_state"]),
    ],
)
def test_unmarked_steps_of_a_manager_are_found_under_any_prefix(tmp_path, save_tree, names, items):
    for name in names:
        for item in items:
            save_tree(tmp_path / name / item)
    run = legacy.steps_of(tmp_path)
    assert (run.kind, steps(run)) == ("orbax-manager", [9, 10][: len(names)])
    last = legacy.open(tmp_path)
    assert (last.path, set(last.items)) == (tmp_path / names[-1], set(items))
    assert legacy.open(tmp_path / names[0]).step == 9


@pytest.mark.parametrize(
    ("names", "items", "extra"),
    [
        (["seed_0", "seed_1"], ["params"], None),
        (["run_0", "run_1"], ["best"], None),
        (["run_0", "run_1"], ["params"], "log.txt"),
        (["run_0"], ["params", "opt_state"], None),
    ],
)
def test_checkpoints_of_several_runs_are_no_steps(tmp_path, save_tree, names, items, extra):
    for name in names:
        for item in items:
            save_tree(tmp_path / name / item)
        if extra:
            (tmp_path / name / extra).write_text("step 1")
    with pytest.raises(legacy.AmbiguousCheckpoint, match="is no checkpoint and no run"):
        legacy.steps_of(tmp_path)


def test_steps_of_says_what_a_folder_without_steps_holds(tmp_path):
    put(tmp_path, "notes.csv", data=b"a,b\n")
    (tmp_path / "plots").mkdir()
    with pytest.raises(legacy.NotACheckpoint, match=r"kinds: notes\.csv\. Folders in it: plots"):
        legacy.steps_of(tmp_path)
    with pytest.raises(legacy.NotACheckpoint, match="The folder is empty"):
        legacy.steps_of(tmp_path / "plots")


def test_steps_of_lists_the_runs_beneath_and_never_picks_one(tmp_path):
    put(tmp_path / "a" / "run", "checkpoint_1")
    with pytest.raises(legacy.AmbiguousCheckpoint, match="holds 1 checkpoint or run: a/run"):
        legacy.steps_of(tmp_path)
    put(tmp_path, "model.msgpack")
    with pytest.raises(legacy.AmbiguousCheckpoint, match=r"2 checkpoints.*: a/run, model\.msgpack"):
        legacy.steps_of(tmp_path)


def test_the_only_checkpoint_of_a_folder_is_taken(tmp_path, save_tree):
    save_tree(tmp_path / "final")
    assert legacy.steps_of(tmp_path).path == tmp_path / "final"


def test_steps_of_an_impostor_names_it(tmp_path):
    put(tmp_path, "checkpoint_1", data=b"")
    with pytest.raises(legacy.NotACheckpoint, match="empty file"):
        legacy.steps_of(tmp_path / "checkpoint_1")


def test_steps_of_nothing_is_not_found(tmp_path):
    with pytest.raises(legacy.CheckpointNotFound, match="No such file"):
        legacy.steps_of(tmp_path / "gone")
    with pytest.raises(legacy.CheckpointNotFound, match="No such file"):
        legacy.find(tmp_path / "gone")


def test_find_lists_every_kind_below_a_root(tmp_path, save_run, save_tree):
    put(tmp_path / "a" / "flax", "checkpoint_2", "checkpoint_10")
    put(tmp_path / "a", "pretrained.msgpack", "log.txt")
    (tmp_path / "a" / "log.txt").write_text("step 1")
    save_run(tmp_path / "b" / "manager", [1, 2])
    save_tree(tmp_path / "b" / "final")
    put(tmp_path / ".git" / "lfs", "checkpoint_2")
    found = legacy.find(tmp_path)
    assert [(str(r.path.relative_to(tmp_path)), r.kind, steps(r)) for r in found] == [
        ("a/flax", "flax", [2, 10]),
        ("a/pretrained.msgpack", "single", [None]),
        ("b/final", "single", [None]),
        ("b/manager", "orbax-manager", [1, 2]),
    ]


def test_find_on_a_checkpoint_gives_that_checkpoint(tmp_path, save_tree):
    put(tmp_path, "checkpoint_4")
    assert [steps(r) for r in legacy.find(tmp_path / "checkpoint_4")] == [[4]]
    assert [r.kind for r in legacy.find(save_tree(tmp_path / "tree"))] == ["single"]


def test_find_sees_runs_inside_a_folder_named_like_a_step(tmp_path):
    put(tmp_path / "run" / "1", "checkpoint_5")
    put(tmp_path / "run", "2")
    found = legacy.find(tmp_path)
    assert [(r.path.name, steps(r)) for r in found] == [("run", [2]), ("1", [5])]


def test_find_follows_links_once_and_names_loops(tmp_path):
    put(tmp_path / "run", "checkpoint_1")
    (tmp_path / "run" / "latest").symlink_to("checkpoint_1")
    (tmp_path / "run" / "loop").symlink_to("..")
    (tmp_path / "run" / "gone").symlink_to("nowhere")
    (tmp_path / "run" / "self").symlink_to("self")
    (run,) = legacy.find(tmp_path)
    assert steps(run) == [1]
    said = reasons(run)
    assert said["latest"] == "a link to 'checkpoint_1' beside it"
    assert said["loop"] == "a link to a folder that was looked at already"
    assert said["gone"] == "a link to nothing"
    assert set(said) == {"latest", "loop", "gone", "self"}


def test_find_is_bounded_in_depth(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "MAX_DEPTH", 2)
    put(tmp_path / "1x" / "2x" / "3x", "checkpoint_1")
    (run,) = legacy.find(tmp_path)
    assert run.kind == "none"
    assert reasons(run) == {"3x": "more than 2 folders below where the search began"}


def test_a_folder_with_leftovers_only_is_not_passed_over(tmp_path):
    (tmp_path / "run" / "3.orbax-checkpoint-tmp-1").mkdir(parents=True)
    (run,) = legacy.find(tmp_path)
    assert (run.kind, run.steps) == ("none", ())
    assert list(reasons(run)) == ["3.orbax-checkpoint-tmp-1"]


def _forbid(monkeypatch, forbidden):
    real = os.scandir

    def scandir(path="."):
        if Path(path) == forbidden:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(survey.os, "scandir", scandir)


def test_a_folder_that_may_not_be_read_is_not_one_with_nothing_in_it(tmp_path, monkeypatch):
    put(tmp_path / "open", "checkpoint_1")
    put(tmp_path / "closed", "checkpoint_1")
    _forbid(monkeypatch, tmp_path / "closed")
    with pytest.raises(legacy.CannotLook, match="Permission denied"):
        legacy.steps_of(tmp_path / "closed")
    closed, opened = legacy.find(tmp_path)
    assert steps(opened) == [1]
    assert closed.kind == "none"
    assert "Permission denied" in reasons(closed)["closed"]


def test_a_root_that_may_not_be_read_is_an_error(tmp_path, monkeypatch):
    _forbid(monkeypatch, tmp_path)
    with pytest.raises(legacy.CannotLook, match="could not look"):
        legacy.find(tmp_path)


def test_a_pipe_is_not_opened_and_one_named_like_a_step_is_named_as_skipped(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert legacy.find(tmp_path) == ()
    os.mkfifo(tmp_path / "checkpoint_1")
    (run,) = legacy.find(tmp_path)
    assert [s.path.name for s in run.skipped] == ["checkpoint_1"]
