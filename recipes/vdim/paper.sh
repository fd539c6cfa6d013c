#!/usr/bin/env bash
# VDIM on Kinetics-600: Hjelm & Bachman 2020, section 4.3, Table 3.
# 16 GPUs, 240 clips a step. Temporal difference is off here "because of unrelated hardware issues".
# Expect: fine-tuned UCF101 79.7 %, HMDB51 49.2 % (mean of three splits).
set -euo pipefail
data=${1:?usage: $0 DATA [more flags of train.py]}
shift
exec accelerate launch --num_processes 16 "$(dirname "$0")/../../train.py" \
    --objective vdim --data "$data" --split train \
    --downsample 2 --offset 0 --colour jitter --no-temporal-difference --negatives gathered \
    --steps 100000 --batch-size 15 --lr 2e-4 "$@"
