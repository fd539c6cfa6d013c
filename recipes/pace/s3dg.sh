#!/usr/bin/env bash
# Pace prediction on UCF101 split 1, S3D-G with 64 frames at 224²: Wang, Jiao & Liu 2020, Table 3.
# 4 GPUs and batch 32 as in the example of github.com/laura-wang/video-pace, whose learning rate of 0.01 its README
# corrected to the paper's 1e-3.
# Expect: fine-tuned UCF101 87.1 %, HMDB51 52.6 %.
set -euo pipefail
data=${1:?usage: $0 DATA [more flags of train.py]}
shift
exec accelerate launch --num_processes 4 "$(dirname "$0")/../../train.py" \
    --objective pace --data "$data" --split split1:train \
    --backbone s3dg --paces 1 2 3 4 --contrast context --negatives gathered \
    --steps 50600 --batch-size 8 --lr 1e-3 --drop-every 16900 "$@"
