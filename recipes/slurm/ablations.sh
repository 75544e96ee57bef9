#!/bin/bash
# Train the ablations side by side, one GPU each: sbatch recipes/slurm/ablations.sh [section.key=value ...]
#SBATCH --job-name=ablations
#SBATCH --array=0-4
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@300
#SBATCH --open-mode=append
# As in one_node.sh, each of the array's jobs saves before its time is over, queues again and goes on.
recipes=("${RECIPES:-recipes/LiteAVSE/ablations}"/*.yaml)
recipe=${recipes[$SLURM_ARRAY_TASK_ID]}
srun "${PYTHON:-python}" train_lite.py --config "$recipe" --exp_folder "${EXP_FOLDER:-exp}" --exp_name "$(basename "$recipe" .yaml)" --override "$@"
code=$?
if [ "$code" -eq 130 ]; then scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"; fi
exit "$code"
