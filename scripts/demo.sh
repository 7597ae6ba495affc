#!/usr/bin/env bash
# From nothing to a four-stage 1B4H chain on the embedded data set (cfg/recipes/demo.yaml): set-up, data, a 1B1H detector, the four stages, a table.
# About 10 minutes on 2 cores. Variables: DEMO=name of the runs (runs/NAME), BASE_EPOCHS, EPOCHS (four numbers).
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
# a network this small gains nothing from a second thread, and loses much where another process wants the core
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
python=.venv/bin/python
project=runs/${DEMO:-demo}
read -r -a epochs <<<"${BASE_EPOCHS:-60} ${EPOCHS:-12 12 12 16}"

started=$(date +%s)
"$python" -m utils chain cfg/recipes/demo.yaml --project "$project" --each "epochs=$(IFS=,; echo "${epochs[*]}")"
"$python" test.py --data data/shapes.yaml --weights "$project/1b4h_stage4_freeze0/weights/best.pt" --img 160 --batch-size 16 --project "$project" \
    --name evaluation --exist-ok
echo
"$python" -m utils stages table "$project/base_1b1h" "$project"/1b4h_stage?_freeze* --out "$project/table.md"
echo "took $(($(date +%s) - started)) s; the chain in one picture: $project/chain/chain.png; others, first: $project/1b4h_stage4_freeze0/val_batch0_pred.jpg"
