#!/bin/bash
# Writes requirements.lock anew from pyproject.toml (needs uv: pip install uv). Pass --upgrade to take newer versions. The locks of
# the image are its parts: what runs, without what has to be compiled, and what builds the package.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
uv pip compile pyproject.toml --universal --python-version 3.11 --all-extras --group dev --group bench \
    --generate-hashes --no-emit-index-url --no-header -o requirements.lock "$@"
part() { # part FILE SOURCE OPTION... : with the versions of requirements.lock
    uv pip compile "${@:2}" -c requirements.lock --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
        --no-annotate -o "deploy/docker/$1" >/dev/null
}
part runtime.lock pyproject.toml --extra hdfs --extra gs --extra az --extra postgresql
echo "hatchling" | part build.lock -
