#!/bin/bash
# run.sh HOME ERA OUT [CONTENT-WRITER ...]: writes the goldens of ERA (built in HOME) into OUT
# With SCRIPT=matrix.py it writes the whole matrix instead (then the arguments are those of matrix.py).
here=$(cd "$(dirname "$0")" && pwd)
home=$1 era=$2; shift 2
[ -d "$home/$era/stubs" ] && export LD_LIBRARY_PATH=$home/$era/stubs
export JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=3 PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0
exec "$home/$era/bin/python" -W ignore "$here/${SCRIPT:-make.py}" "$@"
