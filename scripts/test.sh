#!/usr/bin/env bash
# Sets the environment up (scripts/setup.sh) and runs the tests; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
export JAX_PLATFORMS=cpu
exec "${VENV:-.venv}/bin/python" -m pytest -q "$@"
