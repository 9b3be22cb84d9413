"""Makes the README's table of formats from the golden checkpoints; no cell is written by hand.

    python tests/e2e/format_table.py [--check]

Every golden is opened by this project and compared with its truth; what flax and Orbax of today do
with it was measured by ``tests/goldens/make/today.py`` and lies in ``tests/goldens/today.json``.
``--check`` says whether the README has the table that comes out, and changes nothing.
"""

from __future__ import annotations

import json
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compare import StoredTruth, differences

import legacy

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "goldens"
README = ROOT / "README.md"
BEGIN = "<!-- made by tests/e2e/format_table.py -->"
END = "<!-- end -->"
LIBRARIES = ("flax", "orbax", "v1")


@dataclass(frozen=True, slots=True)
class Golden:
    """One golden: what it is, what we make of it, and what others do."""

    row: str
    flax: tuple[int, ...]
    ours: str
    today: dict[str, str]


def main() -> int:
    """Print or check the table; exit code 1 when the README has another one."""
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    made = f"{before}{BEGIN}\n{table()}\n{END}{after}"
    if "--check" in sys.argv[1:]:
        if made == README.read_text(encoding="utf-8"):
            return 0
        sys.stderr.write(f"{README.name} has another table than the goldens give\n")
        return 1
    README.write_text(made, encoding="utf-8")
    return 0


def table() -> str:
    """The table in Markdown, with a line on how it was measured."""
    today = json.loads((GOLDENS / "today.json").read_text())
    with tempfile.TemporaryDirectory() as scratch:
        unpack(Path(scratch))
        goldens = [measured(folder, today) for folder in folders(Path(scratch))]
    rows = [row for row, _ in ROWS if any(g.row == row for g in goldens)]
    columns = ["on disk", "written by flax", "goldens", "this reader", f"flax {today['flax']}"]
    columns += [f"Orbax {today['orbax']}", "its v1"]
    head = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return "\n".join([*head, *(line(row, [g for g in goldens if g.row == row]) for row in rows)])


def unpack(scratch: Path) -> None:
    """Unpack the archives of the eras, and link the goldens that are folders."""
    for archive in sorted((GOLDENS / "eras").glob("*.tar.xz")):
        with tarfile.open(archive) as tar:
            tar.extractall(scratch / archive.name.removesuffix(".tar.xz"), filter="tar")


def folders(scratch: Path) -> Iterator[Path]:
    """The folder of each golden, packed or not."""
    for root in (scratch, GOLDENS):
        yield from (truth.parent for truth in sorted(root.glob("*/**/truth.json")))


def measured(folder: Path, today: dict[str, Any]) -> Golden:
    """Open one golden and compare it."""
    truth = StoredTruth(folder / "truth.json")
    wrong = differences(folder)
    ours = "exact" if not wrong else "wrong"
    if not wrong and truth.losses:
        ours = "lost"
    era = "latest" if folder.parent.name == "latest" else folder.parent.name
    return Golden(
        row_of(truth), release_of(truth), ours, today["goldens"].get(f"{era}/{folder.name}", {})
    )


@dataclass(frozen=True, slots=True)
class Facts:
    """What decides the row of a golden: the truth, and what the reader sees."""

    truth: StoredTruth
    found: legacy.Format

    @property
    def flax(self) -> tuple[int, ...]:
        """The release of flax."""
        return release_of(self.truth)

    @property
    def layout(self) -> set[str]:
        """Words for how arrays lie."""
        return set(self.found.layout.split("+"))

    def is_tree(self, *layout: str) -> bool:
        """An Orbax tree that has at least these layouts."""
        return self.found.name == "orbax" and set(layout) <= self.layout

    def says(self, words: str) -> bool:
        """Whether the era or the evidence has these words."""
        return any(words in fact for fact in (self.found.era, *self.found.evidence))

    @property
    def is_shared(self) -> bool:
        """Saved from several devices or processes."""
        info = self.truth.info
        return bool(info.get("processes", 1) > 1 or info.get("devices", 1) > 1)

    @property
    def is_run(self) -> bool:
        """The root of a CheckpointManager."""
        return self.truth.checkpoint.name == "mgr"


JSON, MSGPACK = "_METADATA with", "the msgpack file checkpoint"
ROWS: tuple[tuple[str, Callable[[Facts], bool]], ...] = (
    ("msgpack file, dtypes as codes", lambda f: f.found.name == "flax-msgpack"),
    ("msgpack file, namedtuples by class", lambda f: f.layout == {"msgpack"} and f.flax >= (0, 3)),
    ("msgpack file", lambda f: f.layout == {"msgpack"} and f.flax >= (0, 3, 5)),
    ("msgpack file and `_gda` folder", lambda f: "gda" in f.layout),
    ("zarr or OCDBT without an index", lambda f: f.is_tree()),
    ("Orbax, all values in the msgpack index", lambda f: f.is_tree() and f.layout == {"aggregate"}),
    ("zarr folders, msgpack index", lambda f: f.is_tree("zarr") and f.says(MSGPACK)),
    ("zarr folders, `_METADATA`", lambda f: f.is_tree("zarr") and f.says(JSON)),
    ("zarr3 folders, `_METADATA`", lambda f: f.is_tree("zarr3") and f.says(JSON)),
    ("OCDBT, msgpack index", lambda f: f.is_tree("ocdbt") and f.says(MSGPACK)),
    ("OCDBT, `_METADATA`", lambda f: f.is_tree("ocdbt") and f.says(JSON)),
    ("OCDBT of zarr3, `_METADATA`", lambda f: f.is_tree("ocdbt", "zarr3") and f.says(JSON)),
    (
        "Orbax, some values in the index",
        lambda f: f.is_tree("aggregate") and f.layout != {"aggregate"},
    ),
    ("CheckpointManager run", lambda f: f.found.name == "orbax" and f.is_run),
    ("Orbax v1 folder", lambda f: f.found.name == "orbax-v1"),
    (
        "Orbax, several devices or processes",
        lambda f: f.found.name != "flax-msgpack" and f.is_shared,
    ),
    ("Orbax, databases never merged", lambda f: "unmerged" in f.truth.folder.name),
    ("NNX state of flax 0.8 – 0.11", lambda f: f.says("NNX")),
    ("Hugging Face folder, shards and index", lambda f: f.truth.info["writer"].startswith("hf")),
)
"""The rows in their order; a golden belongs to the last that fits."""


def release_of(truth: StoredTruth) -> tuple[int, ...]:
    """The release of flax that wrote a golden."""
    return tuple(int(part) for part in truth.info["flax"].split("."))


def row_of(truth: StoredTruth) -> str:
    """The row of a golden."""
    facts = Facts(truth, legacy.detect(truth.checkpoint, step=truth.open_step))
    return next(row for row, fits in reversed(ROWS) if fits(facts))


def line(row: str, goldens: list[Golden]) -> str:
    """One line of the table."""
    releases = sorted({g.flax for g in goldens})
    first, last = (".".join(map(str, r)) for r in (releases[0], releases[-1]))
    span = first if first == last else f"{first} – {last}"
    ours = Counter(g.ours for g in goldens)
    cells = [row, span, str(len(goldens)), in_words(ours, len(goldens))]
    cells += [
        in_words(Counter(g.today[library] for g in goldens if library in g.today), len(goldens))
        for library in LIBRARIES
    ]
    return f"| {' | '.join(cells)} |"


def in_words(counts: Counter[str], every: int) -> str:
    """What happened how often."""
    total = counts.total()
    if not total:
        return "–"
    words = {
        "exact": "exact",
        "lost": "with losses said",
        "empties": "`None` for empties",
        "nothing": "nothing",
        "wrong": "**wrong**",
    }
    named: Counter[str] = Counter()
    for what, count in counts.items():
        named[words.get(what, "error")] += count
    order = [*words.values(), "error"]
    parts = [f"{named[w]} {w}" for w in order if named[w]]
    if len(parts) == 1 and total == every:
        return parts[0].split(" ", 1)[1]
    return ", ".join(parts)


if __name__ == "__main__":
    raise SystemExit(main())
