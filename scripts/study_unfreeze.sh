#!/usr/bin/env bash
# Why does unfreezing collapse? Arms that differ from another arm in one thing each, several seeds, equal budgets, all from one and the same checkpoint:
# a 1B1H detector, then 1B4H with its trunk frozen (stage 1). Ends in a table and a picture (utils/study/study.py). Stopped halfway, the same command goes on.
#
#   bash scripts/study_unfreeze.sh [more train.py flags for every arm]                       the embedded data
#   DATA=coco128.yaml WEIGHTS=yolov5n.pt bash scripts/study_unfreeze.sh                      any other; WEIGHTS: the 1B1H detector to start from
#
# Variables: PROJECT, SEEDS, EPOCHS (of each arm), BASE_EPOCHS, STAGE1_EPOCHS, IMG, BATCH, CFG, HEAD_CONFIG, HYP, LR0, FREEZE (stage 1's freeze point),
# GRADUAL (the schedule of the gradual arms), ARMS (a regular expression: only arms with such names).
# Every arm runs with --compat v5: as in YOLOv5, biases may then start at warmup_bias_lr whatever lr0 is. Without it that rate is capped for every stage
# that starts from weights, and the fault could not be shown.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
python=${PYTHON:-python}
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then python=.venv/bin/python; fi

DATA=${DATA:-data/shapes.yaml}
WEIGHTS=${WEIGHTS:-}
if [ "$DATA" = data/shapes.yaml ]; then
    defaults=(runs/study_unfreeze 128 8 8 cfg/training/demo-1b4h.yaml data/shapes_1b4h.yaml data/hyp.demo.yaml 50 "0:50-77, 2:30-49, 4:10-29, 6:0-9")
else
    defaults=(runs/study_unfreeze_data 320 8 8 cfg/training/yolov5n-1b4h.yaml data/coco_320_1b4h_anticonfusion.yaml data/hyp.scratch.tiny.noota.yaml 10
        "0:10-24, 2:7-9, 4:4-6, 6:0-3")
    : "${WEIGHTS:?with other data set WEIGHTS to the 1B1H checkpoint to start from}"
fi
PROJECT=${PROJECT:-${defaults[0]}}
IMG=${IMG:-${defaults[1]}}
BATCH=${BATCH:-${defaults[2]}}
EPOCHS=${EPOCHS:-${defaults[3]}}
CFG=${CFG:-${defaults[4]}}
HEAD_CONFIG=${HEAD_CONFIG:-${defaults[5]}}
HYP=${HYP:-${defaults[6]}}
FREEZE=${FREEZE:-${defaults[7]}}
GRADUAL=${GRADUAL:-${defaults[8]}}
BASE_EPOCHS=${BASE_EPOCHS:-50}
STAGE1_EPOCHS=${STAGE1_EPOCHS:-4}
SEEDS=${SEEDS:-0,1,2}
LR0=${LR0:-0.01}
ARMS=${ARMS:-}
low=$("$python" -c "print($LR0 / 10)")

common=(--data "$DATA" --img-size "$IMG" "$IMG" --batch-size "$BATCH" --test-batch-size 32 --workers 0 --cache-images --noautoanchor)
heads=(--cfg "$CFG" --hyp "$HYP" --heads 4 --head-config "$HEAD_CONFIG")

ended() { [ -e "$1/result.yaml" ]; }
run() { # folder name, then train.py's flags: start or go on; nothing where it has ended
    local folder=$PROJECT/$1
    if ended "$folder"; then return; fi
    if [ -e "$folder/weights/last.pt" ]; then
        "$python" train.py --resume "$folder"
    else
        "$python" train.py "${common[@]}" --project "$PROJECT" --name "$1" --exist-ok "${@:2}"
    fi
    ended "$folder" || { echo "$folder was stopped before its end; run this command again to go on" >&2; exit 1; }
}

if [ -z "$WEIGHTS" ]; then
    # Adam learns in minutes what the published recipe needs hours for; the arms use that recipe's SGD
    run base_1b1h --cfg cfg/training/demo.yaml --hyp data/hyp.demo.yaml --adam --nominal-batch "$BATCH" --epochs "$BASE_EPOCHS"
    WEIGHTS=$PROJECT/base_1b1h/weights/best.pt
fi
run stage1 "${heads[@]}" --weights "$WEIGHTS" --transfer-weights --freeze "$FREEZE" --epochs "$STAGE1_EPOCHS" --lr0 "$LR0"

# name: flags                                                                # what it differs in (from which arm)
arms=(
    "sudden: --freeze 0"                                                     # all modules open at once (frozen)
    "sudden, bias .1: --freeze 0 --warmup_bias_lr 0.1"                       # biases start at .1 (sudden)
    "sudden, sum: --freeze 0 --head-loss sum"                                # the heads' losses are summed (sudden)
    "gradual: --unfreeze '$GRADUAL'"                                         # opens step by step, each with its ramp (sudden)
    "gradual, BN drifts: --unfreeze '$GRADUAL' --freeze-bn train"            # statistics of frozen norms move (gradual)
    "sudden, bias .1, sum: --freeze 0 --warmup_bias_lr 0.1 --head-loss sum"  # both (sudden)
    "sudden, low rate: --freeze 0 --lr0 $low --warmup_bias_lr $low"          # a tenth of the rate (sudden)
    "frozen: --freeze $FREEZE"                                               # stage 1 goes on: what unfreezing is held against
    "frozen, sum: --freeze $FREEZE --head-loss sum"                          # the heads' losses are summed (frozen)
    "frozen, BN drifts: --freeze $FREEZE --freeze-bn train"                  # statistics of frozen norms move (frozen)
)
chosen=()
for arm in "${arms[@]}"; do
    if [[ ${arm%%:*} =~ $ARMS ]]; then chosen+=(--arm "$arm"); fi
done
"$python" -m utils study --project "$PROJECT" --seeds "$SEEDS" --columns mAP50,mAP "${chosen[@]}" -- "${common[@]}" "${heads[@]}" \
    --weights "$PROJECT/stage1/weights/best.pt" --epochs "$EPOCHS" --compat v5 --lr0 "$LR0" --warmup_bias_lr "$LR0" "$@"
