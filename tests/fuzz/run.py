"""Coverage-guided fuzzing with atheris: ``python tests/fuzz/run.py TARGET --seconds N``.

New inputs are kept in ``--corpus`` (a folder beside none of the project's files unless you say
so), findings in ``--findings``. Memory is bounded, so that a size that is believed is a finding.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import resource
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["legacy"]):
    import targets

from mutators import mutate_json

MEMORY = 1 << 32
"""Address space of the process: threads and libraries need most of it."""


WORDS = (
    *"null true false NaN -Infinity 1e400 -1 0.0 18446744073709551616 281474976710656".split(),
    *"[] {}".split(),
    *'"key" "key_type" "key_metadata" "value_metadata" "value_type" "tree_metadata"'.split(),
    *'"use_zarr3" "custom_metadata" "item_handlers" "string" "scalar" "None" "Dict" ".."'.split(),
    *'"array_metadatas" "array_metadata" "param_name" "ext_metadata" "random_key_impl"'.split(),
    *'"shape" "chunks" "dtype" "compressor" "fill_value" "order" "F" "filters" "zlib"'.split(),
    *'"<V2" "|b1" ">f4" "<f8" "bfloat16" "dimension_separator" "/" "zarr_format" "blosc"'.split(),
    *'"data_type" "chunk_grid" "codecs" "sharding_indexed" "transpose" "crc32c" "gzip"'.split(),
    *"float32 int4 bool <V2 >f4 str32 bytes8 <M8[ns] PLACEHOLDER:// //GDAPlaceholder:".split(),
    *"__msgpack_chunked_array__ shape chunks name fields values driver kvstore".split(),
)


def _escaped(word: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word.encode("latin-1"))


def _mutate(data: bytes, max_size: int, seed: int) -> bytes:
    rng = random.Random(seed)  # noqa: S311 - no secrets
    if rng.random() < 0.5:
        return atheris.Mutate(data, max_size)
    return mutate_json(data, rng)[:max_size]


def main() -> None:
    """Fuzz one target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=sorted(targets.TARGETS))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--findings", type=Path)
    given = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-run-"))
    corpus = given.corpus or scratch / "corpus"
    findings = given.findings or scratch / "findings"
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    target = targets.TARGETS[given.target]
    for data in target.seeds():
        (corpus / hashlib.sha1(data).hexdigest()).write_bytes(data)  # noqa: S324 - a name
    sys.stderr.write(f"corpus {corpus}, findings {findings}\n")
    words = scratch / "words"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in WORDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    options = [
        f"-max_total_time={given.seconds}",
        f"-artifact_prefix={findings}/",
        f"-dict={words}",
        "-max_len=16000",
        "-timeout=20",
        "-rss_limit_mb=2048",
        "-print_final_stats=1",
    ]
    extra = {} if given.target in targets.BINARY else {"custom_mutator": _mutate}
    command = [sys.argv[0], *options, str(corpus)]
    atheris.Setup(command, lambda data: target.run(data) and None, **extra)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
