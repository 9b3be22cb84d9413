"""Goldens: made, checked, updated; copied, shrunken, referred to, or digests alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import bridge
import legacy
from bridge import cli
from bridge.golden_leaves import far
from bridge.golden_probes import probe_from_json, probe_json
from bridge.golden_run import ModelsDiffer
from bridge.golden_sides import write_arrays
from bridge.golden_slots import rename_hints
from bridge.output import OutputExists
from bridge.probe import Probe
from bridge.target import Slot
from bridge.testing import (
    Golden,
    GoldenError,
    Small,
    check_golden,
    find_goldens,
    make_golden,
    update_golden,
)

HERE = Path(__file__).parent
TINY = HERE / "tiny.py"
OLD = HERE / "goldens" / "flax010-cnn_optim-flax_msgpack"


def saved(folder, sizes):
    """An old run of one step."""
    linen = tiny.LinenTiny(sizes)
    params = linen.init(jax.random.key(0), jnp.ones((1, sizes[0])))["params"]
    state = {"step": 7, "params": params, "opt_state": tiny.optimizer().init(params),
             "ema_params": params}  # fmt: skip
    folder.mkdir()
    (folder / "checkpoint_7").write_bytes(flax.serialization.to_bytes(state))
    return folder / "checkpoint_7"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("run") / "small", (3, 4, 2))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("run") / "large", (48, 64, 40))


def named(model="model", tx="optimizer"):
    return {"model": f"{TINY}:{model}", "tx": f"{TINY}:{tx}"}


@pytest.fixture(scope="module")
def recorded(source, tmp_path_factory):
    """A golden with the outputs of Linen; copy it before you change it."""
    out = tmp_path_factory.mktemp("goldens") / "tiny"
    return make_golden(source, out, linen=f"{TINY}:LinenTiny", sample_input="f32[2,3]", **named())


@pytest.fixture
def golden(recorded, tmp_path):
    place = tmp_path / "tiny"
    shutil.copytree(recorded.path, place)
    document = json.loads((place / "golden.json").read_text())
    for key in ("model", "tx"):  # it lies elsewhere now
        document["plan"][key] = f"{TINY}:{document['plan'][key].rpartition(':')[2]}"
    (place / "golden.json").write_text(json.dumps(document))
    return Golden.load(place)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def stages(report):
    return {finding.stage for finding in report.findings}


def test_every_era_has_a_golden_of_the_kit():
    eras = {p.name.removesuffix(".tar.xz") for p in (HERE.parent / "goldens/eras").glob("*.tar.xz")}
    goldens = find_goldens([HERE / "goldens"])
    assert eras <= {golden.name.split("-")[0] for golden in goldens}
    assert sum(golden.kept == "reference" for golden in goldens) == 4
    assert all(p.stat().st_size < 1 << 20 for p in (HERE / "goldens").rglob("*"))
    root = str(HERE.parents[1]).encode()  # what is made here is for every machine
    assert not [p for p in (HERE / "goldens").rglob("*.json") if root in p.read_bytes()]


def test_a_golden_holds_and_says_what_was_looked_at(golden):
    report = check_golden(golden)
    assert report.ok, report
    assert report.looked == ["19 leaves of the source", "the plan (18 steps)",
                             "18 leaves of the output", "1 output of Linen"]  # fmt: skip
    (call,) = golden.document["outputs"]["calls"]
    assert call["float64"]
    assert golden.kept == "copy"
    assert golden.checkpoint.step == 7
    model, optimizer, extras = golden.restore()
    assert set(extras) == {"ema_params"}
    assert int(optimizer.step[...]) == 7
    assert model.first.kernel.shape == (3, 4)


def test_the_same_golden_has_the_same_bytes(source, tmp_path):
    for name in ("a", "b"):
        make_golden(source, tmp_path / name / "tiny", **named())
        write_arrays(tmp_path / name / "x.npz", {"b": np.ones(2), "a": np.float32(3)})
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    with np.load(tmp_path / "a" / "x.npz") as arrays:
        assert arrays["a"] == 3
    with pytest.raises(OutputExists):
        make_golden(source, tmp_path / "a" / "tiny")


def test_models_that_differ_make_no_golden(source, tmp_path):
    plan = bridge.plan(source, model=tiny.other_model, tx=tiny.optimizer())
    with pytest.raises(ModelsDiffer, match="Linen and NNX do not give the same"):
        make_golden(source, tmp_path / "tiny", plan=plan, linen=f"{TINY}:LinenTiny",
                    sample_input="f32[2,3]", **named("other_model"))  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_another_function_of_the_same_shapes_is_noticed(golden):
    report = check_golden(golden, model=tiny.other_model)
    assert stages(report) == {"behaviour"}
    assert "max abs" in str(report)
    assert check_golden(golden, model=tiny.other_model, behaviour=False).ok


def test_outputs_are_only_replaced_when_that_is_said(golden):
    before = contents(golden.path)
    other = f"{TINY}:other_model"
    with pytest.raises(GoldenError, match="does not give what Linen gave"):
        update_golden(golden, model=other)
    assert contents(golden.path) == before
    told = []
    done = update_golden(golden, model=other, accept_outputs=True, tell=told.append)
    assert done.written
    assert told
    assert any(line.startswith("outputs: model: output: ") for line in done.changes)
    assert done.golden.check().ok
    assert done.golden.document["outputs"]["from"] == "nnx"


def test_an_update_that_is_dry_or_changes_nothing_writes_nothing(golden):
    before = contents(golden.path)
    assert update_golden(golden).changes == ()
    done = update_golden(golden, model=f"{TINY}:other_model", dry_run=True, accept_outputs=True)
    assert done.changes
    assert not done.written
    assert contents(golden.path) == before


def test_a_renamed_module_is_one_line_and_an_update(golden):
    report = check_golden(golden, model=tiny.renamed)
    assert stages(report) == {"plan"}
    assert "slot model:first/bias is gone, model:inner/bias is new, same shape: rename?" in str(
        report
    )
    assert "(6 slots, all first → inner)" in str(report)


def test_swapped_values_are_measured_and_found(golden):
    plan = json.loads((golden.path / "plan.json").read_text())
    a, b = (s for s in plan["steps"] if s["sources"][0][:2] == ["opt_state", "0"]
            and s["sources"][0][3:] == ["layer_0", "kernel"])  # fmt: skip
    a["sources"], b["sources"] = b["sources"], a["sources"]
    c = next(s for s in plan["steps"] if s["sources"] == [["params", "layer_0", "kernel"]])
    c["sources"] = [["opt_state", "0", "mu", "layer_0", "kernel"]]
    (golden.path / "plan.json").write_text(json.dumps(plan))
    report = check_golden(golden)
    assert {"plan", "output", "behaviour"} <= stages(report)
    said = next(f.message for f in report.findings if f.stage == "output")
    assert said.startswith("model:first/kernel: 12 of 12 differ, max abs ")
    assert "the farthest at [" in said
    assert "the recorded values are those of leaf " in said


def test_a_source_that_is_not_there_says_who_may_hide_it(golden):
    shutil.rmtree(golden.path / "source")
    report = check_golden(golden)
    assert stages(report) == {"source"}
    assert "git check-ignore" in str(report)


def test_a_reference_to_code_that_is_gone_is_a_failure(golden):
    document = json.loads((golden.path / "golden.json").read_text())
    document["plan"]["model"] = "no_such_module:model"
    (golden.path / "golden.json").write_text(json.dumps(document))
    report = check_golden(golden.path)
    assert stages(report) == {"plan"}
    assert "no module 'no_such_module'" in str(report)


def test_a_plan_whose_linen_module_is_gone_must_still_fit(golden):
    document = json.loads((golden.path / "golden.json").read_text())
    document["plan"] |= {"linen": "no_such_module:CNN", "input": "f32[2,3]"}
    (golden.path / "golden.json").write_text(json.dumps(document))
    report = check_golden(golden.path)
    assert report.ok
    assert "because its Linen module is gone" in report.notes[0]
    assert not check_golden(golden.path, model=tiny.renamed).ok


@pytest.mark.parametrize("change", [{"version": 2}, {"source": {"kept": "elsewhere"}}])
def test_a_golden_of_another_form_is_refused(golden, change):
    document = json.loads((golden.path / "golden.json").read_text())
    (golden.path / "golden.json").write_text(json.dumps(document | change))
    with pytest.raises(GoldenError, match=r"version 2|not well formed"):
        Golden.load(golden.path)


def test_of_a_large_source_digests_are_kept(source, tmp_path):
    golden = make_golden(source, tmp_path / "tiny", max_size=100, **named())
    assert golden.kept == "digests"
    assert not (golden.path / "source").exists()
    report = golden.check()
    assert report.ok, report
    assert "digests of its source only" in report.notes[0]
    assert golden.checkpoint.leaves.signature() == legacy.open(source).leaves.signature()
    assert stages(golden.check(model=tiny.renamed)) == {"plan"}
    with pytest.raises(GoldenError, match="nothing to convert"):
        golden.convert(tmp_path / "out")
    with pytest.raises(GoldenError, match="cannot be made from itself"):
        update_golden(golden)


def test_a_large_source_is_shrunken_by_a_small_model(large, tmp_path):
    small = Small(f"{TINY}:model")
    golden = make_golden(large, tmp_path / "tiny", small=small, **named("large"))
    assert golden.kept == "shrunken"
    assert golden.check().ok
    assert len(golden.checkpoint.leaves) == len(legacy.open(large).leaves)
    for path, leaf in golden.checkpoint.leaves.items():
        whole = legacy.open(large).leaves[path]
        if leaf.shape:  # real values: a corner of the large ones
            corner = whole.read(tuple(slice(0, n) for n in leaf.shape))
            np.testing.assert_array_equal(leaf.read(), corner)
    ema = golden.checkpoint.leaves["ema_params", "layer_0", "kernel"]
    assert ema.shape == (3, 4)
    assert golden.document["source"]["was"] == "large/checkpoint_7"


def test_a_small_model_of_another_structure_makes_no_golden(large, tmp_path):
    with pytest.raises(Exception, match=r"problem|other leaves"):
        make_golden(large, tmp_path / "tiny", small=Small(f"{TINY}:deeper"), **named("large"))
    assert list(tmp_path.iterdir()) == []


def test_a_source_can_stay_where_it_is(source, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(source.parent, run)
    golden = make_golden(run, tmp_path / "goldens" / "tiny", reference=True)
    assert golden.document["source"]["path"] == "../../run/checkpoint_7"
    assert golden.check().ok
    before = contents(run)
    golden.convert(tmp_path / "out")
    assert contents(run) == before


def test_what_is_alike_by_shape_type_and_name_is_paired():
    def slots(*paths):
        found = [Slot("model", tuple(p.split("/")), tuple(p.split("/")), "Param", "params", (3, 3),
                      "float32") for p in paths]  # fmt: skip
        return {slot.ref: slot for slot in found}

    hints = rename_hints(
        slots("blocks/0/q_proj/kernel", "blocks/0/k_proj/kernel", "mask"),
        slots("blocks/0/query_proj/kernel", "blocks/0/key_proj/kernel", "zzz"),
    )
    assert {str(a): str(b) for a, b in hints.items()} == {
        "model:blocks/0/q_proj/kernel": "model:blocks/0/query_proj/kernel",
        "model:blocks/0/k_proj/kernel": "model:blocks/0/key_proj/kernel",
    }


def test_a_call_is_kept_whatever_its_arguments():
    key = jax.random.key(3)
    batch = {"x": np.float32([1, 2]), "more": (jnp.ones(2, jnp.bfloat16), [1, None, "a"])}
    probe = Probe((batch,), {"key": key, "scale": 0.5}, nnx_args=(batch,), method="encode")
    inputs = [batch["more"][0], batch["x"], key]
    arrays: dict = {}
    kept = json.loads(json.dumps(probe_json(probe, inputs, "m.0", arrays)))
    found = probe_from_json(kept, arrays)
    assert found.nnx_name() == "encode"
    (again,), kwargs = found.nnx_arguments()
    assert again["more"][1] == [1, None, "a"]
    assert again["more"][0].dtype == jnp.bfloat16
    np.testing.assert_array_equal(again["x"], batch["x"])
    assert jnp.array_equal(jax.random.key_data(kwargs["key"]), jax.random.key_data(key))
    assert kwargs["scale"] == 0.5
    with pytest.raises(GoldenError, match="holds a set"):
        probe_json(Probe(({1},)), [], "m.0", {})


def test_where_two_arrays_part_is_said():
    assert far(np.zeros((2, 2)), np.array([[0, 0], [3.0, 1]])) == (
        ", the farthest at [1, 0]: 0.0 recorded, 3.0 today"
    )
    assert far(np.zeros(0), np.zeros(0)) == ""


def run(capsys, *args):
    code = cli.main(["golden", *map(str, args)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_line_makes_checks_and_updates(source, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    model = tmp_path / "mine.py"
    model.write_text("from tiny import Tiny, optimizer\n\n\ndef make():\n    return Tiny()\n")
    place = tmp_path / "goldens" / "tiny"
    code, out, _ = run(capsys, "make", source, "--model", f"{model}:make", "-o", place)
    assert (code, "19 leaves of the source" in out) == (0, True)
    assert json.loads((place / "golden.json").read_text())["plan"]["model"] == "../../mine.py:make"
    code, out, _ = run(capsys, "check", tmp_path / "goldens")
    assert (code, "1 checked, 0 not as recorded" in out) == (0, True)

    model.write_text("from tiny import Renamed, optimizer\n\n\ndef make():\n    return Renamed()\n")
    code, out, _ = run(capsys, "check", place, "--json")
    (found,) = json.loads(out)
    assert (code, found["ok"]) == (1, False)
    before = contents(place)
    code, out, _ = run(capsys, "update", place, "--dry-run")
    assert (code, "rename?" in out, contents(place) == before) == (0, True, True)
    monkeypatch.setenv("CI", "true")
    code, _, err = run(capsys, "update", place)
    assert (code, "not updated where CI is set" in err, contents(place) == before) == (
        1,
        True,
        True,
    )
    monkeypatch.delenv("CI")
    code, out, _ = run(capsys, "update", place)
    assert (code, "1 written" in out) == (0, True)
    assert run(capsys, "check", place)[0] == 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("make", "x", "-o", "y", "--tx", "m:f"), "--tx needs --model"),
        (("make", "x", "-o", "y", "--model", "m:f", "--linen", "m:f"), "--linen needs --input"),
        (("make", "x", "-o", "y", "--max-size", "big"), "expected a size"),
        (("make", "x", "-o", "y", "--modle", "m:f"), "did you mean --model"),
        ((), "ACTION"),
    ],
)
def test_wrong_usage_says_what_is_missing(args, said, capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main(["golden", *args])
    assert raised.value.code == 2
    assert said in capsys.readouterr().err


def test_a_folder_without_goldens_is_an_error(tmp_path, capsys):
    code, _, err = run(capsys, "check", tmp_path)
    assert (code, "there is no golden" in err) == (1, True)
