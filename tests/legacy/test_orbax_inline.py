"""The metadata of many arrays is read from the tree of an OCDBT database as key by key."""

from __future__ import annotations

from pathlib import Path

import pytest
import tensorstore as ts

import legacy
from legacy.orbax_nodes import dump_entries
from legacy.orbax_stores import Database

GOLDENS = Path(__file__).parents[1] / "goldens"
DATABASES = sorted(
    file.parent
    for file in GOLDENS.rglob("manifest.ocdbt")
    if not file.parent.name.startswith("ocdbt.process_")
)


def database(folder):
    for leaf in legacy.open(folder).leaves.values():
        store = getattr(getattr(leaf.reader, "found", None), "store", None)
        if isinstance(store, Database):
            return store
    return None


def test_there_are_databases_to_look_at():
    assert DATABASES


@pytest.mark.parametrize("folder", DATABASES, ids=lambda p: "-".join(p.relative_to(GOLDENS).parts))
def test_what_lies_in_the_tree_is_what_is_read_key_by_key(folder):
    store = database(folder)
    if store is None:
        pytest.skip("no leaf of it is an array of this database")
    found = store.entries
    assert list(found) == store.keys == sorted(store._kvstore.list().result())
    inline = {key: value for key, value in found.items() if isinstance(value, bytes)}
    texts = {name: inline[key] for name, key in store.arrays.items() if key in inline}
    # releases of 2023 put no text of this size into the tree: those are read key by key
    assert set(texts) in (set(), set(store.arrays))
    assert texts or "latest" not in folder.parts
    futures = {name: store._kvstore.read(store.arrays[name]) for name in texts}
    assert texts == {name: future.result().value for name, future in futures.items()}


@pytest.mark.parametrize("node_bytes", [400, 1500, 1 << 20])
@pytest.mark.parametrize("saves", [1, 3])
def test_a_tree_of_any_height_is_dumped_whole(tmp_path, node_bytes, saves):
    sizes = {"max_decoded_node_bytes": node_bytes, "max_inline_value_bytes": 40}
    base = {"driver": "file", "path": f"{tmp_path}/"}
    written = ts.KvStore.open({"driver": "ocdbt", "base": base, "config": sizes}).result()
    for save in range(saves):
        with ts.Transaction() as transaction:
            writer = written.with_transaction(transaction)
            for n in range(200):
                writer[f"params.block_{n // 3}.w{n}/.zarray"] = b"%d " % save * (n % 30)
            writer[f"only/{save}"] = b""
    files = ts.KvStore.open(base).result()
    values = {key: value for _, entries in dump_entries(files) for key, value in entries.items()}
    kvstore = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
    assert sorted(values) == sorted(kvstore.list().result())
    inline = {k: v["inline_value"] for k, v in values.items() if "inline_value" in v}
    assert 0 < len(inline) < len(values)
    assert inline == {key: kvstore[key] for key in inline}
    entries = Database(tmp_path).entries
    assert list(entries) == sorted(values)
    assert {k: v for k, v in entries.items() if isinstance(v, bytes)} == inline


def _unlike(node):
    del node["entries"]


def _lost(node):
    del node["entries"][3]


def _turned(node):
    node["entries"].reverse()


def _twice(node):
    node["entries"][3] = node["entries"][2]


@pytest.mark.parametrize("change", [_unlike, _lost, _turned, _twice])
def test_where_a_dump_tells_something_else_arrays_are_read_key_by_key(monkeypatch, change):
    folder = next(path for path in DATABASES if "latest" in path.parts)
    before = dict(legacy.open(folder).leaves)

    class Dumped:
        def __init__(self, found):
            self.found = found

        def result(self):
            node = self.found.result()
            if "entries" in node:
                change(node)
            return node

    dump = ts.ocdbt.dump
    monkeypatch.setattr(ts.ocdbt, "dump", lambda *args: Dumped(dump(*args)))
    checkpoint = legacy.open(folder)
    assert dict(checkpoint.leaves) == before
    (database,) = {leaf.storage.database for leaf in checkpoint.leaves.values() if leaf.storage}
    assert database.entries is None
