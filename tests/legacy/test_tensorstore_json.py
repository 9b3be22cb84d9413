"""Dumps of a B-tree say what TensorStore says, and nothing of them stays behind."""

from __future__ import annotations

import gc
import sys
import tracemalloc

import pytest
import tensorstore as ts

from legacy import tensorstore_json
from legacy.tensorstore_json import dumped


@pytest.fixture
def base(tmp_path):
    files = {"driver": "file", "path": f"{tmp_path}/"}
    config = {"max_inline_value_bytes": 20, "max_decoded_node_bytes": 2000}
    store = ts.KvStore.open({"driver": "ocdbt", "base": files, "config": config}).result()
    for n in range(100):
        store[f"layers.{n}.kernel/.zarray"] = b"x" * (n % 40)
    return ts.KvStore.open(files).result()


def nodes(base, dump):
    """The manifest and all nodes."""
    found = [dump(base)]
    waiting = [found[0]["versions"][-1]["root"]["location"]]
    while waiting:
        found.append(dump(base, waiting.pop()))
        waiting += [e["location"] for e in found[-1]["entries"] if "location" in e]
    return found


def test_a_dump_is_what_tensorstore_says(base):
    theirs = nodes(base, lambda *args: ts.ocdbt.dump(*args).result())
    ours = nodes(base, dumped)
    assert len(ours) > 3
    assert ours == theirs
    assert list(map(list, ours)) == list(map(list, theirs))
    entries = [e for node in ours[1:] for e in node["entries"]]
    value = next(e["indirect_value"] for e in entries if "indirect_value" in e)
    assert dumped(base, value) == ts.ocdbt.dump(base, value).result()


def test_nothing_of_a_dump_stays_behind(base):
    def grown(dump):
        for _ in range(3):
            nodes(base, dump)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(20):
            nodes(base, dump)
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before

    tracemalloc.start()
    try:
        ours = grown(dumped)
        theirs = grown(lambda *args: ts.ocdbt.dump(*args).result())
    finally:
        tracemalloc.stop()
    assert ours < 10_000
    if theirs < 10_000:
        pytest.fail("TensorStore forgets nothing any more: legacy.tensorstore_json can go")


def test_what_is_dumped_lives_as_long_as_it_is_held(base):
    held = nodes(base, dumped)
    again = nodes(base, dumped)
    for _ in range(50):
        nodes(base, dumped)
    gc.collect()
    assert held == again
    entry = held[-1]["entries"][0]
    part, new = [entry.pop("key")], [bytes(bytearray(b"new"))]
    counts = [sys.getrefcount(one[0]) for one in (part, new)]
    assert counts[0] == counts[1]  # the list has it, and nobody else


def test_of_a_value_that_nobody_forgot_nothing_is_dropped(monkeypatch):
    dropped = []
    monkeypatch.setattr(tensorstore_json, "_drop", dropped.append)
    made = {str(10**6 + n): [{"k" * 9: bytes(range(n, n + 9))}] for n in range(5)}
    same = {key: [{"k" * 9: bytes(range(n, n + 9))}] for n, key in enumerate(list(made))}
    keys = list(made)  # as a dict that is not forgotten, with keys that are held twice
    assert tensorstore_json._owned(made) == same
    assert {type(one) for one in dropped} <= {str}
    assert set(dropped) <= {*keys, "k" * 9}
