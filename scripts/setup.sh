#!/usr/bin/env bash
# Makes .venv with the pinned requirements; does nothing where that is done. Usage: bash scripts/setup.sh [dev]
set -euo pipefail
cd "$(dirname "$0")/.."

python=""
for candidate in "${PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "Python 3.11 or newer is needed (found: $(python3 --version 2>&1)); set PYTHON=/path/to/python3" >&2
    exit 1
fi

install() { # requirements file -> installed once per content
    local stamp=".venv/$1.installed"
    if ! cmp -s "$1" "$stamp"; then
        echo "installing $1 (the first time: several GB, a few minutes)"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$1"
        cp "$1" "$stamp"
    fi
}

[ -x .venv/bin/python ] || "$python" -m venv .venv
install requirements.txt
if [ "${1:-}" = dev ]; then install requirements-dev.txt; fi
