"""A disk full of runs: found, grouped, planned once, converted, kept in a ledger."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import fleet_cases as cases

import legacy
from bridge.errors import BridgeError, FleetError
from bridge.fleet import convert_fleet
from bridge.fleet_config import read_config
from bridge.fleet_find import find_sources
from bridge.fleet_prints import fingerprint
from bridge.ledger import read_ledger

FAST = {"steps": "all", "verify": "fast", "sync": False}
GIT_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"


def states(report):
    return {row.output: row.state for row in report.rows}


@pytest.fixture
def runs(tmp_path):
    """Two runs of two steps, of two structures."""
    cases.make_runs(tmp_path / "runs", 2, 2)
    return tmp_path / "runs"


@pytest.fixture
def done(runs, tmp_path):
    """The same, converted."""
    out = tmp_path / "out"
    assert convert_fleet(runs, out, **FAST).ok
    return out


def test_outputs_mirror_the_source_tree_and_hold_its_values(runs, done):
    assert cases.differences(runs, done) == []
    assert cases.strangers(done) == []
    assert {r.output: (r.state, r.attempts, r.rung) for r in read_ledger(done)} == {
        f"run00{r}/{s}": ("done", 1, "c") for r in (0, 1) for s in (1, 2)
    }


def test_a_second_time_nothing_is_opened_and_nothing_is_written(runs, done):
    before = {p: p.stat().st_mtime_ns for p in done.rglob("*/commit_success.txt")}
    events = []
    report = convert_fleet(runs, done, on_event=events.append, **FAST)
    assert (report.kept, report.ok) == (4, True)
    assert not [e for e in events if e["event"] in ("looked", "checkpoint")]
    assert {p: p.stat().st_mtime_ns for p in done.rglob("*/commit_success.txt")} == before


def test_what_changed_is_done_again_and_only_that(runs, done):
    cases.write(runs / "run000" / "checkpoint_2", 77)
    report = convert_fleet(runs, done, **FAST)
    assert report.kept == 3
    assert cases.differences(runs, done) == []
    assert {r.output: r.attempts for r in read_ledger(done)}["run000/2"] == 2


def test_another_plan_is_another_output(runs, done, tmp_path):
    rules = tmp_path / "rules.toml"
    rules.write_text('[[ignore]]\nsource = "step"\n')
    report = convert_fleet(runs, done, rules=str(rules), **FAST)
    assert (report.kept, report.ok, len(report.rows)) == (0, True, 4)
    assert not (done / "run000" / "1" / "extras").exists()


@pytest.mark.parametrize("harm", ["lost", "cut"])
def test_an_output_that_is_not_sound_is_made_again(runs, done, harm):
    place = done / "run001" / "1"
    if harm == "lost":
        shutil.rmtree(place)
    else:
        file = max(place.rglob("d/*"), key=lambda p: p.stat().st_size)
        os.truncate(file, 1)
    assert convert_fleet(runs, done, **FAST).kept == 3
    assert cases.differences(runs, done) == []


def test_a_lost_ledger_is_made_good_from_what_the_outputs_say(runs, done):
    shutil.rmtree(done / ".linen2nnx")
    report = convert_fleet(runs, done, **FAST)
    assert (report.kept, report.ok) == (4, True)
    assert len(read_ledger(done)) == 4


def test_a_damaged_ledger_is_refused_with_what_to_do(runs, done):
    (done / ".linen2nnx" / "ledger.sqlite").write_bytes(b"no database at all" * 1000)
    with pytest.raises(BridgeError, match="the ledger is damaged"):
        convert_fleet(runs, done, **FAST)


def test_a_ledger_of_another_version_is_refused(runs, done):
    db = sqlite3.connect(done / ".linen2nnx" / "ledger.sqlite")
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(BridgeError, match="has version 99"):
        convert_fleet(runs, done, **FAST)


def test_an_output_of_somebody_else_is_never_replaced_unless_asked(runs, done):
    shutil.rmtree(done / ".linen2nnx")
    metadata = done / "run000" / "1" / "_CHECKPOINT_METADATA"
    about = json.loads(metadata.read_text())
    del about["custom_metadata"]["linen_nnx_bridge"]
    metadata.write_text(json.dumps(about))
    with pytest.raises(FleetError, match=r"1 output\(s\) are there already"):
        convert_fleet(runs, done, **FAST)
    assert convert_fleet(runs, done, overwrite=True, **FAST).ok


def test_outputs_of_another_source_are_not_replaced(done, tmp_path):
    cases.make_runs(tmp_path / "others", 2, 2)
    with pytest.raises(FleetError, match=r"4 output\(s\) are there already"):
        convert_fleet(tmp_path / "others", done, **FAST)


def test_a_bad_checkpoint_is_a_row_and_the_others_go_on(runs, tmp_path):
    (runs / "run000" / "checkpoint_3").write_bytes(GIT_LFS)
    out = tmp_path / "out"
    report = convert_fleet(runs, out, **FAST)
    assert states(report)["run000/3"] == "failed"
    assert report.counts == {"done": 4, "failed": 1}
    (row,) = [r for r in read_ledger(out) if r.state == "failed"]
    assert "LFS" in row.error
    cases.write(runs / "run000" / "checkpoint_3", 5)  # what failed is tried again
    assert convert_fleet(runs, out, **FAST).counts == {"done": 5}


def test_fail_fast_begins_nothing_when_something_is_refused(runs, tmp_path):
    (runs / "run000" / "checkpoint_3").write_bytes(GIT_LFS)
    report = convert_fleet(runs, tmp_path / "out", fail_fast=True, **FAST)
    assert report.counts == {"pending": 4, "failed": 1}


def test_a_source_that_is_gone_is_said_to_be(runs, tmp_path):
    bad = runs / "run000" / "checkpoint_3"
    bad.write_bytes(GIT_LFS)
    convert_fleet(runs, tmp_path / "out", **FAST)
    bad.unlink()
    convert_fleet(runs, tmp_path / "out", **FAST)
    assert [r.error_kind for r in read_ledger(tmp_path / "out") if r.state != "done"] == [
        "SourceGone"
    ]


def test_a_dry_run_writes_nothing(runs, tmp_path):
    report = convert_fleet(runs, tmp_path / "out", dry_run=True, **FAST)
    assert report.counts == {"pending": 4}
    assert len(report.groups) == 2
    assert not (tmp_path / "out").exists()


def test_the_first_of_each_structure_is_restored_by_orbax(runs, tmp_path):
    report = convert_fleet(runs, tmp_path / "out", steps="all", verify="values", sync=False)
    rungs = sorted(row.rung for row in report.rows)
    assert rungs == ["c", "c", "d", "d"]


def test_a_manager_passes_over_our_folder(runs, tmp_path):
    import orbax.checkpoint as ocp

    out = tmp_path / "out"
    assert convert_fleet(runs / "run000", out, jobs=2, **FAST).ok
    assert (out / ".linen2nnx" / "ledger.sqlite").is_file()
    with ocp.CheckpointManager(out) as manager:
        assert list(manager.all_steps()) == [1, 2]
        assert manager.latest_step() == 2


# ------------------------------------------------------------------ where outputs go


def test_two_roots_go_to_folders_of_their_names(tmp_path):
    for name in ("a", "b"):
        cases.write(tmp_path / name / "checkpoint_7", 1)
    found = find_sources([tmp_path / "a", tmp_path / "b"])
    assert [s.output for s in found.sources] == ["a/7", "b/7"]


def test_two_roots_of_one_name_are_refused(call, tmp_path):
    for name in ("a/x", "b/x"):
        cases.write(tmp_path / name / "checkpoint_7", 1)
    code, _, err = call("convert", tmp_path / "a/x", tmp_path / "b/x", "--out", tmp_path / "o")
    assert (code, "have one name" in err) == (2, True)


def test_two_runs_in_one_folder_are_told_apart_by_their_prefixes(tmp_path):
    for name in ("policy_1", "policy_2", "value_1", "value_2"):
        cases.write(tmp_path / "r" / name, 1)
    found = find_sources([tmp_path / "r"], "all")
    assert [s.output for s in found.sources] == ["policy/1", "policy/2", "value/1", "value/2"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["x/checkpoint_3", "x/checkpoint_03"], "x/3 would come from each of"),
        (["X/checkpoint_3", "x/checkpoint_3"], "X/3 and x/3 are one name on some disks"),
        (["caf\u00e9/checkpoint_3", "cafe\u0301/checkpoint_3"], "are one name on some disks"),
        ([".linen2nnx/checkpoint_3"], "is our own folder"),
    ],
)
def test_collisions_are_errors_before_anything_is_begun(tmp_path, names, said):
    for name in [*names, "good/checkpoint_1"]:
        cases.write(tmp_path / "runs" / name, 1)
    with pytest.raises(FleetError, match="collision") as raised:
        convert_fleet(tmp_path / "runs", tmp_path / "out", **FAST)
    assert said in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["runs", "runs/new", "."])
def test_an_output_that_touches_a_root_is_refused(runs, tmp_path, out):
    with pytest.raises(FleetError, match="sources are never written to"):
        convert_fleet(runs, tmp_path / out, **FAST)
    assert not (runs / ".linen2nnx").exists()


def test_names_with_spaces_unicode_and_newlines(tmp_path):
    names = ["my run", "été 核", "-x", "a\nb", "%s {} [red]"]
    for n, name in enumerate(names):
        cases.write(tmp_path / "runs" / name / "checkpoint_1", n)
    report = convert_fleet(tmp_path / "runs", tmp_path / "out", **FAST)
    assert report.ok
    assert cases.differences(tmp_path / "runs", tmp_path / "out") == []


def test_a_name_that_is_not_utf8_is_a_row(runs, tmp_path):
    strange = os.fsencode(runs) + b"/caf\xe9"
    try:
        Path(os.fsdecode(strange)).mkdir()
    except OSError:
        pytest.skip("this file system has only names in UTF-8")
    shutil.copy(runs / "run000" / "checkpoint_1", strange + b"/checkpoint_1")
    report = convert_fleet(runs, tmp_path / "out", **FAST)
    (row,) = [r for r in report.rows if r.state == "failed"]
    assert "not UTF-8" in row.error
    assert report.counts["done"] == 4


def test_links_to_runs_are_followed_once(runs, tmp_path):
    (runs / "zz-again").symlink_to(runs / "run000", target_is_directory=True)
    (runs / "zz-elsewhere").symlink_to(tmp_path / "far", target_is_directory=True)
    (runs / "zz-round").symlink_to(runs, target_is_directory=True)
    (runs / "zz-nowhere").symlink_to(tmp_path / "nothing")
    cases.write(tmp_path / "far" / "checkpoint_1", 9)
    report = convert_fleet(runs, tmp_path / "out", **FAST)
    found = states(report)
    assert {name for name, state in found.items() if state == "done"} == {
        *(f"run00{r}/{s}" for r in (0, 1) for s in (1, 2)), "zz-elsewhere/1"
    }  # fmt: skip
    left = {"zz-again", "zz-nowhere", "zz-round"}
    assert {name for name, state in found.items() if state != "done"} == left
    assert {row.error.partition(" to ")[0] for row in report.rows if row.output in left} == {
        "a link"
    }


def test_a_run_of_which_every_file_is_damaged_is_not_missing(runs, tmp_path):
    (runs / "lost").mkdir()
    (runs / "lost" / "checkpoint_1").write_bytes(b"")
    (runs / "lost" / "checkpoint_2").write_bytes(GIT_LFS)
    (runs / "lost" / "events_2").write_bytes(b"no checkpoint, and not named like one")
    report = convert_fleet(runs, tmp_path / "out", dry_run=True, **FAST)
    failed = {row.output: row.error for row in report.rows if row.state == "failed"}
    assert failed.keys() == {"lost/checkpoint_1", "lost/checkpoint_2"}
    assert "LFS" in failed["lost/checkpoint_2"]


def test_a_root_that_is_not_there_is_a_failure_of_its_own(runs, tmp_path):
    report = convert_fleet([runs, tmp_path / "nothing"], tmp_path / "out", **FAST)
    assert report.counts == {"done": 4, "failed": 1}
    assert states(report)["nothing"] == "failed"


def test_a_step_that_no_run_has_is_an_error(runs, tmp_path):
    with pytest.raises(FleetError, match="no run has step 9"):
        convert_fleet(runs, tmp_path / "out", steps="1,9")


# ------------------------------------------------------------------ fleet.toml


def config(tmp_path, text):
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    return path


def test_the_first_entry_that_fits_decides(runs, tmp_path):
    file = config(
        tmp_path,
        '[[group]]\nmatch = ["*0"]\nskip = "old tests"\n'
        '[[group]]\nmatch = ["run*"]\nrules = "r.toml"\n',
    )
    (tmp_path / "r.toml").write_text('[[ignore]]\nsource = "step"\n')
    report = convert_fleet(runs, tmp_path / "out", config=file, **FAST)
    assert report.counts == {"skipped": 2, "done": 2}
    assert {r.error for r in report.rows if r.state == "skipped"} == {"old tests"}
    assert not (tmp_path / "out" / "run001" / "1" / "extras").exists()
    assert not (tmp_path / "out" / "run000").exists()


def test_an_entry_may_name_a_signature(runs, tmp_path):
    (first, second) = convert_fleet(runs, tmp_path / "out", dry_run=True, **FAST).groups
    file = config(tmp_path, f'[[group]]\nsignature = "{first.signature[:12]}"\nskip = "why"\n')
    report = convert_fleet(runs, tmp_path / "out", config=file, dry_run=True, **FAST)
    assert [g.skipped for g in report.groups] == [True, False]
    assert report.groups[1].signature == second.signature


def test_what_no_entry_covers_can_be_left(runs, tmp_path):
    file = config(
        tmp_path, '[default]\nunmatched = "leave"\n[[group]]\nmatch = "run000"\nseed = 1\n'
    )
    report = convert_fleet(runs, tmp_path / "out", config=file, dry_run=True, **FAST)
    assert report.counts == {"pending": 2, "skipped": 2}


def test_an_entry_that_covers_nothing_is_a_problem(runs, tmp_path):
    file = config(tmp_path, '[[group]]\nmatch = ["rum*"]\nskip = "no"\n')
    with pytest.raises(FleetError, match=r"belongs to group 1 \(rum\*\)"):
        convert_fleet(runs, tmp_path / "out", config=file, **FAST)


def test_a_model_of_a_file_beside_the_config(runs, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "net.py").write_text(
        "from flax import nnx\n"
        "class Net(nnx.Module):\n"
        "    def __init__(self, rngs):\n"
        "        self.Dense_0 = nnx.Linear(4, 3, rngs=rngs)\n"
        "def net():\n    return Net(nnx.Rngs(0))\n"
    )
    file = config(tmp_path, '[[group]]\nmatch = ["run*"]\nmodel = "models/net.py:net"\n')
    report = convert_fleet(runs, tmp_path / "out", config=file, dry_run=True, **FAST)
    fits, refused = report.groups  # a net of two layers has leaves that the model has no place for
    assert (fits.kind, refused.kind) == ("", "PlanProblems")
    assert refused.problems
    assert report.counts == {"pending": 2, "failed": 2}
    assert "Dense_1" in {r.error for r in report.rows if r.state == "failed"}.pop()


MODELS = """
import optax
from flax import linen as nn
from flax import nnx


class Old(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.relu(nn.Dense(5)(x))
        return nn.Dense(5)(x)


class New(nnx.Module):
    def __init__(self, rngs):
        self.last, self.middle, self.first = (nnx.Linear(5, 5, rngs=rngs) for _ in range(3))

    def __call__(self, x):
        return self.last(nnx.relu(self.middle(nnx.relu(self.first(x)))))


def old():
    return Old()


def new():
    return New(nnx.Rngs(0))


def tx():
    return optax.adamw(1e-3)


two = {"actor": new, "critic": new}
"""


def test_every_key_of_an_entry_does_what_it_says(tmp_path):
    """Three kinds of runs, of layers of one shape: only ``linen`` or a rule can tell them apart."""
    import jax
    import numpy as np
    from flax import serialization
    from flax.training.train_state import TrainState

    import bridge

    made = {}
    exec(compile(MODELS, "nets.py", "exec"), made)  # noqa: S102 - the text above
    net, x = made["old"](), np.ones((2, 5), np.float32)

    def params(seed):
        return net.init(jax.random.key(seed), x)["params"]

    def save(name, tree):
        path = tmp_path / "runs" / name / "checkpoint_7"
        path.parent.mkdir(parents=True)
        path.write_bytes(serialization.to_bytes(tree))

    state = TrainState.create(apply_fn=net.apply, params=params(0), tx=made["tx"]())
    save("lm", state.apply_gradients(grads=state.params))
    save("rl", {"policy": {"params": params(1)}, "value": {"params": params(2)}})
    save("old", {"params": params(3), "rng": np.uint32([3, 4])})
    (tmp_path / "nets.py").write_text(MODELS)
    (tmp_path / "names.toml").write_text(
        "".join(
            f'[[map]]\nfrom = "params/Dense_{n}/{{leaf}}"\nto = "{name}/{{leaf}}"\n'
            for n, name in enumerate(("first", "middle", "last"))
        )
    )
    rules = str(tmp_path / "names.toml")
    plan = bridge.plan(tmp_path / "runs" / "old", model=made["new"], rules=rules, rngs="drop")
    (tmp_path / "old.json").write_text(plan.require_ok().to_json())
    file = config(
        tmp_path,
        """
        [[group]]
        match = "lm"
        model = "nets.py:new"
        tx = "nets.py:tx"
        linen = "nets.py:old"
        input = "float32[2,5]"

        [[group]]
        match = "rl"
        model = "nets.py:two"
        at = { actor = "policy", critic = "value" }
        rules = "names.toml"

        [[group]]
        match = "old"
        plan = "old.json"
        """,
    )
    report = convert_fleet(tmp_path / "runs", tmp_path / "out", config=file, **FAST)
    assert {r.output: r.error for r in report.rows if r.state != "done"} == {}

    def leaves(name):
        return legacy.open(tmp_path / "out" / name / "7").leaves

    def same(found, item, tree):
        for n, name in enumerate(("first", "middle", "last")):
            for part, want in tree[f"Dense_{n}"].items():
                got = found[*item, name, part, "value"].read()
                np.testing.assert_array_equal(got, np.asarray(want), strict=True)

    lm = leaves("lm")
    after = state.apply_gradients(grads=state.params)
    same(lm, ("model",), after.params)
    same(lm, ("optimizer", "opt_state", "0", "mu"), after.opt_state[0].mu)
    assert lm["optimizer", "step", "value"].read() == 1
    same(leaves("rl"), ("actor",), params(1))
    same(leaves("rl"), ("critic",), params(2))
    same(leaves("old"), (), params(3))  # its only item
    assert not any("rng" in path for path in leaves("old"))


def test_a_stored_plan_refuses_other_structures(runs, tmp_path):
    import bridge

    (tmp_path / "p.json").write_text(bridge.plan(runs / "run000").to_json())
    report = convert_fleet(runs, tmp_path / "out", plan=tmp_path / "p.json", **FAST)
    assert report.counts == {"done": 2, "failed": 2}
    assert {r.error_kind for r in report.rows} == {"", "PlanMismatch"}


MISTAKES = [
    ('[[grup]]\nmatch = ["x"]', "unknown key 'grup'; did you mean group?"),
    ('[[group]]\nmodle = "m:f"', "unknown key 'modle'; did you mean model?"),
    ("[[group]]\nmatch = [3]", "expected globs"),
    ('[[group]]\nmodel = ""', "model = '': expected a text"),
    ('[[group]]\nplan = "p"\nmodel = "m:f"', "plan is instead of model"),
    ('[[group]]\nskip = "x"\nrules = "r"', "skip is instead of rules"),
    ('[[group]]\ntx = "m:f"', "tx needs model"),
    ('[[group]]\nmodel = "m:f"\nlinen = "m:g"', "linen and input go together"),
    ('[[group]]\nseed = "x"', "expected a whole number"),
    ('[[group]]\nrngs = "x"', "expected one of ('keep', 'reseed', 'drop')"),
    ('[[group]]\nat = "x"', "expected { item"),
    ('[default]\nunmatched = "x"', "expected one of ('structural', 'leave')"),
    ("[default]\nunmached = 1", "did you mean unmatched?"),
    ("group = 3", "group is written [[group]]"),
    ("[[group", "is no TOML"),
]


@pytest.mark.parametrize(("text", "said"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_mistakes_in_fleet_toml_are_told(tmp_path, text, said):
    with pytest.raises(FleetError) as raised:
        read_config(config(tmp_path, text))
    assert said in str(raised.value)


def test_all_mistakes_are_told_at_once(tmp_path):
    with pytest.raises(FleetError) as raised:
        read_config(config(tmp_path, '[[group]]\nmodle = "m"\n[[group]]\ntx = "m:f"\n'))
    assert len(raised.value.problems) == 2


def test_a_config_and_a_plan_do_not_go_together(runs, tmp_path):
    file = config(tmp_path, "")
    with pytest.raises(FleetError, match="config is instead of plan"):
        convert_fleet(runs, tmp_path / "out", config=file, plan="p.json")


# ------------------------------------------------------------------ the command line


def test_convert_shows_the_groups_and_a_line_for_each_checkpoint(call, runs, tmp_path):
    (runs / "run000" / "checkpoint_3").write_bytes(GIT_LFS)
    out = tmp_path / "out"
    args = ("convert", runs, "--out", out, "--steps", "all", "--verify", "fast", "--no-sync")
    code, text, _ = call(*args)
    assert code == 1
    assert "5 checkpoints of 2 runs, 2 groups of one structure each" in text
    assert "plan " in text
    assert "cannot be opened: 1 checkpoint" in text
    assert "4 checkpoints converted, 1 failed" in text
    assert max(len(line) for line in text.splitlines() if str(tmp_path) not in line) <= 80
    code, text, _ = call("status", out)
    assert code == 1
    assert text.startswith("4 done, 1 failed\n")
    code, text, _ = call("status", out, "--failed")
    assert "Git LFS pointer" in text
    (runs / "run000" / "checkpoint_3").unlink()
    shutil.rmtree(out)
    assert call(*args)[0] == 0
    assert call("status", out)[0] == 0


def test_json_is_an_object_a_line(call, runs, tmp_path):
    code, text, _ = call(
        "convert", runs, "--out", tmp_path / "out", "--verify", "fast", "--no-sync", "--json"
    )
    assert code == 0
    events = [json.loads(line) for line in text.splitlines()]
    assert [e["event"] for e in events] == ["groups", "checkpoint", "checkpoint", "summary"]
    assert events[-1]["counts"] == {"done": 2}


def test_a_collision_is_2_and_a_refusal_is_1(call, runs, tmp_path):
    assert call("convert", runs, "--out", runs / "x")[0] == 2
    file = config(tmp_path, '[[group]]\nmatch = ["run*"]\nmodel = "no_such:model"\n')
    args = ("convert", runs, "--out", tmp_path / "out", "--fleet", file, "--dry-run")
    code, text, _ = call(*args)
    assert code == 1
    assert "REFUSED: TargetError" in text
    assert not (tmp_path / "out").exists()


def test_status_without_a_ledger_is_1(call, tmp_path):
    code, _, err = call("status", tmp_path)
    assert code == 1
    assert "no ledger" in err


def test_a_fingerprint_sees_every_change(tmp_path):
    folder = tmp_path / "c"
    (folder / "sub").mkdir(parents=True)
    for name in ("a", "sub/b"):
        (folder / name).write_bytes(b"12345")
    prints = {fingerprint(folder)[0]}
    (folder / "sub" / "b").write_bytes(b"1234")
    prints.add(fingerprint(folder)[0])
    os.utime(folder / "a", ns=(0, 1))
    prints.add(fingerprint(folder)[0])
    (folder / "sub" / "b").rename(folder / "b")
    prints.add(fingerprint(folder)[0])
    assert len(prints) == 4
    assert fingerprint(folder)[1] == 9


def test_memory_is_estimated_from_what_is_computed(tmp_path):
    import bridge
    import legacy
    from bridge.fleet_plan import memory_of

    cases.write(tmp_path / "checkpoint_1", 1, width=100_000)
    leaves = legacy.open(tmp_path / "checkpoint_1").leaves
    plain = memory_of(bridge.plan(tmp_path / "checkpoint_1"), leaves)
    assert plain < memory_of(_transposed(tmp_path), leaves)


def _transposed(tmp_path):
    from dataclasses import replace

    import bridge
    from bridge.transforms import transform_from_json

    plan = bridge.plan(tmp_path / "checkpoint_1")
    turned = transform_from_json({"op": "transpose", "axes": [1, 0]})
    steps = tuple(
        replace(s, transforms=(turned,)) if s.sources[0][-1] == "kernel" else s for s in plan.steps
    )
    return replace(plan, steps=steps)


@pytest.mark.parametrize(
    ("limit", "used", "busy", "begins"),
    [
        (None, 900, True, True),
        (250, 100, True, True),
        (150, 100, True, False),  # it waits until the other one is done
        (50, 0, False, True),  # more than there may be: alone
    ],
)
def test_a_checkpoint_waits_for_memory(tmp_path, limit, used, busy, begins):
    from collections import deque

    from bridge.fleet_config import Entry
    from bridge.fleet_plan import Group
    from bridge.fleet_run import How, Task, _Batch
    from bridge.ledger import LedgerRow

    how = How(tmp_path, tmp_path, "fast", "composite", False, False, "keep", 2, limit, False, "")
    task = Task(LedgerRow("a/1", "x"), Group(Entry("e"), "", (), memory=100))
    chosen = _Batch(how, {"k": deque([task])}).next(used, busy=busy)
    assert (chosen is not None) is begins


def test_when_orbax_cannot_restore_the_first_none_of_its_group_is_believed(tmp_path):
    from collections import deque

    from bridge.fleet_config import Entry
    from bridge.fleet_plan import Group
    from bridge.fleet_run import How, Task, _Batch, _key, _Loop
    from bridge.fleet_signals import Stop
    from bridge.fleet_workers import Worker
    from bridge.ledger import Ledger, LedgerRow

    how = How(tmp_path, tmp_path, "values", "composite", False, False, "keep", 1, None, False, "")
    group = Group(Entry("e"), "", (), digest="d")
    first, *others = (Task(LedgerRow(f"a/{n}", "x"), group) for n in (1, 2, 3))
    batch = _Batch(how, {_key(first): deque(others)}, {_key(first): "running"})
    with Ledger(tmp_path) as ledger:
        loop = _Loop(batch, how, None, ledger, Stop(), lambda _: None)
        worker = Worker(process=None, errors=None, job={})
        loop.hands[worker] = (first, True, 0)
        said = {"ok": False, "kind": "VerifyFailed", "error": "no", "rungs": ["d"]}
        loop._hear(worker, said)
    kinds = {row.output: row.error_kind for row in read_ledger(tmp_path)}
    assert kinds == {"a/1": "VerifyFailed", "a/2": "ProofFailed", "a/3": "ProofFailed"}
    assert not batch.left
