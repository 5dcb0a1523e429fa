#!/bin/bash
# Everything that can be said of the source without running it: style, types, layers, and that generated code is up to date.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin=.venv/bin
failed=
run() { # run NAME CMD...
    local name=$1 out
    shift
    if ! out=$("$@" 2>&1); then
        echo "$out"
        failed="$failed $name"
    fi
}
run ruff $bin/ruff check -q .
run format $bin/ruff format -q --check .
run mypy $bin/mypy
run layers $bin/lint-imports
run proto scripts/proto.sh --check
[ -z "$failed" ] || { echo "check: failed:$failed" >&2; exit 1; }
echo "check: style, types, layers and generated code are in order"
