#!/usr/bin/env bash
# The four-stage 1B4H chain: transfer from a 1B1H detector, then freeze 50 -> 30 -> 10 -> 0, each stage from the best of the one before.
#
#   WEIGHTS=runs/train/base/weights/best.pt DATA=data/coco320.yaml bash scripts/gradual_unfreeze.sh [more train.py flags for every stage]
#
# Every number is a variable with the published value as default, e.g. FREEZE="50 40 30 0" LR="" EPOCHS="3 3 3 3" or other HYPS.
# After each stage the chain stops with a message when mAP@0.5 fell by more than MAX_DROP, the loss jumped by more than MAX_LOSS_JUMP times, or a head's
# mAP@0.5 fell by more than MAX_HEAD_DROP; CONTINUE=1 goes on all the same. A stage that has ended is skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

WEIGHTS=${WEIGHTS:?set WEIGHTS to the 1B1H checkpoint to start from}
DATA=${DATA:-data/coco320.yaml}
CFG=${CFG:-cfg/training/yolov7-tiny-1b4h.yaml}
HEADS=${HEADS:-4}
HEAD_CONFIG=${HEAD_CONFIG:-data/coco_320_1b4h_anticonfusion.yaml}
IMG=${IMG:-320}
BATCH=${BATCH:-64}
WORKERS=${WORKERS:-16}
DEVICE=${DEVICE:-}
PROJECT=${PROJECT:-runs/train}
PREFIX=${PREFIX:-gradual_anti}
read -r -a freeze <<<"${FREEZE:-50 30 10 0}"
read -r -a epochs <<<"${EPOCHS:-100 100 100 200}"
read -r -a hyps <<<"${HYPS:-data/hyp.scratch.tiny.noota.yaml data/hyp.scratch.tiny.noota.stage2.yaml data/hyp.scratch.tiny.noota.stage3.yaml data/hyp.scratch.tiny.noota.stage4.yaml}"
read -r -a rates <<<"${LR:-}" # empty: the rates of the hyp files
MAX_DROP=${MAX_DROP:-0.01}
MAX_LOSS_JUMP=${MAX_LOSS_JUMP:-1.5}
MAX_HEAD_DROP=${MAX_HEAD_DROP:-0.1}
CONTINUE=${CONTINUE:-0}
python=${PYTHON:-python}
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then python=.venv/bin/python; fi

weights=$WEIGHTS
runs=()
for i in "${!freeze[@]}"; do
    name=${PREFIX}_stage$((i + 1))_freeze${freeze[$i]}
    run=$PROJECT/$name
    runs+=("$run")
    if [ ! -e "$run/result.yaml" ]; then
        echo "=== stage $((i + 1)): freeze ${freeze[$i]}, ${epochs[$i]} epochs, ${hyps[$i]}, from $weights"
        if [ -e "$run/weights/last.pt" ]; then
            "$python" train.py --resume "$run"
        else
            transfer=()
            if [ "$i" = 0 ]; then transfer=(--transfer-weights); fi
            rate=()
            if [ -n "${rates[$i]:-}" ]; then rate=(--lr0 "${rates[$i]}"); fi
            "$python" train.py --img-size "$IMG" "$IMG" --batch-size "$BATCH" --test-batch-size "$BATCH" --data "$DATA" --cfg "$CFG" \
                --device "$DEVICE" --workers "$WORKERS" --project "$PROJECT" --noautoanchor --cache-images --heads "$HEADS" \
                --head-config "$HEAD_CONFIG" --weights "$weights" ${transfer[@]+"${transfer[@]}"} --freeze "${freeze[$i]}" --epochs "${epochs[$i]}" \
                --hyp "${hyps[$i]}" ${rate[@]+"${rate[@]}"} --name "$name" "$@"
        fi
    fi
    if [ ! -e "$run/result.yaml" ]; then
        echo "stage $((i + 1)) ($run) was stopped before its end; run this command again to go on" >&2
        exit 1
    fi
    outcome=0
    "$python" -m utils stages check "$weights" "$run" --max-drop "$MAX_DROP" --max-loss-jump "$MAX_LOSS_JUMP" --max-head-drop "$MAX_HEAD_DROP" || outcome=$?
    if [ "$outcome" = 3 ]; then
        echo "stage $((i + 1)) ($run): going on without a verdict" >&2
    elif [ "$outcome" -gt 1 ]; then # the check could not be made: a wrong limit is no collapse
        exit "$outcome"
    fi
    if [ "$outcome" = 1 ]; then
        if [ "$CONTINUE" != 1 ]; then
            echo "stopped after stage $((i + 1)) ($run). Smaller steps: FREEZE=\"50 40 30 ...\"; lower rates: LR=\"0.01 0.0005 0.0002 0.00005\"; go on all the same: CONTINUE=1" >&2
            exit 1
        fi
        echo "CONTINUE=1: going on" >&2
    fi
    weights=$run/weights/best.pt
done
"$python" -m utils stages table "${runs[@]}"
