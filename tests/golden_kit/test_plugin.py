"""The pytest plugin: off unless used, one test for each golden, updates that show themselves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import optax
import pytest
import tensorstore

import bridge.golden_pytest
import bridge.golden_run
import bridge.golden_update
import legacy

pytest_plugins = ["pytester"]

# pytester forgets what is imported within a run, and these cannot be imported twice
LOADED = (optax, tensorstore, bridge.golden_pytest, bridge.golden_run, bridge.golden_update)

HERE = Path(__file__).parent
OLD = HERE / "goldens" / "flax010-cnn_optim-flax_msgpack"  # structural: needs no jax
CNN = HERE / "goldens" / "flax034-cnn_state-flax_msgpack"


@pytest.fixture
def run(pytester, monkeypatch):
    """Run pytest in the folder of the test, in this process, with no plugin but ours."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    # pytest's own plugin collects the garbage of jax five times at the end of each run
    options = ("-p", "bridge.testing", "-p", "no:unraisableexception")
    return lambda *args: pytester.runpytest_inprocess(*options, *args)


@pytest.fixture
def old(pytester):
    """A copy of a structural golden below goldens/."""
    place = pytester.path / "goldens" / "old"
    shutil.copytree(OLD, place)
    return place


@pytest.fixture
def cnn(pytester):
    """A copy of a golden with its model beside it, at the places that it names."""
    shutil.copy(HERE / "small_cnn.py", pytester.path)
    place = pytester.path / "goldens" / "cnn"
    shutil.copytree(CNN, place)
    return place


def used(pytester):
    pytester.makeini("[pytest]\nlinen_goldens = goldens")


def test_pytest_starts_without_numpy_and_collects_nothing_of_ours(pytester, old):
    pytester.makeconftest(
        """
        import sys
        def pytest_sessionfinish():
            heavy = {"numpy", "jax", "flax", "legacy", "tensorstore"} & set(sys.modules)
            print("HEAVY", sorted(heavy))
        """
    )
    pytester.makepyfile("def test_mine(): pass")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-s", "-p", "bridge.testing"],
        cwd=pytester.path,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "HEAVY []" in done.stdout
    assert "1 passed" in done.stdout
    assert old.is_dir()


def test_a_suite_keeps_its_own_option_and_fixture(pytester, run):
    pytester.makeconftest(
        """
        import pytest
        def pytest_addoption(parser):
            parser.addoption("--update-goldens", action="store_true")
        @pytest.fixture
        def golden():
            return "mine"
        """
    )
    pytester.makepyfile(
        """
        def test_mine(golden, request):
            assert golden == "mine"
            assert request.config.getoption("update_goldens")
            assert not request.config.getoption("update_linen_goldens")
        """
    )
    run("--update-goldens").assert_outcomes(passed=1)


def test_another_plugin_keeps_its_fixture(pytester, run):
    pytester.makepyfile(
        other="""
        import pytest
        class Plugin:
            @pytest.fixture
            def golden(self):
                return "theirs"
        def pytest_configure(config):
            config.pluginmanager.register(Plugin(), "golden")
        """,
        test_it="""
        def test_theirs(golden, assert_converts_to_golden):
            assert golden == "theirs"
        """,
    )
    pytester.syspathinsert()
    run("-p", "other").assert_outcomes(passed=1)


@pytest.mark.parametrize("args", [(), ("goldens",), ("goldens/old/golden.json",)])
def test_a_setting_makes_each_golden_a_test(pytester, run, old, args):
    used(pytester)
    (old / "source" / "test_data.py").write_text("def test_data(): assert False")
    done = run("-v", *args)
    done.assert_outcomes(passed=1)
    done.stdout.fnmatch_lines("*goldens/old/golden.json::old PASSED*")


def test_goldens_beside_the_tests_are_run_with_all_tests_only(pytester, run, old):
    pytester.makeini("[pytest]\nlinen_goldens = goldens\ntestpaths = tests")
    tests = pytester.mkdir("tests")
    (tests / "test_one.py").write_text("def test_one(): pass")
    run().assert_outcomes(passed=2)
    run("tests").assert_outcomes(passed=1)
    run("tests", "--linen-goldens", "goldens").assert_outcomes(passed=2)
    assert old.is_dir()


def test_a_folder_that_is_not_there_is_wrong_usage(run):
    done = run("--linen-goldens", "nowhere")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines("*there is no folder*nowhere*")


def flip(golden, leaf):
    """Change one bit of a leaf in the source of a golden."""
    (source,) = (golden / "source").iterdir()
    at = legacy.open(source).leaves[legacy.parse_path(leaf)].storage.offset
    data = bytearray(source.read_bytes())
    data[at] ^= 1
    source.write_bytes(data)


def test_a_changed_bit_of_the_source_is_told_with_the_leaf_and_how_far(pytester, run, old):
    used(pytester)
    flip(old, "optimizer/target/Dense_1/kernel")
    done = run()
    done.assert_outcomes(failed=1)
    said = done.stdout.str()
    assert "the source is not what was recorded" in said
    for name in ("optimizer/target/Dense_1/kernel", "model:Dense_1/kernel"):
        assert f"{name}: other values (float32 " in said
    assert "Traceback" not in said


def test_a_plan_that_exchanges_two_leaves_is_shown_both_ways(pytester, run, old):
    used(pytester)
    plan = json.loads((old / "plan.json").read_text())
    moments = (s for s in plan["steps"] if s["sources"][0][3:5] == ["Dense_0", "kernel"])
    a, b = moments
    a["sources"], b["sources"] = b["sources"], a["sources"]
    (old / "plan.json").write_text(json.dumps(plan))
    done = run()
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines("*slot *: from * in the stored plan, from * today*")


def test_a_renamed_attribute_is_a_gone_and_a_new_slot_with_one_line(pytester, run, cnn):
    used(pytester)
    models = pytester.path / "small_cnn.py"
    models.write_text(models.read_text().replace("self.late(", "self.top(")
                      .replace("self.late =", "self.top ="))  # fmt: skip
    done = run()
    done.assert_outcomes(failed=1)
    said = done.stdout.str()
    assert (
        "slot model:late/bias is gone, model:top/bias is new, same shape: rename? "
        "(6 slots, all late → top)"
    ) in said
    assert "slot extras:ema_params/late/bias is carried to extras:ema_params/top/bias" in said
    assert said.count("rename?") == 1

    done = run("--update-goldens")
    done.assert_outcomes(passed=1)
    text = done.stdout.str()
    shown = text.index("8 leaves have another name and the same values: ")
    assert shown < text.index("cnn: updated; look at `git diff")
    assert "late_norm" in (cnn / "plan.json").read_text()
    assert '"late"' not in (cnn / "plan.json").read_text()


def test_a_model_that_computes_otherwise_is_noticed_and_not_accepted(pytester, run, cnn):
    used(pytester)
    before = {p: p.read_bytes() for p in cnn.rglob("*") if p.is_file()}
    models = pytester.path / "small_cnn.py"
    models.write_text(models.read_text().replace(
        "nnx.BatchNorm(3, rngs=rngs)", "nnx.BatchNorm(3, epsilon=1.1e-5, rngs=rngs)"))  # fmt: skip
    done = run("--update-goldens")
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines("*model: output: * differ, max abs *in float64*")
    assert before == {p: p.read_bytes() for p in cnn.rglob("*") if p.is_file()}


def test_goldens_are_not_updated_where_nobody_sees_it(pytester, run, old, monkeypatch):
    used(pytester)
    pytester.makeconftest(
        """
        def pytest_addoption(parser):
            parser.addoption("--numprocesses", type=int)
        """
    )
    done = run("--update-goldens", "--numprocesses", "2")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines("*not updated by several processes*")
    monkeypatch.setenv("CI", "true")
    done = run("--update-goldens")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines("*not updated where CI is set*")
    run().assert_outcomes(passed=1)
    assert old.is_dir()


def test_fixtures_find_goldens_beside_the_test(pytester, run, old):
    pytester.makepyfile(
        """
        import pytest
        from bridge.testing import GoldenError

        def test_convert(golden, tmp_path):
            found = golden("old")
            assert found.checkpoint.step == 3
            assert found.convert(tmp_path / "run").output.is_dir()
            assert found.plan.ok

        def test_assert(assert_converts_to_golden):
            assert "plan" in " ".join(assert_converts_to_golden("old").looked)

        def test_typo(golden):
            with pytest.raises(GoldenError, match="There is old"):
                golden("olt")
        """
    )
    run().assert_outcomes(passed=3)
    assert old.is_dir()


def test_an_assertion_that_fails_shows_no_code_of_ours(pytester, run, old):
    flip(old, "optimizer/target/Dense_1/kernel")
    pytester.makepyfile("def test_it(assert_converts_to_golden): assert_converts_to_golden('old')")
    done = run()
    done.assert_outcomes(failed=1)
    assert "golden_pytest" not in done.stdout.str()


def test_what_passes_with_a_note_says_so(pytester, run, old):
    used(pytester)
    plan = json.loads((old / "plan.json").read_text())
    plan["steps"][0]["why"] = "order"
    (old / "plan.json").write_text(json.dumps(plan))
    done = run()
    done.assert_outcomes(passed=1)
    done.stdout.fnmatch_lines("*old: slot * is fed as before, now because of *")
