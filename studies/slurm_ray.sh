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
# Only who knows the token of this job may use its cluster; srun hands it on.
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')}
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
declare -A ray_on
on_node() {  # in a sub-shell, which srun replaces, so that killing it ends what runs there
    local node=$1
    shift
    exec srun --nodes=1 --ntasks=1 --overlap --nodelist="$node" "$@"
}
start_ray() {
    local node=$1
    shift
    on_node "$node" ray start "$@" --num-cpus="${SLURM_CPUS_PER_TASK:-1}" \
        --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --block &
    ray_on[$node]=$!
}
nodes_up() {
    ray status --address="$address" 2>/dev/null | grep -c '^ 1 node_' || true
}
wait_for_nodes() {  # so many, less those whose Ray has ended
    local wanted=$1 deadline=$((SECONDS + ${RAY_START_SECONDS:-300})) node
    while [ "$(nodes_up)" -lt "$wanted" ] && [ "$SECONDS" -lt "$deadline" ]; do
        for node in "${!ray_on[@]}"; do
            if ! kill -0 "${ray_on[$node]}" 2>/dev/null; then
                echo "Ray did not start on $node" >&2
                unset "ray_on[$node]"
                wanted=$((wanted - 1))
            fi
        done
        sleep 2
    done
}

address=$(on_node "${nodes[0]}" hostname --ip-address | awk '{print $1}'):$port
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

start_ray "${nodes[0]}" --head --node-ip-address="${address%:*}" --port="$port" \
    --include-dashboard=false
wait_for_nodes 1
if [ "$(nodes_up)" -lt 1 ]; then
    echo "no Ray head answers at $address (${nodes[0]}), so nothing is searched" >&2
    exit 1
fi
for node in "${nodes[@]:1}"; do
    start_ray "$node" --address="$address"
done
# Nodes that join later are used as they come; the search counts those that are there as it begins.
wait_for_nodes "${#nodes[@]}"
echo "$(nodes_up) of ${#nodes[@]} nodes are up"

nas-attn search "$@" --address="$address"
