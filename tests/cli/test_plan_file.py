"""``--plan`` and ``--target`` of files that are not what they should be."""

from __future__ import annotations

import numpy as np
import pytest
from flax import serialization


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "checkpoint_1"
    path.write_bytes(serialization.to_bytes({"params": {"w": np.ones(2)}}))
    return path


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "plan.json: No such file or directory. Give the file that `linen2nnx plan -o`"),
        (b"", "plan.json: this is not a stored plan"),
        (b"\xff\xfe", "plan.json: 'utf-8' codec can't decode"),
        (b'{"version": 99}', "plan.json: the plan has version 99"),
    ],
)
def test_a_plan_that_cannot_be_read_is_named(call, source, tmp_path, content, said):
    if content is not None:
        (tmp_path / "plan.json").write_bytes(content)
    args = ("convert", source, "--out", tmp_path / "out", "--plan", tmp_path / "plan.json")
    code, _, err = call(*args)
    assert code == 1
    assert said in " ".join(err.split())
    assert not (tmp_path / "out").exists()


def test_a_target_that_is_not_there_is_named(call, source, tmp_path):
    code, _, err = call("plan", source, "--target", tmp_path / "target.json")
    assert code == 1
    assert "target.json: No such file or directory. Give the file" in " ".join(err.split())
