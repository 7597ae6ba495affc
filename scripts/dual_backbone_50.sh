#!/usr/bin/env bash
# Detection and the class of the image in two networks: 50 epochs, batches of 8, no augmentation, no early stop. What `simple_dual_backbone_train.py` stood for elsewhere.
#
#   DATA=heart.yaml bash scripts/dual_backbone_50.sh [more train.py flags]          a data YAML with cls_names
#
# Variables: those of joint_50.sh.
set -euo pipefail
NAME=${NAME:-dual_backbone_50} exec bash "$(dirname "$0")/joint_50.sh" --dual-backbone "$@"
