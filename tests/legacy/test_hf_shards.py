"""Checkpoints of Hugging Face transformers: alone among other files, and in several files."""

from __future__ import annotations

import json

import msgpack
import numpy as np
import pytest

import legacy

INDEX = "flax_model.msgpack.index.json"
FIRST, SECOND = "flax_model-00001-of-00002.msgpack", "flax_model-00002-of-00002.msgpack"


def array(*values):
    data = np.float32(values)
    packed = msgpack.packb((data.shape, "float32", data.tobytes()))
    return msgpack.ExtType(1, packed)


def write_model(folder, shards, weights=None):
    """The files of a model, as `save_pretrained` names them."""
    for name, tree in shards.items():
        (folder / name).write_bytes(tree if isinstance(tree, bytes) else msgpack.packb(tree))
    if weights is not None:
        document = {"metadata": {"total_size": 24}, "weight_map": weights}
        (folder / INDEX).write_text(json.dumps(document))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    return folder


@pytest.fixture
def model(tmp_path):
    """Three parameters in two files."""
    shards = {
        FIRST: {"emb": {"kernel": array(1, 2)}, "head": {"bias": array(3)}},
        SECOND: {"head": {"kernel": array(4, 5, 6)}},
    }
    weights = {"emb/kernel": FIRST, "head/bias": FIRST, "head/kernel": SECOND}
    return write_model(tmp_path, shards, weights)


@pytest.mark.parametrize("name", ["", INDEX])
def test_the_folder_and_the_index_give_one_tree(model, name):
    checkpoint = legacy.open(model / name)

    values = {path: leaf.read().tolist() for path, leaf in checkpoint.leaves.items()}
    assert values == {
        ("emb", "kernel"): [1, 2],
        ("head", "bias"): [3],
        ("head", "kernel"): [4, 5, 6],
    }
    assert (checkpoint.format.name, checkpoint.format.layout) == ("flax-msgpack", "msgpack+shards")
    assert checkpoint.step is None
    assert f"{INDEX} names 3 parameters in 2 files" in checkpoint.format.evidence


def test_it_restores_into_one_target(model):
    target = {"emb": {"kernel": np.zeros(2, np.float32)}, "head": {"kernel": np.zeros(3, "f4")}}
    restored = legacy.restore(model, target)
    assert restored["head"]["kernel"].tolist() == [4, 5, 6]


@pytest.mark.parametrize("name", ["", INDEX])
def test_it_is_found_as_one_checkpoint(model, name):
    (run,) = legacy.find(model / name)
    assert [entry.path for entry in run.steps] == [model / INDEX]
    assert legacy.steps_of(model / name).steps[0].path == model / INDEX


def test_a_model_in_one_file_opens_by_its_folder(tmp_path):
    write_model(tmp_path, {"flax_model.msgpack": {"a": array(7)}})
    assert legacy.open(tmp_path).leaves["a",].read().tolist() == [7]


def test_an_empty_first_file_is_no_stray(tmp_path):
    # transformers writes one when the first parameter alone is above the limit
    write_model(tmp_path, {FIRST: {}, SECOND: {"a": array(1)}}, {"a": SECOND})
    assert list(legacy.open(tmp_path).leaves) == [("a",)]
    assert len(legacy.find(tmp_path)) == 1


def test_names_joined_by_slashes_in_the_file_are_the_same_parameters(tmp_path):
    write_model(tmp_path, {FIRST: {"a/b": array(1)}}, {"a/b": FIRST})
    assert list(legacy.open(tmp_path).leaves) == [("a", "b")]


def test_a_missing_file_loses_its_parameters_only(model):
    (model / SECOND).unlink()
    leaves = legacy.open(model).leaves

    assert leaves["head", "bias"].read().tolist() == [3]
    lost = leaves["head", "kernel"]
    assert lost.kind == "unreadable"
    with pytest.raises(legacy.CheckpointNotFound, match=f"head/kernel.*{SECOND}"):
        lost.read()


def test_a_cut_file_loses_its_parameters_only(model):
    (model / SECOND).write_bytes((model / SECOND).read_bytes()[:-3])
    leaves = legacy.open(model).leaves

    assert leaves["emb", "kernel"].read().tolist() == [1, 2]
    with pytest.raises(legacy.LegacyError, match="head/kernel"):
        leaves["head", "kernel"].read()


def test_a_parameter_that_is_not_where_it_should_be_cannot_be_read(tmp_path):
    write_model(tmp_path, {FIRST: {"a": array(1)}}, {"a": FIRST, "b": FIRST})
    leaves = legacy.open(tmp_path).leaves
    with pytest.raises(legacy.DamagedCheckpoint, match=r"leaf b: .*it is not"):
        leaves["b",].read()
    assert leaves["a",].read().tolist() == [1]


def test_all_parameters_that_the_index_does_not_name_are_told(tmp_path):
    shards = {FIRST: {"a": array(1), "x": array(2)}, SECOND: {"a": array(9), "b": array(3)}}
    write_model(tmp_path, shards, {"a": FIRST, "b": SECOND})
    with pytest.raises(legacy.DamagedCheckpoint, match="2 parameters are in files") as error:
        legacy.open(tmp_path)
    assert error.value.problems == (f"{FIRST}: x", f"{SECOND}: a")


def test_nothing_is_left_when_all_files_are_missing(model):
    (model / FIRST).unlink()
    (model / SECOND).unlink()
    with pytest.raises(legacy.UnsupportedCheckpoint, match="none of the 2 files"):
        legacy.open(model)


@pytest.mark.parametrize("name", ["../x.msgpack", "/nowhere/x.msgpack", "a\\b", "..", "", "a\0b"])
def test_a_file_elsewhere_is_not_read(tmp_path, name):
    write_model(tmp_path, {FIRST: {"a": array(1)}}, {"a": FIRST, "b": name})
    with pytest.raises(legacy.UnsupportedCheckpoint, match="Only files beside the index"):
        legacy.open(tmp_path)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("[]", "the whole file"),
        ("{}", "weight_map"),
        ('{"weight_map": {}}', "index of nothing"),
        ('{"weight_map": {"a": 3}}', "should be str"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "twice"),
        ('{"weight_map": ', "no JSON"),
    ],
)
def test_a_damaged_index_is_refused_with_the_field(tmp_path, document, said):
    write_model(tmp_path, {FIRST: {"a": array(1)}})
    (tmp_path / INDEX).write_text(document)
    with pytest.raises(legacy.DamagedCheckpoint, match=said):
        legacy.open(tmp_path)


def test_a_parameter_below_another_is_refused(tmp_path):
    write_model(tmp_path, {FIRST: {"a": array(1)}}, {"a": FIRST, "a/b": FIRST})
    with pytest.raises(legacy.DamagedCheckpoint, match="below it"):
        legacy.open(tmp_path)


def test_one_of_the_files_is_not_taken_for_the_checkpoint(model):
    with pytest.raises(legacy.NotACheckpoint, match=f"path of their index, .*{INDEX}"):
        legacy.open(model / FIRST)


def test_one_of_the_files_without_the_index_is_read_with_a_doubt(model):
    (model / INDEX).unlink()
    checkpoint = legacy.open(model / FIRST)
    assert set(checkpoint.leaves) == {("emb", "kernel"), ("head", "bias")}
    assert any("one of several files" in fact for fact in checkpoint.format.evidence)


def test_a_whole_model_beside_one_in_several_files_is_ambiguous(model):
    (model / "flax_model.msgpack").write_bytes(msgpack.packb({"a": array(1)}))
    with pytest.raises(legacy.AmbiguousCheckpoint, match=r"flax_model\.msgpack"):
        legacy.open(model)
