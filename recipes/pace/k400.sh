#!/usr/bin/env bash
# Pace prediction with same-context contrast on Kinetics-400, R(2+1)D at 112²: Wang, Jiao & Liu 2020, section 4.1, Table 3.
# 1 GPU, 18 epochs of about 240,000 videos; an epoch is one pass.
# Expect: fine-tuned UCF101 77.1 %, HMDB51 36.6 %.
set -euo pipefail
data=${1:?usage: $0 DATA [more flags of train.py]}
shift
exec accelerate launch --num_processes 1 "$(dirname "$0")/../../train.py" \
    --objective pace --data "$data" --split train \
    --backbone r2plus1d --paces 1 2 3 4 --contrast context \
    --steps 144000 --batch-size 30 --lr 1e-3 --drop-every 48000 "$@"
