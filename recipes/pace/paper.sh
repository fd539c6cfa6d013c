#!/usr/bin/env bash
# Pace prediction with same-context contrast on UCF101 split 1, R(2+1)D at 112²: Wang, Jiao & Liu 2020, section 4.1, Table 2.
# 1 GPU, 18 epochs of 90,000 clips.
# Expect: fine-tuned UCF101 75.9 %, HMDB51 35.9 %; without contrast (--contrast none --clips 1) 73.9 % and 33.8 %.
# Retrieval on UCF101, R@1: 17.9 % (p5), 25.6 % (p4). A linear probe of it is near 10 %: fine-tune it.
# On Kinetics-400: pace/k400.sh.
set -euo pipefail
data=${1:?usage: $0 DATA [more flags of train.py]}
shift
exec accelerate launch --num_processes 1 "$(dirname "$0")/../../train.py" \
    --objective pace --data "$data" --split split1:train \
    --backbone r2plus1d --paces 1 2 3 4 --contrast context \
    --steps 54000 --batch-size 30 --lr 1e-3 --drop-every 18000 "$@"
