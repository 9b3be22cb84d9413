"""Writes every content with every writer that the installed release has, truth beside each.

    python matrix.py OUT [--only GLOB] [--writers MODULE,...] [--jobs N]

    OUT/<era>/<content>-<writer>/{truth.json,truth.npz,...}   one golden
    OUT/<era>/refused.json                                    what this release cannot do, and why

Run it once in each environment of `environments.sh`. jax, flax and Orbax are imported once; each
golden is then made in a forked process of its own, before jax has computed anything, because the
old releases of Orbax keep state for the whole process. GLOB is matched with `<content>-<writer>`. Goldens
that are there already are kept.

A writer module has `WRITERS`, a dict of functions `writer(folder, content) -> facts`, and
`cells(contents)`, which yields the pairs (content, writer) that make sense in this release. The
facts go into the truth; some of them mean something here:

- `None` instead of facts: nothing is recorded (the second process of a save by two);
- `tree`: what was really given to the release, if it is not `content.tree`;
- `losses`: see `truth.record`; `checkpoint`: the name in the golden's folder to open, if it is not
  the only one; `open_step`: the step to ask for; `item`, `json_items`;
- `steps`: `{suffix: (tree, facts)}`, more truths for the other steps of a run.

A writer may have an attribute `before`, called in the fork before the content is made (to set
XLA_FLAGS, or to fork once more), and `shares_process = True` if it needs no process of its own.
"""
import argparse
import contextlib
import fnmatch
import importlib
import inspect
import json
import os
import pathlib
import shutil
import sys
import time
import traceback
from importlib import metadata

import compat

LATEST = "0.12.12"
MODULES = ("writers_msgpack", "writers_orbax", "writers_sharded", "writers_hf")
SECONDS = 240


def main():
    """Make what the command line asks for."""
    options = _options()
    compat.install()  # before the modules that import jax and flax
    _import_early()
    release = metadata.version("flax")
    era = "latest" if release == LATEST else "flax" + release.replace(".", "")
    out = pathlib.Path(options.out).absolute() / era
    out.mkdir(parents=True, exist_ok=True)
    contents = _contents()
    together, alone = [], []
    for content, writer in _cells(contents, options.writers.split(",")):
        name = f"{content}-{writer.__name__}"
        if fnmatch.fnmatch(name, options.only) and not (out / name / "truth.json").exists():
            shared = getattr(writer, "shares_process", False)
            (together if shared else alone).append((out / name, era, contents[content], writer))
    batches = [[cell] for cell in alone]
    if together:
        batches.insert(0, together)
    for batch in batches:
        _in_a_fork(batch)


def _options():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--only", default="*")
    parser.add_argument("--writers", default=",".join(MODULES))
    return parser.parse_args()


def _import_early():
    """Import once what would else be imported in each fork, as far as this release has it."""
    for name in ("optax", "flax.training.checkpoints", "flax.training.train_state", "flax.optim",
                 "flax.linen", "flax.nn", "orbax.checkpoint"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _contents():
    """Every content by name, of all modules of contents."""
    found = {}
    for module in ("matrix_contents", "matrix_contents_states"):
        found.update(importlib.import_module(module).CONTENTS)
    return found


def _cells(contents, modules):
    here = pathlib.Path(__file__).parent
    for name in modules:
        if (here / f"{name}.py").exists():
            module = importlib.import_module(name)
            for content, writer in module.cells(sorted(contents)):
                yield content, module.WRITERS[writer]


def _in_a_fork(batch):
    """Make some goldens in a process of their own, and note those that could not be made."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        _child(batch)
    problem = _wait(child, SECONDS + len(batch))
    if problem:
        for folder, *_ in batch:
            if not (folder / "truth.json").exists():
                _refuse(folder, problem)


def _child(batch):
    said = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    for folder, era, content, writer in batch:
        began, verdict = time.time(), "ok"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            getattr(writer, "before", lambda: None)()
            write(folder, era, content(), writer)
        except BaseException as error:  # whatever the old release says is the finding
            verdict = f"REFUSED {type(error).__name__}: {str(error)[:400]}"
            _refuse(folder, verdict[8:] + "\n" + traceback.format_exc()[-1200:])
        else:
            _refuse(folder, None)
        said.write(f"{era} {folder.name} {time.time() - began:.1f}s {verdict.splitlines()[0]}\n")
        said.flush()
    os._exit(0)  # some releases leave threads behind that never end


def _refuse(folder, problem):
    """Note in `refused.json` why there is no such golden, or that there is one now."""
    file = folder.parent / "refused.json"
    refused = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    refused.pop(folder.name, None)
    if problem:
        refused[folder.name] = problem
        shutil.rmtree(folder, ignore_errors=True)
    text = json.dumps(refused, indent=1, sort_keys=True, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")


def _wait(child, seconds):
    end = time.time() + seconds
    while time.time() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return f"the process ended with status {status}" if status else None
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return f"did not end in {seconds} seconds"


def write(folder, era, content, writer):
    """Save `content` with `writer`, then the truth of what was saved."""
    from truth import record
    facts = {"era": era, "writer": writer.__name__, "how": inspect.getdoc(writer)}
    returned = writer(folder, content)
    if returned is None:
        return
    steps = returned.pop("steps", {})
    tree = returned.pop("tree", content.truth)
    step = returned.pop("step", content.step)
    for suffix, (other, more) in steps.items():
        record(folder, other, more.pop("step"), suffix=suffix, **{**facts, **returned, **more})
    record(folder, tree, step, content.arrays, **{**facts, **returned})


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    main()
    sys.stdout.flush()
    os._exit(0)
