"""Writes DIGESTS.sha256: the sha256 of every file of every golden, and of every archive.

    python digests.py [GOLDENS]

A golden must never change by accident (line endings, a tool that tidies a folder). Check with
`sha256sum -c DIGESTS.sha256` in the goldens' folder. Needs nothing but Python.
"""
import hashlib
import pathlib
import sys


def main():
    """Hash everything below the era folders, in the order of the names."""
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else __file__).resolve()
    root = root if root.is_dir() else root.parent.parent
    files = [*root.glob("*/*/**/*"), *root.glob("eras/*")]
    names = sorted({path.relative_to(root).as_posix() for path in files
                    if path.is_file() and path.relative_to(root).parts[0] != "make"})
    lines = [f"{hashlib.sha256((root / name).read_bytes()).hexdigest()}  {name}\n"
             for name in names]
    (root / "DIGESTS.sha256").write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines)} files")


if __name__ == "__main__":
    main()
