"""A golden test in a user's repository: made once, and it speaks up when the model changes.

Copies ``golden_repository`` (a package, tests, a pyproject) to a temporary folder, trains an old
Linen run, makes a golden of it with the command line, runs the repository's tests, and runs them
again after somebody has renamed an attribute of the model.

    python conversion_examples/golden_test.py [FOLDER]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import flax.serialization
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

REPOSITORY = Path(__file__).parent / "golden_repository"


def make_old_run(folder: Path) -> None:
    """Train for three steps, and save as ``flax.training.checkpoints`` did in 2022."""
    from tiny_lab.models import optimizer  # noqa: PLC0415 - of the copy
    from tiny_lab.old import tagger  # noqa: PLC0415

    tokens = jax.random.randint(jax.random.key(1), (4, 6), 0, 20)
    params = tagger().init(jax.random.key(0), tokens)["params"]
    state = TrainState.create(apply_fn=tagger().apply, params=params, tx=optimizer())

    @jax.jit
    def step(state: TrainState) -> TrainState:
        def loss(p: optax.Params) -> jax.Array:
            logits = tagger().apply({"params": p}, tokens)
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens % 5).mean()

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    for _ in range(3):
        state = step(state)
    folder.mkdir(parents=True)
    saved = jax.tree.map(jnp.asarray, state)
    (folder / "checkpoint_3").write_bytes(flax.serialization.to_bytes(saved))


def run(repository: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository, and print it with what it says."""
    print(f"$ {' '.join(command)}", flush=True)
    names = {"linen2nnx": ["-m", "bridge"], "pytest": ["-m", "pytest"]}
    done = subprocess.run(  # noqa: S603 - our own commands
        [sys.executable, *names[command[0]], *command[1:]],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": "src", "JAX_PLATFORMS": "cpu", "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    print(f"{done.stdout}{done.stderr if done.returncode not in (0, 1) else ''}\n")
    return done


def main(folder: Path) -> None:
    repository = folder / "tiny_lab"
    ignored = shutil.ignore_patterns("goldens", "__pycache__", ".pytest_cache", "runs")
    shutil.copytree(REPOSITORY, repository, ignore=ignored)
    sys.path.insert(0, str(repository / "src"))
    make_old_run(repository / "runs" / "tagger")

    print("1. A golden of the old run: its source, plan, digests, and what the Linen model says.\n")
    done = run(
        repository, "linen2nnx", "golden", "make", "runs/tagger",
        "--model", "tiny_lab.models:tagger", "--tx", "tiny_lab.models:optimizer",
        "--linen", "tiny_lab.old:tagger", "--input", "i32[2,6]", "-o", "tests/goldens/tagger",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shutil.rmtree(repository / "runs")  # a golden needs neither the run nor the Linen model
    (repository / "src" / "tiny_lab" / "old.py").unlink()

    print("2. The tests of the repository; the golden is one of them.\n")
    done = run(repository, "pytest", "-v", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout
    assert "tests/goldens/tagger/golden.json::tagger PASSED" in done.stdout

    print("3. Somebody finds `up` a better name than `w1`.\n")
    models = repository / "src" / "tiny_lab" / "models.py"
    models.write_text(models.read_text().replace("self.w1", "self.up"))
    done = run(repository, "pytest", "-p", "no:cacheprovider", "tests/goldens")
    assert done.returncode == 1
    assert "model:blocks/0/w1/bias is gone, model:blocks/0/up/bias is new" in done.stdout

    print("4. Old checkpoints still convert (w1 was never in them): the golden takes the name.\n")
    environment = dict(os.environ)
    os.environ.pop("CI", None)  # in CI nobody would look at the change
    done = run(repository, "pytest", "-p", "no:cacheprovider", "--update-goldens", "tests/goldens")
    os.environ.update(environment)
    assert done.returncode == 0, done.stdout


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]).absolute())
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(Path(scratch))
