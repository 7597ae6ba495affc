#!/usr/bin/env bash
# Replays a chain of stages from its first one, each from the replayed checkpoint of the stage before, and compares each with its original.
#
#   bash scripts/replay_chain.sh RUN [PROJECT] [--device D] [--workers N]
#
# RUN: folder of the last stage. PROJECT: where the replays go, default RUN_replay. Stops at the first stage that is not identical (exit code 1; 2 for bad
# input) and ends with a table. Stopped halfway, the same command goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."

run=${1:?give the run folder of the last stage}
project=${2:-${run%/}_replay}
python=${PYTHON:-python}
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then python=.venv/bin/python; fi

stages=$("$python" -m utils replay chain "$run")
code=0
before=
while IFS=$'\t' read -r original weights name; do
    replay=$project/$name
    echo "=== $name: $original"
    if [ -e "$replay/weights/last.pt" ]; then
        "$python" train.py --resume "$replay" "${@:3}" </dev/null || code=$?
    else
        from=()
        if [ "$weights" != - ]; then from=(--weights "$before/weights/$weights"); fi
        "$python" train.py --replay "$original" --project "$project" --name "$name" ${from[@]+"${from[@]}"} "${@:3}" </dev/null || code=$?
    fi
    if [ "$code" = 0 ] && [ ! -e "$replay/result.yaml" ]; then
        echo "$name was stopped before its end; run this command again to go on" >&2
        code=1
    fi
    if [ "$code" != 0 ]; then break; fi
    before=$replay
done <<<"$stages"
echo
"$python" -m utils replay table "$run" "$project"
exit "$code"
