#!/usr/bin/env bash
# What does alignment with infrared partners do to detection in the dark? Weight 0, alignment at two weights and with a memory of hard negatives, and the
# control whose partners are those of other scenes: equal budgets, several seeds, all from one detector that was trained on day pictures. Trained on day
# and dark pictures; best.pt is chosen on the validation split and evaluated on the test split, which is all dark. Ends in tables and a picture
# (utils/study/study.py). Stopped halfway, the same command goes on.
#
#   bash scripts/study_align.sh [more train.py flags for every arm]                                        the embedded pairs
#   DATA=llvip.yaml SHUFFLED=llvip_shuffled.yaml WEIGHTS=yolov7-tiny.pt CFG=cfg/training/yolov7-tiny.yaml HYP=data/hyp.scratch.tiny.noota.yaml \
#       bash scripts/study_align.sh
#
# Variables: PROJECT, SEEDS, WEIGHTS (default: BASE_EPOCHS epochs on data/shapes.yaml), EPOCHS, IMG, BATCH, CFG, HYP, NODE (modules whose features are aligned; default: the last of the backbone), ARMS (part of their
# names: only these).
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
python=${PYTHON:-python}
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then python=.venv/bin/python; fi

PROJECT=${PROJECT:-runs/study_align}
DATA=${DATA:-data/shapes_pairs.yaml}
SHUFFLED=${SHUFFLED:-data/shapes_pairs_shuffled.yaml}
CFG=${CFG:-cfg/training/demo.yaml}
HYP=${HYP:-data/hyp.demo.yaml}
IMG=${IMG:-128}
BATCH=${BATCH:-16}
EPOCHS=${EPOCHS:-10}
BASE_EPOCHS=${BASE_EPOCHS:-30}
WEIGHTS=${WEIGHTS:-$PROJECT/base/weights/best.pt}
SEEDS=${SEEDS:-0,1,2}
NODE=${NODE:-}
ARMS=${ARMS:-}

arms=(
    "weight 0: --data $DATA --align-weight 0"
    "weight .005: --data $DATA --align-weight 0.005"
    "weight .05: --data $DATA --align-weight 0.05"
    "weight .2: --data $DATA --align-weight 0.2"
    "weight .05 and bank: --data $DATA --align-weight 0.05 --align-bank 256"
    "shuffled .05: --data $SHUFFLED --align-weight 0.05"
)
common=(--cfg "$CFG" --hyp "$HYP" --img-size "$IMG" "$IMG" --batch-size "$BATCH" --nominal-batch "$BATCH" --test-batch-size 32 --adam --noautoanchor
    --workers 0 --cache-images)
if [ "$WEIGHTS" = "$PROJECT/base/weights/best.pt" ] && [ ! -e "$PROJECT/base/result.yaml" ]; then
    if [ -e "$PROJECT/base/weights/last.pt" ]; then
        "$python" train.py --resume "$PROJECT/base"
    else
        "$python" train.py --data data/shapes.yaml "${common[@]}" --epochs "$BASE_EPOCHS" --project "$PROJECT" --name base
    fi
fi
chosen=()
for arm in "${arms[@]}"; do
    if [[ ${arm%%:*} == *"$ARMS"* ]]; then chosen+=(--arm "$arm"); fi
done
"$python" -m utils study --project "$PROJECT" --seeds "$SEEDS" --columns mAP50,mAP,align_top1_visible,align_gap,align_probe --test "${chosen[@]}" -- \
    --align ${NODE:+--align-node $NODE} "${common[@]}" --weights "$WEIGHTS" --epochs "$EPOCHS" "$@"
