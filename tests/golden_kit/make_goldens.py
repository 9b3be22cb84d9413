"""Makes the goldens of this folder from those that the old releases wrote.

    python tests/golden_kit/make_goldens.py [NAME...]

One of each of the releases in tests/goldens/eras, another writer each time, copied out of the
archive; and a few large runs of tests/goldens where they lie, by reference. A golden is made once:
run this for a new one, and `linen2nnx golden update` for those that are there.
"""

from __future__ import annotations

import json
import os
import sys
import tarfile
import tempfile
from pathlib import Path

from bridge.testing import make_golden

HERE = Path(__file__).parent
GOLDENS = HERE / "goldens"
WRITTEN = HERE.parent / "goldens"

CNN = {
    "model": f"{HERE / 'small_cnn.py'}:model",
    "tx": f"{HERE / 'small_cnn.py'}:optimizer",
    "linen": f"{HERE / 'small_cnn.py'}:LinenCNN",
    "sample_input": "f32[2,4,4,2]",
}
MODELS = HERE.parent / "e2e" / "models.py"
CLASSIFIER = {
    "model": f"{MODELS}:classifier",
    "tx": f"{MODELS}:optimizer",
    "linen": f"{MODELS}:LinenCNN",
    "sample_input": "f32[4,8,8,3]",
}
NO_MODEL: dict[str, str] = {}

ERAS = {
    "flax010": ("cnn_optim-flax_msgpack", NO_MODEL),
    "flax022": ("cnn_optim-flax_msgpack", NO_MODEL),
    "flax030": ("cnn_optim-flax_msgpack", NO_MODEL),
    "flax034": ("cnn_state-flax_msgpack", CNN),
    "flax036": ("cnn_state-flax_msgpack_chunked", CNN),
    "flax042": ("cnn_state-flax_steps", CNN),
    "flax061": ("cnn_state-flax_multiprocess", CNN),
    "flax063": ("mlp_params-ptc_agg_some", NO_MODEL),
    "flax064": ("mlp_params-mgr_legacy", NO_MODEL),
    "flax067": ("mlp_params-ptc", NO_MODEL),
    "flax0610": ("mlp_params-ptc_ocdbt", NO_MODEL),
    "flax0611": ("mlp_params-mgr_best", NO_MODEL),
    "flax072": ("mlp_params-ptc_noocdbt", NO_MODEL),
    "flax075": ("mlp_params-std", NO_MODEL),
    "flax081": ("mlp_params-mgr_args", NO_MODEL),
    "flax084": ("mlp_params-mgr_zarr3", NO_MODEL),
    "flax085": ("mlp_params-mgr_fixed_bare", NO_MODEL),
    "flax090": ("mlp_params-mgr_args_multi", NO_MODEL),
    "flax0102": ("mlp_params-ptc_zarr3", NO_MODEL),
    "flax0106": ("mlp_params-mgr_args_custom", NO_MODEL),
    "flax0112": ("mlp_params-v1", NO_MODEL),
    "flax0120": ("mlp_params-mixed_slash", NO_MODEL),
    "latest": ("mlp_params-v1_multi", NO_MODEL),
}
BY_REFERENCE = ("flax0610/cnn_state-mgr_legacy", "flax072/cnn_state-ptc_ocdbt",
                "flax085/cnn_state-mgr_args", "latest/cnn_state-ptc_zarr3")  # fmt: skip


def of_an_era(era: str) -> None:
    """Copy one out of an archive."""
    content, model = ERAS[era]
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(WRITTEN / "eras" / f"{era}.tar.xz") as archive:
            wanted = [m for m in archive if m.name.startswith(f"{era}/{content}/")]
            archive.extractall(scratch, wanted, filter="data")
        folder = Path(scratch, era, content)
        truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
        path = _checkpoint(folder, truth.get("checkpoint"))
        out = GOLDENS / f"{era}-{content}"
        make_golden(path, out, step=truth.get("open_step"), overwrite=True, **model)


def _checkpoint(folder: Path, name: str | None) -> Path:
    names = ("checkpoint_3", "ckpt", "mgr", "run") if name is None else (name,)
    return next(p for n in names if (p := folder / n).exists())


def by_reference(name: str) -> None:
    """Leave one where it is."""
    folder = WRITTEN / name
    path = _checkpoint(folder, None)
    out = GOLDENS / name.replace("/", "-")
    make_golden(path, out, reference=True, overwrite=True, **CLASSIFIER)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    for name in sys.argv[1:] or [*ERAS, *BY_REFERENCE]:
        if name in ERAS:
            of_an_era(name)
        else:
            by_reference(name)
