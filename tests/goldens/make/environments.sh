#!/bin/bash
# environments.sh HOME ERA...: builds the environment of each era in HOME/ERA with uv, from the
# exact versions in requirements/. The eras up to flax 0.6.1 also need gcc, readelf and nm.
set -e
here=$(cd "$(dirname "$0")" && pwd)
home=$1; shift
for era in "$@"; do
  case $era in
    flax034 | flax036 | flax061) python=3.8 ;;
    flax072 | flax075) python=3.9 ;;
    flax0610 | flax085) python=3.10 ;;
    latest) python=3.12 ;;
    *) echo "no such era: $era" >&2; exit 2 ;;
  esac
  uv venv -q -p $python "$home/$era"
  uv pip install -q -p "$home/$era/bin/python" --no-deps -r "$here/requirements/$era.txt"
  if grep -q jaxlib-rocm "$here/requirements/$era.txt"; then
    python3 "$here/rocm_stubs.py" "$home/$era/lib/python3.8/site-packages/jaxlib" "$home/$era/stubs"
  fi
done
