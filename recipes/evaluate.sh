#!/usr/bin/env bash
# Linear probe and retrieval of several runs, each beside random weights in the same network and a classifier of size and
# length, as TABLE.md and TABLE.json; the results themselves in runs/evaluation/TABLE's name, to be shown by evaluate.py report.
# Every method looks at videos as its paper does. Stopped, it goes on: features are kept. --from-scratch also trains each
# network for so many steps on the labels, without pretraining: a column of the linear probe.
#   recipes/evaluate.sh [--from-scratch STEPS] TABLE RUN... [-- FLAGS of evaluate.py]
#   recipes/evaluate.sh benchmarks/demo runs/vdim runs/dpc -- --folds 5           the demo set, every video tested once
set -euo pipefail
usage="usage: $0 [--from-scratch STEPS] TABLE RUN... [-- FLAGS of evaluate.py]"
steps=
if [[ ${1:-} = --from-scratch ]]; then steps=${2:?$usage} && shift 2; fi
table=${1:?$usage} && shift
runs=()
while (($#)) && [[ $1 != -- ]]; do runs+=("$1") && shift; done
((${#runs[@]})) || { echo "$usage" >&2; exit 2; }
(($#)) && shift

here=$(dirname "$0")/..
results=runs/evaluation/$(basename "$table")
for run in "${runs[@]}"; do
    for protocol in linear retrieval; do
        "$here/evaluate.py" "$protocol" --checkpoint "$run" \
            --output "$results/$protocol-$(basename "$run")" "$@"
    done
    if [[ $steps ]]; then
        "$here/evaluate.py" finetune --checkpoint "random:$run" --from-scratch --steps "$steps" --resume \
            --output "$results/scratch-$(basename "$run")" "$@"
    fi
done
exec "$here/evaluate.py" table --results "$results" --markdown "$table.md" --json "$table.json"
