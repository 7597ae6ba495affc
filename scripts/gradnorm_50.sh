#!/usr/bin/env bash
# Detection and the class of the image in one network, weighed by GradNorm: 50 epochs, batches of 8, no augmentation, no early stop. What `simple_gradnorm_train.py --gradnorm-alpha 1.5` stood for elsewhere.
#
#   DATA=heart.yaml bash scripts/gradnorm_50.sh [more train.py flags]          a data YAML with cls_names
#
# Variables: those of joint_50.sh, and ALPHA.
set -euo pipefail
NAME=${NAME:-gradnorm_50} exec bash "$(dirname "$0")/joint_50.sh" --classify --mtl gradnorm --gradnorm-alpha "${ALPHA:-1.5}" "$@"
