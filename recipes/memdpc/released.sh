#!/usr/bin/env bash
# MemDPC on UCF101 as the authors' code runs it: github.com/TengdaHan/MemDPC, its first example.
# 2 GPUs, 500 epochs. What differs from the paper: the two directions' losses are added, random-resized crop, grey from
# one colour channel, and a learning rate that falls at epoch 300 whatever the validation loss.
# Expect: as memdpc/ucf101.sh.
set -euo pipefail
data=${1:?usage: $0 DATA [more flags of train.py]}
shift
exec accelerate launch --num_processes 2 "$(dirname "$0")/../../train.py" \
    --objective memdpc --data "$data" --split split1:train --val-split split1:test \
    --network resnet18 --size 128 --stride 3 --memory-size 1024 --directions both --directions-loss sum \
    --crop resized --grey-from channel --milestones 89400 --patience 0 \
    --steps 149000 --batch-size 16 --val-every 300 --lr 1e-3 "$@"
