#!/usr/bin/env bash
# Runs every example and compares what it prints with conversion_examples/README.md;
# `--write` puts what was printed into it. Sets the environment up (scripts/setup.sh).
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
export JAX_PLATFORMS=cpu
exec "${VENV:-.venv}/bin/python" -W ignore docs/blocks.py "$@" conversion_examples/README.md
