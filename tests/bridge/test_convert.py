"""A converted step is there completely and verified, or not at all."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import flax.serialization
import numpy as np
import orbax.checkpoint as ocp
import pytest
import repack_cases as cases

import legacy
from bridge import _convert, output, repack_arrays, repack_copy
from bridge._convert import PROVENANCE, convert
from bridge._plan import Plan, Step
from bridge.errors import BridgeError, OutputExists, PlanMismatch, VerifyFailed, WriteFailed
from bridge.target import Slot, SlotRef, Target
from bridge.transforms import Function

STEPS = (3, 20, 100)


def tree(step):
    rng = np.random.default_rng(step)
    kernel = rng.normal(size=(64, 64)).astype(np.float32)
    return {"params": {"Dense_0": {"kernel": kernel, "bias": kernel[0]}}, "name": f"run {step}"}


@pytest.fixture
def run(tmp_path):
    """A flax run of three steps."""
    folder = tmp_path / "old"
    folder.mkdir()
    for step in STEPS:
        (folder / f"checkpoint_{step}").write_bytes(flax.serialization.to_bytes(tree(step)))
    return folder


@pytest.fixture
def plan(run):
    params = ("params", "Dense_0")
    slots = (
        Slot("model", ("head", "bias"), ("head", "bias", "value"), "Param", "", (64,), "float32"),
        Slot(
            "model",
            ("head", "kernel"),
            ("head", "kernel", "value"),
            "Param",
            "",
            (64, 64),
            "float32",
        ),
        Slot("metadata", ("name",), ("name",), "Json", "", (), "python"),
    )
    sources = ((*params, "bias"), (*params, "kernel"), ("name",))
    steps = tuple(Step((p,), (s.ref,)) for p, s in zip(sources, slots, strict=True))
    signature = legacy.open(run).leaves.signature()
    return Plan(steps, (), (), (), Target(slots), signature)


def everything(folder: Path):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def restored(out, step):
    with ocp.CheckpointManager(out) as manager:
        args = ocp.args.Composite(model=ocp.args.StandardRestore(), metadata=ocp.args.JsonRestore())
        return manager.restore(step, args=args)


def holds(out, step):
    found, want = restored(out, step), tree(step)
    dense = want["params"]["Dense_0"]
    return (
        np.array_equal(found["model"]["head"]["kernel"]["value"], dense["kernel"])
        and np.array_equal(found["model"]["head"]["bias"]["value"], dense["bias"])
        and found["metadata"] == {"name": want["name"]}
    )


def test_all_steps_keep_their_numbers_and_the_source_is_untouched(run, plan, tmp_path):
    before = cases.digests(run)
    out = tmp_path / "new" / "exp"
    results = convert(run, out, plan=plan, steps="all")
    assert [r.step for r in results] == list(STEPS)
    with ocp.CheckpointManager(out) as manager:
        assert manager.all_steps() == list(STEPS)
    assert all(holds(out, step) for step in STEPS)
    assert cases.digests(run) == before
    assert sorted(p.name for p in out.iterdir()) == ["100", "20", "3"]
    assert all(r.verdict.ok and r.verdict.rung == "d" and r.nbytes > 16_000 for r in results)


def test_provenance_is_kept_in_the_custom_metadata(run, plan, tmp_path):
    (result,) = convert(run, tmp_path / "new", plan=plan)
    with ocp.CheckpointManager(tmp_path / "new") as manager:
        found = manager.metadata(100).custom_metadata[PROVENANCE]
    assert found["source"] == str(run / "checkpoint_100")
    assert found["format"] == "flax-msgpack"
    assert found["plan_digest"] == plan.digest() == result.plan_digest
    assert found["signature"] == plan.signature
    assert found["verified"] == {"level": "full", "rung": "d", "compared": 3}
    assert found["versions"]["tensorstore"]
    assert Plan.from_json(found["plan"]) == plan


@pytest.mark.parametrize(
    ("steps", "expected"), [("latest", [100]), ("20,3", [3, 20]), ([100, 3], [3, 100])]
)
def test_steps_can_be_chosen(run, plan, tmp_path, steps, expected):
    results = convert(run, tmp_path / "new", plan=plan, steps=steps, verify="none")
    assert [r.step for r in results] == expected


def test_steps_that_are_not_there_or_no_numbers(run, plan, tmp_path):
    with pytest.raises(legacy.CheckpointNotFound, match=r"no step 4, 5.*It has: 3, 20, 100"):
        convert(run, tmp_path / "new", plan=plan, steps="3,4,5")
    with pytest.raises(BridgeError, match="expected latest, all"):
        convert(run, tmp_path / "new", plan=plan, steps="first")
    assert not (tmp_path / "new").exists()


def test_nothing_to_convert_is_an_error(run, plan, tmp_path):
    with pytest.raises(BridgeError, match="steps is empty"):
        convert(run, tmp_path / "new", plan=plan, steps=[])


def test_two_entries_of_one_number_are_refused(run, plan, tmp_path):
    (run / "checkpoint_3.0").write_bytes((run / "checkpoint_3").read_bytes())
    with pytest.raises((BridgeError, legacy.LegacyError), match="3"):
        convert(run, tmp_path / "new", plan=plan, steps="all")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["checkpoint_0.5", "checkpoint_-1"])
def test_a_number_that_no_manager_can_have_is_refused(run, plan, tmp_path, name):
    (run / "checkpoint_3").rename(run / name)
    with pytest.raises(BridgeError, match="whole numbers from 0 up"):
        convert(run, tmp_path / "new", plan=plan, steps="all")
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_without_a_step_becomes_step_0(run, plan, tmp_path):
    file = tmp_path / "model.msgpack"
    (run / "checkpoint_3").rename(file)
    (result,) = convert(file, tmp_path / "new", plan=plan)
    assert result.step == 0
    assert restored(tmp_path / "new", 0)["metadata"] == {"name": "run 3"}


def test_a_dry_run_checks_everything_and_writes_nothing(run, plan, tmp_path):
    results = convert(run, tmp_path / "new", plan=plan, steps="all", dry_run=True)
    assert [(r.step, r.verdict) for r in results] == [(s, None) for s in STEPS]
    assert not (tmp_path / "new").exists()
    with pytest.raises(PlanMismatch):
        convert(run, tmp_path / "new", plan=replace(plan, signature="0" * 64), dry_run=True)


def test_a_plan_of_another_structure_names_the_differences(run, plan, tmp_path):
    other = flax.serialization.to_bytes({"params": {"Dense_1": {"kernel": np.ones(3)}}})
    (run / "checkpoint_100").write_bytes(other)
    with pytest.raises(PlanMismatch) as caught:
        convert(run, tmp_path / "new", plan=plan)
    assert "params/Dense_0/bias is not in the checkpoint" in str(caught.value)
    assert "params/Dense_1/kernel is not in the plan" in str(caught.value)
    wide = tree(100)
    wide["params"]["Dense_0"]["bias"] = np.ones((65,), np.float16)
    (run / "checkpoint_100").write_bytes(flax.serialization.to_bytes(wide))
    with pytest.raises(PlanMismatch, match=r"\(65,\) dtype float16; the plan expects \(64,\)"):
        convert(run, tmp_path / "new", plan=plan)


def test_an_existing_step_is_an_error_before_anything_is_written(run, plan, tmp_path):
    out = tmp_path / "new"
    convert(run, out, plan=plan, steps="20", verify="none")
    before = cases.digests(out)
    with pytest.raises(OutputExists, match="20 is there already"):
        convert(run, out, plan=plan, steps="all", verify="none")
    assert cases.digests(out) == before


def test_overwrite_replaces_a_step_after_the_new_one_is_verified(run, plan, tmp_path, monkeypatch):
    out = tmp_path / "new"
    convert(run, out, plan=plan, steps="20")
    (run / "checkpoint_20").write_bytes(flax.serialization.to_bytes(tree(3)))
    before = cases.digests(out)

    def refuse(*_args, **_kwargs):
        raise VerifyFailed("values differ")

    with monkeypatch.context() as patch:
        patch.setattr(_convert, "verify_step", refuse)
        with pytest.raises(VerifyFailed):
            convert(run, out, plan=plan, steps="20", overwrite=True)
    assert cases.digests(out) == before
    convert(run, out, plan=plan, steps="20", overwrite=True)
    assert restored(out, 20)["metadata"] == {"name": "run 3"}
    assert [p.name for p in out.iterdir()] == ["20"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ZeroDivisionError])
def test_an_interruption_leaves_nothing(run, plan, tmp_path, error):
    def stop(done, total):
        assert 0 < done <= total
        raise error

    with pytest.raises(error):
        convert(run, tmp_path / "a" / "b", plan=plan, on_progress=stop)
    assert everything(tmp_path) == everything_of(run, tmp_path)


def everything_of(run, tmp_path):
    return sorted([run.name, *(str(p.relative_to(tmp_path)) for p in run.rglob("*"))])


def test_progress_ends_at_the_total(run, plan, tmp_path):
    seen = []
    convert(run, tmp_path / "new", plan=plan, on_progress=lambda *n: seen.append(n), verify="none")
    assert seen == [(16384, 16640), (16640, 16640)]  # as they lie in the file


def test_a_full_disk_is_named_and_leaves_nothing(run, plan, tmp_path, monkeypatch):
    def full(_path, _data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(output, "write_file", full)
    with pytest.raises(WriteFailed, match=r"no room.*needs about \d+ bytes; \d+ bytes were free"):
        convert(run, tmp_path / "new", plan=plan)
    assert everything(tmp_path) == everything_of(run, tmp_path)


def test_a_real_file_size_limit_in_tensorstore_is_named_and_leaves_nothing(run, plan, tmp_path):
    (tmp_path / "plan.json").write_text(plan.to_json())
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from bridge._plan import Plan\n"
        "from bridge._convert import convert\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))\n"
        "plan = Plan.from_json(Path(sys.argv[1], 'plan.json').read_text())\n"
        "convert(sys.argv[2], Path(sys.argv[1], 'new'), plan=plan, verify='none')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(run)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "bridge.errors.WriteFailed" in done.stderr
    assert "no room to write it" in done.stderr
    assert not (tmp_path / "new").exists()


def test_an_output_that_cannot_be_made(run, plan):
    with pytest.raises(WriteFailed, match="could not be written"):
        convert(run, "/proc/nowhere/new", plan=plan)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_output_folder(run, plan, tmp_path):
    (tmp_path / "new").mkdir(mode=0o500)
    with pytest.raises(WriteFailed, match="ermission denied"):
        convert(run, tmp_path / "new", plan=plan)


def test_the_output_never_touches_the_source(run, plan, tmp_path):
    orbax = tmp_path / "orbax"
    with ocp.CheckpointManager(orbax) as manager:
        manager.save(5, args=ocp.args.StandardSave({"w": np.ones(3, np.float32)}))
    source = legacy.open(orbax)
    slot = Slot("model", ("w",), ("w", "value"), "Param", "", (3,), "float32")
    step = Step((("w",),), (slot.ref,))
    other = Plan((step,), (), (), (), Target((slot,)), source.leaves.signature())
    before = cases.digests(orbax)
    for place in (orbax, orbax / "5", orbax / "5" / "default", tmp_path / "orbax" / "new"):
        with pytest.raises(BridgeError, match="Sources are never written to"):
            convert(orbax, place, plan=other, overwrite=True)
    (tmp_path / "7").mkdir()
    (run / "checkpoint_20").rename(tmp_path / "7" / "checkpoint_7")
    with pytest.raises(BridgeError, match="holds the source"):
        convert(tmp_path / "7" / "checkpoint_7", tmp_path, plan=plan, overwrite=True)
    assert cases.digests(orbax) == before


def test_a_flipped_bit_is_found_before_the_output_has_its_name(run, plan, tmp_path, monkeypatch):
    pieces = repack_copy._pieces

    def flip(*args):
        for piece in pieces(*args):
            piece[17] ^= 1
            yield piece

    monkeypatch.setattr(repack_copy, "_pieces", flip)
    with pytest.raises(VerifyFailed):
        convert(run, tmp_path / "new", plan=plan, verify="fast")
    assert everything(tmp_path) == everything_of(run, tmp_path)


def test_a_flipped_bit_is_found_in_an_encoded_array(run, plan, tmp_path, monkeypatch):
    write = repack_arrays.ArrayWriter.write

    def flip(self, name, value, chunks):
        value = value.copy()
        value.view(np.uint8).reshape(-1)[17] ^= 1
        write(self, name, value, chunks)

    monkeypatch.setattr(repack_arrays.ArrayWriter, "write", flip)
    with pytest.raises(VerifyFailed):
        convert(run, tmp_path / "new", plan=plan, verify="fast", compression="zstd")
    assert everything(tmp_path) == everything_of(run, tmp_path)


def test_two_that_write_one_step_cannot_both_win(tmp_path):
    place = tmp_path / "new" / "1"

    def race():
        with output.staged(place) as first:
            (first / "mine").write_text("1")
            with output.staged(place) as second:
                (second / "theirs").write_text("2")

    with pytest.raises(OutputExists, match="1 is there already"):
        race()
    assert everything(tmp_path / "new") == ["1", "1/theirs"]


def test_leftovers_of_a_killed_process_are_passed_over(run, plan, tmp_path):
    out = tmp_path / "new"
    leftover = output._temporary(out / "20")
    leftover.mkdir(parents=True)
    convert(run, out, plan=plan, steps="20")
    with ocp.CheckpointManager(out) as manager:
        assert manager.all_steps() == [20]
    assert legacy.steps_of(out).steps[0].step == 20
    assert leftover.exists()


def test_single_layout_converts_and_verifies(run, plan, tmp_path):
    (result,) = convert(run, tmp_path / "new", plan=plan, layout="single")
    assert result.verdict.ok
    document = json.loads((tmp_path / "new/100/_CHECKPOINT_METADATA").read_text())
    assert document["custom_metadata"]["metadata"] == {"name": "run 100"}


def test_a_plan_is_made_once_for_each_structure(run, tmp_path, monkeypatch):
    from bridge import planning

    made = []
    original = planning.plan

    def count(*args, **kwargs):
        made.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(planning, "plan", count)
    results = convert(run, tmp_path / "new", steps="all", verify="fast")
    assert len(made) == 1
    assert len({r.plan_digest for r in results}) == 1
    assert SlotRef("metadata", ("name",)) in {
        ref for step in original(run).steps for ref in step.slots
    }


def test_an_output_inside_a_checkpoint_is_refused(run, plan, tmp_path):
    (first, *_) = convert(run, tmp_path / "out", plan=plan, verify="none")
    with pytest.raises(BridgeError, match="is a checkpoint itself"):
        convert(run, first.output / "model", plan=plan, verify="none")


def test_a_plan_with_a_function_that_has_no_name_converts_and_is_not_stored(run, plan, tmp_path):
    twice = Function.of(lambda x: x * 2)
    steps = (replace(plan.steps[0], transforms=(twice,)), *plan.steps[1:])
    (done,) = convert(run, tmp_path / "out", plan=replace(plan, steps=steps))
    about = legacy.open(tmp_path / "out").metadata[PROVENANCE]
    assert (about["plan"], about["plan_digest"], done.verdict.rung) == (None, "", "d")
    bias = tree(STEPS[-1])["params"]["Dense_0"]["bias"]
    got = legacy.open(done.output).items["model"]["head", "bias", "value"].read()
    np.testing.assert_array_equal(got, np.asarray(bias) * 2)
