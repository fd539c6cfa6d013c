#!/usr/bin/env bash
# DPC on Kinetics-400 as the authors' code runs it: github.com/TengdaHan/DPC, its first example.
# 2 GPUs, 300 epochs of about 220,000 videos. What differs from the paper: every fifth frame, random-resized crop, grey
# from one colour channel, and batch norm without running statistics.
# Expect: as dpc/paper.sh before its curriculum moves on (the released ResNet18 is of this kind).
set -euo pipefail
data=${1:?usage: $0 DATA [more flags of train.py]}
shift
exec accelerate launch --num_processes 2 "$(dirname "$0")/../../train.py" \
    --objective dpc --data "$data" --split train --val-split val \
    --network resnet18 --size 128 --stride 5 --pred-steps 3 \
    --crop resized --grey-from channel --norm batch-statistics --patience 0 \
    --steps 515000 --batch-size 64 --lr 1e-3 "$@"
