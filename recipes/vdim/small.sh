#!/usr/bin/env bash
# VDIM at an eighth of its width, sized for two CPU cores: half an hour on the demo set, which is rendered on first use.
#   recipes/vdim/small.sh                       the demo set
#   recipes/vdim/small.sh --data DATA           your own; any flag of train.py
set -euo pipefail
exec accelerate launch --cpu --num_processes 1 "$(dirname "$0")/../../train.py" --objective vdim --small \
    --steps 300 "$@"
