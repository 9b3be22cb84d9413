"""Orbax folders: real saves of the installed release, goldens of old ones, and damage to both."""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import ml_dtypes
import msgpack
import numpy as np
import pytest

from legacy.errors import (
    CannotLook,
    DamagedCheckpoint,
    LegacyError,
    NotACheckpoint,
    UnsupportedCheckpoint,
)
from legacy.flax_msgpack import open_msgpack
from legacy.leaves import Node, format_path
from legacy.orbax import is_step_folder, is_tree_folder, open_items, open_tree
from legacy.orbax_stores import translated

LAYOUTS = {
    "ocdbt": ({}, "ocdbt"),
    "zarr": ({"use_ocdbt": False}, "zarr"),
    "ocdbt_zarr3": ({"use_zarr3": True}, "ocdbt+zarr3"),
    "zarr3": ({"use_zarr3": True, "use_ocdbt": False}, "zarr3"),
}
GOLDENS = Path(__file__).parents[1] / "goldens"
CORPUS = Path(__file__).parents[3] / "shared" / "corpus"


def arrays():
    """The arrays of the test tree, by path."""
    rng = np.random.default_rng(0)
    return {
        ("params", "Dense_0", "kernel"): rng.standard_normal((4, 5), np.float32),
        ("params", "Dense_0", "bias"): np.zeros(5, np.float32),
        ("params", "Dense_1", "kernel"): rng.standard_normal((5, 3)).astype(ml_dtypes.bfloat16),
        ("params", "f8"): np.arange(6).astype(ml_dtypes.float8_e4m3fn),
        ("opt", "1", "0"): np.arange(3),
        ("opt", "1", "1"): np.arange(2, dtype=np.int8),
        ("odd", "a b"): np.arange(2),
        ("odd", "x/y"): np.arange(4),
        ("odd", "ü.é"): np.arange(5.0),
        ("ints", "1"): np.array([True, False]),
    }


@pytest.fixture(scope="session")
def saves(tmp_path_factory):
    """Real saves, made once; tests copy what they damage."""
    import jax
    import optax
    import orbax.checkpoint as ocp

    folder = tmp_path_factory.mktemp("orbax")
    known = arrays()
    tree = {
        "params": {
            "Dense_0": {
                "kernel": jax.numpy.asarray(known["params", "Dense_0", "kernel"]),
                "bias": jax.numpy.asarray(known["params", "Dense_0", "bias"]),
            },
            "Dense_1": {"kernel": jax.numpy.asarray(known["params", "Dense_1", "kernel"])},
            "f8": known["params", "f8"],
        },
        "opt": (optax.EmptyState(), [known["opt", "1", "0"], known["opt", "1", "1"]]),
        "odd": {k[1]: v for k, v in known.items() if k[0] == "odd"},
        "ints": {1: known["ints", "1"]},
        "none": None,
        "empty": {"d": {}, "l": [], "t": ()},
        "number": 3,
        "half": np.float32(1.5),
        "flag": True,
        "name": "resnet",
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(4, impl="rbg"), 2),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, (options, _) in LAYOUTS.items():
            ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)).save(folder / name, tree)
        clash = {"a.b": np.arange(3), "a": {"b": np.arange(3) + 10}, "c": np.arange(2)}
        ocp.PyTreeCheckpointer().save(folder / "clash", clash)
        small = {k: tree[k] for k in ("params", "opt", "none", "number")}
        options = ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics["loss"])
        with ocp.CheckpointManager(folder / "manager", options=options) as manager:
            args = ocp.args.Composite(
                state=ocp.args.StandardSave(small),
                config=ocp.args.JsonSave(
                    {"lr": 0.1, "sizes": [8, {"x": None}], "e": [], "b": True}
                ),
                rng=ocp.args.JaxRandomKeySave(jax.random.key(3)),
                old_rng=ocp.args.JaxRandomKeySave(jax.random.PRNGKey(5)),
                host=ocp.args.NumpyRandomKeySave(np.random.RandomState(1).get_state()),
            )
            manager.save(5, args=args, metrics={"loss": 1.0}, custom_metadata={"who": "me"})
        ocp.v1.save(folder / "v1", small)
    return folder


@pytest.fixture
def copy(saves, tmp_path):
    """Copies one save, so that a test can damage it."""

    def make(name):
        return Path(shutil.copytree(saves / name, tmp_path / name.replace("/", "-")))

    return make


def read_all(folder):
    """Open a tree, or the items of a step, and read every leaf."""
    tables = [open_tree(folder)[0]] if is_tree_folder(folder) else open_items(folder)[0].values()
    return [{path: leaf.read() for path, leaf in table.items()} for table in tables]


def others(folder, *lost):
    """Read every leaf but those that are lost, which must be listed."""
    table, _ = open_tree(folder)
    assert {p for p, leaf in table.items() if leaf.kind == "unreadable"} == set(lost)
    for path, leaf in table.items():
        if path not in lost:
            leaf.read()


def edit(file, change):
    document = json.loads(file.read_text())
    file.write_text(json.dumps(change(document) or document))


def entry(folder, label):
    """Change one entry of ``_METADATA``."""
    return lambda change: edit(folder / "_METADATA", lambda d: change(d["tree_metadata"][label]))


def move(folder, label, keys):
    """Give an entry of ``_METADATA`` another path, in both places that say it."""
    path = tuple(key["key"] for key in keys)

    def change(document):
        rows = document["tree_metadata"]
        # the space keeps it apart from an entry that is there already
        rows[f"{path} "] = rows.pop(label) | {"key_metadata": keys}

    edit(folder / "_METADATA", change)


def snapshot(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def write_tree(folder, entries, **more):
    """A ``_METADATA`` with (path, value type) entries."""
    rows = {
        str(path): {
            "key_metadata": [{"key": k, "key_type": 2} for k in path],
            "value_metadata": {"value_type": kind, "skip_deserialize": False},
        }
        for path, kind in entries
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "_METADATA").write_text(json.dumps({"tree_metadata": rows, **more}))
    return folder


def write_zarr(folder, shape=(2,), chunks=(2,), dtype="<f4", data=None, **more):
    """One uncompressed zarr2 array."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "zarr_format": 2,
        "shape": shape,
        "chunks": chunks,
        "dtype": dtype,
        "compressor": None,
        "fill_value": None,
        "filters": None,
        "order": "C",
        "dimension_separator": ".",
    }
    (folder / ".zarray").write_text(json.dumps(document | more))
    for name, raw in (data or {"0": np.arange(2, dtype="f4").tobytes()}).items():
        (folder / name).write_bytes(raw)
    return folder.parent


# --- what is read


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_leaf_of_a_save_comes_back_bit_for_bit_in_every_layout(saves, layout):
    table, found = open_tree(saves / layout)

    for path, want in arrays().items():
        leaf = table[path]
        got = leaf.read()
        assert (leaf.kind, leaf.shape, leaf.dtype) == ("array", want.shape, want.dtype)
        assert (got.tobytes(), got.dtype, leaf.nbytes) == (want.tobytes(), want.dtype, want.nbytes)
        assert leaf.chunks == want.shape
        assert leaf.notes == ()
    assert (found.name, found.layout) == ("orbax", LAYOUTS[layout][1])
    assert found.era == "orbax 0.12 or newer"
    assert any("_METADATA" in fact for fact in found.evidence)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scalars_strings_empties_and_keys_have_their_kinds(saves, layout):
    table, _ = open_tree(saves / layout)
    kinds = {format_path(p): v.kind for p, v in table.items() if p not in arrays()}

    assert kinds == {
        "empty/d": "empty",
        "empty/l": "empty",
        "empty/t": "empty",
        "flag": "scalar",
        "half": "scalar",
        "key": "key",
        "keys": "key",
        "name": "str",
        "none": "none",
        "number": "scalar",
        "opt/0": "none",
    }
    assert table["name",].read() == "resnet"
    assert [table["empty", k].container for k in "dlt"] == ["dict", "list", "tuple"]
    half = table["half",].read()
    assert (type(half), half) == (np.float32, 1.5)
    assert (table["number",].read(), table["flag",].read()) == (3, True)
    assert "EmptyState" in table["opt", "0"].notes[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_typed_key_gives_its_words_and_its_algorithm(saves, layout):
    import jax

    table, _ = open_tree(saves / layout)
    one, two = table["key",], table["keys",]

    assert (one.key_impl, two.key_impl) == ("threefry2x32", "rbg")
    assert np.array_equal(one.read(), jax.random.key_data(jax.random.key(3)))
    assert (two.shape, two.dtype) == ((2, 4), np.uint32)


def test_sequences_are_told_from_dicts_with_digits(saves):
    table, _ = open_tree(saves / "ocdbt")

    assert table.nodes == {("opt",): Node("list"), ("opt", "1"): Node("list")}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_block_is_read_without_the_rest(saves, layout):
    path = ("params", "Dense_0", "kernel")
    leaf = open_tree(saves / layout)[0][path]
    block = leaf.read((slice(1, 3), slice(None)))

    assert np.array_equal(block, arrays()[path][1:3])
    with pytest.raises(LegacyError, match="one slice of step 1 for each axis"):
        leaf.read((slice(0, 1),))
    with pytest.raises(LegacyError, match="one slice of step 1 for each axis"):
        leaf.read((slice(0, 4, 2), slice(None)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_storage_opens_the_same_array_with_plain_tensorstore(saves, layout):
    import tensorstore as ts

    for path, want in arrays().items():
        storage = open_tree(saves / layout)[0][path].storage
        got = ts.open(storage.spec(), read=True).result().read().result()
        assert got.tobytes() == want.tobytes()


def test_a_step_folder_gives_all_its_items(saves):
    import jax

    items, found, custom = open_items(saves / "manager" / "5")

    assert sorted(items) == ["config", "host", "metrics", "old_rng", "rng", "state"]
    assert custom == {"who": "me"}
    assert (found.name, found.layout) == ("orbax", "zarr+ocdbt")
    assert items["metrics"].json_file == saves / "manager" / "5" / "metrics" / "metrics"
    assert items["metrics"]["loss",].read() == 1.0
    rng = items["rng"][()]
    assert (rng.kind, rng.key_impl, len(items["rng"])) == ("key", "threefry2x32", 1)
    assert "not on disk" in rng.notes[0]
    old = items["old_rng"][()]
    assert (old.kind, old.notes) == ("array", ())
    assert np.array_equal(old.read(), jax.random.PRNGKey(5))
    assert items["host"]["0",].read() == "MT19937"
    want = arrays()["params", "Dense_0", "kernel"]
    assert np.array_equal(items["state"]["params", "Dense_0", "kernel"].read(), want)


def test_a_json_item_keeps_its_values_and_lists(saves):
    config = open_items(saves / "manager" / "5")[0]["config"]

    assert {p: (v.kind, v.read()) for p, v in config.items()} == {
        ("b",): ("bool", True),
        ("e",): ("empty", None),
        ("lr",): ("number", 0.1),
        ("sizes", "0"): ("number", 8),
        ("sizes", "1", "x"): ("none", None),
    }
    assert config.nodes == {("sizes",): Node("list")}
    assert config["e",].container == "list"


def test_a_save_of_orbax_v1_is_read(saves):
    items, found, _ = open_items(saves / "v1")

    assert list(items) == ["state"]
    assert (found.name, found.layout) == ("orbax-v1", "ocdbt+zarr3")
    assert np.array_equal(items["state"]["opt", "1", "0"].read(), np.arange(3))


def test_orbax_v1_is_known_by_its_handlers_when_the_marker_is_not_there(copy):
    folder = copy("v1")
    (folder / "orbax.checkpoint").unlink()

    assert open_items(folder)[1].name == "orbax-v1"


def test_a_tree_folder_is_its_own_item(saves):
    items, found, custom = open_items(saves / "ocdbt")

    assert list(items) == ["default"]
    assert (found.layout, custom) == ("ocdbt", {})


def test_folders_are_told_apart_by_their_markers(saves, tmp_path):
    names = [*LAYOUTS, "manager/5", "manager/5/state", "manager/5/rng", "manager", "v1"]

    assert [is_tree_folder(saves / n) for n in names] == [True] * 4 + [False, True] + [False] * 3
    assert [is_step_folder(saves / n) for n in names] == [False] * 4 + [
        True,
        False,
        True,
        False,
        True,
    ]
    assert not is_tree_folder(tmp_path / "nothing")
    assert not is_step_folder(tmp_path / "nothing")


def test_a_checkpoint_file_of_tensorflow_marks_no_tree(tmp_path):
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model-1"\n')

    assert not is_tree_folder(tmp_path)


def test_reading_changes_nothing_in_the_folder(copy):
    for name in ("ocdbt", "zarr", "manager/5"):
        folder = copy(name)
        before = snapshot(folder)
        for table in open_items(folder)[0].values():
            for leaf in table.values():
                leaf.read()
        assert snapshot(folder) == before


def test_importing_and_probing_load_neither_tensorstore_nor_jax(saves):
    code = (
        "import sys; from pathlib import Path; from legacy.orbax import is_tree_folder; "
        f"assert is_tree_folder(Path({str(saves / 'ocdbt')!r})); "
        "assert not {'jax', 'flax', 'orbax', 'tensorstore'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


# --- what a release no longer says


def test_without_sharding_and_commit_marks_all_is_read(copy):
    folder = copy("ocdbt")
    (folder / "_sharding").unlink()
    (folder / "commit_success.txt").unlink(missing_ok=True)

    assert open_tree(folder)[0]["number",].read() == 3


def test_without_array_metadatas_a_possible_key_is_noted(copy):
    folder = copy("ocdbt")
    shutil.rmtree(folder / "array_metadatas")
    table, _ = open_tree(folder)

    assert table["key",].kind == "array"
    assert "typed PRNG key" in table["key",].notes[0]
    assert table["opt", "1", "0"].notes == ()


def test_without_an_index_names_are_split_at_dots_and_leaves_say_so(copy):
    folder = copy("ocdbt")
    (folder / "_METADATA").unlink()
    table, found = open_tree(folder)

    assert np.array_equal(table["params", "Dense_0", "bias"].read(), np.zeros(5))
    assert np.array_equal(table["odd", "ü", "é"].read(), np.arange(5.0))
    assert all("dot in a key" in leaf.notes[0] for leaf in table.values())
    assert "index is missing" in found.era
    assert all("(aggregated values, strings, None) cannot" in f.notes[1] for f in table.values())
    assert any("leaves that had no array of their own" in said for said in found.evidence)


def test_an_index_of_names_that_fits_no_tree_is_refused(tmp_path):
    write_zarr(tmp_path / "a")
    write_zarr(tmp_path / "a.b")
    with pytest.raises(DamagedCheckpoint, match="leaf a has other leaves below it"):
        open_tree(tmp_path)


def test_two_leaves_of_one_storage_name_are_refused_when_read_and_say_why(saves):
    table, _ = open_tree(saves / "clash")

    for path in (("a.b",), ("a", "b")):
        assert table[path].kind == "unreadable"
        assert "storage name 'a.b'" in table[path].problem
        assert table[path].storage is None
        with pytest.raises(UnsupportedCheckpoint, match="one value overwrote the other"):
            table[path].read()
    assert np.array_equal(table["c",].read(), np.arange(2))


# --- mixed folders


def test_a_folder_half_zarr_and_half_ocdbt_is_read(copy):
    # pain 15: orbax 0.4.1 wrote such folders
    folder = copy("ocdbt")
    write_zarr(folder / "extra")
    edit(
        folder / "_METADATA",
        lambda d: d["tree_metadata"].update(
            {"('extra',)": {**d["tree_metadata"]["('odd', 'a b')"]}}
        ),
    )
    entry(folder, "('extra',)")(lambda e: e.update(key_metadata=[{"key": "extra", "key_type": 2}]))
    table, found = open_tree(folder)

    assert np.array_equal(table["extra",].read(), [0, 1])
    assert np.array_equal(table["odd", "a b"].read(), [0, 1])
    assert found.layout == "zarr+ocdbt"


def test_unmerged_databases_of_processes_are_read(copy):
    # pain 16: a save without its last step
    folder = copy("ocdbt")
    (folder / "manifest.ocdbt").unlink()
    shutil.rmtree(folder / "d")
    table, _ = open_tree(folder)

    for path, want in arrays().items():
        assert table[path].read().tobytes() == want.tobytes()
        assert "never merged" in table[path].notes[0]
        assert table[path].storage.root == folder / "ocdbt.process_0"


def test_a_key_with_a_slash_has_a_database_of_its_own_in_orbax_0_3(tmp_path):
    import tensorstore as ts

    write_tree(tmp_path, [(("lead", "x/y"), "np.ndarray"), (("z",), "np.ndarray")])
    for place, key, value in (("lead.x", "y", 7), (".", "z", 8)):
        spec = {
            "driver": "zarr",
            "kvstore": {
                "driver": "ocdbt",
                "base": {"driver": "file", "path": f"{tmp_path / place}/"},
                "path": f"{key}/",
            },
            "metadata": {"shape": [2], "chunks": [2], "dtype": "<i4"},
            "create": True,
        }
        ts.open(spec).result().write(value).result()
    table, _ = open_tree(tmp_path)

    assert table["lead", "x/y"].read().tolist() == [7, 7]
    assert table["z",].read().tolist() == [8, 8]
    assert table["lead", "x/y"].storage.root == tmp_path / "lead.x"


@pytest.mark.parametrize("name", ["back\\slash", "back/slash"])
def test_a_backslash_in_a_key_is_found_in_either_spelling(tmp_path, name):
    write_tree(tmp_path, [(("back\\slash",), "np.ndarray")])
    write_zarr(tmp_path / name)

    assert open_tree(tmp_path)[0]["back\\slash",].read().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (">f4", np.array([1.5, -2.0], np.float32)),
        ("<V2", np.array([1.5, -2.0], ml_dtypes.bfloat16)),
        ("|V2", np.array([1.5, -2.0], ml_dtypes.bfloat16)),
        ("bfloat16", np.array([1.5, -2.0], ml_dtypes.bfloat16)),
        ("int4", np.array([3, -4], ml_dtypes.int4)),
    ],
)
def test_odd_spellings_of_dtypes_are_read_right(tmp_path, dtype, values):
    raw = values.astype(dtype).tobytes() if dtype == ">f4" else values.tobytes()
    write_zarr(write_tree(tmp_path, [(("a",), "np.ndarray")]) / "a", dtype=dtype, data={"0": raw})
    leaf = open_tree(tmp_path)[0]["a",]
    got = leaf.read()

    assert leaf.dtype == values.dtype
    assert got.dtype == values.dtype
    assert got.tobytes() == values.tobytes()


def test_a_zero_size_array_needs_no_chunk(tmp_path):
    write_zarr(
        write_tree(tmp_path, [(("a",), "np.ndarray")]) / "a",
        shape=(0, 3),
        chunks=(1, 3),
        data={"x": b""},
    )

    assert open_tree(tmp_path)[0]["a",].read().shape == (0, 3)


# --- the aggregate file


def pack(folder, tree):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "checkpoint").write_bytes(msgpack.packb(tree))
    return folder


def test_an_aggregate_file_gives_values_and_stands_for_arrays(tmp_path):
    pack(tmp_path, {"a": "PLACEHOLDER://a", "opt": [1, None, {}], "s": "text"})
    write_zarr(tmp_path / "a")
    table, found = open_tree(tmp_path)

    assert table["a",].read().tolist() == [0, 1]
    assert (table["opt", "0"].read(), table["s",].read()) == (1, "text")
    assert (table["opt", "1"].kind, table["opt", "2"].kind) == ("none", "empty")
    assert table.nodes == {("opt",): Node("list")}
    assert (found.layout, found.era) == ("zarr+aggregate", "orbax 0.0-0.5 (2022-2024)")


def test_a_placeholder_called_none_without_an_array_is_none(tmp_path):
    pack(tmp_path, {"n": "PLACEHOLDER://none"})

    assert open_tree(tmp_path)[0]["n",].kind == "none"


def test_strings_of_orbax_0_3_are_found_in_the_folder_of_one_of_them(tmp_path):
    pack(tmp_path, {"s": "PLACEHOLDER://s", "t": {"u": "PLACEHOLDER://t.u"}})
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "_strings.json").write_text('{"s": "eins", "t.u": "zwei"}')
    table, _ = open_tree(tmp_path)

    assert [leaf.read() for leaf in table.values()] == ["eins", "zwei"]


def test_values_of_the_aggregate_file_fill_in_what_metadata_names(tmp_path):
    pack(tmp_path, {"a": 2.5, "n": None, "lost": True})
    write_tree(tmp_path, [(("a",), "scalar"), (("n",), "None"), (("lost",), "None")])
    table, _ = open_tree(tmp_path)

    assert [(leaf.kind, leaf.read()) for leaf in table.values()] == [
        ("number", 2.5),
        ("bool", True),
        ("none", None),
    ]


def test_two_indices_that_name_different_leaves_are_refused_with_the_differences(tmp_path):
    pack(tmp_path, {"a": 1, "b": 2, "n": None})
    write_tree(tmp_path, [(("a",), "scalar"), (("c",), "scalar"), (("e",), "Dict")])
    with pytest.raises(DamagedCheckpoint, match="two indices name different leaves") as error:
        open_tree(tmp_path)
    assert error.value.problems == ("c is only in _METADATA", "b is only in checkpoint")


# --- damage


CHANGES = {
    "tree_metadata": lambda d: d.update(tree_metadata=[]),
    "(whole document)": lambda _: [1],
    "use_zarr3": lambda d: d.update(use_zarr3="yes"),
    "store_array_data_equal_to_fill_value": lambda d: d.update(
        store_array_data_equal_to_fill_value=1
    ),
    "custom_metadata": lambda d: d.update(custom_metadata=3),
}
ENTRY_CHANGES = {
    "key_metadata": lambda e: e.update(key_metadata=7),
    "key_metadata[0]": lambda e: e.update(key_metadata=["number"]),
    "key_metadata[0].key": lambda e: e.update(key_metadata=[{"key": 1, "key_type": 2}]),
    "key_metadata[0].key_type": lambda e: e.update(key_metadata=[{"key": "n", "key_type": "2"}]),
    "value_metadata": lambda e: e.update(value_metadata=None),
    "value_metadata.value_type": lambda e: e.update(value_metadata={"value_type": True}),
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_field_of_a_wrong_type_is_named(copy, field):
    folder = copy("ocdbt")
    edit(folder / "_METADATA", CHANGES[field])
    with pytest.raises(DamagedCheckpoint, match=rf"_METADATA: field {re.escape(field)} should be"):
        open_tree(folder)


@pytest.mark.parametrize("field", ENTRY_CHANGES)
def test_a_field_of_a_wrong_type_in_an_entry_is_named(copy, field):
    folder = copy("ocdbt")
    entry(folder, "('number',)")(ENTRY_CHANGES[field])
    with pytest.raises(DamagedCheckpoint, match=rf"number.*\.{re.escape(field)} should be"):
        open_tree(folder)


def test_an_entry_that_is_no_object_is_named(copy):
    folder = copy("ocdbt")
    edit(folder / "_METADATA", lambda d: d["tree_metadata"].update({"x": 1}))
    with pytest.raises(DamagedCheckpoint, match=r"tree_metadata\['x'\] should be dict"):
        open_tree(folder)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ([{"key": "n", "key_type": 9}], "key_type 9; known are"),
        ([{"key": "opt", "key_type": 2}, {"key": "x", "key_type": 2}], "contradicts itself"),
        ([{"key": "q", "key_type": 2}, {"key": "x", "key_type": 1}], "index of a sequence"),
        ([{"key": "q", "key_type": 2}] * 300, "nested 300 deep"),
        ([{"key": "name", "key_type": 2}], "occurs twice"),
        ([{"key": "name", "key_type": 2}, {"key": "x", "key_type": 2}], "leaves below it"),
    ],
)
def test_an_impossible_path_is_refused(copy, keys, said):
    folder = copy("ocdbt")
    move(folder, "('none',)", keys)
    with pytest.raises(DamagedCheckpoint, match=said):
        open_tree(folder)


def test_an_entry_whose_two_paths_differ_is_refused(copy):
    folder = copy("ocdbt")
    entry(folder, "('none',)")(lambda e: e["key_metadata"][0].update(key="nine"))
    with pytest.raises(DamagedCheckpoint, match=r"entry .*none.* is of the leaf nine by its key_m"):
        open_tree(folder)


def test_the_label_of_an_entry_that_cannot_be_parsed_says_nothing(copy):
    folder = copy("ocdbt")
    edit(
        folder / "_METADATA",
        lambda d: d["tree_metadata"].update({"[": d["tree_metadata"].pop("('none',)")}),
    )
    assert open_tree(folder)[0]["none",].kind == "none"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null"])
@pytest.mark.parametrize("name", ["_METADATA", "_CHECKPOINT_METADATA", "_strings.json"])
def test_a_document_that_is_no_json_is_damage(copy, name, content):
    folder = copy("ocdbt")
    (folder / name).write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match=name):
        read_all(folder)
    if name == "_strings.json":
        others(folder, ("name",))


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"{}",
        b'{"array_metadatas": 1}',
        b'{"array_metadatas": [1]}',
        b'{"array_metadatas": [{"array_metadata": []}]}',
        b'{"array_metadatas": [{"array_metadata": {"param_name": 1}}]}',
        b'{"array_metadatas": [{"array_metadata": {"param_name": "a", "ext_metadata": 1}}]}',
    ],
)
def test_broken_array_metadatas_are_damage(copy, content):
    folder = copy("ocdbt")
    (folder / "array_metadatas" / "process_0").write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match=r"process_0: field .* should be"):
        read_all(folder)


def test_two_algorithms_for_one_key_are_damage(copy):
    folder = copy("ocdbt") / "array_metadatas"
    text = (folder / "process_0").read_text()
    (folder / "process_1").write_text(text.replace("threefry2x32", "rbg"))
    with pytest.raises(DamagedCheckpoint, match="PRNG key of rbg, and of threefry2x32"):
        read_all(folder.parent)


def test_a_huge_document_is_not_loaded(copy):
    folder = copy("ocdbt")
    with (folder / "_METADATA").open("r+b") as stream:
        stream.truncate(1 << 30)
    with pytest.raises(DamagedCheckpoint, match="larger than"):
        open_tree(folder)


@pytest.mark.parametrize("value", [3, {"state": 3}])
def test_step_metadata_of_wrong_types_is_damage(copy, value):
    folder = copy("v1")
    edit(folder / "_CHECKPOINT_METADATA", lambda d: d.update(item_handlers=value))
    with pytest.raises(DamagedCheckpoint, match=r"field item_handlers.* should be"):
        open_items(folder)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_leaf_whose_array_is_missing_is_named(copy, layout):
    folder = copy(layout)
    move(folder, "('number',)", [{"key": "gone", "key_type": 2}])
    with pytest.raises(DamagedCheckpoint, match=r"by the index: number; leaf gone: the array gone"):
        open_tree(folder)


@pytest.mark.parametrize("layout", ["ocdbt", "zarr"])
def test_an_array_that_no_index_names_is_not_dropped(copy, layout):
    folder = copy(layout)
    edit(folder / "_METADATA", lambda d: d["tree_metadata"].pop("('half',)") and None)
    with pytest.raises(DamagedCheckpoint, match="not named by the index: half"):
        open_tree(folder)


def test_missing_zarray_files_are_all_named(copy):
    folder = copy("zarr")
    (folder / "half" / ".zarray").unlink()
    (folder / "params.f8" / ".zarray").unlink()
    with pytest.raises(UnsupportedCheckpoint, match=r"\.zarray \(or zarr\.json\) is missing") as e:
        read_all(folder)
    assert e.value.leaf == ("half",)
    others(folder, ("half",), ("params", "f8"))


def test_many_problems_are_counted_and_kept(copy):
    folder = copy("zarr")
    for file in [*folder.rglob(".zarray"), folder / "_strings.json"]:
        file.unlink()
    with pytest.raises(UnsupportedCheckpoint, match=r"and \d+ more \(see \.problems\)") as error:
        open_tree(folder)
    assert len(error.value.problems) > 5


def test_a_string_that_is_nowhere_is_named(copy):
    folder = copy("ocdbt")
    (folder / "_strings.json").unlink()
    with pytest.raises(UnsupportedCheckpoint, match=r"leaf name .* the string name is in no"):
        read_all(folder)
    others(folder, ("name",))


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"shape": "x"}, DamagedCheckpoint, "field shape should be list"),
        ({"shape": [2.5]}, DamagedCheckpoint, "field shape should be int"),
        ({"shape": [True]}, DamagedCheckpoint, "field shape should be int"),
        ({"shape": [-1]}, DamagedCheckpoint, "no array can have"),
        ({"chunks": [0]}, DamagedCheckpoint, "no array can have"),
        ({"chunks": [1, 2]}, DamagedCheckpoint, "chunks has 2 axes and shape has 1"),
        ({"dtype": "O"}, UnsupportedCheckpoint, "an element type that Orbax never wrote"),
        (
            {"dtype": [["a", "<f4"]]},
            UnsupportedCheckpoint,
            "an element type that Orbax never wrote",
        ),
        ({"dimension_separator": "x"}, DamagedCheckpoint, "neither '.' nor '/'"),
        ({"zarr_format": 4}, UnsupportedCheckpoint, "zarr_format is 4"),
    ],
)
def test_broken_zarr2_metadata_is_named(tmp_path, change, kind, said):
    write_zarr(write_tree(tmp_path, [(("a",), "np.ndarray")]) / "a", **change)
    with pytest.raises(kind, match=rf"leaf a: .*a/\.zarray: .*{re.escape(said)}"):
        open_tree(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "kind", "said"),
    [
        ("chunk_grid", {"name": "rectilinear"}, UnsupportedCheckpoint, "chunk_grid 'rectilinear'"),
        ("chunk_grid", 3, DamagedCheckpoint, "field chunk_grid should be dict"),
        ("chunk_key_encoding", {"name": "x"}, UnsupportedCheckpoint, "encoding 'x' is not read"),
        ("data_type", "string", UnsupportedCheckpoint, "an element type"),
    ],
)
def test_broken_zarr3_metadata_is_named(copy, field, value, kind, said):
    folder = copy("zarr3")
    edit(folder / "half" / "zarr.json", lambda d: d.update({field: value}))
    with pytest.raises(kind, match=rf"leaf half .*zarr\.json: .*{re.escape(said)}"):
        read_all(folder)
    others(folder, ("half",))


def test_an_array_in_two_formats_or_two_places_is_refused(copy):
    both = copy("zarr")
    (both / "half" / "zarr.json").write_text("{}")
    with pytest.raises(DamagedCheckpoint, match=r"both \.zarray and zarr\.json"):
        read_all(both)
    twice = copy("ocdbt")
    write_zarr(twice / "half")
    with pytest.raises(DamagedCheckpoint, match="in a folder of its own"):
        read_all(twice)
    others(twice, ("half",))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_missing_chunk_is_never_zeros(copy, layout):
    folder = copy(layout)
    table, _ = open_tree(folder)
    leaf = table["params", "Dense_0", "bias"]
    if "ocdbt" in layout:
        _delete_chunk(folder, leaf.storage)
        leaf = open_tree(folder)[0][leaf.path]
    else:
        shutil.rmtree(folder / "params.Dense_0.bias" / "c", ignore_errors=True)
        (folder / "params.Dense_0.bias" / "0").unlink(missing_ok=True)
    with pytest.raises(
        DamagedCheckpoint, match=r"leaf params/Dense_0/bias: .* is missing"
    ) as error:
        leaf.read()
    assert error.value.leaf == leaf.path


@pytest.mark.parametrize("layout", ["zarr", "zarr3"])
@pytest.mark.parametrize("complete", [True, False])
def test_a_chunk_that_is_a_link_to_nothing_is_missing(copy, layout, complete):
    folder = copy(layout)
    if not complete:
        edit(
            folder / "_METADATA",
            lambda d: d.pop("store_array_data_equal_to_fill_value", None) and None,
        )
    array = folder / "params.Dense_0.bias"
    chunk = array / ("0" if layout == "zarr" else "c/0")
    moved = chunk.rename(folder / "annexed")
    chunk.symlink_to(moved)
    leaf = open_tree(folder)[0]["params", "Dense_0", "bias"]
    assert np.array_equal(leaf.read(), np.zeros(5))
    moved.unlink()
    said = r"leaf params/Dense_0/bias: .*'(c/)?0' is missing: the file is a link to a target"
    with pytest.raises(DamagedCheckpoint, match=said):
        leaf.read()
    with pytest.raises(DamagedCheckpoint, match=said):
        open_tree(folder)[0][leaf.path].read()


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("zarr", "half/0"),
        ("zarr", "half/.zarray"),
        ("zarr3", "params.Dense_0.bias/c/0"),
        ("zarr", "_METADATA"),
        ("zarr", "_CHECKPOINT_METADATA"),
        ("zarr", "_strings.json"),
        ("zarr", "array_metadatas/process_0"),
        ("ocdbt", "manifest.ocdbt"),
        ("ocdbt", "d/*"),
    ],
)
def test_a_file_that_is_a_link_out_of_the_folder_is_not_followed(copy, layout, name):
    folder = copy(layout)
    files = list(folder.glob(name))
    assert files
    for file in files:
        file.symlink_to(file.rename(folder.parent / file.name))
    with pytest.raises(LegacyError, match=r"out(side)? of the checkpoint"):
        read_all(folder)


def test_an_item_that_is_a_link_out_of_its_step_is_not_followed(copy):
    step = copy("manager/5")
    (step / "rng").rename(step.parent / "elsewhere")
    (step / "rng").symlink_to("../elsewhere")
    items, _, _ = open_items(step)
    assert "out of the checkpoint" in items["rng"][()].problem


def test_a_chunk_of_a_gda_folder_that_is_a_link_to_nothing_is_missing(tmp_path):
    file = tmp_path / "checkpoint_1"
    file.write_bytes(msgpack.packb({"a": "//GDAPlaceholder:a"}))
    array = tmp_path / "checkpoint_1_gda" / "a"
    write_zarr(array, fill_value=0.0)
    (array / "0").unlink()
    (array / "0").symlink_to(tmp_path / "gone")
    with pytest.raises(DamagedCheckpoint, match=r"leaf a: .*'0' is missing: .* a link to a target"):
        open_msgpack(file)[0]["a",].read()


def _delete_chunk(folder, storage):
    import tensorstore as ts

    base = {"driver": "file", "path": f"{folder}/"}
    store = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
    for key in store.list().result():
        if key.startswith(f"{storage.key}/".encode()) and not key.endswith((b".zarray", b".json")):
            store.delete_range(ts.KvStore.KeyRange(key, key + b"\0")).result()


def test_zarr3_of_orbax_0_5_left_out_zero_chunks_and_leaves_say_so(copy):
    folder = copy("zarr3")
    edit(folder / "_METADATA", lambda d: d.pop("store_array_data_equal_to_fill_value") and None)
    shutil.rmtree(folder / "params.Dense_0.bias" / "c")
    table, _ = open_tree(folder)

    leaf = table["params", "Dense_0", "bias"]
    assert np.array_equal(leaf.read(), np.zeros(5))
    assert "would look the same" in leaf.notes[0]
    assert table["params", "Dense_0", "kernel"].notes == ()


def test_a_shape_of_terabytes_takes_no_memory(tmp_path):
    huge = {"shape": [1 << 40, 1 << 20], "chunks": [1, 2], "data": {"0.0": b"12345678"}}
    write_zarr(write_tree(tmp_path, [(("a",), "np.ndarray")]) / "a", **huge)
    leaf = open_tree(tmp_path)[0]["a",]
    with pytest.raises(UnsupportedCheckpoint, match=r"more than the .* bytes of this machine"):
        leaf.read()
    with pytest.raises(DamagedCheckpoint, match=r"its chunk '0\.1' is missing"):
        leaf.read((slice(0, 1), slice(0, 2)))


def test_a_chunk_larger_than_its_array_is_damage_and_takes_no_memory(tmp_path):
    write_zarr(write_tree(tmp_path, [(("a",), "np.ndarray")]) / "a", chunks=[1 << 45])
    with pytest.raises(DamagedCheckpoint, match=r"are larger than the array of shape \(2,\)"):
        open_tree(tmp_path)


def test_a_shape_that_was_made_smaller_is_damage(tmp_path):
    data = {"0": b"12345678", "1": b"12345678"}
    write_zarr(write_tree(tmp_path, [(("a",), "np.ndarray")]) / "a", data=data)
    with pytest.raises(DamagedCheckpoint, match="chunk '1' lies outside the array"):
        open_tree(tmp_path)[0]["a",].read()


def test_a_chunk_of_a_wrong_size_is_damage(tmp_path):
    write_zarr(write_tree(tmp_path, [(("a",), "np.ndarray")]) / "a", data={"0": b"123"})
    with pytest.raises(DamagedCheckpoint, match=r"leaf a: the array .* cannot be read"):
        open_tree(tmp_path)[0]["a",].read()


def test_an_array_whose_metadata_changed_since_is_damage(tmp_path):
    write_zarr(write_tree(tmp_path, [(("a",), "np.ndarray")]) / "a")
    leaf = open_tree(tmp_path)[0]["a",]
    write_zarr(tmp_path / "a", dtype="<i4")
    with pytest.raises(DamagedCheckpoint, match="dtype float32, its bytes give"):
        leaf.read()


def _data_files(folder, layout):
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.parent != folder]
    if "ocdbt" in layout:
        return [folder / "manifest.ocdbt", *(p for p in files if p.parent.name == "d")]
    return [p for p in files if p.parent.name != "array_metadatas"][:12]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_a_file_cut_short_is_an_error_and_never_other_values(copy, layout, part):
    folder = copy(layout)
    want = {p: np.asarray(v.read()).tobytes() for p, v in open_tree(folder)[0].items()}
    refusals = 0
    for file in _data_files(folder, layout):
        whole = file.read_bytes()
        file.write_bytes(whole[: int(len(whole) * part)])
        got = {p: _bytes_or_error(leaf) for p, leaf in _open_or_nothing(folder).items()}
        refusals += list(got.values()).count(None) + (not got)
        assert all(value in (None, want[path]) for path, value in got.items()), file
        file.write_bytes(whole)
    assert refusals


def _open_or_nothing(folder):
    try:
        return open_tree(folder)[0]
    except LegacyError:
        return {}


def _bytes_or_error(leaf):
    try:
        return np.asarray(leaf.read()).tobytes()
    except LegacyError:
        return None


def test_a_manifest_of_garbage_is_one_problem_with_its_file(copy):
    folder = copy("ocdbt")
    (folder / "manifest.ocdbt").write_bytes(b"garbage")
    with pytest.raises(DamagedCheckpoint, match=r"manifest\.ocdbt: the OCDBT database") as error:
        open_tree(folder)
    assert error.value.problems == ()


def test_lost_data_files_are_damage(copy):
    folder = copy("ocdbt")
    shutil.rmtree(folder / "d")
    shutil.rmtree(folder / "ocdbt.process_0" / "d")
    with pytest.raises(DamagedCheckpoint, match="OCDBT database cannot be read"):
        open_tree(folder)


# --- names and links that lead out


@pytest.mark.parametrize("name", ["..", "../secret", "a/../../secret", "/secret", "..\\secret"])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    write_zarr(tmp_path / "secret")
    write_zarr(tmp_path / "ckpt" / "a")
    write_tree(tmp_path / "ckpt", [((name,), "np.ndarray"), (("a",), "np.ndarray")])
    with pytest.raises(UnsupportedCheckpoint, match="leads out of"):
        read_all(tmp_path / "ckpt")
    others(tmp_path / "ckpt", (name,))


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    write_zarr(tmp_path / "secret")
    folder = write_tree(tmp_path / "ckpt", [(("a",), "np.ndarray")])
    (folder / "a").symlink_to(tmp_path / "secret")
    with pytest.raises(UnsupportedCheckpoint, match="a symbolic link out of the checkpoint"):
        open_tree(folder)


def test_a_link_inside_the_folder_and_a_link_to_the_folder_are_followed(tmp_path):
    folder = write_tree(tmp_path / "ckpt", [(("a",), "np.ndarray"), (("b",), "np.ndarray")])
    write_zarr(folder / "b")
    (folder / "a").symlink_to("b")
    (tmp_path / "latest").symlink_to("ckpt")

    assert open_tree(tmp_path / "latest")[0]["a",].read().tolist() == [0, 1]


def test_a_name_with_a_nul_is_no_crash(tmp_path):
    write_tree(tmp_path, [(("a\0b",), "np.ndarray")])
    with pytest.raises(UnsupportedCheckpoint, match="is not in"):
        open_tree(tmp_path)


# --- steps that are not whole


def test_an_item_that_cannot_be_read_is_named(copy):
    folder = copy("manager/5")
    (folder / "state" / "_METADATA").write_text("{")
    with pytest.raises(DamagedCheckpoint, match=r"item state: .*_METADATA"):
        read_all(folder)


def test_an_item_of_no_known_kind_is_named(copy):
    folder = copy("manager/5")
    (folder / "_CHECKPOINT_METADATA").unlink()
    (folder / "proto").mkdir()
    (folder / "proto" / "proto.pb").write_text("x")
    items, found, _ = open_items(folder)
    assert items["state"]
    assert "item proto cannot be read" in found.evidence
    with pytest.raises(UnsupportedCheckpoint, match=r"item proto: .* \(inside: proto\.pb\)"):
        items["proto"][()].read()


def test_a_foreign_folder_that_the_step_does_not_list_is_passed_over_and_named(copy):
    folder = copy("manager/5")
    (folder / "plots").mkdir()
    (folder / "descriptor").mkdir()
    items, found, _ = open_items(folder)

    assert "plots" not in items
    assert any(fact.startswith("plots/ is no item") for fact in found.evidence)


def test_a_lost_item_is_named_and_damage_when_no_tree_is_left(copy):
    folder = copy("manager/5")
    shutil.rmtree(folder / "state")
    assert any("item state is listed" in fact for fact in open_items(folder)[1].evidence)
    for name in ("rng", "old_rng", "host"):
        shutil.rmtree(folder / name)
    with pytest.raises(DamagedCheckpoint, match=r"lists the items .*state.* no other tree is here"):
        open_items(folder)


@pytest.mark.parametrize(
    ("document", "said"), [("[]", "should be dict"), ('{"typed": 1}', "typed should be bool")]
)
def test_a_broken_document_of_a_random_key_is_damage(copy, document, said):
    folder = copy("manager/5")
    (folder / "rng" / "jax_random_key_metadata" / "metadata").write_text(document)
    with pytest.raises(DamagedCheckpoint, match=rf"item rng: .*{said}"):
        read_all(folder)
    items, found, _ = open_items(folder)
    assert "item rng cannot be read" in found.evidence
    assert list(items["rng"]) == [()]
    for leaf in items["state"].values():
        leaf.read()


def test_a_random_key_of_another_dtype_or_tree_is_damage(copy):
    folder = copy("manager/5")
    array = folder / "rng" / "jax_random_key" / "checkpoint"
    edit(array / ".zarray", lambda d: d.update(dtype="<i4"))
    with pytest.raises(DamagedCheckpoint, match="expected uint32"):
        read_all(folder)
    shutil.rmtree(folder / "rng" / "jax_random_key")
    write_zarr(write_tree(folder / "rng" / "jax_random_key", [(("b",), "np.ndarray")]) / "b")
    with pytest.raises(DamagedCheckpoint, match="expected one array called 'checkpoint'"):
        read_all(folder)


def test_json_nested_too_deeply_is_damage(tmp_path):
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "metadata").write_text("[" * 400 + "]" * 400)
    with pytest.raises(DamagedCheckpoint, match="nested over"):
        open_items(tmp_path)


def test_folders_that_are_no_checkpoint_are_said_so(tmp_path):
    with pytest.raises(NotACheckpoint, match="no item of an Orbax step"):
        open_items(tmp_path)
    with pytest.raises(NotACheckpoint, match="neither _METADATA nor checkpoint nor an array"):
        open_tree(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_not_called_foreign(copy):
    folder = copy("zarr")
    folder.chmod(0)
    try:
        for look in (is_tree_folder, is_step_folder, open_tree, open_items):
            with pytest.raises(CannotLook, match="cannot be read"):
                look(folder)
    finally:
        folder.chmod(0o755)


def test_permission_denied_is_not_called_damage_or_absence(saves, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(CannotLook, match="Permission denied"):
        is_tree_folder(saves / "ocdbt")
    with pytest.raises(CannotLook, match="Permission denied"):
        is_step_folder(saves / "manager")


@pytest.mark.parametrize("call", ["listdir", "lstat"])
def test_a_folder_that_may_not_be_listed_is_not_called_empty(copy, monkeypatch, call):
    folder = copy("zarr")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(CannotLook, match="Permission denied"):
        read_all(folder)


@pytest.mark.parametrize("said", ["zarr dtype", "data type"])
def test_what_only_a_newer_tensorstore_reads_is_not_called_damage(said):
    error = translated(ValueError(f'x: Unsupported {said}: "float9"'), "leaf a", Path("f"))
    assert isinstance(error, UnsupportedCheckpoint)
    assert "Upgrade tensorstore" in str(error)


def test_what_tensorstore_may_not_read_is_not_called_damage():
    error = translated(
        ValueError("PERMISSION_DENIED: x [tensorstore_spec='{}']"), "leaf a", Path("f")
    )

    assert isinstance(error, CannotLook)
    assert str(error) == "leaf a cannot be read: PERMISSION_DENIED: x. Make it readable."


def test_raw_bytes_inside_a_database_are_refused(tmp_path):
    import tensorstore as ts

    write_zarr(tmp_path / "a", dtype="<V2")
    kv = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{tmp_path / 'ckpt'}/"}}
    store = ts.KvStore.open(kv).result()
    store["a/.zarray"] = (tmp_path / "a" / ".zarray").read_bytes()
    write_tree(tmp_path / "ckpt", [(("a",), "np.ndarray")])
    with pytest.raises(UnsupportedCheckpoint, match="elements of raw bytes in an OCDBT database"):
        open_tree(tmp_path / "ckpt")


# --- the releases themselves


def goldens():
    found = sorted(GOLDENS.glob("*/*-*"))
    return [p for p in found if not p.name.endswith(("msgpack", "chunked"))]


def checkpoint_of(golden):
    """The tree or step folder of a golden, and its truth."""
    truth = json.loads((golden / "truth.json").read_text())
    places = [p for p in sorted(golden.rglob("*")) if p.is_dir() and is_tree_folder(p)]
    return [p for p in places if not any(q in p.parents for q in places)], truth


@pytest.mark.skipif(not goldens(), reason="no goldens here")
@pytest.mark.parametrize("golden", goldens(), ids=lambda p: f"{p.parent.name}-{p.name}")
def test_goldens_of_old_releases_are_read_bit_for_bit(golden):
    places, truth = checkpoint_of(golden)
    data = np.load(golden / "truth.npz")
    wanted = {tuple(row["path"]): row for row in truth["leaves"]}
    table, _ = open_tree(places[-1])

    for path, leaf in table.items():
        row = wanted.pop(path)
        if "data" not in row:
            assert row["kind"] in ("none", "empty", "str", "number", "bool"), path
            if row["kind"] in ("str", "number", "bool"):
                assert leaf.read() == row["value"], path
            continue
        want = data[row["data"]]
        got = np.asarray(leaf.read())
        assert (got.shape, got.dtype.name) == (want.shape, _dtype_name(row)), path
        assert got.tobytes() == want.tobytes(), path
        assert (leaf.kind == "key", leaf.key_impl) == (row["kind"] == "key", row.get("key_impl"))
    assert all(row["kind"] in ("none", "empty") for row in wanted.values())


def _dtype_name(row):
    return "uint32" if row["kind"] == "key" else row["dtype"]


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the shared corpus is not here")
def test_real_checkpoints_of_other_people_are_read():
    places = {
        "mlff/checkpoints/ckpt_75": ("zarr", 45),
        "so3lr/checkpoints/ckpt_5150000": ("ocdbt", 131),
        "mujoco_playground/VisionMLP2ChanCIFAR10_OCP": ("ocdbt", 6),
        "tunix/checkpoints/1": ("ocdbt", 4),
    }
    for name, (layout, count) in places.items():
        items, found, _ = open_items(CORPUS / name)
        trees = [t for t in items.values() if t.json_file is None]
        assert (found.layout, sum(map(len, trees))) == (layout, count)
        assert all(
            np.isfinite(v.read().astype(np.float64)).all() for t in trees for v in t.values()
        )


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the shared corpus is not here")
def test_a_t5x_checkpoint_without_zarray_files_is_refused_with_every_leaf():
    with pytest.raises(UnsupportedCheckpoint, match=r"\.zarray \(or zarr\.json\) is missing") as e:
        open_items(CORPUS / "t5x" / "tiny_orbax" / "1")
    assert len(e.value.problems) == 4


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the shared corpus is not here")
def test_orbax_s_own_compatibility_checkpoints_read_or_say_why():
    refused = {}
    places = sorted((CORPUS / "orbax" / "compatibility").glob("*/*/*/*"))
    for place in places:
        try:
            for table in open_items(place)[0].values():
                for leaf in table.values():
                    leaf.read()
        except LegacyError as error:
            refused[f"{place.parents[1].name}/{place.name}"] = type(error).__name__
    assert len(places) >= 40
    assert set(refused) == {
        "composite_checkpoint/deleted_checkpointable",
        "composite_checkpoint/dummy_checkpointable_added",
        "composite_checkpoint/missing_pytree_data_dir_d",
        "direct_checkpoint/missing_pytree_data_dir_d",
    }
