"""The arrays that flax's multi-process checkpoints keep in a folder beside the msgpack file.

From flax 0.6.0 on, ``save_checkpoint_multiprocess`` writes ``checkpoint_10`` (msgpack) and
``checkpoint_10_gda/`` with one zarr2 array for each array that was spread over processes. The
msgpack file holds a placeholder string instead, ``//GDAPlaceholder:`` and the keys joined by
slashes. Today's flax reads them only with a ``GlobalAsyncCheckpointManager`` and a target;
TensorStore alone needs neither.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from legacy.errors import DamagedCheckpoint, UnsupportedCheckpoint
from legacy.leaves import Leaf, LeafPath, format_path
from legacy.orbax_folders import Folder
from legacy.orbax_reader import ArrayReader, FoundArray
from legacy.orbax_zarr import ZARR2_METADATA, ArrayMetadata, parse_array_metadata

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["GDA_SUFFIX", "SideFolder", "is_gda_placeholder"]

GDA_SUFFIX: Final = "_gda"
_PLACEHOLDER: Final = "//GDAPlaceholder:"


def is_gda_placeholder(value: object) -> bool:
    """Whether a value of a msgpack tree stands for an array in the side folder.

    Args:
        value: any value of the tree.

    Returns:
        True for the placeholder strings of flax.

    >>> is_gda_placeholder("//GDAPlaceholder:params/kernel")
    True
    """
    return isinstance(value, str) and value.startswith(_PLACEHOLDER)


class SideFolder:
    """The folder beside one msgpack file.

    Args:
        file: the msgpack file.
        placeholders: the path and the text of every placeholder in it.
    """

    def __init__(self, file: Path, placeholders: Iterable[tuple[LeafPath, str]]) -> None:
        self.file = file
        self.root = file.with_name(file.name + GDA_SUFFIX).absolute()
        self._folder: Folder | None = None
        self._paths: defaultdict[str, list[LeafPath]] = defaultdict(list)
        for path, text in placeholders:
            self._paths[text].append(path)

    def leaf(self, path: LeafPath, placeholder: str) -> Leaf:
        """The leaf that a placeholder stands for; its array is opened when it is read.

        Args:
            path: where the placeholder is.
            placeholder: the string found there.

        Returns:
            An array leaf whose storage is the zarr array in ``<file>_gda``.

        Raises:
            CannotLook: the array may not be read.
            UnsupportedCheckpoint: the folder or the array is not there, its name or a link leads
                out of the folder, its dtype is not known, or two leaves were saved to one array.
            DamagedCheckpoint: the description of the array cannot be understood.
        """
        where = f"{self.file}: leaf {format_path(path)}"
        name = placeholder.removeprefix(_PLACEHOLDER)
        self._refuse_clash(where, path, placeholder)
        parts = name.split("/")
        if name and any(p in ("", ".", "..") or "\\" in p or "\0" in p for p in parts):
            raise UnsupportedCheckpoint(
                f"{where}: its array is named {name!r}, which leads out of the folder {self.root}. "
                "This name is not followed; no release of flax needs it.",
                path=self.file,
                leaf=path,
            )
        metadata = self._metadata(where, name)
        # a root placeholder has no name, and a TensorStore key must have one
        folder = self._opened() if name else Folder(self.root.parent)
        found = FoundArray(folder, name or self.root.name, metadata)
        return Leaf(
            path,
            "array",
            shape=metadata.shape,
            dtype=metadata.dtype,
            nbytes=metadata.nbytes,
            # every chunk is written, whatever it holds: one that is not there was lost
            reader=ArrayReader(found, path, complete=True),
            storage=found.stored if found.opens_in_place else None,
            chunks=metadata.chunks,
        )

    def _refuse_clash(self, where: str, path: LeafPath, placeholder: str) -> None:
        others = [format_path(other) for other in self._paths[placeholder] if other != path]
        if others:
            raise UnsupportedCheckpoint(
                f"{where}: its array shares the name {placeholder.removeprefix(_PLACEHOLDER)!r} "
                f"with {', '.join(others)}, since flax joins keys by slashes: one value overwrote "
                "the other when it was saved, and which one is left cannot be known. Ignore both "
                "leaves by a rule, or save again with other keys.",
                path=self.file,
                leaf=path,
            )

    def _opened(self) -> Folder:
        if self._folder is None:
            self._folder = Folder(self.root)
        return self._folder

    def _metadata(self, where: str, name: str) -> ArrayMetadata:
        place = self.root / name
        if not self.root.is_dir():
            raise UnsupportedCheckpoint(
                f"{where}: its array should lie in {place}, and there is no folder {self.root}. "
                "Multi-process flax checkpoints are a file and a folder: put the folder "
                f"{self.root.name} beside {self.file.name}.",
                path=self.file,
            )
        try:
            text = self._opened().metadata(name)
            if text is not None:
                return parse_array_metadata(text[1], str(place / text[0]), place / text[0])
        except (DamagedCheckpoint, UnsupportedCheckpoint) as error:
            raise type(error)(f"{where}: {error.message}", path=error.path or place) from error
        raise UnsupportedCheckpoint(
            f"{where}: its array should lie in {place}, and no {ZARR2_METADATA} is there. "
            f"Was the folder {self.root.name} copied completely, hidden files too?",
            path=place,
        )
