"""Freed memory goes back to the system: what glibc is asked for, and when."""

from __future__ import annotations

import ctypes

import pytest

from bridge import _memory


@pytest.fixture
def asked(monkeypatch):
    """What the C library was asked for."""
    calls = []

    class Library:
        def mallopt(self, option, value):
            calls.append(("mallopt", option, value))

        def malloc_trim(self, pad):
            calls.append(("malloc_trim", pad))

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Library())
    monkeypatch.setattr(_memory, "_PASSED", [0])
    return calls


def test_the_threshold_is_low_inside_and_usual_again_after(asked):
    with _memory.frugal(), _memory.frugal():
        assert asked == [("mallopt", -3, 1 << 20)]
    assert asked[1:] == [("mallopt", -3, 32 << 20)]


def test_memory_is_given_back_now_and_then(asked):
    for _ in range(10):
        _memory.passed(10 << 20)
    assert asked == [("malloc_trim", 0)] * 2  # after 40 and 80 MiB
    _memory.passed(1 << 30)
    assert len(asked) == 3


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    with _memory.frugal():
        _memory.passed(1 << 30)
