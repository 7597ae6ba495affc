#!/usr/bin/env bash
# Do detection and image classification in one network disturb each other, and which cure helps? Each task alone, fixed weights, uncertainty, DWA, GradNorm,
# and two networks: equal budgets, several seeds. Ends in tables and a picture (utils/study/study.py). Stopped halfway, the same command goes on.
#
#   bash scripts/study_joint.sh [more train.py flags for every arm]                          the embedded data
#   DATA=heart.yaml CFG=cfg/training/yolov5n.yaml HYP=data/hyp.scratch.tiny.noota.yaml bash scripts/study_joint.sh      any other with cls_names
#
# Variables: PROJECT, SEEDS, EPOCHS, IMG, BATCH, CFG, HYP, ARMS (part of their names: only these).
# Weights are those of the tasks `detection` and `image_class`, in this order. Weight 0 switches a task off: both then have the same network and the same
# images, and the other task's figures are those of features that learnt nothing for it. No composed pictures: they have no class of the whole image.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
python=${PYTHON:-python}
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then python=.venv/bin/python; fi

PROJECT=${PROJECT:-runs/study_joint}
DATA=${DATA:-data/shapes_joint.yaml}
CFG=${CFG:-cfg/training/demo.yaml}
HYP=${HYP:-data/hyp.demo.yaml}
IMG=${IMG:-96}
BATCH=${BATCH:-8}
EPOCHS=${EPOCHS:-10}
SEEDS=${SEEDS:-0,1,2}
ARMS=${ARMS:-}

arms=(
    "detection only: --classify --mtl fixed --mtl-weights 1 0"
    "classification only: --classify --mtl fixed --mtl-weights 0 1"
    "fixed 1 1: --classify --mtl fixed --mtl-weights 1 1"
    "fixed 1.8 .2: --classify --mtl fixed --mtl-weights 1.8 0.2"
    "fixed .2 1.8: --classify --mtl fixed --mtl-weights 0.2 1.8"
    "uncertainty: --classify --mtl uncertainty"
    "dwa: --classify --mtl dwa"
    "gradnorm: --classify --mtl gradnorm"
    "dual: --dual-backbone --mtl fixed --mtl-weights 1 1"
)
chosen=()
for arm in "${arms[@]}"; do
    if [[ ${arm%%:*} == *"$ARMS"* ]]; then chosen+=(--arm "$arm"); fi
done
# Adam at this rate learns in minutes what the published recipe needs hours for
"$python" -m utils study --project "$PROJECT" --seeds "$SEEDS" --columns mAP50,mAP,image_acc,image_bacc,image_f1 "${chosen[@]}" -- --data "$DATA" --cfg "$CFG" \
    --hyp "$HYP" --img-size "$IMG" "$IMG" --batch-size "$BATCH" --nominal-batch "$BATCH" --test-batch-size 32 --epochs "$EPOCHS" --adam --mosaic 0 --mixup 0 \
    --workers 0 --cache-images "$@"
