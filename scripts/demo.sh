#!/usr/bin/env bash
# Sets the environment up (scripts/setup.sh), makes a real Linen run, converts it, and shows the
# plan and the verdict: the whole job on a checkpoint of your own making.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
export JAX_PLATFORMS=cpu
PATH="$PWD/${VENV:-.venv}/bin:$PATH"
exec python -W ignore conversion_examples/cnn_train_state.py "$@"
