#!/usr/bin/env bash
# DPC at 64², sized for two CPU cores: about an hour on the demo set, which is rendered on first use.
#   recipes/dpc/small.sh                       the demo set
#   recipes/dpc/small.sh --data DATA           your own; any flag of train.py (--prediction parallel with a bare --curriculum)
set -euo pipefail
exec accelerate launch --cpu --num_processes 1 "$(dirname "$0")/../../train.py" --objective dpc --small \
    --curriculum 2000 --steps 3000 "$@"
