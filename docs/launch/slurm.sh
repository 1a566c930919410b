#!/usr/bin/env bash
# Trains on GPUs under SLURM: sbatch docs/launch/slurm.sh
# One task per GPU; one task per node with all its GPUs (--ntasks-per-node=1) works as well.
#SBATCH --job-name=hrnet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -uo pipefail
: "${DATA:?folder of the data set}" "${WORKDIR:?folder of the run, on a file system that all nodes see}"
CONFIG=${CONFIG:-configs/cityscapes.py:variant=w48}
OPTIONS=${OPTIONS:---config.model.dtype=bfloat16 --config.batch_size=32}

# train.py reads SLURM's variables: who is process 0, how many there are, which GPU is whose.
# shellcheck disable=SC2086
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  .venv/bin/python train.py --config="$CONFIG" $OPTIONS --config.data.root="$DATA" \
  --workdir="$WORKDIR"
code=$?
# 75: told to end, all is saved. 128 and more: a process was killed or its machine died. The same
# command continues; what fails each time does so 20 times at most.
if { [ "$code" -eq 75 ] || [ "$code" -ge 128 ]; } && [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
