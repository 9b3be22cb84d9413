"""What single releases of Orbax left on disk, and what of it is lost: one test for each oddity."""

import json
import re
import shutil
import tarfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorstore

import bridge
import legacy
from bridge._plan import Plan, Step
from bridge.target import Slot, Target
from legacy.errors import DamagedCheckpoint, LegacyError, UnsupportedCheckpoint
from legacy.leaves import Node
from legacy.orbax import open_items
from legacy.orbax_index import UNTYPED
from legacy.orbax_rich import rich_nodes

ERAS = Path(__file__).parents[1] / "goldens" / "eras"


@pytest.fixture(scope="session")
def golden(tmp_path_factory):
    """The folder of a golden ``era/content-writer``, from the archive of its era."""
    top = tmp_path_factory.mktemp("eras")

    def folder(name):
        era = name.partition("/")[0]
        if not (top / era).exists():
            with tarfile.open(ERAS / f"{era}.tar.xz") as archive:
                archive.extractall(top, filter="data")
        return top / name

    return folder


def truth_of(folder, suffix=""):
    """The leaves that were saved, as (entry, value) by path."""
    entries = json.loads((folder / f"truth{suffix}.json").read_text())["leaves"]
    with np.load(folder / f"truth{suffix}.npz") as arrays:
        values = dict(arrays)
    return {tuple(e["path"]): (e, values[e["data"]] if "data" in e else None) for e in entries}


def assert_same_arrays(table, truth):
    """Every path is there, and every array has the bits that were saved."""
    assert set(table) == set(truth)
    for path, (entry, value) in truth.items():
        if value is not None:
            want = value.view(ml_dtypes.bfloat16) if entry["dtype"] == "bfloat16" else value
            got = table[path].read()
            found = (got.dtype, got.shape, got.tobytes())
            assert found == (want.dtype, want.shape, want.tobytes()), path


# --- where the values are


@pytest.mark.parametrize("era", ["flax067", "flax072", "flax075", "flax081", "flax084"])
def test_an_aggregate_file_of_another_name_is_found(golden, era):
    folder = golden(f"{era}/mlp_params-ptc_agg_name")
    assert not (folder / "ckpt" / "checkpoint").exists()
    checkpoint = legacy.open(folder / "ckpt")
    assert "aggregate" in checkpoint.format.layout
    assert_same_arrays(checkpoint.leaves, truth_of(folder))


OLD_NAME = ("flax063", "flax067", "flax072", "flax075", "flax085")


@pytest.mark.parametrize("era", OLD_NAME)
def test_arrays_whose_metadata_has_another_name_are_read(golden, era):
    folder = golden(f"{era}/mlp_params-ptc_oldname")
    checkpoint = legacy.open(folder / "ckpt")
    assert_same_arrays(checkpoint.leaves, truth_of(folder))
    leaf = checkpoint.leaves["Dense_0", "kernel"]
    assert leaf.storage.metadata_key == "array.json"
    whole = leaf.read()
    assert leaf.read((slice(1, 2), slice(0, 2))).tolist() == whole[1:2, :2].tolist()
    opened = tensorstore.open(leaf.storage.spec()).result()  # as a writer that moves bytes does
    assert opened.read().result().tolist() == whole.tolist()


@pytest.mark.parametrize("era", ["flax072", "flax075"])
def test_arrays_with_metadata_of_another_name_are_converted_under_the_usual_one(
    golden, tmp_path, era
):
    source = golden(f"{era}/mlp_params-ptc_oldname") / "ckpt"
    leaves = legacy.open(source).leaves
    slots = [
        Slot("model", path, (*path, "value"), "Param", "", leaf.shape, leaf.dtype.name)
        for path, leaf in leaves.items()
    ]
    steps = [Step((slot.path,), (slot.ref,)) for slot in slots]
    plan = Plan(tuple(steps), (), (), (), Target(tuple(slots)), leaves.signature())
    bridge.convert(source, tmp_path / "new", plan=plan)
    found = legacy.open(tmp_path / "new").items["model"]
    assert {path[:-1] for path in found} == set(leaves)
    for path, leaf in found.items():
        assert leaf.storage.metadata_key is None
        assert leaf.read().tobytes() == leaves[path[:-1]].read().tobytes()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("array.json", b"{", ".zarray"),
        ("array.json", b'["zarr_format"]', ".zarray"),
        ("array.json", b'{"zarr_format": 3}', ".zarray"),
        ("array.json", b'{"zarr_format": 2}' + b" " * (1 << 16), ".zarray"),
        ("array.json", b"[" * 60_000, ".zarray"),
        ("array.json", b'{"zarr_format": 2, "shape": "x"}', "shape"),
        ("second.json", None, ".zarray"),
    ],
)
def test_only_one_description_of_zarr_2_counts_as_the_metadata(golden, tmp_path, name, text, said):
    folder = tmp_path / "ckpt"
    shutil.copytree(golden("flax072/mlp_params-ptc_oldname") / "ckpt", folder)
    place = folder / "Dense_0.kernel"
    (place / name).write_bytes((place / "array.json").read_bytes() if text is None else text)
    table = legacy.open(folder).leaves
    with pytest.raises(LegacyError, match=re.escape(said)):
        table["Dense_0", "kernel"].read()
    assert table["Dense_1", "kernel"].kind == "array"


def test_a_stray_file_beside_such_an_array_is_passed_over(golden, tmp_path):
    folder = tmp_path / "ckpt"
    shutil.copytree(golden("flax072/mlp_params-ptc_oldname") / "ckpt", folder)
    (folder / "Dense_0.kernel" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "Dense_0.kernel" / "pipe").symlink_to("/dev/zero")
    truth = truth_of(golden("flax072/mlp_params-ptc_oldname"))
    assert_same_arrays(legacy.open(folder).leaves, truth)


def test_a_description_outside_of_the_checkpoint_is_not_read(golden, tmp_path):
    folder = tmp_path / "ckpt"
    shutil.copytree(golden("flax072/mlp_params-ptc_oldname") / "ckpt", folder)
    place = folder / "Dense_0.kernel" / "array.json"
    place.rename(tmp_path / "elsewhere.json")
    place.symlink_to(tmp_path / "elsewhere.json")
    leaf = legacy.open(folder).leaves["Dense_0", "kernel"]
    assert leaf.kind == "unreadable"
    assert ".zarray" in leaf.problem


def test_such_arrays_are_found_without_an_index_too(golden, tmp_path):
    source = golden("flax075/mlp_params-ptc_oldname")
    folder = tmp_path / "ckpt"
    shutil.copytree(source / "ckpt", folder)
    for document in ("_METADATA", "checkpoint"):
        (folder / document).unlink(missing_ok=True)
    assert_same_arrays(legacy.open(folder).leaves, truth_of(source))


def test_two_files_that_could_be_the_index_are_none(golden, tmp_path):
    folder = golden("flax067/mlp_params-ptc_agg_name") / "ckpt"
    copy = tmp_path / "ckpt"
    shutil.copytree(folder, copy)
    (copy / "other").write_bytes((folder / "my_checkpoint").read_bytes())
    leaf = legacy.open(copy).leaves["Dense_0", "kernel"]
    assert any("there is no index" in note for note in leaf.notes)


@pytest.mark.parametrize("name", ["flax067/odd_keys_empty-ptc", "latest/odd_keys_empty-ptc"])
def test_an_empty_name_lies_at_the_root(golden, name):
    folder = golden(name)
    assert_same_arrays(legacy.open(folder / "ckpt").leaves, truth_of(folder))


def test_a_key_d_is_not_taken_for_the_data_files(golden):
    folder = golden("latest/odd_keys_reserved-ptc")
    assert_same_arrays(legacy.open(folder / "ckpt").leaves, truth_of(folder))


def test_the_entry_of_a_dict_that_was_filled_later_is_no_leaf(tmp_path):
    # Orbax's own reader passes over it, see as_nested_tree in its metadata/tree.py
    def entry(path, kind):
        keys = [{"key": part, "key_type": 2} for part in path]
        value = {"value_type": kind, "skip_deserialize": True}
        return {str(path): {"key_metadata": keys, "value_metadata": value}}

    entries = entry(("a",), "Dict") | entry(("a", "b"), "None") | entry(("c",), "Dict")
    (tmp_path / "_METADATA").write_text(json.dumps({"tree_metadata": entries}))
    table = open_items(tmp_path)[0]["default"]
    assert {path: leaf.kind for path, leaf in table.items()} == {
        ("a", "b"): "none",
        ("c",): "empty",
    }


# --- items


@pytest.mark.parametrize("era", ["flax084", "flax0120"])
def test_a_random_key_may_have_another_name(golden, era):
    folder = golden(f"{era}/mlp_params-mgr_key_name")
    checkpoint = legacy.open(folder / "mgr")
    leaf = checkpoint.items["rng"][()]
    ((entry, value),) = truth_of(folder, "_item_rng").values()
    assert (leaf.kind, leaf.key_impl) == ("key", entry["key_impl"])
    assert leaf.read().tolist() == value.tolist()
    assert_same_arrays(checkpoint.items["state"], truth_of(folder))


def test_two_items_that_only_look_like_a_key_stay_items(tmp_path):
    for name in ("a", "a_metadata"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "metadata").write_text('{"depth": 2}')
    items, *_ = open_items(tmp_path / "run")
    assert sorted(items) == ["a", "a_metadata"]


@pytest.mark.parametrize("era", ["flax084", "flax0120"])
def test_an_item_of_an_unknown_kind_is_one_leaf_that_cannot_be_read(golden, era):
    folder = golden(f"{era}/mlp_params-mgr_proto")
    checkpoint = legacy.open(folder / "mgr")
    leaf = checkpoint.items["config"][()]
    assert leaf.kind == "unreadable"
    with pytest.raises(UnsupportedCheckpoint, match=r"item config: .*config\.pbtxt"):
        leaf.read()
    assert_same_arrays(checkpoint.items["state"], truth_of(folder))


# --- what is lost is said


@pytest.mark.parametrize("name", ["flax067/odd_npbool-ptc", "flax084/odd_npbool-ptc"])
def test_a_none_that_may_have_been_a_bool_says_so(golden, name):
    leaf = legacy.open(golden(name) / "ckpt").leaves["yes",]
    assert leaf.kind == "none"
    assert any("numpy.bool_" in note for note in leaf.notes)


def test_a_none_of_today_is_told_from_an_empty_tuple(golden):
    table = legacy.open(golden("latest/odd_empty-ptc") / "ckpt").leaves
    assert (table["tuple",].kind, table["tuple",].container) == ("empty", "tuple")
    assert table["none",].notes == ("Orbax writes None and EmptyState alike here",)


def test_an_empty_dict_of_the_first_releases_says_what_else_it_may_be(golden):
    leaf = legacy.open(golden("flax063/train_state-ptc") / "ckpt").leaves["opt_state", "1"]
    assert (leaf.kind, leaf.container) == ("empty", "dict")
    assert any("empty lists" in note for note in leaf.notes)


def test_a_number_without_a_type_says_so(golden):
    table = legacy.open(golden("flax075/bundle-ptc") / "ckpt").leaves
    assert (table["config", "lr"].kind, table["config", "lr"].read()) == ("array", 0.001)
    assert table["config", "lr"].notes == (UNTYPED,)
    assert table["model", "params", "Dense_0", "bias"].notes == ()


def test_aggregated_arrays_say_that_their_byte_order_is_lost(golden):
    aggregated = legacy.open(golden("flax067/mlp_params-ptc_agg") / "ckpt").leaves
    stored = legacy.open(golden("flax067/mlp_params-ptc") / "ckpt").leaves
    for path, leaf in aggregated.items():
        assert any("byte order" in note for note in leaf.notes)
        assert not any("byte order" in note for note in stored[path].notes)


# --- rich types


def test_rich_types_name_the_containers(golden):
    folder = golden("latest/odd_nest-ptc_rich")
    table = legacy.open(folder / "ckpt").leaves
    assert table.nodes["point",] == Node("namedtuple", "Point")
    assert table.nodes["tuple",] == Node("tuple")
    assert table.nodes["list",] == Node("list")
    assert ("deep",) not in table.nodes
    assert_same_arrays(table, truth_of(folder))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "value_metadata_tree"),
        ('{"a": 1}', "value_metadata_tree"),
        ('{"category": "namedtuple", "clazz": 1, "entries": []}', "clazz"),
        ('{"category": "namedtuple", "clazz": "P", "entries": [1]}', "entries"),
        ("[" * 300 + "]" * 300, "deep"),
    ],
)
def test_broken_rich_types_are_damage(text, said):
    with pytest.raises(DamagedCheckpoint, match=said):
        rich_nodes(text, Path("_METADATA"))


def test_a_key_called_category_is_a_key():
    leaf = {"category": "custom", "clazz": "ValueMetadataEntry", "data": {}}
    text = json.dumps({"category": [leaf], "clazz": leaf})
    assert rich_nodes(text, Path("_METADATA")) == {("category",): Node("list")}


# --- the release


@pytest.mark.parametrize(
    "name",
    [
        "flax063/mlp_params-ptc",
        "flax067/mlp_params-ptc",
        "flax072/mlp_params-ptc",
        "flax072/mlp_params-ptc_ocdbt",
        "flax075/mlp_params-ptc",
        "flax075/mlp_params-ptc_agg",
        "flax075/mlp_params-ptc_noocdbt",
        "flax081/mlp_params-ptc",
        "flax081/mlp_params-ptc_notreemeta",
        "flax084/mlp_params-ptc_agg",
        "flax085/mlp_params-ptc",
        "flax090/mlp_params-ptc",
        "flax0102/mlp_params-ptc",
        "flax0106/mlp_params-ptc",
        "flax0120/mlp_params-ptc",
        "latest/mlp_params-ptc",
    ],
)
def test_the_era_has_the_release_that_wrote(golden, name):
    folder = golden(name)
    release = json.loads((folder / "truth.json").read_text())["orbax"]
    assert includes(legacy.detect(folder / "ckpt").era, release)


def includes(era, release):
    """Whether a claim such as ``orbax 0.5-0.9 (2024)`` has a release."""
    written = tuple(map(int, release.split(".")))
    first, last, newer = re.match(r"orbax ([\d.]+)(?:-([\d.]+))?( or newer)?", era).groups()
    low = tuple(map(int, first.split(".")))
    high = tuple(map(int, (last or first).split(".")))
    return low <= written[: len(low)] and (bool(newer) or written[: len(high)] <= high)


def test_the_claim_of_a_test_can_be_false():
    assert includes("orbax 0.5.0-0.5.15 (2024)", "0.5.15")
    assert not includes("orbax 0.5.0-0.5.15 (2024)", "0.5.23")
    assert not includes("orbax 0.0-0.3 (2022-2023)", "0.4.2")


def test_one_tree_without_types_does_not_hide_the_release(golden):
    # an ArraySave item of 0.5 has no index; the tree beside it has
    checkpoint = legacy.open(golden("flax084/mlp_params-mgr_array") / "mgr")
    assert sorted(checkpoint.items) == ["lr", "state", "weights"]
    assert includes(checkpoint.format.era, "0.5.15")
