#!/bin/bash
# Generates the Python of proto/ into alluxio_like/rpc/v1 and alluxio_like/csi/v1; with --check only says whether what is committed is
# up to date.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=.
if [ "${1:-}" = --check ]; then
    out=$(mktemp -d)
    trap 'rm -rf "$out"' EXIT
fi
.venv/bin/python -m grpc_tools.protoc -I proto --python_out="$out" --pyi_out="$out" --grpc_python_out="$out" proto/alluxio_like/*/v1/*.proto
if [ "$out" != . ]; then
    for file in "$out"/alluxio_like/*/v1/*; do
        cmp -s "$file" "${file#"$out"/}" || { echo "${file#"$out"/} does not match proto/: run make proto" >&2; exit 1; }
    done
fi
