#!/bin/sh
# install.sh SOURCE WHEELS: install normbench from the checkout SOURCE, with every dependency pinned
# by hash. If the folder WHEELS holds any, nothing is downloaded. PYTHON names the interpreter.
set -eu
source=$1
wheels=$2
python=${PYTHON:-python3}
export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

if [ -n "$(find "$wheels" -name '*.whl' -print -quit)" ]; then
    export PIP_NO_INDEX=1 PIP_FIND_LINKS="$wheels"
fi
"$python" -m pip install --require-hashes -r "$source/requirements-build.lock"
# --no-build-isolation: what builds a package is pinned by hash like what is built.
"$python" -m pip install --require-hashes --no-build-isolation -r "$source/requirements.lock"
"$python" -m pip install --no-deps --no-build-isolation "$source"
"$python" -P -m normbench --version
