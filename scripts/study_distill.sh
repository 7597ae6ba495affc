#!/usr/bin/env bash
# Does distillation help a small student? A teacher (the demo network, TEACHER_EPOCHS), then a student of half its width from scratch, without and with
# the teacher, at equal budgets, SEEDS each, on the embedded data set. About 20 minutes of one core; tables in runs/$STUDY/students.
# Variables: STUDY=name, TEACHER_EPOCHS, EPOCHS, SEEDS, PYTHON.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
python=${PYTHON:-python}
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
project=runs/${STUDY:-study_distill}
common=(--data data/shapes.yaml --hyp data/hyp.demo.yaml --img 160 --batch 16 --test-batch-size 16 --workers 0 --cache-images --noautoanchor --adam
    --nominal-batch 16)

mkdir -p "$project"
sed 's/^width_multiple:.*/width_multiple: 0.5/' cfg/training/demo.yaml >"$project/half.yaml"
teacher=$project/teacher/weights/best.pt
if [ ! -e "$project/teacher/result.yaml" ]; then
    if [ -e "$project/teacher/weights/last.pt" ]; then
        "$python" train.py --resume "$project/teacher"
    else
        "$python" train.py "${common[@]}" --cfg cfg/training/demo.yaml --epochs "${TEACHER_EPOCHS:-60}" --project "$project" --name teacher
    fi
fi
"$python" -m utils study --project "$project/students" --seeds "${SEEDS:-0,1,2}" --columns mAP50,mAP \
    --arm "plain:" \
    --arm "outputs: --teacher $teacher --distill-feat-gain 0" \
    --arm "outputs and features: --teacher $teacher" \
    -- "${common[@]}" --cfg "$project/half.yaml" --epochs "${EPOCHS:-20}"
