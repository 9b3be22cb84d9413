"""Where the corpus of other people's checkpoints is: beside the project, or nowhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

CORPUS = Path(
    os.environ.get("BRIDGE_CORPUS", Path(__file__).parents[2].parent / "shared" / "corpus")
)

needs_corpus = pytest.mark.skipif(
    not CORPUS.is_dir(), reason=f"the corpus is not at {CORPUS}; set BRIDGE_CORPUS"
)

# path below the corpus: leaves that INDEX.md counts
READABLE = {
    "phlippe/tutorial5/ResNet.ckpt": 101,
    "phlippe/tutorial5/DenseNet.ckpt": 263,
    "phlippe/tutorial17/LogisticRegression_10.ckpt": 3,
    "phlippe/tutorial6/ReverseTask.ckpt": 20,
    "scico/dncnn6L.mpk": 22,
    "t5x/test_t5_tiny.checkpoint_0": 262,
    "fusion_surrogates/qlknn_7_11.qlknn": 14,
    "mlff/checkpoints": 45,
    "so3lr/checkpoints": 131,
    "mujoco_playground/VisionMLP2ChanCIFAR10_OCP": 6,
    "tunix/checkpoints": 4,
}
REFUSED = {"t5x/tiny_t5/checkpoint_1": "TensorStore spec", "t5x/tiny_orbax/1": r"\.zarray"}
