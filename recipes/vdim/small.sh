#!/usr/bin/env bash
# VDIM at an eighth of its width, sized for two CPU cores: over an hour on the demo set, which is rendered on first use.
# Unlike --small with jitter, so that the backgrounds' colours tell less, and both views at the same rate.
#   recipes/vdim/small.sh                       the demo set
#   recipes/vdim/small.sh --torch-compile       a fifth sooner, where a C++ compiler is installed
#   recipes/vdim/small.sh --data DATA           your own; any flag of train.py
set -euo pipefail
exec accelerate launch --cpu --num_processes 1 "$(dirname "$0")/../../train.py" --objective vdim --small \
    --colour jitter --downsample 1 --batch-size 16 --steps 3000 "$@"
