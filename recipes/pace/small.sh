#!/usr/bin/env bash
# Pace prediction at 40², sized for two CPU cores: an hour on the demo set, which is rendered on first use.
#   recipes/pace/small.sh                       the demo set; then evaluate.py linear --checkpoint runs/pace --layer p4 --pool both
#   recipes/pace/small.sh --data DATA           your own; any flag of train.py
set -euo pipefail
exec accelerate launch --cpu --num_processes 1 "$(dirname "$0")/../../train.py" --objective pace --small \
    --steps 5000 "$@"
