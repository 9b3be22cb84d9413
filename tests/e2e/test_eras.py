"""The golden matrix: what 22 real releases wrote, each leaf held against its truth."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from compare import differences

from legacy.orbax_stores import NEWER_TENSORSTORE

if TYPE_CHECKING:
    from collections.abc import Callable

ERAS = Path(__file__).parents[1] / "goldens" / "eras"
ERA_COUNT = 22
INDEX = (ERAS / "INDEX.txt").read_text(encoding="utf-8").split()


@pytest.fixture(scope="session")
def era_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of an era's goldens, unpacked when it is asked for first."""
    root = tmp_path_factory.mktemp("eras")

    def unpacked(era: str) -> Path:
        if not (root / era).exists():
            with tarfile.open(ERAS / f"{era}.tar.xz") as archive:
                archive.extractall(root, filter="data")
        return root / era

    return unpacked


def test_every_archive_is_in_the_index():
    packed = {path.name.removesuffix(".tar.xz") for path in ERAS.glob("*.tar.xz")}
    assert packed == {name.split("/")[0] for name in INDEX}
    assert len(packed) >= ERA_COUNT


def test_the_index_names_every_golden(era_folder):
    eras = sorted({name.split("/")[0] for name in INDEX})
    found = [
        f"{era}/{path.parent.name}"
        for era in eras
        for path in sorted(era_folder(era).glob("*/truth.json"))
    ]
    assert sorted(found) == sorted(INDEX)


@pytest.mark.parametrize("name", INDEX)
def test_a_golden_reads_as_its_truth(name, era_folder):
    era, golden = name.split("/")
    found = differences(era_folder(era) / golden)
    if found and all(NEWER_TENSORSTORE in line for line in found):
        pytest.skip(found[0])  # the oldest supported release lacks float8_e8m0fnu
    assert found == []


def _other_array(arrays, document):
    name = next(e["data"] for e in document["leaves"] if e["dtype"] == "float32")
    arrays[name] = np.nextafter(arrays[name], np.float32(np.inf))


def _other_kind(_, document):
    document["leaves"][0]["kind"] = "scalar"


def _other_dtype(arrays, document):
    entry = document["leaves"][0]
    arrays[entry["data"]] = arrays[entry["data"]].astype(np.float64)


def _other_shape(arrays, document):
    entry = document["leaves"][0]
    arrays[entry["data"]] = arrays[entry["data"]][None]


def _one_less(_, document):
    document["leaves"].pop()


def _one_more(_, document):
    document["leaves"].append({"path": ["more"], "kind": "none"})


def _a_loss_that_is_none(_, document):
    document["losses"] = [{"path": document["leaves"][0]["path"], "why": "no reason"}]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_other_array, "other bits"),
        (_other_kind, "kind array, not scalar"),
        (_other_dtype, "dtype float32, not float64"),
        (_other_shape, "not (1, "),
        (_one_less, "too much"),
        (_one_more, "more: missing"),
        (_a_loss_that_is_none, "without a note"),
    ],
)
def test_the_comparison_notices(change, said, era_folder, tmp_path):
    golden = tmp_path / "golden"
    shutil.copytree(era_folder("flax036") / "mlp_params-flax_msgpack", golden)
    with np.load(golden / "truth.npz") as stored:
        arrays = dict(stored)
    document = json.loads((golden / "truth.json").read_text())
    change(arrays, document)
    np.savez(golden / "truth.npz", **arrays)
    (golden / "truth.json").write_text(json.dumps(document))
    assert any(said in line for line in differences(golden))
