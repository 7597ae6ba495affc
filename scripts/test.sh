#!/usr/bin/env bash
# Sets up if needed, then runs the tests. Arguments go to pytest, e.g.: bash scripts/test.sh -m slow
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh dev
exec .venv/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
