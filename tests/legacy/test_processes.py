"""Saves of several processes: databases never merged, lost data files, ``_gda`` folders."""

import json
import shutil
from pathlib import Path

import ml_dtypes
import msgpack
import numpy as np
import pytest

from legacy.errors import DamagedCheckpoint, LegacyError, UnsupportedCheckpoint
from legacy.flax_msgpack import open_msgpack
from legacy.orbax import open_tree
from legacy.orbax_stores import Database
from legacy.orbax_zarr import parse_array_metadata

ts = pytest.importorskip("tensorstore")

TREE = {
    "kernel": np.arange(48, dtype=np.float32).reshape(6, 8),
    "half": np.arange(12).astype(ml_dtypes.bfloat16).reshape(4, 3),
    "count": np.int32(7),
    "host": np.arange(3),
}


def kvstore(folder: Path):
    base = {"driver": "file", "path": f"{folder}/"}
    return ts.KvStore.open({"driver": "ocdbt", "base": base}).result()


def keys(folder: Path) -> list[str]:
    return sorted(key.decode() for key in kvstore(folder).list().result())


def description(folder: Path) -> str:
    """The key that describes the array ``kernel``."""
    inside = keys(folder / "ocdbt.process_0")
    return next(k for k in inside if k.startswith("kernel/") and k.endswith(("zarray", "json")))


@pytest.fixture(scope="module", params=["zarr", "zarr3"])
def saved(request, tmp_path_factory):
    """A real save in chunks, of one process."""
    import jax
    import orbax.checkpoint as ocp

    folder = tmp_path_factory.mktemp("save") / "ckpt"
    chunked = ocp.SaveArgs(chunk_byte_size=32)
    args = ocp.args.PyTreeSave(TREE, save_args=jax.tree.map(lambda _: chunked, TREE))
    handler = ocp.PyTreeCheckpointHandler(use_zarr3=request.param == "zarr3")
    ocp.Checkpointer(handler).save(folder, args=args)
    return folder


@pytest.fixture
def scattered(saved, tmp_path):
    """The same save as if two processes had written it and had never merged their databases.

    The second one gets every other chunk and, as of real processes, no metadata.
    """
    folder = Path(shutil.copytree(saved, tmp_path / "ckpt"))
    (folder / "manifest.ocdbt").unlink()
    shutil.rmtree(folder / "d")
    first, second = kvstore(folder / "ocdbt.process_0"), kvstore(folder / "ocdbt.process_1")
    chunks = [k for k in keys(folder / "ocdbt.process_0") if not k.endswith(("zarray", "json"))]
    for key in chunks[::2]:
        second.write(key, first.read(key).result().value).result()
        first.delete_range(ts.KvStore.KeyRange(key, key + "\0")).result()
    return folder


def test_chunks_in_databases_that_were_never_merged_are_put_together(scattered):
    table, found = open_tree(scattered)
    for name, want in TREE.items():
        got = table[name,].read()
        assert got.dtype == want.dtype
        assert got.tobytes() == want.tobytes()
    kernel = table["kernel",]
    assert "(ocdbt.process_0, ocdbt.process_1)" in kernel.notes[0]
    assert "were never merged" in kernel.notes[0]
    assert kernel.storage is None
    assert kernel.read((slice(1, 4), slice(3, 99))).tolist() == TREE["kernel"][1:4, 3:].tolist()
    assert found.layout.startswith("ocdbt")
    said = "not committed: the databases ocdbt.process_0, ocdbt.process_1 were never merged"
    assert said in found.evidence


def test_a_chunk_that_no_process_has_makes_its_leaf_unreadable_and_no_other(scattered):
    second = scattered / "ocdbt.process_1"
    lost = next(k for k in keys(second) if k.startswith("kernel/"))
    kvstore(second).delete_range(ts.KvStore.KeyRange(lost, lost + "\0")).result()
    table, _ = open_tree(scattered)
    leaf = table["kernel",]
    assert leaf.kind == "unreadable"
    chunk = lost.removeprefix("kernel/")
    with pytest.raises(DamagedCheckpoint, match=f"chunk {chunk} of kernel .*never merged"):
        leaf.read()
    assert table["half",].read().tobytes() == TREE["half"].tobytes()


def test_a_process_whose_database_is_not_there_is_not_taken_for_zeros(scattered):
    # zarr3 has a value for chunks that are not stored, and orbax 0.5-0.9 did not store zeros
    about = json.loads((scattered / "_METADATA").read_text())
    del about["store_array_data_equal_to_fill_value"]
    (scattered / "_METADATA").write_text(json.dumps(about))
    shutil.rmtree(scattered / "ocdbt.process_1")
    table, _ = open_tree(scattered)
    kinds = {path[0]: leaf.kind for path, leaf in table.items()}
    assert kinds["kernel"] == "unreadable"
    for path, leaf in table.items():
        if leaf.kind != "unreadable":
            assert leaf.read().tobytes() == TREE[path[0]].tobytes()


def test_a_broken_database_of_one_process_leaves_what_others_have_complete(scattered):
    (scattered / "ocdbt.process_1" / "manifest.ocdbt").write_bytes(b"garbage")
    table, _ = open_tree(scattered)
    bad = {path[0] for path, leaf in table.items() if leaf.kind == "unreadable"}
    assert "kernel" in bad
    assert bad < set(TREE)
    with pytest.raises(DamagedCheckpoint, match=r"process_1/manifest\.ocdbt: the OCDBT database"):
        table["kernel",].read()
    (scattered / "_METADATA").unlink()  # now nobody knows what else was in it
    with pytest.raises(DamagedCheckpoint, match=r"process_1/manifest\.ocdbt"):
        open_tree(scattered)


def test_one_chunk_with_two_contents_is_refused_and_with_one_is_not(scattered):
    first, second = (kvstore(scattered / f"ocdbt.process_{n}") for n in (0, 1))
    key = next(k for k in keys(scattered / "ocdbt.process_1") if k.startswith("kernel/"))
    first.write(key, second.read(key).result().value).result()
    assert open_tree(scattered)[0]["kernel",].read().tolist() == TREE["kernel"].tolist()

    first.write(key, second.read(key).result().value + b"x").result()
    table, _ = open_tree(scattered)
    with pytest.raises(DamagedCheckpoint, match=f"{key} has other bytes in ocdbt.process_1"):
        table["kernel",].read()
    assert table["half",].kind == "array"


def test_two_descriptions_of_one_array_must_agree(scattered):
    first, second = (kvstore(scattered / f"ocdbt.process_{n}") for n in (0, 1))
    name = next(
        k for k in keys(scattered / "ocdbt.process_0") if k.startswith("kernel/") and "z" in k
    )
    text = first.read(name).result().value
    second.write(name, text).result()
    assert open_tree(scattered)[0]["kernel",].read().tolist() == TREE["kernel"].tolist()
    second.write(name, text.replace(b"[6,8]", b"[8,6]")).result()
    leaf = open_tree(scattered)[0]["kernel",]
    with pytest.raises(DamagedCheckpoint, match=r"kernel/.* has other bytes in"):
        leaf.read()


def test_chunks_without_a_description_are_named(scattered):
    first = kvstore(scattered / "ocdbt.process_0")
    name = next(
        k for k in keys(scattered / "ocdbt.process_0") if k.startswith("kernel/") and "z" in k
    )
    first.delete_range(ts.KvStore.KeyRange(name, name + "\0")).result()
    leaf = open_tree(scattered)[0]["kernel",]
    with pytest.raises(DamagedCheckpoint, match=r"kernel has no \.zarray or zarr\.json"):
        leaf.read()


def test_what_was_merged_is_not_looked_for_in_the_databases_of_the_processes(saved, tmp_path):
    folder = Path(shutil.copytree(saved, tmp_path / "ckpt"))
    merged = kvstore(folder)
    merged.delete_range(ts.KvStore.KeyRange("kernel/", "kernel0")).result()
    leaf = open_tree(folder)[0]["kernel",]
    with pytest.raises(UnsupportedCheckpoint, match=r"kernel is not in .*neither manifest\.ocdbt"):
        leaf.read()


def wrong_or_lost(folder: Path, tree: dict) -> list[str]:
    """The leaves of a damaged folder that raise; the others must be as they were saved."""
    try:
        table, _ = open_tree(folder)
    except DamagedCheckpoint:  # the file held the tree of the database
        return []
    raised = []
    for path, leaf in table.items():
        try:
            value = leaf.read()
        except DamagedCheckpoint as error:
            raised.append(str(error))
        else:
            assert value.tobytes() == tree[path[0]].tobytes()
    assert all("leaf a" in said for said in raised)
    return raised


@pytest.mark.parametrize("how", ["gone", "link"])
def test_a_lost_data_file_costs_the_leaves_in_it_and_never_gives_zeros(tmp_path, how):
    import orbax.checkpoint as ocp

    rng = np.random.default_rng(0)
    tree = {f"a{n}": rng.standard_normal((40, 40)).astype(np.float32) for n in range(4)}
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_zarr3=True)).save(
        tmp_path / "ckpt", args=ocp.args.PyTreeSave(tree, ocdbt_target_data_file_size=5000)
    )
    lost = 0
    for file in sorted((tmp_path / "ckpt").rglob("d/*")):
        folder = Path(shutil.copytree(tmp_path / "ckpt", tmp_path / how, dirs_exist_ok=True))
        place = folder / file.relative_to(tmp_path / "ckpt")
        place.unlink()
        if how == "link":
            place.symlink_to(tmp_path / "annexed")
        lost += len(wrong_or_lost(folder, tree))
        shutil.rmtree(folder)
    assert 0 < lost < 4 * len(tree)


def test_a_description_in_a_lost_data_file_costs_its_own_leaf_only(saved, monkeypatch):
    # a real description is small enough to lie in the tree of the database, but need not
    known = Database.metadata

    def lose(self, names):
        lost = DamagedCheckpoint(f"{self.root}/half: its data file is gone")
        return known(self, names) | {"half": lost}

    monkeypatch.setattr(Database, "metadata", lose)
    table, _ = open_tree(saved)
    assert table["half",].kind == "unreadable"
    assert table["kernel",].read().tolist() == TREE["kernel"].tolist()


@pytest.mark.parametrize("name", ["9" * 5000, "0.1", "c/9/9", "00000000000000000000009"])
def test_names_of_no_chunk_are_seen_whatever_their_length(name):
    about = {"zarr_format": 2, "shape": [4], "chunks": [2], "dtype": "<f4", "fill_value": None}
    metadata = parse_array_metadata(json.dumps(about).encode(), "a/.zarray", Path("a"))
    assert metadata.foreign({"0", "1"}) is None
    assert (metadata.foreign({"0", "1", name}) == name) == name.replace(".", "").isdigit()


# --- the folder beside a msgpack file


def gda(folder: Path, tree: dict, *names: str) -> Path:
    file = folder / "checkpoint_3"
    file.write_bytes(msgpack.packb(tree))
    for n, name in enumerate(names):
        spec = {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": f"{folder}/checkpoint_3_gda/{name}/"},
            "metadata": {"shape": [4], "chunks": [2], "dtype": "<f4", "fill_value": None},
        }
        ts.open(spec, create=True).result().write(np.arange(4, dtype=np.float32) + n).result()
    return file


def test_a_lost_array_beside_the_file_costs_its_own_leaf_only(tmp_path):
    tree = {"a": "//GDAPlaceholder:a", "b": {"x/y": "//GDAPlaceholder:b/x/y"}, "n": 1}
    file = gda(tmp_path, tree, "a", "b/x/y")
    table, _ = open_msgpack(file)
    assert table["b", "x/y"].read().tolist() == [1, 2, 3, 4]
    shutil.rmtree(tmp_path / "checkpoint_3_gda" / "a")
    table, _ = open_msgpack(file)
    assert table["a",].kind == "unreadable"
    with pytest.raises(UnsupportedCheckpoint, match=r"leaf a: its array should lie in .*/a, and"):
        table["a",].read()
    assert table["b", "x/y"].read().tolist() == [1, 2, 3, 4]
    shutil.rmtree(tmp_path / "checkpoint_3_gda")
    table, _ = open_msgpack(file)
    assert table["n",].read() == 1
    with pytest.raises(UnsupportedCheckpoint, match="put the folder checkpoint_3_gda beside"):
        table["b", "x/y"].read()


def test_two_leaves_that_flax_saved_to_one_array_are_both_refused(tmp_path):
    tree = {"a": {"b": "//GDAPlaceholder:a/b"}, "a/b": "//GDAPlaceholder:a/b", "c": 1}
    table, _ = open_msgpack(gda(tmp_path, tree, "a/b"))
    for path, other in ((("a", "b"), '"a/b"'), (("a/b",), "a/b")):
        assert table[path].kind == "unreadable"
        with pytest.raises(UnsupportedCheckpoint, match=f"with {other}, since flax joins keys"):
            table[path].read()


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    tree = {"a": "//GDAPlaceholder:a", "b": "//GDAPlaceholder:b"}
    file = gda(tmp_path, tree, "a", "b")
    inside = tmp_path / "checkpoint_3_gda"
    (inside / "a").rename(tmp_path / "secret")
    (inside / "a").symlink_to(tmp_path / "secret")
    table, _ = open_msgpack(file)
    with pytest.raises(UnsupportedCheckpoint, match=r"leaf a: .*symbolic link out of"):
        table["a",].read()
    assert table["b",].read().tolist() == [1, 2, 3, 4]


def test_a_shape_that_no_memory_holds_is_refused_before_it_is_taken(tmp_path):
    file = gda(tmp_path, {"a": "//GDAPlaceholder:a"}, "a")
    about = tmp_path / "checkpoint_3_gda" / "a" / ".zarray"
    huge = json.loads(about.read_text()) | {"shape": [1 << 45], "chunks": [1 << 45]}
    about.write_text(json.dumps(huge))
    (leaf,) = open_msgpack(file)[0].values()
    with pytest.raises(LegacyError, match=r"more than the .* bytes of this machine"):
        leaf.read()


def test_a_file_of_chunks_outside_the_array_is_damage(tmp_path):
    file = gda(tmp_path, {"a": "//GDAPlaceholder:a"}, "a")
    (tmp_path / "checkpoint_3_gda" / "a" / "2").write_bytes(b"")
    with pytest.raises(DamagedCheckpoint, match="chunk '2' lies outside"):
        open_msgpack(file)[0]["a",].read()


def test_keys_are_told_from_numbers_by_the_file_of_any_process(tmp_path):
    import jax
    import orbax.checkpoint as ocp

    folder = tmp_path / "ckpt"
    ocp.PyTreeCheckpointer().save(folder, {"key": jax.random.key(1), "w": np.zeros(2)})
    inside = folder / "array_metadatas"
    shutil.copy(inside / "process_0", inside / "process_1")
    (inside / "process_0").unlink()
    assert open_tree(folder)[0]["key",].key_impl == "threefry2x32"
    (inside / "process_1").unlink()
    leaf = open_tree(folder)[0]["key",]
    assert leaf.kind == "array"
    assert any("a typed PRNG key cannot be told from" in note for note in leaf.notes)
