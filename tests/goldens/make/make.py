"""Writes the golden checkpoints of the release that is installed, with their truth beside them.

    python make.py OUT [CONTENT-WRITER ...]

Run it once in each environment of `environments.sh`; `GOLDENS` says what every release
contributes. OUT should be a neutral place like /tmp/golden, since Orbax may write its own
absolute path into a checkpoint. The result is OUT/<era>/<content>-<writer>/.
"""
import inspect
import os
import pathlib
import subprocess
import sys
from importlib import metadata

import compat

LATEST = "0.12.12"
GOLDENS = {
    "0.3.4": ["cnn_state-flax_msgpack", "bundle-flax_msgpack"],
    "0.3.6": ["cnn_state-flax_msgpack", "bundle-flax_msgpack"],
    "0.6.1": ["cnn_state-flax_msgpack", "chunked-flax_msgpack_chunked"],
    "0.6.10": ["cnn_state-ptc", "cnn_state-ptc_agg", "cnn_state-mgr_legacy",
               "bundle-ptc_agg"],
    "0.7.2": ["cnn_state-ptc_ocdbt", "cnn_state-flax_orbax", "bundle-ptc"],
    "0.7.5": ["cnn_state-ptc", "cnn_state-std", "bundle-ptc"],
    "0.8.5": ["cnn_state-flax_msgpack", "cnn_state-mgr_args", "bundle-flax_msgpack", "bundle-ptc",
              "chunked-flax_msgpack_chunked"],
    LATEST: ["cnn_state-flax_msgpack", "cnn_state-mgr_args", "cnn_state-ptc_zarr3", "bundle-ptc",
             "typed_key-ptc", "boxed-ptc", "boxed-flax_msgpack"],
}


def main():
    """Write one golden, or start one process for each golden of this release.

    The releases keep state for the whole process: in Orbax 0.3, one save to OCDBT changes the
    files of every later save.
    """
    out, names = sys.argv[1], sys.argv[2:]
    if len(names) == 1:
        make(pathlib.Path(out).absolute(), names[0])
        return
    for name in names or GOLDENS[metadata.version("flax")]:
        subprocess.run([sys.executable, "-W", "ignore", __file__, out, name], check=True)


def make(out, name):
    """Write the golden `name` of the installed release."""
    compat.install()  # before the modules that import jax and flax
    import contents
    import writers
    release = metadata.version("flax")
    era = "latest" if release == LATEST else "flax" + release.replace(".", "")
    content, writer = name.split("-")
    write(out / era / name, era, getattr(contents, content)(), getattr(writers, writer))
    print(era, name, flush=True)


def write(folder, era, content, writer):
    """Save `content` with `writer`, then the truth of its last step and of any others saved."""
    from truth import record
    folder.mkdir(parents=True)
    facts = {"era": era, "writer": writer.__name__, "how": inspect.getdoc(writer)}
    facts.update(writer(folder, content))
    record(folder, content.tree, content.step, content.arrays, **facts)
    if writer.__name__ == "mgr_args":
        for step in sorted(content.trees)[:-1]:
            record(folder, content.trees[step], step, suffix=f"_step{step}", **facts)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # some releases leave threads behind that never end
