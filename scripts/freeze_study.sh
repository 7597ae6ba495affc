#!/usr/bin/env bash
# A freeze study: how much of a pretrained detector should learn, and does a first stage with frozen rows help? Three kinds of arms, all from MODEL, with each of
# SEEDS, and all of the same number of epochs:
#   baseline      everything learns, EPOCHS1 + EPOCHS2 epochs                                 no_freeze_seedS
#   single stage  the first N rows never learn, for each N of FREEZE_LIST, as many epochs     freeze_N_seedS
#   two stages    the first LAYERS rows are frozen for EPOCHS1 epochs, then everything learns for EPOCHS2      two_stage_seedS_1_frozen, ..._2_open
# It ends in one page, PROJECT/freeze_study/comparison.html. Stopped halfway, the same command goes on.
#
#   MODEL=yolo11s.pt DATA=data.yaml IMG=1280 BATCH=12 EPOCHS1=50 EPOCHS2=250 LAYERS=6 FREEZE_LIST=3,4,5,6 bash scripts/freeze_study.sh [more train.py flags]
#
# Other variables: CFG (model YAML; default: what MODEL says), HYP (default: data/hyp.yolo11.yaml, for heads without anchors), SEEDS (0,1,2), PROJECT.
# The inverse, a stage in which only the first rows learn: --trainable-first N of train.py (docs/anchor-free.md).
set -euo pipefail
cd "$(dirname "$0")/.."
: "${MODEL:?set MODEL to the weights to start from, such as yolo11s.pt}" "${DATA:?set DATA to the data YAML}"
python=${PYTHON:-python}
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
EPOCHS1=${EPOCHS1:-50} EPOCHS2=${EPOCHS2:-250} LAYERS=${LAYERS:-6} FREEZE_LIST=${FREEZE_LIST:-3,4,5,6} SEEDS=${SEEDS:-0,1,2}
HYP=${HYP:-data/hyp.yolo11.yaml}
PROJECT=${PROJECT:-runs/freeze_study}
common=(--data "$DATA" --img "${IMG:-640}" --batch "${BATCH:-16}" "$@")
if [ -n "${CFG:-}" ]; then common+=(--cfg "$CFG"); fi

"$python" -m utils ablate --project "$PROJECT" --freeze-list "0,$FREEZE_LIST" --seeds "$SEEDS" --columns mAP50,mAP -- "${common[@]}" \
    --weights "$MODEL" --transfer-weights --hyp "$HYP" --epochs "$((EPOCHS1 + EPOCHS2))"
runs=()
for seed in ${SEEDS//,/ }; do
    "$python" -m utils chain cfg/recipes/two_stage.yaml --weights "$MODEL" --project "$PROJECT" --prefix "two_stage_seed$seed" --go-on \
        --each "freeze=$LAYERS," --each "epochs=$EPOCHS1,$EPOCHS2" --each "hyp=$HYP,$HYP" -- "${common[@]}" --seed "$seed"
    for n in no_freeze $(printf 'freeze_%s ' ${FREEZE_LIST//,/ }); do runs+=("$PROJECT/${n}_seed$seed"); done
    runs+=("$PROJECT/two_stage_seed${seed}_2_open")
done
"$python" -m utils compare "${runs[@]}" --out "$PROJECT/freeze_study" --baseline "no_freeze_seed${SEEDS%%,*}"
