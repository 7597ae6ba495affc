#!/usr/bin/env bash
# Two stages: first with a part of the network frozen, then everything, from the first stage's best checkpoint.
#
#   WEIGHTS=base/weights/best.pt DATA=data.yaml CFG=cfg/training/yolov7-tiny.yaml bash scripts/two_stage.sh [more train.py flags for both stages]
#
# Each stage has an optimizer, an average and a schedule of its own. (In one run, with one optimizer: --unfreeze "0:29-77, 50:0-28".)
# The same command goes on where it was stopped: a finished stage (its folder holds result.yaml) is skipped, a started one resumed.
set -euo pipefail
cd "$(dirname "$0")/.."

WEIGHTS=${WEIGHTS:?set WEIGHTS to the checkpoint to start from}
DATA=${DATA:?set DATA to the data YAML}
CFG=${CFG:?set CFG to the model YAML}
FREEZE=${FREEZE:-backbone} # of stage 1, as for --freeze; several words: FREEZE="0-10 12"
EPOCHS1=${EPOCHS1:-50}
EPOCHS2=${EPOCHS2:-250}
HYP1=${HYP1:-data/hyp.scratch.tiny.yaml}
HYP2=${HYP2:-$HYP1}
LR1=${LR1:-} # empty: the rate of the hyp file
LR2=${LR2:-}
PROJECT=${PROJECT:-runs/train}
PREFIX=${PREFIX:-two_stage}
python=${PYTHON:-python}
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
read -r -a frozen <<<"$FREEZE"

# stage RUN EPOCHS HYP LR WEIGHTS FLAGS...
stage() {
    local run=$1 epochs=$2 hyp=$3 rate=$4 weights=$5
    shift 5
    if [ -e "$run/result.yaml" ]; then
        echo "=== $run: finished before"
        return
    fi
    echo "=== $run: $epochs epochs, $hyp, from $weights"
    if [ -e "$run/weights/last.pt" ]; then
        "$python" train.py --resume "$run"
    else
        if [ -n "$rate" ]; then set -- --lr0 "$rate" "$@"; fi
        "$python" train.py --data "$DATA" --cfg "$CFG" --hyp "$hyp" --epochs "$epochs" --weights "$weights" --project "$PROJECT" \
            --name "$(basename "$run")" "$@"
    fi
    if [ ! -e "$run/result.yaml" ]; then
        echo "$run was stopped before its end; run this command again to go on" >&2
        exit 1
    fi
}

first=$PROJECT/${PREFIX}_1_frozen
second=$PROJECT/${PREFIX}_2_open
stage "$first" "$EPOCHS1" "$HYP1" "$LR1" "$WEIGHTS" --transfer-weights --freeze "${frozen[@]}" "$@"
stage "$second" "$EPOCHS2" "$HYP2" "$LR2" "$first/weights/best.pt" "$@"
"$python" -m utils stages table "$first" "$second"
