"""Sample inputs as they are written on the command line."""

from __future__ import annotations

import numpy as np
import pytest

from bridge.errors import BridgeError
from bridge.inputs import read_input
from bridge.twins import concrete


def shapes(args):
    return [(x.shape, x.dtype.name) for x in args]


def test_one_shape_is_the_one_argument():
    probe = read_input("f32[2,28,28,1]")
    assert shapes(probe.args) == [((2, 28, 28, 1), "float32")]
    assert probe.kwargs == {}


def test_several_shapes_names_and_words():
    probe = read_input("bf16[2, 3], i32[], x=u8[4],train=false,rate=0.5,n=3,mask=None")
    assert shapes(probe.args) == [((2, 3), "bfloat16"), ((), "int32")]
    assert shapes([probe.kwargs.pop("x")]) == [((4,), "uint8")]
    assert probe.kwargs == {"train": False, "rate": 0.5, "n": 3, "mask": None}
    assert isinstance(probe.kwargs["n"], int)


def test_shapes_become_the_same_random_values_each_time():
    probe = read_input("f32[3,4],i32[50],bool[20]")
    one, two = concrete(probe.args), concrete(probe.args)
    assert all((a == b).all() for a, b in zip(one, two, strict=True))
    assert set(np.unique(one[1])) == {0, 1}
    assert one[0].std() > 0


def test_arrays_of_a_file(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3))
    (only,) = read_input(str(tmp_path / "a.npy")).args
    assert only.tolist() == [0, 1, 2]
    np.savez(tmp_path / "b.npz", np.zeros(2), np.ones(3), mask=np.array([True]))
    probe = read_input(str(tmp_path / "b.npz"))
    assert [x.tolist() for x in probe.args] == [[0, 0], [1, 1, 1]]
    assert probe.kwargs["mask"].tolist() == [True]


def test_what_a_function_returns(tmp_path):
    code = "import numpy as np\ndef make():\n    return {'x': np.zeros(2)}\nplain = (1, 2)\n"
    (tmp_path / "sample_of_mine.py").write_text(code)
    assert read_input(f"{tmp_path}/sample_of_mine.py:make")["x"].shape == (2,)
    assert read_input("sample_of_mine:plain") == (1, 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot read"),
        ("f33[2]", "cannot read"),
        ("f32[2", "cannot read"),
        ("f32[2] f32[3]", "expected a comma"),
        ("f32[2],", "cannot read"),
        ("x=f32[2],f32[3]", "without a name follows"),
        ("x=f32[2],x=f32[3]", "x is given twice"),
        ("true", "cannot read"),
        ("/no/such/file.npy", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_refused(text, said):
    with pytest.raises(BridgeError, match=said):
        read_input(text)


def test_a_missing_position_is_refused(tmp_path):
    np.savez(tmp_path / "c.npz", arr_1=np.zeros(2))
    with pytest.raises(BridgeError, match="some are missing"):
        read_input(str(tmp_path / "c.npz"))


def test_a_function_that_fails_is_said(tmp_path):
    (tmp_path / "failing_sample.py").write_text("def make():\n    raise ValueError('no data')\n")
    with pytest.raises(BridgeError, match="ValueError: no data"):
        read_input(f"{tmp_path}/failing_sample.py:make")
