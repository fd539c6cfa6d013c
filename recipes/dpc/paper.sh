#!/usr/bin/env bash
# DPC on Kinetics-400 at 128², 5pred3 then 4pred4: Han, Xie & Zisserman 2019, section 3.5 and Table 3.
# 4 GPUs; the authors took "more than 1 week" on 4 P40.
# Expect: top-1 61.1 % before the curriculum moves on, 50.8 % at the end; fine-tuned UCF101 68.2 %, HMDB51 34.5 %.
# At 224² (--network resnet34 --size 224 --batch-size 11, 6 weeks on 4 P40): UCF101 75.7 %, HMDB51 35.7 %.
set -euo pipefail
data=${1:?usage: $0 DATA [more flags of train.py]}
shift
exec accelerate launch --num_processes 4 "$(dirname "$0")/../../train.py" \
    --objective dpc --data "$data" --split train --val-split val \
    --network resnet18 --size 128 --stride 3 --pred-steps 3 --curriculum 160000 \
    --steps 320000 --batch-size 64 --lr 1e-3 "$@"
