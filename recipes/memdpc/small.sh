#!/usr/bin/env bash
# MemDPC at 64², sized for two CPU cores: up to two hours on the demo set, which is rendered on first use.
#   recipes/memdpc/small.sh                       the demo set
#   recipes/memdpc/small.sh --data DATA           your own; any flag of train.py
set -euo pipefail
exec accelerate launch --cpu --num_processes 1 "$(dirname "$0")/../../train.py" --objective memdpc --small \
    --steps 14000 "$@"
