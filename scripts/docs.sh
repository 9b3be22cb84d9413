#!/usr/bin/env bash
# Builds the documentation into build/docs; a warning is an error, and so is a generated part that is
# not current. Sets the environment up (scripts/setup.sh) and adds the `docs` group to it, once.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
python="${VENV:-.venv}/bin/python"
if ! "$python" -c 'import myst_parser, sphinx_book_theme' 2> /dev/null; then
  tools=('sphinx>=8.2' 'myst-parser>=4' 'sphinx-book-theme>=1.1.4')
  if command -v uv > /dev/null; then
    uv pip install -q -p "$python" "${tools[@]}"
  else
    "$python" -m pip install -q --disable-pip-version-check "${tools[@]}"
  fi
fi
export JAX_PLATFORMS=cpu
"$python" docs/generate.py --check
exec "$python" -m sphinx -q -W --keep-going -b html docs build/docs "$@"
