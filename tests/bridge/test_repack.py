"""The file-to-file writer is held to the official one: same documents, same bits."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
import types
from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import orbax.checkpoint.experimental.v1 as ocp_v1
import pytest
import repack_cases as cases
import tensorstore as ts
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import legacy
from bridge import json_item, ocdbt, output, repack_arrays, standard_save
from bridge._plan import Initialised, Plan, Step
from bridge.apply import initial_value, step_values
from bridge.errors import BridgeError, WriteFailed
from bridge.repack import repack, stamp
from bridge.repack_regions import choose_rows
from bridge.target import Slot, SlotRef, Target
from bridge.transforms import Transpose
from legacy import Checkpoint, Format, Leaf, LeafTable
from legacy.leaves import Node, StoredArray

KINDS = ("ocdbt", "zarr", "zarr3", "msgpack")
CUSTOM = {"who": "me"}


@pytest.fixture(scope="module")
def objects():
    return cases.make()


@pytest.fixture(scope="module")
def target(objects):
    return cases.target_of(objects)


@pytest.fixture(scope="module")
def official(objects, tmp_path_factory):
    out = tmp_path_factory.mktemp("official")
    return standard_save.save(out, 7, objects, custom_metadata=CUSTOM)


@pytest.fixture(scope="module")
def olds(objects, target, tmp_path_factory):
    names = cases.old_names(target)
    tree = cases.old_tree(target, names, objects)
    return {k: cases.write_old(k, tmp_path_factory.mktemp(k), tree) for k in KINDS}


@pytest.fixture(scope="module")
def plans(olds, target):
    names = cases.old_names(target)
    return {kind: cases.make_plan(old, target, names) for kind, old in olds.items()}


@pytest.mark.parametrize("compression", ["keep", "zstd", "none"])
@pytest.mark.parametrize(("kind", "link"), [*((k, False) for k in KINDS), ("ocdbt", True)])
def test_documents_equal_those_of_standard_save(
    olds, plans, official, tmp_path, kind, link, compression
):
    before = cases.digests(olds[kind].path.parent)
    place = tmp_path / "7"
    done = repack(
        plans[kind],
        olds[kind],
        place,
        link=link,
        compression=compression,
        custom_metadata=CUSTOM,
    )
    expected, found = cases.documents(official), cases.documents(place)
    for name in expected | found:
        assert found.get(name) == expected.get(name), name
    raw = set()
    for item in ("model", "optimizer", "masked"):
        ours, theirs = cases.zarrays(place / item), cases.zarrays(official / item)
        raw |= {(item, n) for n, z in ours.items() if z["compressor"] is None}
        assert ours == {n: z | {"compressor": ours[n]["compressor"]} for n, z in theirs.items()}
        assert {z["compressor"]["id"] for z in theirs.values()} == {"zstd"}
    assert cases.digests(olds[kind].path.parent) == before
    total = len(plans[kind].target.slots)
    stored = total - 2 if kind in ("ocdbt", "zarr") else 0
    if kind == "msgpack" and compression != "zstd":
        stored = total - 2
    assert done.ways["linked"] + done.ways["copied"] == stored
    assert (done.ways["linked"] > 0) == link  # small values lie in the tree, whatever is linked
    assert sum(done.ways.values()) == stored + done.ways["encoded"] == total
    if compression == "zstd":
        assert not raw
    elif kind == "msgpack" or compression == "none":
        assert raw


@pytest.mark.parametrize("kind", KINDS)
def test_every_reader_of_orbax_restores_the_same_bits(olds, plans, objects, tmp_path, kind):
    repack(plans[kind], olds[kind], tmp_path / "7")
    states = {item: nnx.state(obj) for item, obj in objects.items()}
    wanted = {item: cases.abstract(state) for item, state in states.items()}
    with ocp.CheckpointManager(tmp_path) as manager:
        assert manager.all_steps() == [7]
        args = {item: ocp.args.StandardRestore(state) for item, state in wanted.items()}
        restored = manager.restore(7, args=ocp.args.Composite(**args))
    v1 = ocp_v1.load_checkpointables(tmp_path / "7", wanted)
    for item, state in states.items():
        cases.same_bits(restored[item], state)
        cases.same_bits(v1[item], state)
        with ocp.StandardCheckpointer() as checkpointer:
            cases.same_bits(checkpointer.restore(tmp_path / "7" / item, wanted[item]), state)


def test_the_single_layout_equals_one_saved_officially(olds, plans, objects, tmp_path):
    states = {item: nnx.state(obj) for item, obj in objects.items()}
    saved = standard_save.save(tmp_path / "official", 7, {"default": states})
    place = tmp_path / "ours" / "7"
    repack(plans["ocdbt"], olds["ocdbt"], place, layout="single", custom_metadata={})
    assert cases.documents(place) == cases.documents(saved)
    with ocp.CheckpointManager(place.parent) as manager:
        restored = manager.restore(7, args=ocp.args.StandardRestore(cases.abstract(states)))
    cases.same_bits(restored, states)


@pytest.mark.parametrize("kind", ["ocdbt", "zarr", "msgpack"])
def test_the_output_is_no_larger_than_the_source(olds, plans, tmp_path, kind):
    place = tmp_path / "7"
    repack(plans[kind], olds[kind], place)
    files = [p.stat() for p in place.rglob("d/*")]
    assert all(s.st_nlink == 1 for s in files)  # copying it elsewhere makes it no larger
    old = olds[kind].path
    source = sum(p.stat().st_size for p in (old, *old.rglob("*")) if p.is_file())
    assert sum(s.st_size for s in files) < source + 600_000  # two are encoded


def test_link_shares_data_files_with_the_source_and_never_a_manifest(olds, plans, tmp_path):
    place = tmp_path / "7"
    repack(plans["ocdbt"], olds["ocdbt"], place, link=True)
    source = {p.stat().st_ino for p in olds["ocdbt"].path.rglob("*") if p.is_file()}
    linked = [p for p in place.rglob("*") if p.is_file() and p.stat().st_ino in source]
    assert linked
    assert all(p.parent.name == "d" for p in linked)


def no_links(_source, _to):
    raise OSError(18, "Invalid cross-device link")


def test_link_to_another_file_system_says_so(olds, plans, tmp_path, monkeypatch):
    monkeypatch.setattr(output.os, "link", no_links)
    with pytest.raises(WriteFailed, match="leave out link"):
        repack(plans["ocdbt"], olds["ocdbt"], tmp_path / "a", link=True)
    repack(plans["ocdbt"], olds["ocdbt"], tmp_path / "b")  # copies take no links then


# -- names ------------------------------------------------------------------------------------


def array_target(names, item="model", shape=(40, 50), dtype="float32"):
    return Target(
        tuple(Slot(item, n, n, "Array", "", shape, dtype) for n in names),
    )


def saved_arrays(folder, names):
    """An OCDBT database with an array for each name, and its table; values say their name."""
    root = folder / "old"
    root.mkdir()
    kv = ocdbt.open_database(root, create=True)
    leaves = []
    for n, name in enumerate(names):
        value = np.random.default_rng(n).normal(size=(40, 50)).astype(np.float32)
        with repack_arrays.ArrayWriter(kv, root) as writer:
            writer.write(name, value, (20, 50))
        storage = StoredArray("zarr", root, ocdbt=True, key=name)
        leaves.append(
            Leaf(
                (name,),
                "array",
                value.shape,
                value.dtype,
                value.nbytes,
                lambda _, v=value: v,
                storage=storage,
            )
        )
    fmt = Format("orbax", "ocdbt", "")
    return Checkpoint(root, fmt, 0, {"default": LeafTable(leaves)})


def rename(checkpoint, pairs, *, link=False, folder):
    target = array_target([new for _, new in pairs])
    steps = [Step((old,), (SlotRef("model", new),)) for old, new in pairs]
    plan = Plan(tuple(steps), (), (), (), target, checkpoint.leaves.signature())
    done = repack(plan, checkpoint, folder, link=link, sync=False)
    assert done.ways["linked" if link else "copied"] == len(pairs)
    out = legacy.open(folder).items["model"]
    for old, new in pairs:
        assert np.array_equal(out[new].read(), checkpoint.leaves[old].read())
    assert len(out) == len(pairs)


def test_swapped_and_shifted_names(tmp_path):
    names = ["a", "a.b", "b", "layers_1", "layers_2", "layers_3", "same", "dropped", "sam"]
    checkpoint = saved_arrays(tmp_path, names)
    pairs = {
        "a": ("b",),
        "b": ("a",),
        "a.b": ("q", "b.x"),
        "layers_1": ("layers_2",),
        "layers_2": ("layers_3",),
        "layers_3": ("layers_4",),
        "same": ("same",),
        "sam": ("dropped",),
    }
    rename(checkpoint, [((old,), new) for old, new in pairs.items()], folder=tmp_path / "new")


def test_one_array_may_go_to_several_slots(tmp_path):
    checkpoint = saved_arrays(tmp_path, ["a", "b"])
    rename(
        checkpoint, [(("a",), ("a",)), (("a",), ("c",)), (("a",), ("b",))], folder=tmp_path / "n"
    )


@settings(max_examples=25, deadline=None)
@given(new=st.permutations(["a", "b", "a.b", "b.a", "c", "a.c"]), kept=st.integers(1, 4))
def test_any_permutation_of_names(tmp_path_factory, new, kept):
    folder = tmp_path_factory.mktemp("names")
    old = ["a", "b", "a.b", "c"]
    checkpoint = saved_arrays(folder, old)
    pairs = [((o,), (n,)) for o, n in itertools.islice(zip(old, new, strict=False), kept)]
    rename(checkpoint, pairs, folder=folder / "new")


def test_names_below_other_names(tmp_path):
    checkpoint = saved_arrays(tmp_path, ["x", "x/y", "x/y/z", "x.y", "w"])
    pairs = [(("x",), ("x/y",)), (("x/y",), ("x",)), (("w",), ("x/y/z",)), (("x.y",), ("x.y",))]
    rename(checkpoint, pairs, folder=tmp_path / "new")


def data_files(root):
    values = [v for keys in ocdbt.survey(root).arrays.values() for v in keys.values()]
    return {v.file for v in values if not isinstance(v, bytes)}


def in_one_file(checkpoint, folder):
    """The same arrays with all values in one data file, as Orbax writes large trees."""
    many = ocdbt.open_database(checkpoint.path)
    for attempt in range(8):  # on a busy machine TensorStore may begin a second file
        root = folder / f"one{attempt}"
        root.mkdir()
        transaction = ts.Transaction()  # one transaction of plain values goes to one file
        one = ocdbt.open_database(root, create=True).with_transaction(transaction)
        for key in many.list().result():
            one.write(key, many.read(key).result().value).result()
        transaction.commit_async().result()
        if len(data_files(root)) == 1:  # B-tree nodes may lie in a second file
            break
    assert len(data_files(root)) == 1
    leaves = LeafTable(
        replace(leaf, storage=replace(leaf.storage, root=root))
        for leaf in checkpoint.leaves.values()
    )
    return replace(checkpoint, items={"default": leaves}, path=root)


def test_a_mostly_unwanted_database_is_not_copied_whole(tmp_path):
    checkpoint = in_one_file(saved_arrays(tmp_path, [f"a{n}" for n in range(9)]), tmp_path)
    step = Step((("a3",),), (SlotRef("model", ("w",)),))
    target = array_target([("w",)])
    plan = Plan((step,), (), (), (), target, checkpoint.leaves.signature())
    for link, way in ((False, "copied"), (True, "linked")):
        done = repack(plan, checkpoint, tmp_path / f"new{link}", link=link)
        assert {w for w, n in done.ways.items() if n} == {way}
        found = legacy.open(done.folder).items["model"][("w",)].read()
        assert np.array_equal(found, checkpoint.leaves[("a3",)].read())
    assert sum(p.stat().st_size for p in (tmp_path / "newFalse").rglob("*")) < 30_000


@pytest.mark.parametrize("link", [True, False])
def test_each_item_has_its_own_bytes_of_a_file_or_a_link_to_it(tmp_path, link):
    checkpoint = in_one_file(saved_arrays(tmp_path, ["a", "b", "c"]), tmp_path)
    slots = [
        Slot(item, ("w",), ("w",), "Array", "", (40, 50), "float32") for item in ("m", "o", "e")
    ]
    steps = [Step(((n,),), (s.ref,)) for n, s in zip("abc", slots, strict=True)]
    plan = Plan(tuple(steps), (), (), (), Target(tuple(slots)), checkpoint.leaves.signature())
    repack(plan, checkpoint, tmp_path / "new", link=link)
    (file,) = data_files(checkpoint.path)
    assert file.stat().st_nlink == (4 if link else 1)
    for name, item in zip("abc", ("m", "o", "e"), strict=True):
        found = legacy.open(tmp_path / "new").items[item][("w",)].read()
        assert np.array_equal(found, checkpoint.leaves[(name,)].read())
        (copy,) = data_files(tmp_path / "new" / item)
        assert copy.stat().st_size == file.stat().st_size if link else copy.stat().st_size < 17_000


def test_chunks_stay_as_they_were_saved(tmp_path):
    checkpoint = saved_arrays(tmp_path, ["a"])
    rename(checkpoint, [(("a",), ("b",))], folder=tmp_path / "new")
    rows = json.loads((tmp_path / "new/model/array_metadatas/process_0").read_text())
    assert rows["array_metadatas"][0]["array_metadata"]["chunk_shape"] == [20, 50]
    with ocp.StandardCheckpointer() as checkpointer:
        want = {"b": jax.ShapeDtypeStruct((40, 50), np.float32)}
        found = checkpointer.restore(tmp_path / "new/model", want)
    assert np.array_equal(found["b"], checkpoint.leaves[("a",)].read())


def test_a_truncated_data_file_is_named(tmp_path):
    checkpoint = saved_arrays(tmp_path, ["a"])
    file = max((tmp_path / "old/d").iterdir(), key=lambda p: p.stat().st_size)
    with file.open("r+b") as opened:
        opened.truncate(100)
    with pytest.raises(legacy.DamagedCheckpoint, match=r"which has 100 bytes|value of size 100"):
        rename(checkpoint, [(("a",), ("b",))], folder=tmp_path / "new")
    file.unlink()
    with pytest.raises(legacy.DamagedCheckpoint, match=r"is not there|NOT_FOUND"):
        rename(checkpoint, [(("a",), ("b",))], folder=tmp_path / "new2")


def test_a_missing_chunk_is_not_taken_for_zeros(tmp_path, olds, plans):
    old = olds["zarr"]
    copy = tmp_path / "old"
    subprocess.run(["cp", "-r", str(old.path), str(copy)], check=True)
    source = plans["zarr"].steps[0].sources[0]
    folder = copy / old.leaves[source].storage.key
    for chunk in folder.glob("[0-9]*"):
        chunk.unlink()
    with pytest.raises((legacy.LegacyError, BridgeError), match=source[1]):
        repack(plans["zarr"], legacy.open(copy), tmp_path / "7")


# -- chunks and memory ------------------------------------------------------------------------


def test_arrays_up_to_16_mib_are_one_chunk_as_by_default():
    assert choose_rows((1024, 4096), 4, repack_arrays.CHUNK) == (1024, 4096)
    assert choose_rows((2048, 4096), 4, repack_arrays.CHUNK) == (1024, 4096)
    assert choose_rows((2049, 4096), 4, repack_arrays.CHUNK) == (683, 4096)


@pytest.mark.parametrize("rows", [20, 7])
def test_an_array_of_many_chunks_is_written_in_blocks(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(repack_arrays, "BATCH", 10_000)
    value = np.random.default_rng(0).normal(size=(60, 70)).astype(ml_dtypes.bfloat16)
    kv = ocdbt.open_database(tmp_path, create=True)
    with repack_arrays.ArrayWriter(kv, tmp_path) as writer:
        writer.write("w", value, (rows, 70))
        writer.write("v", value.T, (70, 60))
    for name, want in (("w", value), ("v", value.T)):
        spec = StoredArray("zarr", tmp_path, ocdbt=True, key=name).spec()
        assert ts.open(spec).result().read().result().tobytes() == want.tobytes()


# -- JSON items -------------------------------------------------------------------------------


def plain(path, value, kind="str", **more):
    return Leaf(path, kind, reader=lambda _: value, **more)


def json_checkpoint(tmp_path, leaves, nodes=None, items=()):
    table = LeafTable(leaves, nodes)
    return Checkpoint(
        tmp_path, Format("flax-msgpack", "msgpack", ""), 1, {"default": table, **dict(items)}
    )


def json_plan(checkpoint, slots):
    array = next(leaf for leaf in checkpoint.leaves.values() if leaf.kind == "array")
    model = Slot("model", ("w",), ("w", "value"), "Param", "params", array.shape, "float32")
    values = [Slot("metadata", path, path, "Json", "", (), "python") for path in slots.values()]
    steps = [Step((array.path,), (model.ref,))]
    steps += [Step((p,), (v.ref,)) for p, v in zip(slots, values, strict=True)]
    target = Target((model, *values))
    return Plan(tuple(steps), (), (), (), target, checkpoint.leaves.signature())


ARRAY = Leaf(
    ("w",), "array", (3,), np.dtype(np.float32), 12, lambda _: np.arange(3, dtype=np.float32)
)


def test_values_without_a_place_in_a_tree_survive_as_json(tmp_path):
    values = {
        "name": "Käse",
        "raw": b"\xff\x00",
        "z": 1 - 2j,
        "nan": math.nan,
        "inf": -math.inf,
        "big": 2**80,
        "yes": True,
        "none": None,
        "scalar": np.float32(0.1),
        "bf": ml_dtypes.bfloat16(1.5),
        "empty": np.zeros((0, 3), ml_dtypes.bfloat16),
    }
    leaves = [ARRAY, *(plain(("config", k), v) for k, v in values.items())]
    leaves += [plain(("config", "list", str(n)), n, "number") for n in range(11)]
    leaves += [plain(("config", "gap", n), n) for n in ("0", "2")]
    leaves += [Leaf(("config", "box"), "empty", container="list")]
    nodes = {("config", "list"): Node("tuple"), ("config", "gap"): Node("list")}
    checkpoint = json_checkpoint(tmp_path, leaves, nodes)
    slots = {leaf.path: ("renamed", *leaf.path[1:]) for leaf in leaves[1:]}
    repack(json_plan(checkpoint, slots), checkpoint, tmp_path / "1")
    with ocp.CheckpointManager(tmp_path) as manager:
        args = ocp.args.Composite(metadata=ocp.args.JsonRestore())
        stored = manager.restore(1, args=args)["metadata"]
    found = json_item.decode(stored)["renamed"]
    assert found["list"] == list(range(11))
    assert found["gap"] == {"0": "0", "2": "2"}
    assert found["box"] == []
    for key, value in values.items():
        if isinstance(value, np.ndarray | np.generic):
            assert found[key].dtype == value.dtype
            assert found[key].shape == value.shape
            assert found[key].tobytes() == value.tobytes()
        elif key == "nan":
            assert math.isnan(found[key])
        else:
            assert found[key] == value
            assert type(found[key]) is type(value)


def test_json_goes_to_custom_metadata_in_the_single_layout(tmp_path):
    checkpoint = json_checkpoint(tmp_path, [ARRAY, plain(("lr",), 0.1, "number")])
    plan = json_plan(checkpoint, {("lr",): ("lr",)})
    repack(plan, checkpoint, tmp_path / "1", layout="single", custom_metadata={"a": 1})
    stamp(tmp_path / "1", {"b": 2})
    with ocp.CheckpointManager(tmp_path) as manager:
        assert manager.metadata(1).custom_metadata == {"a": 1, "metadata": {"lr": 0.1}, "b": 2}
        assert manager.restore(1)["model"]["w"]["value"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("key", ["__bytes__", "__float__", "__array__", "__complex__"])
def test_a_key_that_means_something_to_us_is_refused(tmp_path, key):
    checkpoint = json_checkpoint(tmp_path, [ARRAY, plain(("a", key), "x")])
    with pytest.raises(BridgeError, match="has a meaning of its own"):
        repack(json_plan(checkpoint, {("a", key): ("a", key)}), checkpoint, tmp_path / "1")


def test_json_items_of_the_source_are_carried_byte_for_byte(tmp_path):
    texts = {"metrics": '{"loss":  NaN}', "metadata": '{"b": 1,\n"a": 2}', "config": "[1]"}
    items = {}
    for name, text in texts.items():
        file = tmp_path / f"{name}.json"
        file.write_text(text)
        items[name] = LeafTable([], json_file=file)
    checkpoint = json_checkpoint(tmp_path, [ARRAY, plain(("lr",), 0.1)], items=items.items())
    repack(json_plan(checkpoint, {("lr",): ("lr",)}), checkpoint, tmp_path / "1")
    step = tmp_path / "1"
    assert (step / "metrics/metrics").read_text() == texts["metrics"]
    assert (step / "source_metadata/metadata").read_text() == texts["metadata"]
    assert (step / "config/metadata").read_text() == texts["config"]
    with ocp.CheckpointManager(tmp_path) as manager:
        restored = manager.restore(
            1,
            args=ocp.args.Composite(config=ocp.args.JsonRestore(), metadata=ocp.args.JsonRestore()),
        )
    assert restored["config"] == [1]
    assert restored["metadata"] == {"lr": 0.1}


# -- values -----------------------------------------------------------------------------------


def param(shape=(2,), dtype="float32", kind="Param"):
    return Slot("model", ("w",), ("w", "value"), kind, "params", shape, dtype)


def one_step(leaf, slot, *transforms):
    return step_values(
        Step((leaf.path,), (slot.ref,), transforms), LeafTable([leaf]), {slot.ref: slot}
    )[0]


def test_a_shape_or_dtype_that_differs_names_source_slot_and_both():
    leaf = Leaf(("a",), "array", (2, 3), np.dtype("f4"), 24, lambda _: np.zeros((2, 3), "f4"))
    with pytest.raises(BridgeError, match=r"a gives shape \(2, 3\).*model:w wants shape \(3, 2\)"):
        one_step(leaf, param((3, 2)))
    assert one_step(leaf, param((3, 2)), Transpose((1, 0))).shape == (3, 2)
    with pytest.raises(BridgeError, match=r"dtype float32; slot model:w.*float16"):
        one_step(leaf, param((2, 3), "float16"))


@pytest.mark.parametrize(
    ("value", "dtype", "fits"),
    [
        (5, "uint32", True),
        (5, "float32", True),
        (0.5, "bfloat16", True),
        (0.1, "float32", False),
        (math.nan, "float32", True),
        (-1, "uint32", False),
        (2**70, "int64", False),
        (1.5, "int32", False),
        (1 + 2j, "float32", False),
    ],
)
def test_python_numbers_take_the_dtype_of_the_slot_only_when_exact(value, dtype, fits):
    leaf = plain(("n",), value, "number")
    if fits:
        assert one_step(leaf, param((), dtype)).dtype.name == dtype
    else:
        with pytest.raises(BridgeError, match="n gives shape"):
            one_step(leaf, param((), dtype))


def test_initial_values(monkeypatch):
    functions = types.ModuleType("functions")
    functions.small = lambda _shape, dtype, _path: np.zeros(1, dtype)
    functions.fan = lambda shape, dtype, path: np.full(shape, len(path), dtype)
    functions.broken = lambda _shape, _dtype, _path: 1 / 0
    monkeypatch.setitem(sys.modules, "functions", functions)

    def init(how, slot):
        return initial_value(Initialised(slot.ref, "rule", how), slot)

    assert init("zeros", param()).tolist() == [0, 0]
    assert init("ones", param(dtype="bfloat16")).tolist() == [1, 1]
    assert init("-2", param(dtype="int8")).tolist() == [-2, -2]
    assert init("0.5", param()).tolist() == [0.5, 0.5]
    assert init("functions:fan", param()).tolist() == [1, 1]
    key = param(dtype="uint32", kind="RngKey")
    assert init("rng:1", key).tolist() != init("rng:2", key).tolist()
    assert init("rng:1", key).tolist() != init("rng:1", replace(key, item="x")).tolist()
    assert init("rng:1", key).tolist() == init("rng:1", key).tolist()
    assert init("rng:1", replace(key, shape=(9, 4))).shape == (9, 4)
    assert init("rng:1", replace(key, shape=(), variable_type="RngCount")) == 0
    for how, slot, said in (
        ("300", param(dtype="uint8"), "no value of its dtype"),
        ("0.5", param(dtype="int32"), "no value of its dtype"),
        ("fish", param(), "expected zeros"),
        ("rng:1", param(), "makes uint32"),
        ("nowhere:fn", param(), "cannot load"),
        ("functions:none", param(), "cannot load"),
        ("functions:small", param(), "wants shape"),
        ("functions:broken", param(), "division by zero"),
    ):
        with pytest.raises(BridgeError, match=said):
            init(how, slot)


def test_what_standard_save_refuses_is_refused_with_every_slot(tmp_path):
    leaf = replace(ARRAY, shape=(0,))
    slots = tuple(Slot("model", (n,), (n,), "Array", "", (0,), "float32") for n in ("a", "..", "b"))
    steps = tuple(Step((leaf.path,), (s.ref,)) for s in slots)
    checkpoint = json_checkpoint(tmp_path, [leaf])
    plan = Plan(steps, (), (), (), Target(slots), "")
    with pytest.raises(BridgeError, match="no elements") as caught:
        repack(plan, checkpoint, tmp_path / "1")
    assert len(caught.value.problems) == 4
    twice = Plan((steps[0], steps[0]), (), (), (), Target(slots), "")
    with pytest.raises(BridgeError, match="filled 2 times") as caught:
        repack(twice, checkpoint, tmp_path / "1")
    assert len(caught.value.problems) == 3


def test_converting_by_a_stored_plan_loads_no_jax():
    code = (
        "import sys, bridge.repack, bridge._convert, bridge.apply\n"
        "assert not {'jax', 'flax', 'orbax'} & set(sys.modules), 'jax was loaded'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
