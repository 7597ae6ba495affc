#!/usr/bin/env bash
# From nothing to a four-stage 1B4H chain on the embedded data set: set-up, data, a 1B1H detector, the four stages, a table. About 10 minutes on 2 cores.
# Variables: DEMO=name of the runs (runs/demo/NAME), BASE_EPOCHS, EPOCHS (four numbers).
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
# a network this small gains nothing from a second thread, and loses much where another process wants the core
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
python=.venv/bin/python
DEMO=${DEMO:-demo}
BASE_EPOCHS=${BASE_EPOCHS:-60}
EPOCHS=${EPOCHS:-12 12 12 16}
project=runs/$DEMO
base=$project/base_1b1h
# Adam at these rates learns in minutes what the published recipe (SGD, 64 images per step) needs hours for
recipe=(--adam --nominal-batch 16 --audit)

started=$(date +%s)
if [ -e "$base/weights/last.pt" ]; then
    echo "$base is there: continuing it"
    "$python" train.py --resume "$base"
else
    "$python" train.py --data data/shapes.yaml --cfg cfg/training/demo.yaml --hyp data/hyp.demo.yaml --img 160 --batch 16 --test-batch-size 16 \
        --epochs "$BASE_EPOCHS" --workers 1 --cache-images --noautoanchor "${recipe[@]}" --project "$project" --name base_1b1h
fi
if [ "$(tail -n +2 "$base/results.csv" | wc -l)" -lt "$BASE_EPOCHS" ]; then
    echo "$base was stopped before its last epoch; run this command again to go on" >&2
    exit 1
fi
PYTHON=$python WEIGHTS=$base/weights/best.pt DATA=data/shapes.yaml CFG=cfg/training/demo-1b4h.yaml HEAD_CONFIG=data/shapes_1b4h.yaml IMG=160 BATCH=16 WORKERS=1 \
    EPOCHS="$EPOCHS" HYPS="data/hyp.demo.yaml data/hyp.demo.stage2.yaml data/hyp.demo.stage3.yaml data/hyp.demo.stage4.yaml" \
    PROJECT=$project PREFIX=1b4h bash scripts/gradual_unfreeze.sh "${recipe[@]}"

"$python" test.py --data data/shapes.yaml --weights "$project/1b4h_stage4_freeze0/weights/best.pt" --img 160 --batch-size 16 --project "$project" \
    --name evaluation --exist-ok
echo
"$python" -m utils stages table "$base" "$project"/1b4h_stage?_freeze* --out "$project/table.md"
echo "took $(($(date +%s) - started)) s; pictures in $project, first: $project/1b4h_stage4_freeze0/val_batch0_pred.jpg"
