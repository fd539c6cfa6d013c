#!/usr/bin/env bash
# Pace prediction on UCF101 split 1 as the released code runs it: github.com/laura-wang/video-pace.
# 1 GPU. What differs from the paper: no contrast, clips start anywhere, wrap and go on at the first
# frame, every frame is scaled to 171×128, BGR from 0 to 255 without normalisation.
# Expect: fine-tuned UCF101 73.9 %, HMDB51 33.8 % (Table 2, pace alone). Wrapping is a shortcut: the jump betrays fast clips.
set -euo pipefail
data=${1:?usage: $0 DATA [more flags of train.py]}
shift
exec accelerate launch --num_processes 1 "$(dirname "$0")/../../train.py" \
    --objective pace --data "$data" --split split1:train \
    --backbone r2plus1d --paces 1 2 3 4 --clips 1 --contrast none --circular --loop restart --squeeze --levels bgr-255 \
    --steps 54000 --batch-size 30 --lr 1e-3 --drop-every 18000 "$@"
