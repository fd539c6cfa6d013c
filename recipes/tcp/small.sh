#!/usr/bin/env bash
# TCP on image difference at 64², sized for two CPU cores: half an hour on the demo set, which is rendered on first use.
#   recipes/tcp/small.sh                       the demo set
#   recipes/tcp/small.sh --data DATA           your own; any flag of train.py
set -euo pipefail
exec accelerate launch --cpu --num_processes 1 "$(dirname "$0")/../../train.py" --objective tcp --small \
    --steps 4000 "$@"
