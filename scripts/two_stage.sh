#!/usr/bin/env bash
# Two stages (cfg/recipes/two_stage.yaml): first with a part of the network frozen, then everything, from the first stage's best checkpoint.
#
#   WEIGHTS=base/weights/best.pt DATA=data.yaml CFG=cfg/training/yolov7-tiny.yaml bash scripts/two_stage.sh [more train.py flags for both stages]
#
# Variables: FREEZE (of stage 1, as for --freeze; several words: FREEZE="0-10 12"), EPOCHS1 EPOCHS2, HYP1 HYP2, LR1 LR2 (empty: the hyp file's), PROJECT, PREFIX;
# MAX_DROP MAX_LOSS_JUMP MAX_HEAD_DROP; CONTINUE=1 goes on after a stage that is worse. (In one run, with one optimizer: --unfreeze "0:29-77, 50:0-28".)
# It stops and goes on as `python -m utils chain` does, whose command it prints: docs/chains.md.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${WEIGHTS:?set WEIGHTS to the checkpoint to start from}" "${DATA:?set DATA to the data YAML}" "${CFG:?set CFG to the model YAML}"
python=${PYTHON:-python}
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
HYP1=${HYP1:-data/hyp.scratch.tiny.yaml}
own=(--weights "$WEIGHTS" --each "freeze=${FREEZE:-backbone}," --each "epochs=${EPOCHS1:-50},${EPOCHS2:-250}" --each "hyp=$HYP1,${HYP2:-$HYP1}")
if [ -n "${LR1:-}${LR2:-}" ]; then own+=(--each "lr0=${LR1:-},${LR2:-}"); fi
own() { if [ -n "${!1:-}" ]; then own+=("$2" "${!1}"); fi; } # VARIABLE --flag
own PROJECT --project; own PREFIX --prefix
own MAX_DROP --max-drop; own MAX_LOSS_JUMP --max-loss-jump; own MAX_HEAD_DROP --max-head-drop
if [ "${CONTINUE:-0}" = 1 ]; then own+=(--go-on); fi
exec "$python" -m utils chain cfg/recipes/two_stage.yaml "${own[@]}" -- --data "$DATA" --cfg "$CFG" "$@"
