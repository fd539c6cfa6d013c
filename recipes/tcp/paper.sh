#!/usr/bin/env bash
# TCP on the optical flow of UCF101 split 1: Lorre et al. 2020, section 4.2, Tables 1 and 2.
# 1 GPU. Shards with flow: tools/make_shards.py UCF101 --flow tvl1 --flow-limit 10
# Expect: linear UCF101 split 1 78.4 %, HMDB51 45.3 %; fine-tuned 84.6 % and 58.9 %.
# Other inputs, fine-tuned (Table 2): --modality difference 77.7 % and 44.6 %; --modality rgb 64.8 % and 34.7 %.
set -euo pipefail
data=${1:?usage: $0 DATA [more flags of train.py]}
shift
exec accelerate launch --num_processes 1 "$(dirname "$0")/../../train.py" \
    --objective tcp --data "$data" --split split1:train --modality flow \
    --steps 150000 --batch-size 25 --lr 1e-2 --milestones 20000 40000 60000 "$@"
