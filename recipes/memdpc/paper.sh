#!/usr/bin/env bash
# MemDPC on Kinetics-400 at 224², bidirectional: Han, Xie & Zisserman 2020, section 5.2 and Table 2.
# 4 GPUs and 200 epochs as in the authors' example; the paper says neither.
# Expect: fine-tuned UCF101 78.1 %, HMDB51 41.2 %; averaged with a second run with --modality flow 86.1 % and 54.5 %;
# frozen, linear, two streams 54.1 % and 30.5 %.
set -euo pipefail
data=${1:?usage: $0 DATA [more flags of train.py]}
shift
exec accelerate launch --num_processes 4 "$(dirname "$0")/../../train.py" \
    --objective memdpc --data "$data" --split train --val-split val \
    --network resnet34 --size 224 --stride 3 --memory-size 1024 --directions both --directions-loss mean \
    --steps 750000 --batch-size 16 --lr 1e-3 "$@"
