"""What interrupted saves leave behind, under the names that real releases gave it.

The names and states were seen after a kill -9 of flax 0.6.3 to 0.12.12 in the middle of a save.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import bridge
import legacy
from legacy.errors import CheckpointNotFound, LegacyError, NotACheckpoint
from legacy.unfinished import leftover, not_committed

TREE = {"params": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}
MSGPACK = b"\x81\xa6params\x01"
TEMPORARY = "temporary folder of an Orbax save that did not finish"


@pytest.fixture
def save(tmp_path):
    """Saves trees and runs with the installed Orbax."""
    import orbax.checkpoint as ocp

    def make(name, **options):
        path = tmp_path / name
        if not options:
            ocp.PyTreeCheckpointer().save(path, TREE)
            return path
        numbers = options.pop("steps")
        with ocp.CheckpointManager(path, options=ocp.CheckpointManagerOptions(**options)) as run:
            for number in numbers:
                items = {
                    "state": ocp.args.StandardSave({"w": np.full(3, number)}),
                    "meta": ocp.args.JsonSave({"n": number}),
                }
                run.save(number, args=ocp.args.Composite(**items))
            run.wait_until_finished()
        return path

    return make


def steps(run):
    return [entry.step for entry in run.steps]


def reasons(run):
    return {skip.path.name: skip.reason for skip in run.skipped}


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint_3.orbax-checkpoint-tmp-1795330576",  # orbax 0.0-0.1
        "3.orbax-checkpoint-tmp-1795330868151366",  # orbax 0.2-0.4
        "run_3.orbax-checkpoint-tmp-1795330747",
        "3.orbax-checkpoint-tmp-0",  # orbax 0.5-0.10
        "3.orbax-checkpoint-tmp",  # orbax 0.11 and newer
    ],
)
def test_a_step_that_was_being_written_is_skipped_by_name(save, name):
    root = save("run", steps=[1, 2])
    shutil.copytree(root / "2", root / name)
    (root / name / "state").rename(root / name / "state.orbax-checkpoint-tmp-17")
    run = legacy.steps_of(root)
    assert steps(run) == [1, 2]
    assert reasons(run) == {name: TEMPORARY}
    assert legacy.open(root).step == 2
    with pytest.raises(CheckpointNotFound, match=r"no step 3"):
        legacy.open(root, step=3)
    (found,) = legacy.find(root)
    assert steps(found) == [1, 2]
    assert reasons(found) == {name: TEMPORARY}


def test_a_partial_save_that_was_never_finalized_is_skipped_by_name(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint.experimental.v1")
    partial = getattr(ocp, "partial", None)
    part = getattr(partial, "save", None) or getattr(partial, "save_pytree", None)
    if part is None:
        pytest.skip("this release saves no parts")
    root = tmp_path / "run"
    root.mkdir()
    save = getattr(ocp, "save", None) or ocp.save_pytree  # the older name
    save(root / "1", {"a": np.arange(2)})
    part(root / "3", {"a": np.arange(2)})
    part(root / "3", {"b": np.arange(3)})
    said = "part of an Orbax v1 save that was never finalized"
    run = legacy.steps_of(root)
    assert steps(run) == [1]
    assert reasons(run) == {"3.partial_save": said}
    assert legacy.open(root).step == 1
    with pytest.raises(NotACheckpoint, match=said):
        legacy.open(root / "3.partial_save")
    for place in (root / "3.partial_save").iterdir():
        assert any(said in fact for fact in legacy.open(place).format.evidence)
    partial.finalize(root / "3")
    assert steps(legacy.steps_of(root)) == [1, 3]
    assert set(legacy.open(root).leaves) == {("a",), ("b",)}


def test_a_root_with_nothing_but_leftovers_says_so(save, tmp_path):
    root = save("run", steps=[1])
    (root / "1").rename(root / "1.orbax-checkpoint-tmp-0")
    with pytest.raises(NotACheckpoint, match=r"1\.orbax-checkpoint-tmp-0 \(temporary folder"):
        legacy.open(root)
    (found,) = legacy.find(tmp_path)
    assert (found.kind, steps(found)) == ("none", [])


def test_a_temporary_folder_that_is_asked_for_is_opened_and_says_what_it_is(save):
    place = save("ckpt.orbax-checkpoint-tmp-0")
    checkpoint = legacy.open(place)
    assert checkpoint.leaves["params", "kernel"].read().tolist() == [[0, 1, 2], [3, 4, 5]]
    (said,) = [e for e in checkpoint.format.evidence if e.startswith("not committed")]
    assert "cannot be told from what never was" in said
    assert said in bridge.plan(place).warnings


@pytest.mark.parametrize("left", ["nothing", "_CHECKPOINT_METADATA", "folders"])
def test_a_temporary_folder_without_a_leaf_is_named_for_what_it_is(tmp_path, left):
    place = tmp_path / "3.orbax-checkpoint-tmp-0"
    place.mkdir()
    if left == "folders":
        (place / "a00").mkdir()  # orbax 0.1-0.3 make these before the arrays
    elif left != "nothing":
        (place / left).write_text(json.dumps({"item_handlers": None}))
    with pytest.raises(NotACheckpoint, match=r"temporary folder of an Orbax save that did not"):
        legacy.open(place)


def test_an_item_that_was_being_written_makes_its_step_unfinished(save):
    # without an atomic rename (GCS) a step has its name before its items have theirs
    root = save("run", steps=[1, 2])
    for file in root.rglob("commit_success.txt"):
        file.unlink()
    (root / "2" / "state").rename(root / "2" / "state.orbax-checkpoint-tmp-17")
    run = legacy.steps_of(root)
    assert steps(run) == [1]
    assert "item state.orbax-checkpoint-tmp-17 is a temporary folder" in reasons(run)["2"]
    assert legacy.open(root).step == 1
    assert not_committed(root / "1") is None
    with pytest.raises(LegacyError, match=r"not committed: its item state"):
        legacy.open(root / "2")


def test_a_leftover_beside_the_finished_item_means_nothing(save):
    root = save("run", steps=[1])
    (root / "1" / "state.orbax-checkpoint-tmp-17").mkdir()
    assert steps(legacy.steps_of(root)) == [1]
    assert legacy.open(root).step == 1


@pytest.mark.parametrize(
    ("name", "beside", "is_leftover"),
    [
        ("checkpoint_tmp", {"checkpoint_1"}, True),
        ("checkpoint_tmp_gda", {"checkpoint_1"}, True),
        ("model-tmp", {"model-7"}, True),
        ("model-tmp", {"other-7"}, False),  # somebody's own file
        ("checkpoint_3", {"checkpoint_1"}, False),
        ("tmp", {"1", "2"}, False),
    ],
)
def test_a_file_of_flax_is_temporary_by_the_prefix_of_its_run(name, beside, is_leftover):
    assert (leftover(name, beside) is not None) == is_leftover


def test_a_truncated_temporary_file_does_not_hide_the_steps(tmp_path):
    for name in ("checkpoint_1", "checkpoint_2"):
        (tmp_path / name).write_bytes(MSGPACK)
    (tmp_path / "checkpoint_tmp").write_bytes(MSGPACK[:-3])
    (tmp_path / "checkpoint_3").write_bytes(b"")  # a full disk
    run = legacy.steps_of(tmp_path)
    assert steps(run)[:2] == [1, 2]
    assert "checkpoint_tmp" in reasons(run)
    with pytest.raises(LegacyError, match="checkpoint_3"):  # never step 2 instead
        legacy.open(tmp_path)
    assert legacy.open(tmp_path, step=2).step == 2


# --- roots of managers


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"step_prefix": "run"}, ["run_0", "run_7", "run_100"]),
        ({"step_format_fixed_length": 6}, ["000000", "000007", "000100"]),
        (
            {"step_prefix": "a_1", "step_format_fixed_length": 4},
            ["a_1_0000", "a_1_0007", "a_1_0100"],
        ),
        ({"max_to_keep": 2}, ["7", "100"]),
    ],
)
def test_steps_have_gaps_prefixes_and_zeros(save, options, names):
    root = save("run", steps=[0, 7, 100], **options)
    run = legacy.steps_of(root)
    assert [entry.path.name for entry in run.steps] == names
    assert steps(run) == [0, 7, 100][-len(names) :]
    for entry in run.steps:
        leaf = legacy.open(root, step=entry.step).items["state"]["w",]
        assert leaf.read().tolist() == [entry.step] * 3


def test_files_of_flax_and_folders_of_orbax_in_one_root_are_one_run(save, tmp_path):
    for name in ("checkpoint_-3", "checkpoint_0.5", "checkpoint_20"):
        (tmp_path / name).write_bytes(MSGPACK)
    save("checkpoint_4")
    (tmp_path / "checkpoint_100.orbax-checkpoint-tmp-1").mkdir()
    run = legacy.steps_of(tmp_path)
    assert steps(run) == [-3, 0.5, 4, 20]
    assert reasons(run) == {"checkpoint_100.orbax-checkpoint-tmp-1": TEMPORARY}
    assert legacy.open(tmp_path, step=-3).format.name == "flax-msgpack"
    assert legacy.open(tmp_path, step=4).format.name == "orbax"


def test_a_link_to_a_step_elsewhere_is_a_step_and_one_beside_it_is_not(save, tmp_path):
    root, archive = save("run", steps=[1, 2]), tmp_path / "archive"
    (root / "1").rename(archive)
    (root / "1").symlink_to(archive)
    (root / "5").symlink_to(root / "2")
    (root / "6").symlink_to(tmp_path / "gone")
    run = legacy.steps_of(root)
    assert steps(run) == [1, 2]
    assert reasons(run) == {"5": "a link to '2' beside it", "6": "a link to nothing"}
    assert legacy.open(root, step=1).items["state"]["w",].read().tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", ["metadata", "_ROOT_METADATA"])
def test_the_metadata_of_a_manager_is_no_step_and_nothing_odd(save, name):
    root = save("run", steps=[1, 2])
    (root / "metadata").mkdir(exist_ok=True)
    (root / "metadata" / name).write_text('{"a": 1}')
    run = legacy.steps_of(root)
    assert (steps(run), run.skipped) == ([1, 2], ())


def test_leftovers_are_no_part_of_a_checkpoint_of_several_processes(tmp_path: Path):
    (tmp_path / "checkpoint_1").write_bytes(MSGPACK)
    (tmp_path / "checkpoint_1_gda").mkdir()
    (tmp_path / "checkpoint_tmp_gda").mkdir()
    run = legacy.steps_of(tmp_path)
    assert steps(run) == [1]
    assert reasons(run) == {
        "checkpoint_tmp_gda": "temporary file of a flax save that did not finish"
    }
