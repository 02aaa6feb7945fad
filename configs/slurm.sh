#!/bin/bash
# A training under Slurm that resumes by itself after pre-emption, at its time limit, and when a node fails.
# Written, not run: a cluster was not available.
#
#     sbatch configs/slurm.sh configs/indiana.yaml --data /data/iu_cxr --output_dir /scratch/runs/indiana
#
# Pass --output_dir, on a disk that all nodes see. For more nodes: sbatch --nodes 4 ...; the batch is that of a process
# times the number of processes. For FSDP or DeepSpeed: --export ALL,ACCELERATE_CONFIG=configs/accelerate/fsdp.yaml
#SBATCH --job-name=tier
#SBATCH --nodes=1
#SBATCH --gpus-per-node=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue                 # after pre-emption or a node failure
#SBATCH --open-mode=append        # one log for all starts
#SBATCH --signal=B:TERM@600       # sent to this script ten minutes before the time limit

set -u
for ((i = 1; i < $#; i++)); do
    if [ "${!i}" = "--output_dir" ]; then j=$((i + 1)); output_dir="${!j}"; fi
done
: "${output_dir:?pass --output_dir}"

resume=()
if compgen -G "$output_dir/checkpoint-*" > /dev/null; then
    resume=(--resume_from_checkpoint last)
fi

terminated=0
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300  # seconds to finish an evaluation and save, before SIGKILL
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
if [ -n "${ACCELERATE_CONFIG:-}" ]; then
    launcher=(accelerate launch --config_file "$ACCELERATE_CONFIG"
        --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * SLURM_GPUS_ON_NODE))"
        --rdzv_backend c10d --main_process_ip "$head_node" --main_process_port 29500)
else
    launcher=(torchrun --nnodes "$SLURM_NNODES" --nproc_per_node "$SLURM_GPUS_ON_NODE"
        --rdzv_id "$SLURM_JOB_ID" --rdzv_backend c10d --rdzv_endpoint "$head_node:29500")
fi
srun --kill-on-bad-exit=1 "${launcher[@]}" train_tier.py "$@" "${resume[@]}" &
step=$!
trap 'terminated=1; kill -TERM "$step"' TERM  # srun forwards it to all tasks
while kill -0 "$step" 2> /dev/null; do
    wait "$step"  # returns early for the trap
    code=$?
done
if [ "$terminated" = 1 ] && [ "$code" != 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
