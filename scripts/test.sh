#!/usr/bin/env bash
# Sets the environment up (scripts/setup.sh) and runs the tests; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
export JAX_PLATFORMS=cpu
python="${VENV:-.venv}/bin/python"
if [[ $* == *tests/* ]]; then
  exec "$python" -m pytest -q "$@"
fi
# the pairs of models compile hundreds of programs, which stay in memory: a process of their own
failed=0
"$python" -m pytest -q --ignore tests/pairs "$@" || failed=1
"$python" -m pytest -q tests/pairs "$@" || failed=1
exit "$failed"
