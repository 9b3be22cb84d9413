#!/bin/bash
# environments.sh HOME ERA...: builds the environment of each era in HOME/ERA with uv, from the
# exact versions in requirements/. The eras up to flax 0.6.7 also need gcc, readelf and nm.
set -e
here=$(cd "$(dirname "$0")" && pwd)
home=$1; shift
for era in "$@"; do
  case $era in
    flax010 | flax022 | flax030 | flax034 | flax036 | flax042 | flax061) python=3.8 ;;
    flax063 | flax064 | flax067) python=3.8 ;;
    flax0611 | flax072 | flax075 | flax075hf) python=3.9 ;;
    flax0610 | flax081 | flax084 | flax085) python=3.10 ;;
    flax090 | flax0102 | flax0106 | flax0112) python=3.11 ;;
    flax0120 | latest) python=3.12 ;;
    *) echo "no such era: $era" >&2; exit 2 ;;
  esac
  uv venv -q -p $python "$home/$era"
  uv pip install -q -p "$home/$era/bin/python" --no-deps -r "$here/requirements/$era.txt"
  if grep -q jaxlib-rocm "$here/requirements/$era.txt"; then
    python3 "$here/rocm_stubs.py" "$home/$era/lib/python3.8/site-packages/jaxlib" "$home/$era/stubs"
  fi
done
