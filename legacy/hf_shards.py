"""Flax checkpoints of Hugging Face transformers that were cut into several files.

``save_pretrained`` writes parameters over ``max_shard_size`` as
``flax_model-00001-of-00003.msgpack`` and so on, each a flax msgpack file of its own, and beside
them ``flax_model.msgpack.index.json``, whose ``weight_map`` says of each parameter (``a/b/c``)
which file has it. Opened one by one, such a file looks like a whole checkpoint with most of its
parameters gone; here all of them are one tree again, and what the index promises is checked.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from legacy.checkpoint import Format
from legacy.errors import DamagedCheckpoint, LegacyError, UnsupportedCheckpoint
from legacy.flax_msgpack import open_msgpack
from legacy.leaves import Leaf, LeafPath, LeafTable, Node, format_path, unreadable
from legacy.orbax_documents import expect, read_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["indexed_shards", "is_index", "open_shards", "shard_of"]

INDEX_SUFFIX: Final = ".msgpack.index.json"
_WEIGHT_MAP: Final = "weight_map"
_SHARD: Final = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.msgpack")
_SHOWN: Final = 5

_Table = dict[LeafPath, Leaf]


def is_index(file: Path) -> bool:
    """Whether a file is named as the index of a checkpoint in several files.

    >>> from pathlib import Path
    >>> is_index(Path("flax_model.msgpack.index.json")), is_index(Path("config.json"))
    (True, False)
    """
    return file.name.endswith(INDEX_SUFFIX)


def shard_of(name: str) -> str | None:
    """The name of the index that a file belongs to, if it is named as one of several.

    >>> shard_of("flax_model-00001-of-00003.msgpack"), shard_of("flax_model.msgpack")
    ('flax_model.msgpack.index.json', None)
    """
    found = _SHARD.fullmatch(name)
    return None if found is None else found["stem"] + INDEX_SUFFIX


def open_shards(index: Path) -> tuple[LeafTable, Format]:
    """Open a checkpoint in several files as one tree, reading no array.

    Parameters whose file is missing or damaged are ``unreadable`` leaves.

    Args:
        index: the ``*.msgpack.index.json`` file.

    Returns:
        All leaves, and the format.

    Raises:
        CannotLook: the index or one of the files may not be read.
        DamagedCheckpoint: the index is no index, or a file has parameters that it does not name.
        UnsupportedCheckpoint: the index names files elsewhere, or none of them can be read.

    >>> import json, msgpack, tempfile
    >>> from pathlib import Path
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "m-00001-of-00001.msgpack").write_bytes(msgpack.packb({"a": {"b": 1}}))
    >>> index = folder / "m.msgpack.index.json"
    >>> _ = index.write_text(json.dumps({"weight_map": {"a/b": "m-00001-of-00001.msgpack"}}))
    >>> table, kind = open_shards(index)
    >>> list(table), kind.layout
    ([('a', 'b')], 'msgpack+shards')
    """
    shards = _weight_map(index)
    leaves: list[Leaf] = []
    nodes: dict[LeafPath, Node] = {}
    formats: list[Format] = []
    failed: list[LegacyError] = []
    unnamed: list[str] = []
    for name, wanted in shards.items():
        file = index.parent / name
        try:
            table, kind = open_msgpack(file)
        except LegacyError as error:
            failed.append(error)
            leaves += [unreadable(path, _lost(index, file, path, error)) for path in wanted]
            continue
        formats.append(kind)
        nodes.update(table.nodes)
        found = _by_parameter(table)
        leaves += [found.get(path) or _not_there(index, file, path) for path in wanted]
        unnamed += [
            f"{name}: {format_path(path)}"
            for path, leaf in found.items()
            if path not in wanted and leaf.kind != "empty"
        ]
    if unnamed:
        raise _surplus(index, unnamed)
    if not formats:
        raise UnsupportedCheckpoint(
            f"{index}: none of the {len(shards)} files it names can be read. The first: "
            f"{failed[0].message}",
            path=index,
            problems=[error.message for error in failed],
        )
    return LeafTable(leaves, nodes), _describe(index, shards, formats)


def indexed_shards(index: Path) -> frozenset[str]:
    """Names of the files that an index names; none when it is no readable index.

    >>> from pathlib import Path
    >>> indexed_shards(Path("/nowhere/flax_model.msgpack.index.json"))
    frozenset()
    """
    try:
        return frozenset(_weight_map(index))
    except LegacyError:
        return frozenset()


def _weight_map(index: Path) -> dict[str, set[LeafPath]]:
    """The parameters of each file, by the file's name."""
    document: Any = expect(read_json(index), dict, index, "of the whole file")
    weights: Mapping[str, Any] = expect(document.get(_WEIGHT_MAP), dict, index, _WEIGHT_MAP)
    shards: dict[str, set[LeafPath]] = {}
    for parameter, named in weights.items():
        name = expect(named, str, index, f"{_WEIGHT_MAP}[{parameter!r}]")
        if name in ("", ".", "..") or not set("/\\\0").isdisjoint(name):
            raise UnsupportedCheckpoint(
                f"{index}: parameter {parameter!r} should be in the file {name!r}. Only files "
                "beside the index are read; put the files there and name them so.",
                path=index,
            )
        shards.setdefault(name, set()).add(tuple(parameter.split("/")))
    if not shards:
        raise DamagedCheckpoint(
            f"{index}: {_WEIGHT_MAP} is empty, so this is the index of nothing. Download it again.",
            path=index,
        )
    return dict(sorted(shards.items()))


def _by_parameter(table: LeafTable) -> _Table:
    """Leaves by the path that the index gives them: names may be joined by slashes already."""
    joined = {path: tuple(part for name in path for part in name.split("/")) for path in table}
    return {joined[path]: replace(leaf, path=joined[path]) for path, leaf in table.items()}


def _lost(index: Path, file: Path, path: LeafPath, error: LegacyError) -> LegacyError:
    return type(error)(
        f"leaf {format_path(path)}: {index.name} says it is in {file.name}, which cannot be read: "
        f"{error.message}",
        path=file,
        leaf=path,
        offset=error.offset,
    )


def _not_there(index: Path, file: Path, path: LeafPath) -> Leaf:
    error = DamagedCheckpoint(
        f"{file}: leaf {format_path(path)}: {index.name} says it is in this file, and it is not. "
        "The files are not of one save; download all of them again.",
        path=file,
        leaf=path,
    )
    return unreadable(path, error)


def _surplus(index: Path, unnamed: list[str]) -> DamagedCheckpoint:
    shown = ", ".join(unnamed[:_SHOWN])
    more = f", and {len(unnamed) - _SHOWN} more" if len(unnamed) > _SHOWN else ""
    return DamagedCheckpoint(
        f"{index}: {len(unnamed)} parameters are in files where the index does not name them: "
        f"{shown}{more}. The files are not of one save; download all of them again.",
        path=index,
        problems=unnamed,
    )


def _describe(index: Path, shards: Mapping[str, Any], formats: list[Format]) -> Format:
    parts = {part for kind in formats for part in kind.layout.split("+")} - {"msgpack"}
    eras = sorted({kind.era for kind in formats if kind.era != "any release of flax"})
    count = sum(len(parameters) for parameters in shards.values())
    evidence = [f"{index.name} names {count} parameters in {len(shards)} files"]
    evidence += dict.fromkeys(fact for kind in formats for fact in kind.evidence)
    era = ", ".join(eras) or "any release of flax"
    layout = "+".join(["msgpack", "shards", *sorted(parts)])
    return Format("flax-msgpack", layout, f"{era}, by Hugging Face transformers", tuple(evidence))
