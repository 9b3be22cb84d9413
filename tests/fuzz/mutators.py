"""Seeded damage: the same seed gives the same bytes, on every machine and Python."""

from __future__ import annotations

import copy
import json
import random

KINDS = ("flip", "truncate", "zero", "swap", "insert", "byte", "remove", "repeat")


def generator(*seed: object) -> random.Random:
    """Random numbers that are the same everywhere for the same words."""
    return random.Random("/".join(map(str, seed)))  # noqa: S311 - no secrets


def mutate(data: bytes, rng: random.Random, kind: str | None = None) -> bytes:
    """The bytes with one thing wrong; ``kind`` is one of :data:`KINDS`."""
    kind = kind or rng.choice(KINDS)
    if not data:
        return rng.randbytes(rng.randint(1, 16))
    out = bytearray(data)
    at = rng.randrange(len(out))
    size = rng.choice((1, 2, 4, 8, 64, 512))
    if kind == "flip":
        out[at] ^= 1 << rng.randrange(8)
    elif kind == "truncate":
        del out[at:]
    elif kind == "zero":
        out[at : at + size] = bytes(len(out[at : at + size]))
    elif kind == "swap":
        to = rng.randrange(len(out))
        out[at], out[to] = out[to], out[at]
    elif kind == "insert":
        out[at:at] = rng.randbytes(size)
    elif kind == "byte":
        out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xC1, 0xC7, 0xDF, 0xFF, 0x22, 0x2C, 0x39, 0x7D))
    elif kind == "remove":
        del out[at : at + size]
    elif kind == "repeat":
        out[at:at] = out[at : at + size]
    return bytes(out)


ODD_VALUES = (
    *(None, True, False, 0, 1, 2, -1, 1.5, float("nan"), 1 << 31, 1 << 63, 10**30, "", "a", "/"),
    *("..", "../secret", "\0", "a.b", "0", "PLACEHOLDER://a", "none", "string", "scalar", "None"),
    *("Dict", "List", "np.ndarray", "<f8", ">f4", "|O", "bfloat16", "F", "zstd", [], {}, [1], [0]),
)


def _places(node: object) -> list:
    """All (container, key) of a document."""
    found, waiting = [], [node]
    while waiting:
        inside = waiting.pop()
        keys = range(len(inside)) if isinstance(inside, list) else list(inside)
        for key in keys:
            found.append((inside, key))
            if isinstance(inside[key], list | dict):
                waiting.append(inside[key])
    return found


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """A JSON document with one value replaced, removed, moved or renamed; else as :func:`mutate`.

    Bytes at random seldom leave a document that a parser accepts.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return mutate(data, rng)
    places = _places(document) if isinstance(document, list | dict) else []
    if not places or rng.random() < 0.2:
        return mutate(data, rng)
    inside, key = rng.choice(places)
    what = rng.choice(("odd", "odd", "remove", "copy", "rename"))
    if what == "odd":
        inside[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    elif what == "remove":
        del inside[key]
    elif what == "copy":
        other, name = rng.choice(places)
        inside[key] = copy.deepcopy(other[name])
    elif isinstance(inside, dict):
        inside[str(rng.choice(ODD_VALUES))] = inside.pop(key)
    return json.dumps(document).encode()
