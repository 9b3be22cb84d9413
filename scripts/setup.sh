#!/usr/bin/env bash
# Makes the virtual environment $VENV (default .venv) with the project and its test tools in it,
# once: a second call returns at once unless pyproject.toml or the constraints have changed.
#   PYTHON       which Python (default python3; 3.11 or newer)
#   CONSTRAINTS  a pip constraints file, to test with other releases than the newest
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
python=${PYTHON:-python3}
stamp=$(cat pyproject.toml ${CONSTRAINTS:-} | cksum)
if [ "$(cat "$venv/.stamp" 2>/dev/null)" = "$stamp" ]; then
  exit 0
fi
constraint=()
if [ -n "${CONSTRAINTS:-}" ]; then constraint=(-c "$CONSTRAINTS"); fi
tools=('pytest>=8.4' 'hypothesis>=6.130' 'ruff>=0.14' 'mypy>=1.18')
if command -v uv > /dev/null; then
  uv venv -q --clear -p "$python" "$venv"
  uv pip install -q -p "$venv/bin/python" -e . "${tools[@]}" "${constraint[@]}"
else
  "$python" -m venv --clear "$venv"
  "$venv/bin/python" -m pip install -q --disable-pip-version-check -e . "${tools[@]}" "${constraint[@]}"
fi
echo "$stamp" > "$venv/.stamp"
