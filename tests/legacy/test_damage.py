"""The damage matrix: each layout, each kind of file, each damage; see :mod:`damage_oracle`.

``python tests/legacy/damage_cases.py FOLDER...`` does many more by hand.
"""

from __future__ import annotations

import collections
import json
import tarfile
import tempfile
from pathlib import Path

import msgpack
import numpy as np
import pytest
from damage_cases import SAMPLE, can_be_nobody, damages, subject
from damage_oracle import Wrong, judge, truth_of

import bridge
import legacy

GOLDENS = Path(__file__).parents[1] / "goldens"
LAYOUTS = {
    "msgpack, old namedtuples": "flax034/bundle-flax_msgpack",
    "msgpack, in chunks": "flax061/chunked-flax_msgpack_chunked",
    "msgpack with a side folder": "flax064/gda8-flax_gda",
    "msgpack in several files": "huggingface/model",
    "aggregate": "flax0610/bundle-ptc_agg",
    "aggregate and arrays": "flax067/mlp_params-ptc_agg_some",
    "zarr with gzip": "flax063/mlp_params-ptc",
    "zarr, msgpack index": "flax072/bundle-ptc",
    "zarr, JSON index": "latest/mlp_params-ptc_noocdbt",
    "zarr3": "latest/mlp_params-ptc_zarr3_noocdbt",
    "OCDBT, msgpack index": "flax075/bundle-ptc",
    "OCDBT, JSON index": "latest/typed_key-ptc",
    "OCDBT of zarr3": "latest/mlp_params-ptc_zarr3",
    "databases that were not merged": "latest/mp2_unmerged-ptc",
    "manager, a tree and a document": "flax064/mlp_params-mgr_legacy_multi",
    "manager, several items": "flax085/mlp_params-mgr_args_multi",
    "Orbax v1": "latest/mlp_params-v1",
}
BRIDGED = ("zarr, msgpack index", "OCDBT, JSON index", "manager, several items")
LATE = 4
"""Damaged arrays that a test tries to convert, of those whose index is in order."""

SMALL = {"aggregate", "msgpack, old namedtuples", "msgpack, in chunks"}
"""All in one file: nothing but that one leaf is lost can be told."""


@pytest.fixture(scope="module")
def subjects():
    """A run of each layout, in a folder that another user may look into."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        scratch.chmod(0o755)
        write_shards(scratch / "packed" / "huggingface" / "model")
        unpack(scratch / "packed")
        made = {}
        for layout, golden in LAYOUTS.items():
            is_packed = not (GOLDENS / golden).is_dir()
            made[layout] = subject((scratch / "packed" if is_packed else GOLDENS) / golden, scratch)
        (scratch / "stash").mkdir()
        yield made, scratch / "stash"


def write_shards(folder: Path) -> None:
    """A model as ``FlaxPreTrainedModel.save_pretrained`` writes it when it is large."""
    place = folder / "ckpt"
    place.mkdir(parents=True)
    weights = {}
    for n, name in enumerate(("kernel", "bias"), start=1):
        value = np.arange(4, dtype=np.float32) + n
        packed = msgpack.packb((value.shape, "float32", value.tobytes()))
        file = f"flax_model-0000{n}-of-00002.msgpack"
        ext = msgpack.ExtType(1, packed)
        (place / file).write_bytes(msgpack.packb({"dense": {name: ext}}))
        weights[f"dense/{name}"] = file
    document = {"metadata": {"total_size": 32}, "weight_map": weights}
    (place / "flax_model.msgpack.index.json").write_text(json.dumps(document))


def unpack(scratch: Path) -> None:
    """The goldens of :data:`LAYOUTS` that are packed by era."""
    wanted = [g for g in LAYOUTS.values() if not (GOLDENS / g).is_dir()]
    for era in sorted({golden.split("/")[0] for golden in wanted} - {"huggingface"}):
        with tarfile.open(GOLDENS / "eras" / f"{era}.tar.xz") as archive:
            tops = tuple(f"{golden}/" for golden in wanted)
            inside = [member for member in archive if member.name.startswith(tops)]
            archive.extractall(scratch, inside, filter="data")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_damage_is_named_and_stops_nothing_else(subjects, layout):
    if not can_be_nobody():
        pytest.skip("root may read everything, and cannot become another user here")
    every, stash = subjects
    truth = truth_of(every[layout])
    verdicts, wrong = collections.Counter(), []
    for damage in damages(every[layout], list(every.values()), SAMPLE):
        try:
            verdicts[judge(truth, damage, stash)] += 1
        except Wrong as error:
            wrong.append(str(error))
    assert not wrong, f"{len(wrong)} of {verdicts.total() + len(wrong)}:\n" + "\n".join(wrong)
    assert verdicts["refused"]
    assert layout in SMALL or verdicts["right"]


@pytest.mark.parametrize("layout", BRIDGED)
def test_what_cannot_be_read_is_a_problem_of_the_plan_and_nothing_is_written(
    subjects, layout, tmp_path
):
    every, stash = subjects
    one = every[layout]
    unread = late = 0
    names = ("cut in half", "removed", "now a pipe", "zeros")
    for n, damage in enumerate(d for d in damages(one, [], SAMPLE) if d.name in names):
        with damage.done(stash):
            lost = unreadable_leaves(one.step)
            if lost == []:  # it shows when the arrays are read, which takes a whole conversion
                late += 1
                if late > LATE or reads(one.step):
                    continue
            unread += 1
            try:
                planned = bridge.plan(one.step)
            except (bridge.BridgeError, legacy.LegacyError):
                assert lost is None, damage
            else:
                said = " ".join(map(str, planned.problems))
                assert all(legacy.format_path(path) in said for path in lost or ()), damage
            out = tmp_path / str(n)
            with pytest.raises((bridge.BridgeError, legacy.LegacyError)):
                bridge.convert(one.step, out)
            assert not out.exists() or not any(out.iterdir()), damage
    assert unread


def reads(step):
    """Whether every leaf reads."""
    try:
        for leaf in legacy.open(step).leaves.values():
            leaf.read()
    except legacy.LegacyError:
        return False
    return True


def unreadable_leaves(step):
    """Paths that cannot be read though they are listed so; None when nothing can be opened."""
    try:
        leaves = legacy.open(step).leaves
    except legacy.LegacyError:
        return None
    return [path for path, leaf in leaves.items() if leaf.kind == "unreadable"]
