#!/usr/bin/env bash
# DPC on UCF101 split 1 at 128², 5pred3: Table 1 of the paper.
# 2 GPUs. 300 epochs as in the authors' examples; the paper does not say.
# Expect: top-1 53.6 %; fine-tuned UCF101 60.6 % (from scratch 46.5 %; MemDPC reports 63.6 % for its own DPC).
set -euo pipefail
data=${1:?usage: $0 DATA [more flags of train.py]}
shift
exec accelerate launch --num_processes 2 "$(dirname "$0")/../../train.py" \
    --objective dpc --data "$data" --split split1:train --val-split split1:test \
    --network resnet18 --size 128 --stride 3 --pred-steps 3 \
    --steps 22500 --batch-size 64 --val-every 75 --lr 1e-3 "$@"
