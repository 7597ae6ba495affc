#!/usr/bin/env bash
# What gradnorm_50.sh and dual_backbone_50.sh share: 50 epochs, batches of 8, no augmentation, no early stop, on a data YAML with cls_names.
#
#   NAME=run bash scripts/joint_50.sh train.py flags of the method
#
# Variables: DATA, CFG, HYP (optimizer and loss; its augmentation is off), IMG, WEIGHTS (start from this detector), PROJECT, NAME. A run that is there is gone on with.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
python=${PYTHON:-python}
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then python=.venv/bin/python; fi

DATA=${DATA:-data/shapes_joint.yaml}
if [ "$DATA" = data/shapes_joint.yaml ]; then
    defaults=(cfg/training/demo.yaml data/hyp.demo.yaml 160) # --adam: learns in minutes what the published recipe needs hours for
    quick=(--adam --nominal-batch 8 --cache-images)
else
    defaults=(cfg/training/yolov5s.yaml data/hyp.scratch.tiny.noota.yaml 640)
    quick=()
fi
CFG=${CFG:-${defaults[0]}}
HYP=${HYP:-${defaults[1]}}
IMG=${IMG:-${defaults[2]}}
PROJECT=${PROJECT:-runs/train}
NAME=${NAME:?the name of the run}

if [ -e "$PROJECT/$NAME/weights/last.pt" ]; then
    exec "$python" train.py --resume "$PROJECT/$NAME"
fi
from=()
if [ -n "${WEIGHTS:-}" ]; then from=(--weights "$WEIGHTS" --transfer-weights); fi
plain=(--hsv_h 0 --hsv_s 0 --hsv_v 0 --degrees 0 --translate 0 --scale 0 --shear 0 --perspective 0 --flipud 0 --fliplr 0)
plain+=(--mosaic 0 --mixup 0 --copy_paste 0 --paste_in 0)
exec "$python" train.py --data "$DATA" --cfg "$CFG" --hyp "$HYP" --img-size "$IMG" "$IMG" --batch-size 8 --epochs 50 --patience 0 "${plain[@]}" \
    ${quick[@]+"${quick[@]}"} ${from[@]+"${from[@]}"} --project "$PROJECT" --name "$NAME" --exist-ok \
    "$@"
