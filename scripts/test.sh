#!/usr/bin/env bash
# Sets up if needed, then runs the tests. Arguments go to pytest, e.g.: bash scripts/test.sh -m slow
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh dev
# the tests use toy sizes: more threads than one only get in each other's way; files run side by side instead
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec .venv/bin/python -m pytest -n auto --dist loadfile "$@"
