#!/usr/bin/env bash
# Run the quickstart sweep on a SLURM of this machine alone, started for it and stopped after it.
#   demo.sh PYTHON      the results lie under .slurm/demo; the daemons' logs under .slurm/log
set -euo pipefail
PYTHON=${1:?name the Python of the project}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
RESULTS=.slurm/demo
LAB=$(mktemp -d /tmp/optsweep-slurm-XXXXXX) # short, for the daemons' sockets
CORES=$(nproc)
BASE=$((20000 + RANDOM % 12000))
export LAB

finish() {
  trap - EXIT INT TERM
  "$HERE/down.sh"
  rm -rf .slurm/log && cp -r "$LAB/log" .slurm/log && rm -rf "$LAB"
  echo "slurm: stopped"
}

show() {
  printf '\n$ %s\n' "$*"
  "$@"
}

mkdir -p .slurm
trap finish EXIT
trap 'exit 130' INT TERM
unset "${!SLURM_@}"
env NODES=1 CPUS="$CORES" GPUS=1 BASE="$BASE" OWNER=$$ "$HERE/up.sh"
source "$LAB/env"
echo "slurm: started, 1 node with $CORES CPUs"

sweep=(sweep=quickstart cluster=slurm paths.multirun="$RESULTS/multirun")
show "$PYTHON" launch.py "${sweep[@]}"
show sinfo
show squeue
show "$PYTHON" -m sweeps watch "$RESULTS/multirun/quickstart"
show "$PYTHON" -m analysis collect "$RESULTS/multirun" --store "$RESULTS/store"
show "$PYTHON" -m analysis table --store "$RESULTS/store"
