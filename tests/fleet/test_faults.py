"""What can go wrong while a batch runs: nothing half-written, and the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import fleet_cases as cases
import kills

from bridge.errors import BridgeError, WriteFailed
from bridge.fleet import convert_fleet
from bridge.ledger import read_ledger

MANY = 24


@pytest.fixture
def runs(tmp_path):
    """One structure, and enough work to be disturbed in the middle of it."""
    cases.make_runs(tmp_path / "runs", 2, MANY // 2, structures=1)
    return tmp_path / "runs"


class Batch:
    """A batch as a process of its own, of which at least one checkpoint is done."""

    def __init__(self, root, out, *more, env=None):
        self.process = subprocess.Popen(
            [*cases.command("convert", root, "--out", out, "--steps", "all", "--verify", "fast"),
             "--no-sync", "--json", *more],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=cases.environment(**(env or {})),
        )  # fmt: skip
        self.events = []
        while not self.events or self.events[-1]["event"] != "checkpoint":
            self.events.append(json.loads(self.process.stdout.readline()))
        self.process.send_signal(signal.SIGSTOP)  # so that it is not over before it is disturbed

    def end(self):
        """Let it go on; gives the exit code and standard error."""
        self.process.send_signal(signal.SIGCONT)
        out, err = self.process.communicate()
        self.events += [json.loads(line) for line in out.splitlines()]
        return self.process.returncode, err


def go_on(root, out, **env):
    return cases.call(
        "convert", root, "--out", out, "--steps", "all", "--verify", "fast", "--no-sync", env=env
    )


def all_well(root, out, number=MANY):
    assert cases.differences(root, out) == []
    assert cases.strangers(out) == []
    found = cases.rows(out)
    assert len(found) == number
    assert {row["state"] for row in found.values()} == {"done"}
    return found


@pytest.mark.parametrize(
    "signals", [[signal.SIGINT], [signal.SIGTERM, signal.SIGINT]], ids=["once", "twice"]
)
def test_ctrl_c_says_where_it_stands_and_the_same_command_goes_on(runs, tmp_path, signals):
    out = tmp_path / "out"
    batch = Batch(runs, out)
    for number in signals:
        batch.process.send_signal(number)
    code, err = batch.end()
    assert code == 130
    assert "interrupted" in err
    summary = batch.events[-1]
    assert summary["interrupted"]
    assert 0 < summary["counts"]["done"] < MANY
    if len(signals) == 1:
        assert cases.strangers(out) == []
        assert summary["counts"].keys() == {"done", "pending"}
    code, text, _ = go_on(runs, out)
    assert code == 0
    assert f"{MANY} checkpoints to convert" not in text
    assert {row["attempts"] for row in all_well(runs, out).values()} <= {1, 2}


def test_a_worker_that_is_killed_is_a_row_and_is_replaced(runs, tmp_path):
    out = tmp_path / "out"
    batch = Batch(runs, out)
    (worker,) = kills.children(batch.process.pid)  # with a checkpoint in hand, or done with one
    os.kill(worker, signal.SIGKILL)
    code, _ = batch.end()
    failed = [row for row in read_ledger(out) if row.state == "failed"]
    assert code == (1 if failed else 0)
    assert len(failed) <= 1
    assert all("was ended by SIGKILL" in row.error for row in failed)
    assert batch.events[-1]["counts"]["done"] == MANY - len(failed)
    assert go_on(runs, out)[0] == 0
    all_well(runs, out)


def test_kills_of_parents_and_workers(tmp_path):
    counts = kills.work(tmp_path, 6, seed=11, runs=3, steps=3)
    assert counts["parent"] + counts["worker"] == 6


def test_a_source_that_changes_or_vanishes_meanwhile_is_a_row(runs, tmp_path):
    out = tmp_path / "out"
    batch = Batch(runs, out)
    last, before = (runs / "run001" / f"checkpoint_{n}" for n in (MANY // 2, MANY // 2 - 1))
    cases.write(last, 1234)
    before.unlink()
    code, _ = batch.end()
    assert code == 1
    failed = {row.output: row for row in read_ledger(out) if row.state == "failed"}
    assert failed.keys() == {f"run001/{MANY // 2}", f"run001/{MANY // 2 - 1}"}
    assert {row.error_kind for row in failed.values()} == {"SourceChanged"}
    assert "was changed by somebody" in failed[f"run001/{MANY // 2}"].error
    assert cases.strangers(out) == []
    cases.write(before, 4321)
    assert go_on(runs, out)[0] == 0
    all_well(runs, out)


def test_a_second_conversion_of_one_output_is_refused_with_who_holds_it(runs, tmp_path):
    out = tmp_path / "out"
    batch = Batch(runs, out)
    try:
        code, _, err = go_on(runs, out)
        assert (code, "another conversion is writing there" in err) == (2, True)
        assert f"process {batch.process.pid} " in err
        code, _, err = cases.call("convert", runs / "run000", "--out", out / "alone")
        assert (code, "another conversion is writing there" in err) == (2, True)
        assert cases.call("status", out)[0] == 0  # anybody may look
    finally:
        code, _ = batch.end()
    assert code == 0
    all_well(runs, out)


def test_a_file_size_limit_is_a_row_and_leaves_nothing(tmp_path):
    runs, out = tmp_path / "runs", tmp_path / "out"
    cases.make_runs(runs, 2, 1)
    noise = np.random.default_rng(0).standard_normal((1000, 1000)).astype(np.float32)
    big = {"params": {"Dense_0": {"kernel": noise, "bias": noise[0]}}, "step": np.int32(1)}
    packed = cases.msgpack.packb(big, default=cases.array, use_bin_type=True)
    (runs / "run000" / "checkpoint_1").write_bytes(packed)
    # the limit is set by a process of its own: one with JAX in it must not fork
    limited = (
        "import os, resource, sys; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = cases.command("convert", runs, "--out", out, "--verify", "fast", "--no-sync")
    process = subprocess.run(
        [sys.executable, "-c", limited, *command],
        capture_output=True, text=True, env=cases.environment(), check=False,
    )  # fmt: skip
    assert process.returncode == 1, process.stderr
    assert "WriteFailed" in process.stdout
    assert cases.strangers(out) == []
    assert not (out / "run000").exists()
    assert cases.call("convert", runs, "--out", out, "--verify", "fast")[0] == 0
    all_well(runs, out, 2)


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("this process may not mount a small disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_fills_up_meanwhile(small_disk, tmp_path):
    runs, out = tmp_path / "runs", small_disk / "out"
    cases.make_runs(runs, 2, 5, structures=1)

    def fill(event):
        if event["event"] == "checkpoint" and event["state"] == "done":
            with (small_disk / "full").open("wb", buffering=0) as file, suppress(OSError):
                while file.write(b"x" * 4096):
                    pass

    options = {"steps": "all", "verify": "fast"}
    try:
        failed = convert_fleet(runs, out, on_event=fill, **options).counts["failed"]
    except WriteFailed:  # the ledger itself
        failed = 9
    assert failed == 9
    (small_disk / "full").unlink()
    assert convert_fleet(runs, out, **options).ok
    all_well(runs, out, 10)


def test_too_little_room_is_told_before_the_start(small_disk, tmp_path):
    cases.make_runs(tmp_path / "runs", 1, 1, width=1_000_000)
    with pytest.raises(BridgeError, match="need about"):
        convert_fleet(tmp_path / "runs", small_disk / "out", verify="fast")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_a_row(tmp_path):
    runs, out = tmp_path / "runs", tmp_path / "out"
    cases.make_runs(runs, 3, 1)
    file, folder = runs / "run000" / "checkpoint_1", runs / "run001"
    file.chmod(0)
    folder.chmod(0)
    try:
        report = convert_fleet(runs, out, verify="fast")
    finally:
        file.chmod(0o600)
        folder.chmod(0o700)
    assert report.counts == {"done": 1, "failed": 2}
    assert {row.error_kind for row in report.rows} == {"", "CannotLook"}
    assert convert_fleet(runs, out, verify="fast").counts["done"] == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_that_may_not_be_written_is_told(tmp_path):
    cases.make_runs(tmp_path / "runs", 1, 1)
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(BridgeError, match="could not be made"):
        convert_fleet(tmp_path / "runs", tmp_path / "out", verify="fast")


CLOCK = """
import random, time
_time, _ns = time.time, time.time_ns
time.time = lambda: _time() + random.uniform(-1e8, 1e8)
time.time_ns = lambda: _ns() + random.randrange(-10**17, 10**17)
"""


def test_a_clock_that_jumps_changes_nothing(runs, tmp_path):
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(CLOCK)
    path = f"{tmp_path / 'clock'}{os.pathsep}{cases.ROOT}"
    out = tmp_path / "out"
    batch = Batch(runs, out, env={"PYTHONPATH": path})
    batch.process.kill()
    batch.end()
    assert go_on(runs, out, PYTHONPATH=path)[0] == 0
    code, text, _ = go_on(runs, out, PYTHONPATH=path)
    assert (code, f"{MANY} done already" in text) == (0, True)
    found = all_well(runs, out)
    assert all(0 <= row["seconds"] < 1000 for row in found.values())
