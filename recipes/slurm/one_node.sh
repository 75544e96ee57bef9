#!/bin/bash
# Train on the GPUs of one node: sbatch recipes/slurm/one_node.sh RECIPE RUN_NAME [section.key=value ...]
#SBATCH --job-name=liteavse
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@300
#SBATCH --open-mode=append
# 300 s before the time limit SLURM sends USR1: the run saves a checkpoint and ends with code 130, and the job queues again.
# A preempted job gets SIGTERM and does the same. It goes on from its newest checkpoint, also with fewer tasks than before.
# srun starts the tasks itself, so that the signal reaches each of them; under torchrun see docs/train.md.
# training_cfg.batch_size must be a multiple of the tasks.
srun --kill-on-bad-exit=0 "${PYTHON:-python}" "${SCRIPT:-train_lite.py}" --config "$1" --exp_name "$2" --override "${@:3}"
code=$?
if [ "$code" -eq 130 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
