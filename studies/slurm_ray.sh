#!/usr/bin/env bash
#SBATCH --job-name=nas-attn
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --requeue
#
# A search on all nodes of a Slurm job, as one Ray cluster:
#
#     sbatch studies/slurm_ray.sh STUDY [any flag of nas-attn search]
#
# Run it from a folder that all nodes share and that holds the data and the runs. Submitted again, or
# requeued after a node or the time limit has ended it, the search goes on where it stopped. Without
# Ray, a job array of plain `nas-attn search STUDY --storage URL` shares the work as well.
set -euo pipefail

port=${RAY_PORT:-6379}
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
on_node() {
    local node=$1
    shift
    srun --nodes=1 --ntasks=1 --overlap --nodelist="$node" "$@"
}

address=$(on_node "${nodes[0]}" hostname --ip-address | awk '{print $1}'):$port
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

shape=(--num-cpus="${SLURM_CPUS_PER_TASK:-1}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --block)
on_node "${nodes[0]}" ray start --head --node-ip-address="${address%:*}" --port="$port" \
    --include-dashboard=false "${shape[@]}" &
until ray status --address="$address" >/dev/null 2>&1; do
    sleep 2
done
for node in "${nodes[@]:1}"; do
    on_node "$node" ray start --address="$address" "${shape[@]}" &
done
# Nodes that join later are used as they come; the search counts those that are there as it begins.
until [ "$(ray status --address="$address" 2>/dev/null | grep -c '^ 1 node_')" -ge "${#nodes[@]}" ]; do
    sleep 2
done

nas-attn search "$@" --address="$address"
