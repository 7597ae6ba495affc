#!/usr/bin/env bash
# The four-stage 1B4H chain (cfg/recipes/gradual_unfreeze.yaml): transfer from a 1B1H detector, then freeze 50 -> 30 -> 10 -> 0.
#
#   WEIGHTS=runs/train/base/weights/best.pt DATA=data/coco320.yaml bash scripts/gradual_unfreeze.sh [more train.py flags for every stage]
#
# Variables: WEIGHTS DATA CFG HEADS HEAD_CONFIG IMG BATCH WORKERS DEVICE PROJECT PREFIX; FREEZE EPOCHS HYPS LR, a value for each stage (FREEZE="50 30 0" wants
# as many of the others); MAX_DROP MAX_LOSS_JUMP MAX_HEAD_DROP; CONTINUE=1 goes on after a stage that is worse. What is not set is as in the recipe.
# It stops and goes on as `python -m utils chain` does, whose command it prints: docs/chains.md.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${WEIGHTS:?set WEIGHTS to the 1B1H checkpoint to start from}"
python=${PYTHON:-python}
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
own=() every=()
own() { if [ -n "${!1:-}" ]; then own+=("$2" "${!1}"); fi; }       # VARIABLE --flag of the chain
every() { if [ -n "${!1:-}" ]; then every+=("$2" "${!1}"); fi; }   # VARIABLE --flag of every stage
each() { if [ -n "${!1:-}" ]; then read -r -a values <<<"${!1}"; own+=(--each "$2=$(IFS=,; echo "${values[*]}")"); fi; }
own WEIGHTS --weights; own PROJECT --project; own PREFIX --prefix
own MAX_DROP --max-drop; own MAX_LOSS_JUMP --max-loss-jump; own MAX_HEAD_DROP --max-head-drop
each FREEZE freeze; each EPOCHS epochs; each HYPS hyp; each LR lr0
if [ "${CONTINUE:-0}" = 1 ]; then own+=(--go-on); fi
every DATA --data; every CFG --cfg; every HEADS --heads; every HEAD_CONFIG --head-config; every DEVICE --device; every WORKERS --workers
every BATCH --batch-size; every BATCH --test-batch-size
if [ -n "${IMG:-}" ]; then every+=(--img-size "$IMG" "$IMG"); fi
exec "$python" -m utils chain cfg/recipes/gradual_unfreeze.yaml "${own[@]}" -- ${every[@]+"${every[@]}"} "$@"
