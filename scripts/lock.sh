#!/bin/bash
# Writes requirements.lock anew from pyproject.toml (needs uv: pip install uv). Pass --upgrade to take newer versions.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
uv pip compile pyproject.toml --universal --python-version 3.11 --all-extras --group dev --group bench \
    --generate-hashes --no-emit-index-url --no-header -o requirements.lock "$@"
