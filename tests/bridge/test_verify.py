"""A verdict finds what is wrong with an output, on the rung where it is wrong."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorstore as ts

import bridge
import legacy
from bridge import _verify, _verify_stored, _verify_values
from bridge._verify import verify_step
from bridge.errors import BridgeError, PlanMismatch, VerifyFailed
from legacy.orbax_reader import ArrayReader

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


def test_what_orbax_restores_is_what_is_compared(out, plan, monkeypatch):
    read = []
    real = ArrayReader._read

    def watched(self, index, memory):
        read.append((str(self.found.store.root), real(self, index, memory)))
        return read[-1][1]

    monkeypatch.setattr(ArrayReader, "_read", watched)
    assert check(out, plan, "full").ok
    # the own reader opens every array of the output and takes no value out of a large one
    assert {root.rpartition("/")[2] for root, _ in read} == {*legacy.open(out).tree_items}
    assert all(value.size == 0 or value.ndim == 0 for _, value in read)


def test_a_large_item_is_restored_some_arrays_at_a_time(out, plan, monkeypatch):
    from bridge import _verify_orbax

    whole = check(out, plan, "full")
    sizes = []
    real = _verify_orbax._restore

    def counted(output, item, tree):
        restored = real(output, item, tree)
        sizes.append((item, sum(x is not ... for x in jax.tree.leaves(restored))))
        return restored

    monkeypatch.setattr(_verify_orbax, "_restore", counted)
    monkeypatch.setattr(_verify_values, "BATCH", 4096)
    parts = check(out, plan, "full")
    assert (parts.rung, parts.digest, parts.nbytes) == ("d", whole.digest, whole.nbytes)
    assert len(sizes) > len({item for item, _ in sizes})
    assert sum(n for _, n in sizes) == parts.compared
    overwrite(out, "model", KERNEL, lambda value: value + 1)
    (problem,) = check(out, plan, "full").problems
    assert (problem.rung, str(problem.slot)) == ("c", "model:Dense_0/kernel")


def test_a_chunk_that_is_gone_is_found_though_orbax_gives_zeros_for_it(tmp_path):
    source = tmp_path / "checkpoint_1"
    from flax import serialization

    zeros = {"params": {"kernel": np.zeros((3, 3), "f4"), "bias": np.ones(3, "f4")}}
    source.write_bytes(serialization.msgpack_serialize(zeros))
    (done,) = bridge.convert(source, tmp_path / "new", verify="none", sync=False)
    leaf = next(
        v for t in legacy.open(done.output).items.values() for p, v in t.items() if "kernel" in p
    )
    spec = leaf.storage.spec()["kvstore"]
    ts.KvStore.open(spec).result().delete_range(ts.KvStore.KeyRange("0.0", "0.1")).result()
    verdict = bridge.verify(source, tmp_path / "new")
    assert (verdict.ok, verdict.rung) == (False, "b")
    assert "its chunk '0.0' is missing" in str(verdict)


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
    with pytest.raises(BridgeError, match="full, values, fast, none"):
        check(out, plan, "thorough")


def test_fast_samples_large_plain_copies_and_says_so(out, plan, monkeypatch):
    monkeypatch.setattr(_verify, "SMALL", 0)
    monkeypatch.setattr(_verify, "SAMPLED", 2)
    monkeypatch.setattr(_verify_stored, "EDGE", 8)
    verdict = check(out, plan)
    assert verdict.ok
    assert 0 < verdict.compared < verdict.slots
    assert verdict.rung == "b"
    assert f"{verdict.compared} of {verdict.slots} values" in str(verdict)
    assert f"stored bytes of {verdict.sampled} sampled" in str(verdict)


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


def test_fast_compares_stored_bytes_and_finds_what_is_wrong_with_them(tmp_path):
    source = GOLDENS / "latest" / "bundle-ptc"
    made = bridge.plan(source)
    bridge.convert(source, tmp_path / "new", plan=made, verify="none", sync=False)
    folder = next((tmp_path / "new").iterdir())
    found = bridge.verify(source, folder, plan=made, level="fast")
    assert found.ok
    assert (found.compared, found.sampled, found.rung) == (found.slots, 0, "c")
    # exchange two arrays of one shape: every length and document stays
    from bridge.ocdbt import survey
    from bridge.ocdbt_tree import Place, write_database

    one, other, item = next(
        (a, b, item)
        for item in folder.iterdir()
        if (item / "manifest.ocdbt").exists()
        for a, b in itertools.combinations(sorted(survey(item).zarrays), 2)
        if survey(item).zarrays[a] == survey(item).zarrays[b]
    )
    values = {
        f"{name}/{key}": value
        for name, keys in survey(item).arrays.items()
        for key, value in keys.items()
    }
    for key in [k.rpartition("/")[2] for k in values if k.startswith(f"{one}/")]:
        values[f"{one}/{key}"], values[f"{other}/{key}"] = (
            values[f"{other}/{key}"],
            values[f"{one}/{key}"],
        )
    (item / "manifest.ocdbt").unlink()
    write_database(
        item,
        {
            k: v
            if isinstance(v, bytes)
            else Place(str(v.file.relative_to(item)), v.offset, v.length)
            for k, v in values.items()
        },
    )
    found = bridge.verify(source, folder, plan=made, level="fast")
    assert len(found.problems) == 2
    assert "values differ from" in str(found)
