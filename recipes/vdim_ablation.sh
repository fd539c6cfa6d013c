#!/usr/bin/env bash
# VDIM's ablation over rotation, offset, temporal difference and downsampling, with jitter: Hjelm & Bachman 2020, section 4.2,
# Table 2. 24 pretrainings of 50,000 steps on UCF101 split 1, each fine-tuned for 20,000; then one table of them all.
# Expect: mean of all 69.0 %, of those with downsampling and difference 71.1 %, best 74.1 % (chosen on the test split).
#   recipes/vdim_ablation.sh DATA FOLDER [more flags of train.py]      stopped, it goes on with the runs that lack a result
set -euo pipefail
data=${1:?usage: $0 DATA FOLDER [more flags of train.py]} folder=${2:?usage: $0 DATA FOLDER [more flags of train.py]}
shift 2
here=$(dirname "$0")
for rotation in 0 30; do
    for offset in 0 32; do
        for difference in --temporal-difference --no-temporal-difference; do
            for downsample in 1 2 3; do
                run=$folder/rotation$rotation-offset$offset$difference-downsample$downsample
                if [[ ! -e $run-finetuned/result.json ]]; then
                    "$here/vdim/ucf101.sh" "$data" --rotation "$rotation" --offset "$offset" "$difference" \
                        --downsample "$downsample" --output "$run" --resume "$@"
                    "$here/../evaluate.py" finetune --checkpoint "$run" --data "$data" --split 1 --steps 20000 \
                        --no-baselines --resume --output "$run-finetuned"
                fi
            done
        done
    done
done
exec "$here/../evaluate.py" table --results "$folder" --markdown "$folder/ablation.md"
