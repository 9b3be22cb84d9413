"""The command line does what the public functions do, and tells by its exit code how it went."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bridge
from bridge import cli

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "goldens"
GOLDEN = GOLDENS / "latest" / "cnn_state-flax_msgpack"
CORPUS = Path(os.environ.get("BRIDGE_CORPUS", ROOT.parent / "shared" / "corpus"))

FOLDERS = [
    "phlippe/tutorial5/ResNet.ckpt",
    "phlippe/tutorial5/DenseNet.ckpt",
    "phlippe/tutorial17",
    "phlippe/tutorial6",
    "phlippe",
    "scico/dncnn6L.mpk",
    "t5x/test_t5_tiny.checkpoint_0",
    "t5x/tiny_t5/checkpoint_1",
    "t5x/tiny_orbax/1",
    "fusion_surrogates/qlknn_7_11.qlknn",
    "mlff/checkpoints",
    "so3lr/checkpoints",
    "mujoco_playground/VisionMLP2ChanCIFAR10_OCP",
    "tunix/checkpoints",
    "orbax/compatibility",
]
REFUSED = {"t5x/tiny_t5/checkpoint_1", "t5x/tiny_orbax/1"}


def run(*args, cwd=ROOT, env=None):
    """The installed program, as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "bridge", *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", **(env or {})},
        check=False,
    )


@pytest.fixture
def usage(call):
    """The message of wrong usage."""

    def failed(*args):
        with pytest.raises(SystemExit) as raised:
            call(*args)
        return raised.value.code

    return failed


def test_importing_bridge_loads_nothing_heavy():
    code = (
        "import sys, bridge, bridge.cli; assert bridge.errors.BridgeError; "
        "print([m for m in ('jax', 'flax', 'orbax', 'tensorstore', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"


def test_every_exported_name_is_there():
    assert sorted(bridge.__all__) == bridge.__all__
    for name in bridge.__all__:
        assert getattr(bridge, name) is not None
        assert name in dir(bridge)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = bridge.no_such_name


def test_no_function_hides_a_module():
    for name in bridge.__all__:
        if callable(getattr(bridge, name)):
            assert not (ROOT / "bridge" / f"{name}.py").exists()


def test_help_loads_nothing_that_takes_time():
    heavy = ("jax", "flax", "orbax", "optax", "tensorstore", "numpy", "rich", "msgpack")
    code = (
        "import sys\nfrom bridge.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print([m for m in {heavy!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stderr.strip() == "[]"


def test_inspect_plan_diff_and_a_stored_plan_need_no_jax(tmp_path):
    plan = tmp_path / "plan.json"
    commands = [
        ["inspect", GOLDEN],
        ["plan", GOLDEN, "-o", plan],
        ["diff", GOLDEN, GOLDEN],
        ["convert", GOLDEN, "--plan", plan, "--out", tmp_path / "new", "--verify", "fast"],
        ["verify", GOLDEN, tmp_path / "new", "--level", "fast"],
    ]
    code = (
        "import sys, json; from bridge import cli\n"
        "for args in json.loads(sys.argv[1]): assert cli.main(args) == 0, args\n"
        "assert not {'jax', 'flax', 'orbax'} & set(sys.modules)"
    )
    text = json.dumps([[str(a) for a in args] for args in commands])
    done = subprocess.run(
        [sys.executable, "-c", code, text], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["inspct", "x"], "did you mean inspect?"),
        (["inspect", "x", "--jsn"], "did you mean --json?"),
        (["convert", "x", "--out", "y", "--overwite"], "did you mean --overwrite?"),
        (["convert", "x", "--out", "y", "--steps", "last"], "expected all, latest, or numbers"),
        (["convert", "x", "--out", "y", "--fleet", "f", "--plan", "p"], "instead of --plan"),
        (["convert", "x", "--out", "y", "--max-memory", "4"], "expected a size such as 4GB"),
        (["convert", "x", "--out", "y", "--jobs", "0"], "not a number from 1 up"),
        (["convert", "x", "--out", "y", "--plan", "p", "--model", "m:f"], "instead of --model"),
        (["convert", "x"], "--out"),
        (["plan", "x", "--tx", "m:f"], "--tx needs --model"),
        (["plan", "x", "--target", "t", "--model", "m:f"], "--target is instead of"),
        (["plan", "x", "--at", "ema"], "expected ITEM=PATH"),
        (["inspect", "x", "--step", "last"], "invalid number value"),
        ([], "COMMAND"),
    ],
)
def test_wrong_usage_is_2_and_says_what_was_meant(args, said, capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main(args)
    assert raised.value.code == 2
    assert said in capsys.readouterr().err


def test_a_path_with_nothing_is_1_without_a_traceback(tmp_path):
    done = run("inspect", tmp_path / "nothing")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("linen2nnx: error: ")
    assert "Traceback" not in done.stderr
    assert "Traceback" in run("inspect", tmp_path / "nothing", "--debug").stderr


def test_inspect_shows_format_roles_and_tree(call):
    code, out, err = call("inspect", GOLDEN)
    assert (code, err) == (0, "")
    for part in ("flax-msgpack", "roles", "params", "batch_stats", "float32 (3, 3,"):
        assert part in out
    assert max(map(len, out.splitlines()[1:])) <= 80


def test_a_path_with_dots_is_read(call):
    code, out, err = call("inspect", GOLDENS / "make" / ".." / "latest" / "typed_key-ptc")
    assert (code, err) == (0, "")
    assert "orbax" in out


def test_inspect_of_a_run_shows_its_steps_and_step_chooses(call, tmp_path):
    for n in (1, 2, 10):
        (tmp_path / f"checkpoint_{n}").write_bytes(b"\x81\xa1a\x01")
    (tmp_path / "checkpoint_tmp").write_bytes(b"")
    code, out, _ = call("inspect", tmp_path)
    assert code == 0
    assert "3 steps: 1, 2, 10" in out
    assert "skipped checkpoint_tmp" in out
    assert "step      10" in out
    assert "step      2" in call("inspect", tmp_path, "--step", "2")[1]
    code, _, err = call("inspect", tmp_path, "--step", "3")
    assert code == 1
    assert "no step 3" in err


def test_inspect_of_a_folder_of_runs_lists_them(call, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "checkpoint_1").write_bytes(b"\x81\xa1a\x01")
    code, out, _ = call("inspect", tmp_path)
    assert code == 0
    assert out.startswith("2 runs, 2 checkpoints")
    data = json.loads(call("inspect", tmp_path, "--json")[1])
    assert [Path(r["path"]).name for r in data["runs"]] == ["a", "b"]
    assert data["checkpoint"] is None


def test_inspect_one_leaf(call):
    code, out, _ = call("inspect", GOLDEN, "--leaf", "params/Conv_0/kernel")
    assert code == 0
    assert "0 NaN or infinite" in out
    assert "mean" in out
    data = json.loads(call("inspect", GOLDEN, "--leaf", "params/Conv_0/kernel", "--json")[1])
    assert data["statistics"]["finite"] == np.prod(data["shape"])
    code, _, err = call("inspect", GOLDEN, "--leaf", "params/Conv_0/kernl")
    assert code == 1
    assert "near it: params/Conv_0/kernel" in err


def test_inspect_leaf_of_a_subtree_is_a_table(call):
    code, out, _ = call("inspect", GOLDEN, "--leaf", "params/Conv_0")
    assert code == 0
    assert "params/Conv_0/bias" in out
    assert "params/Conv_0/kernel" in out
    data = json.loads(call("inspect", GOLDEN, "--leaf", "params/Conv_0", "--json")[1])
    assert [leaf["path"][-1] for leaf in data["leaves"]] == ["bias", "kernel"]


def test_inspect_leaf_of_a_folder_of_runs_names_one(call, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "checkpoint_1").write_bytes(b"\x81\xa1a\x01")
    code, out, err = call("inspect", tmp_path, "--leaf", "a")
    assert (code, out) == (1, "")
    assert "--leaf needs the path of one" in err


@pytest.fixture
def damaged(tmp_path):
    """A checkpoint of two leaves, one of which lost its array."""
    import shutil

    def strip(checkpoint, name):
        for found in checkpoint.rglob(".zarray"):
            if found.parent.name == name:
                shutil.rmtree(found.parent)
                return

    sources = sorted(GOLDENS.rglob("*/.zarray"))
    if not sources:
        pytest.skip("there is no golden of one folder for each parameter")
    folder = tmp_path / "damaged"
    shutil.copytree(sources[0].parents[1], folder)
    strip(folder, sources[0].parent.name)
    return folder, sources[0].parents[1]


def test_inspect_is_1_when_leaves_cannot_be_read(call, damaged):
    code, out, err = call("inspect", damaged[0])
    assert code == 1
    assert "damage    1 of" in out
    assert "cannot be read: 1 of" in out
    assert "1 leaf cannot be read" in err
    code, out, _ = call("inspect", damaged[0], "--json")
    assert code == 1
    assert json.loads(out)["checkpoint"]["unreadable"] == 1


def test_diff_goes_on_after_a_leaf_that_cannot_be_read(call, damaged):
    code, out, _ = call("diff", *damaged)
    assert code == 1
    assert "1 of them cannot be read" in " ".join(out.split())
    assert call("diff", damaged[0], damaged[0])[0] == 1


def test_diff_is_2_when_there_is_nothing_to_compare(call, tmp_path):
    code, out, err = call("diff", GOLDEN, tmp_path / "nothing")
    assert (code, out) == (2, "")
    assert "there is nothing" in err
    code, out, _ = call("diff", GOLDEN, tmp_path / "nothing", "--json")
    assert code == 2
    assert json.loads(out)["error"]["kind"] == "CheckpointNotFound"


def test_names_that_steer_a_terminal_do_not(call, tmp_path):
    (tmp_path / "evil").write_bytes(b"\x81\xa6a\x1bcb\x07d\x01")
    code, out, _ = call("inspect", tmp_path / "evil")
    assert code == 0
    assert not {"\x1b", "\x07"} & set(out)
    assert "\\x1bc" in out or "\\u001bc" in out


@pytest.mark.parametrize("command", ["inspect", "plan"])
def test_json_is_one_document_and_nothing_else(call, command):
    code, out, err = call(command, GOLDEN, "--json")
    assert (code, err) == (0, "")
    json.loads(out)


def test_plan_stores_a_plan_and_convert_carries_it_out(call, tmp_path):
    plan = tmp_path / "plan.json"
    code, out, err = call("plan", GOLDEN, "-o", plan)
    assert code == 0
    assert "0 problems" in out
    assert "plan written" in err
    assert bridge.Plan.from_json(plan.read_text()) == bridge.plan(GOLDEN)
    code, out, err = call("convert", GOLDEN, "--plan", plan, "--out", tmp_path / "new")
    assert (code, err) == (0, "")
    assert "verified to rung d" in " ".join(out.split())
    assert "1 checkpoint converted, 0 failed" in out
    code, out, _ = call("verify", GOLDEN, tmp_path / "new", "--level", "fast")
    assert code == 0
    assert "verified to rung c" in out


MODEL = """
from flax import nnx
import optax

class Net(nnx.Module):
    def __init__(self, rngs):
        self.Dense_0 = nnx.Linear(2, 3, rngs=rngs)

def net():
    return Net(nnx.Rngs(0))

def tx():
    return optax.sgd(0.1)

def wide():
    return nnx.Linear(2, 4, rngs=nnx.Rngs(0))
"""


@pytest.fixture
def dense(tmp_path):
    """A checkpoint of one layer, and a file with models."""
    import flax.serialization

    tree = {
        "params": {
            "Dense_0": {"kernel": np.ones((2, 3), np.float32), "bias": np.ones(3, np.float32)}
        }
    }
    (tmp_path / "checkpoint_7").write_bytes(flax.serialization.to_bytes(tree))
    (tmp_path / "cli_models.py").write_text(MODEL)
    return tmp_path


def test_a_model_from_a_file_and_a_stored_target(call, dense):
    model = f"{dense / 'cli_models.py'}:net"
    code, out, err = call(
        "plan", dense / "checkpoint_7", "--model", model, "--save-target", dense / "t"
    )
    assert code == 0, err
    assert "params/Dense_0/kernel" in out
    code, _, err = call(
        "convert", dense / "checkpoint_7", "--target", dense / "t", "--out", dense / "new",
        "--verify", "fast", "--no-sync",
    )  # fmt: skip
    assert code == 0, err
    assert (dense / "new" / "7" / "model").is_dir()


def test_a_plan_with_problems_is_1_and_is_not_stored(call, dense):
    model = f"{dense / 'cli_models.py'}:wide"
    code, out, err = call(
        "plan", dense / "checkpoint_7", "--model", model, "-o", dense / "plan.json"
    )
    assert code == 1
    assert "problems:" in out
    assert "was not written" in err
    assert not (dense / "plan.json").exists()
    code, out, err = call(
        "convert", dense / "checkpoint_7", "--model", model, "--out", dense / "new"
    )
    assert code == 1
    assert "FAILED: PlanProblems" in out
    assert "nothing is written" in err
    assert not (dense / "new").exists()


def test_a_model_that_is_not_there_is_an_error(call, dense):
    code, _, err = call("plan", dense / "checkpoint_7", "--model", "no_such_module:net")
    assert code == 1
    assert "no_such_module" in err


def test_convert_goes_on_after_a_bad_checkpoint(call, dense):
    (dense / "bad").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    code, out, _ = call(
        "convert", dense / "bad", dense / "checkpoint_7", "--out", dense / "new", "--verify", "fast"
    )
    assert code == 1
    assert "1 checkpoint converted, 1 failed" in out
    assert "LFS" in out
    assert (dense / "new" / "checkpoint_7" / "7" / "model").is_dir()
    assert not (dense / "new" / "bad").exists()


def test_convert_says_that_the_target_is_structural(call, dense):
    _, out, err = call("convert", dense / "checkpoint_7", "--out", dense / "new", "--dry-run")
    assert "structural" in err
    assert "1 checkpoint would be converted" in out
    assert not (dense / "new").exists()


def test_convert_json_has_an_entry_for_each_step(call, dense):
    args = ("--out", dense / "new", "--verify", "fast", "--json")
    code, out, _ = call("convert", dense / "checkpoint_7", *args)
    assert code == 0
    (good,) = json.loads(out)
    assert good["converted"][0]["verdict"]["ok"] is True
    code, out, _ = call("convert", dense / "no", *args)
    assert code == 1
    (bad,) = json.loads(out)
    assert (bad["ok"], bad["error_type"]) == (False, "CheckpointNotFound")


def test_convert_does_not_replace_without_being_asked(call, dense):
    args = ("convert", dense / "checkpoint_7", "--out", dense / "new", "--verify", "fast")
    assert call(*args)[0] == 0
    code, _, err = call(*args)
    assert code == 1
    assert "there already" in err
    assert call(*args, "--overwrite")[0] == 0


def test_convert_with_worker_processes(dense, call):
    import flax.serialization

    run_folder = dense / "run"
    run_folder.mkdir()
    for n in (1, 2, 3):
        tree = {"params": {"w": np.full(4, n, np.float32)}}
        (run_folder / f"checkpoint_{n}").write_bytes(flax.serialization.to_bytes(tree))
    assert call("plan", run_folder, "-o", dense / "p.json")[0] == 0
    code, out, err = call(
        "convert", run_folder, "--plan", dense / "p.json", "--out", dense / "new",
        "--steps", "all", "--jobs", "2", "--verify", "fast",
    )  # fmt: skip
    assert code == 0, err
    assert "3 checkpoints converted, 0 failed" in out
    assert sorted(p.name for p in (dense / "new").iterdir()) == [".linen2nnx", "1", "2", "3"]


def test_ctrl_c_says_where_it_stands_and_is_130(call, dense, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("bridge._batch.convert", interrupt)
    code, _, err = call("convert", dense / "checkpoint_7", "--out", dense / "new")
    assert code == 130
    assert "interrupted: complete steps stay, what was begun has been removed" in err


def test_diff_is_1_when_something_differs(call, dense):
    other = dense / "checkpoint_8"
    other.write_bytes((dense / "checkpoint_7").read_bytes().replace(b"\0\0\x80?", b"\0\0\0@", 1))
    code, out, _ = call("diff", dense / "checkpoint_7", other)
    assert code == 1
    assert "max abs 1" in out
    code, out, _ = call("diff", dense / "checkpoint_7", other, "--no-values", "--json")
    assert code == 0
    assert json.loads(out)["same"] is True


def test_a_reader_that_has_enough_is_no_error():
    command = f"{sys.executable} -m bridge inspect {GOLDEN} | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_text_survives_a_terminal_without_unicode():
    done = run("plan", GOLDEN, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert "\\u2192" in done.stdout


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the corpus of real checkpoints is not here")
@pytest.mark.parametrize("folder", FOLDERS)
def test_inspect_of_real_checkpoints_is_a_table_or_a_clear_refusal(call, folder):
    code, out, err = call("inspect", CORPUS / folder)
    if folder in REFUSED:
        assert (code, out) == (1, "")
        assert err.startswith("linen2nnx: error: ")
    else:
        assert (code, err) == (0, "")
        assert "tree" in out or "runs" in out


def test_json_of_a_command_that_fails_is_a_document_with_the_error(tmp_path):
    done = run("inspect", "--json", str(tmp_path / "nothing"))
    assert done.returncode == 1
    error = json.loads(done.stdout)["error"]
    assert error["kind"] == "CheckpointNotFound"
    assert "there is nothing" in error["message"]
    assert "linen2nnx: error:" in done.stderr
