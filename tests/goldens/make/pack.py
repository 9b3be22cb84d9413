"""Packs a choice of the goldens that `matrix.py` made into one archive for each era.

    python pack.py MATRIX_OUT ERAS_FOLDER [ERA ...]

writes ERAS_FOLDER/<era>.tar.xz and ERAS_FOLDER/INDEX.txt, which names every golden in them. The same
goldens give the same bytes: names are sorted, times and owners are left out, and the arrays of the
truth are stored plainly, for xz to compress.

What is chosen (`wanted`): of flax's own writers everything, but for the second way to the same
bytes; of Orbax every writer of every era once, every content (but the large ones) once for each
layout, and what
`also.txt` names (`<era>/<content>-<writer>` on each line): oddities of single releases.
Needs nothing but Python and numpy.
"""
import io
import json
import lzma
import pathlib
import sys
import tarfile

import numpy as np

LAYOUTS = {
    # the newest era of each layout of Orbax, and the writers that lay trees out differently
    "flax064": ("ptc", "ptc_agg"),
    "flax0611": ("ptc", "ptc_agg", "ptc_ocdbt"),
    "flax072": ("ptc", "ptc_agg", "ptc_ocdbt"),
    "flax075": ("ptc", "ptc_noocdbt", "std"),
    "flax084": ("ptc", "ptc_noocdbt"),
    "flax090": ("ptc", "ptc_noocdbt", "ptc_zarr3"),
    "flax0102": ("ptc",),
    "flax0120": ("ptc", "v1"),
    "latest": ("ptc", "ptc_noocdbt", "ptc_zarr3", "v1"),
}
FEW = ("mlp_params", "cnn_state")
LARGE = ("cnn_state", "optax_multi")
SAME_BYTES = ("flax_to_bytes", "flax_serialize", "flax_to_bytes_chunked")
SAME_BYTES_ONLY = ("bundle", "odd_nest", "chunked", "prelinen_optim", "optim_bare", "bare_array")
MACHINE = b"/tmp/golden"
ALSO = pathlib.Path(__file__).with_name("also.txt")


def main():
    """Pack every era below the first folder into the second."""
    source, target = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    eras = sys.argv[3:] or sorted(path.name for path in source.iterdir() if path.is_dir())
    index = {line.split("/")[0]: [] for line in _lines(target / "INDEX.txt")}
    for line in _lines(target / "INDEX.txt"):
        index[line.split("/")[0]].append(line)
    for era in eras:
        goldens = [path for path in sorted((source / era).iterdir()) if (path / "truth.json").exists()]
        chosen = wanted(era, [path.name for path in goldens])
        data = _archive([path for path in goldens if path.name in chosen], source)
        (target / f"{era}.tar.xz").write_bytes(data)
        index[era] = [f"{era}/{name}" for name in sorted(chosen)]
        print(f"{era}: {len(chosen)} of {len(goldens)} goldens, {len(data) / 1000:.0f} kB")
    lines = [line for era in sorted(index) for line in index[era]]
    (target / "INDEX.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def wanted(era, names):
    """The goldens of an era that go into its archive."""
    also = {line.partition("/")[2] for line in _lines(ALSO) if line.startswith(f"{era}/")}
    chosen, seen = also & set(names), set()
    for name in sorted(names, key=lambda name: (_rank(name), name)):
        content, _, writer = name.partition("-")
        if name in chosen:
            continue
        if writer.startswith(("flax_", "hf_")) and not writer.startswith("flax_orbax"):
            if writer not in SAME_BYTES or content in SAME_BYTES_ONLY:
                chosen.add(name)
        elif not content.startswith(("odd_", "optax_")) and writer not in seen:
            chosen.add(name)  # the plainest content of each writer
            seen.add(writer)
        elif _is_sharded(content) or content not in LARGE and writer in LAYOUTS.get(era, ()):
            chosen.add(name)
    return chosen


def _rank(name):
    content = name.partition("-")[0]
    return FEW.index(content) if content in FEW else len(FEW)


def _is_sharded(content):
    return content.rstrip("0123456789") in ("sharded", "mp", "gda") or content.startswith("mp2")


def _lines(file):
    return file.read_text(encoding="utf-8").split() if file.exists() else []


def _archive(goldens, root):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for golden in goldens:
            for path in sorted(golden.rglob("*")):
                if path.is_dir() and any(path.iterdir()):
                    continue
                info = tarfile.TarInfo(path.relative_to(root).as_posix())
                if path.is_dir():  # an empty one may matter
                    info.type, info.mode = tarfile.DIRTYPE, 0o755
                    tar.addfile(info)
                elif path.is_symlink():
                    info.type, info.linkname = tarfile.SYMTYPE, str(path.readlink())
                    tar.addfile(info)
                else:
                    data = _content(path, root)
                    info.size, info.mode = len(data), 0o644
                    tar.addfile(info, io.BytesIO(data))
    return lzma.compress(raw.getvalue(), preset=9)


def _content(path, root):
    """The bytes of a file; of a truth the same facts in less space."""
    data = path.read_bytes()
    if path.suffix == ".npz" and path.stem.startswith("truth"):
        with np.load(io.BytesIO(data)) as arrays:
            plain = io.BytesIO()
            np.savez(plain, **arrays)
        return plain.getvalue()
    if path.suffix == ".json" and path.stem.startswith("truth"):
        text = json.dumps(json.loads(data), ensure_ascii=False, separators=(",", ":"))
        return text.encode() + b"\n"
    if path.name == "commit_success.txt":  # Orbax 0.12 notes where it wrote
        return data.replace(str(root.absolute()).encode(), MACHINE)
    return data


if __name__ == "__main__":
    main()
