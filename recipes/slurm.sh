#!/bin/bash
# Train on several nodes of 8 GPUs: a task a GPU, started by srun itself.   docs/guides/scale.md
#   sbatch recipes/slurm.sh --objective dpc --data /shared/k400 --split train --output /shared/runs/dpc
# The same job goes on after its time limit: 3 minutes before it every task gets SIGTERM, train.py saves a checkpoint
# and ends with 143, and the job is queued again; --resume begins anew where there is no run yet. Not run on a cluster by this
# project: what it sets is what torchrun sets, and stopping and resuming are tested on one machine.
#SBATCH --job-name=slipstream
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
cd "${SLURM_SUBMIT_DIR:?submit this with sbatch, from the checkout}"
source .venv/bin/activate

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=29500 OMP_NUM_THREADS=1 NCCL_DEBUG=WARN
export TQDM_MININTERVAL=30  # the log holds a line of progress each half minute, not ten a second

# shellcheck disable=SC2016  # expanded by each task
srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
    exec python train.py --threads "$SLURM_CPUS_PER_TASK" --resume "$@"' train "$@"
status=$?
if [ $status -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit $status
