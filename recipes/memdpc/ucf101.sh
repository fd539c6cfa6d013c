#!/usr/bin/env bash
# MemDPC on UCF101 split 1 at 128², bidirectional: Table 1, rows E1 to E3, and Table 3.
# 2 GPUs and 500 epochs as in the authors' example.
# Expect: fine-tuned UCF101 69.2 %; with --modality flow 82.3 %; both averaged 84.3 %; one direction
# (--directions forward) 68.2 %. Retrieval on UCF101, R@1: RGB 20.2 %, flow 40.2 %.
set -euo pipefail
data=${1:?usage: $0 DATA [more flags of train.py]}
shift
exec accelerate launch --num_processes 2 "$(dirname "$0")/../../train.py" \
    --objective memdpc --data "$data" --split split1:train --val-split split1:test \
    --network resnet18 --size 128 --stride 3 --memory-size 1024 --directions both --directions-loss mean \
    --steps 149000 --batch-size 16 --val-every 300 --lr 1e-3 "$@"
