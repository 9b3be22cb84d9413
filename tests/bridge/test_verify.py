"""A verdict finds what is wrong with an output, on the rung where it is wrong."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts

import bridge
import legacy
from bridge import _verify
from bridge._verify import verify_step
from bridge._verify_orbax import restored_differences
from bridge._verify_output import Output
from bridge.errors import BridgeError, PlanMismatch, VerifyFailed

GOLDENS = Path(__file__).parents[1] / "goldens"
GOLDEN = GOLDENS / "latest" / "cnn_state-flax_msgpack"
MANAGED = GOLDENS / "latest" / "cnn_state-mgr_args" / "mgr"


@pytest.fixture(scope="module")
def plan():
    return bridge.plan(GOLDEN)


@pytest.fixture
def out(tmp_path, plan):
    (done,) = bridge.convert(GOLDEN, tmp_path / "new", plan=plan, verify="none", sync=False)
    return done.output


def check(folder, plan, level="fast"):
    return verify_step(legacy.open(GOLDEN), plan, folder, level=level)


def overwrite(folder, item, path, change):
    """Change one array of the output behind everybody's back."""
    leaf = legacy.open(folder).items[item][path]
    store = ts.open(leaf.storage.spec()).result()
    value = store.read().result()
    store.write(change(value)).result()


KERNEL = ("Dense_0", "kernel", "value")


def test_a_good_output_reaches_the_last_rung(out, plan):
    verdict = check(out, plan, "full")
    assert (verdict.ok, verdict.rung, verdict.problems) == (True, "d", ())
    assert verdict.compared == verdict.slots == len(plan.target.slots)
    assert "verified to rung d" in str(verdict)


def test_one_flipped_bit_is_found_with_its_path_and_distance(out, plan):
    def flip(value):
        value = value.copy()
        value.view(np.uint32)[0, 0] ^= 1
        return value

    overwrite(out, "model", KERNEL, flip)
    verdict = check(out, plan)
    assert (verdict.ok, verdict.rung) == (False, "b")
    (problem,) = verdict.problems
    assert problem.rung == "c"
    assert str(problem.slot) == "model:Dense_0/kernel"
    assert problem.sources == (("params", "Dense_0", "kernel"),)
    assert "1 of" in problem.message
    assert "max 1 ulp" in problem.message
    assert "NOT VERIFIED" in str(verdict)
    with pytest.raises(VerifyFailed, match="Dense_0/kernel"):
        verdict.require_ok()


def test_nobody_climbs_above_a_broken_rung(out, plan):
    overwrite(out, "model", KERNEL, lambda value: value + 1)
    verdict = check(out, plan, "full")
    assert ([p.rung for p in verdict.problems], verdict.rung) == (["c"], "b")


def test_what_orbax_restores_is_held_against_the_digests_of_the_source(out, plan):
    source = legacy.open(GOLDEN).leaves["params", "Dense_0", "kernel"].read()
    ref = next(r for s in plan.steps for r in s.slots if str(r) == "model:Dense_0/kernel")
    digests = {ref: hashlib.sha256(source.tobytes()).hexdigest()}
    output = Output(legacy.open(out), plan)
    rest = (output.checkpoint, output.places, plan.target, digests)
    assert list(restored_differences(*rest)) == []
    overwrite(out, "model", KERNEL, lambda value: value + 1)
    (problem,) = restored_differences(*rest)
    assert (problem.rung, str(problem.slot)) == ("d", "model:Dense_0/kernel")


def test_a_wrong_shape_and_dtype_are_rung_b(out, plan):
    slots = list(plan.target.slots)
    at = next(n for n, s in enumerate(slots) if s.path == ("Dense_0", "kernel"))
    wrong = replace(slots[at], dtype="bfloat16", shape=(1, *slots[at].shape))
    changed = replace(
        plan, target=replace(plan.target, slots=(*slots[:at], wrong, *slots[at + 1 :]))
    )
    verdict = check(out, changed)
    assert verdict.rung == "a"
    assert [p.rung for p in verdict.problems] == ["b"]
    assert "bfloat16" in verdict.problems[0].message
    assert "float32" in verdict.problems[0].message


def test_a_missing_and_a_surplus_leaf_are_rung_a(out, plan):
    gone, *kept = plan.target.slots
    moved = replace(gone, path=("elsewhere",), disk_path=("elsewhere", "value"))
    step, *rest = [s for s in plan.steps if gone.ref in s.slots] + [
        s for s in plan.steps if gone.ref not in s.slots
    ]
    changed = replace(
        plan,
        steps=(replace(step, slots=(moved.ref,)), *rest),
        target=replace(plan.target, slots=(moved, *kept)),
    )
    verdict = check(out, changed)
    assert verdict.rung == ""
    messages = [p.message for p in verdict.problems]
    assert any("model:elsewhere: the output has nothing there" in m for m in messages)
    assert any("no slot of the plan" in m for m in messages)


def test_what_orbax_cannot_restore_is_rung_d(out, plan, monkeypatch):
    def refuse(*_):
        raise ValueError("topology mismatch")

    monkeypatch.setattr("bridge._verify_orbax._restore", refuse)
    verdict = check(out, plan, "full")
    assert (verdict.ok, verdict.rung) == (False, "c")
    assert "item model: Orbax cannot restore it: ValueError: topology mismatch" in str(verdict)


def test_what_orbax_restores_otherwise_than_we_read_is_rung_d(out, plan, monkeypatch):
    from bridge import _verify_orbax

    real = _verify_orbax._restore

    def cast(output, item, tree):
        restored = real(output, item, tree)
        if item == "model":
            kernel = restored["Dense_0"]["kernel"]
            kernel["value"] = kernel["value"].astype("bfloat16")
            restored["Dense_1"]["kernel"]["value"] += 1
        return restored

    monkeypatch.setattr(_verify_orbax, "_restore", cast)
    verdict = check(out, plan, "full")
    assert verdict.rung == "c"
    first, second = (p.message for p in verdict.problems)
    assert "Dense_0/kernel: the plan says float32" in first
    assert "Orbax restores bfloat16" in first
    assert "Dense_1/kernel: what Orbax restores has other bits" in second


def test_level_none_looks_at_nothing(out, plan):
    verdict = check(out / "not" / "there", plan, "none")
    assert verdict.ok
    assert str(verdict) == "not verified (level none)"


def test_an_unknown_level_is_refused(out, plan):
    with pytest.raises(BridgeError, match="full, fast, none"):
        check(out, plan, "thorough")


def test_fast_samples_large_plain_copies_and_says_so(out, plan, monkeypatch):
    monkeypatch.setattr(_verify, "SMALL", 0)
    monkeypatch.setattr(_verify, "SAMPLED", 2)
    verdict = check(out, plan)
    assert verdict.ok
    assert 0 < verdict.compared < verdict.slots
    assert verdict.rung == "b"
    assert f"{verdict.compared} of {verdict.slots} values" in str(verdict)


def test_large_arrays_are_compared_in_blocks(out, plan, monkeypatch):
    whole = check(out, plan)
    monkeypatch.setattr("bridge._bits.blocks.__defaults__", (None, 64))
    parts = check(out, plan)
    assert parts.ok
    assert (parts.digest, parts.nbytes) == (whole.digest, whole.nbytes)


@pytest.mark.parametrize("layout", ["composite", "single"])
def test_both_layouts_are_verified_with_strings_and_json_items(tmp_path, layout):
    source = GOLDENS / "latest" / "bundle-ptc"
    made = bridge.plan(source)
    (done,) = bridge.convert(source, tmp_path / "new", plan=made, layout=layout, sync=False)
    assert done.verdict is not None
    assert done.verdict.rung == "d"
    assert any(s.variable_type == "Json" for s in made.target.slots)
    again = bridge.verify(source, tmp_path / "new", level="fast")
    assert again.ok
    assert again.compared == len(made.target.slots)


def test_a_changed_json_value_is_found(tmp_path):
    source = GOLDENS / "latest" / "bundle-ptc"
    (done,) = bridge.convert(source, tmp_path / "new", verify="none", sync=False)
    file = done.output / "metadata" / "metadata"
    document = json.loads(file.read_text())
    name = document["config"]["name"]
    document["config"]["name"] = "another"
    document["config"]["more"] = 1
    file.write_text(json.dumps(document))
    verdict = bridge.verify(source, tmp_path / "new", level="fast")
    assert not verdict.ok
    surplus, changed = verdict.problems
    assert surplus.message == "metadata:config/more: no slot of the plan."
    assert repr(name) in changed.message
    assert "'another' in the output" in changed.message


def test_metrics_are_carried_across_as_they_are(tmp_path):
    rows = {"params": {"w": np.arange(3.0)}}
    source = tmp_path / "old"
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(source) as manager:
        manager.save(
            1,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(rows), info=ocp.args.JsonSave({"a": [1, "x"]})
            ),
        )
    (done,) = bridge.convert(source, tmp_path / "new", verify="fast", sync=False)
    assert done.verdict is not None
    assert done.verdict.ok
    file = done.output / "info" / "metadata"
    file.write_text('{"a": [2, "x"]}')
    verdict = bridge.verify(source, tmp_path / "new", level="fast")
    assert "1 in the source, 2 in the output" in str(verdict)


def test_verify_takes_the_plan_from_the_output(tmp_path):
    bridge.convert(MANAGED, tmp_path / "new", verify="none", sync=False)
    assert bridge.verify(MANAGED, tmp_path / "new", level="fast").ok


def test_verify_without_any_plan_says_what_to_give():
    with pytest.raises(BridgeError, match="--plan"):
        bridge.verify(MANAGED, MANAGED)


def test_verify_refuses_a_plan_of_another_structure(tmp_path, plan):
    bridge.convert(GOLDEN, tmp_path / "new", plan=plan, verify="none", sync=False)
    with pytest.raises(PlanMismatch, match="signature"):
        bridge.verify(GOLDENS / "latest" / "boxed-ptc", tmp_path / "new", plan=plan)


def test_a_source_that_changed_after_the_conversion_is_noticed(tmp_path):
    source = tmp_path / "checkpoint_3"
    old = legacy.open(GOLDEN).path
    source.write_bytes(old.read_bytes())
    bridge.convert(source, tmp_path / "new", verify="none", sync=False)
    data = bytearray(old.read_bytes())
    leaf = legacy.open(source).leaves["params", "Dense_0", "kernel"]
    data[leaf.storage.offset] ^= 1
    source.write_bytes(data)
    verdict = bridge.verify(source, tmp_path / "new", level="fast")
    assert [str(p.slot) for p in verdict.problems] == ["model:Dense_0/kernel"]


def test_a_verdict_is_plain_json(out, plan):
    data = json.loads(json.dumps(check(out, plan).to_json()))
    assert data["ok"] is True
    assert data["slots"] == data["compared"]
