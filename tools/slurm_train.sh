#!/usr/bin/env bash
# Train under Slurm: tools/slurm_train.sh PARTITION CONFIG [train.py arguments]
# GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5) and SRUN_ARGS may be set.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: [GPUS=16] $0 PARTITION CONFIG [arguments of tools/train.py]" >&2
    exit 2
fi
partition=$1 config=$2
shift 2
gpus=${GPUS:-8} per_node=${GPUS_PER_NODE:-8}
[ "$gpus" -lt "$per_node" ] && per_node=$gpus
# shellcheck disable=SC2086  # SRUN_ARGS is several words
exec srun --partition="$partition" --job-name="densebench" --gres="gpu:$per_node" \
    --ntasks="$gpus" --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    python -u "$(dirname "$0")/train.py" "$config" --launcher slurm "$@"
