#!/usr/bin/env bash
# Kill a node of the SLURM in LAB with SIGKILL, as a power cut would.
#   LAB=DIR nodekill.sh NODE          the node's slurmd with its steps and all their processes
#   LAB=DIR nodekill.sh NODE daemon   its slurmd alone: the jobs go on
set -u
: "${LAB:?set LAB to the directory given to up.sh}"
node=${1:?name a node} what=${2:-all}
SLURM_CONF=$LAB/etc/slurm.conf
victims=$(cat "$LAB/run/slurmd.$node.pid") || exit 1

# A step's own environment does not name its node, its open log file does.
belongs() {
  local variables
  variables=$(tr '\0' '\n' <"/proc/$1/environ") && grep -qxF "SLURM_CONF=$SLURM_CONF" <<<"$variables" || return 1
  case $(readlink "/proc/$1/exe") in
    *slurmstepd*) find "/proc/$1/fd" -lname "$LAB/log/slurmd.$node.log" | grep -q . ;;
    *) grep -qxF "SLURMD_NODENAME=$node" <<<"$variables" ;;
  esac
}

if [ "$what" = all ]; then
  for directory in /proc/[0-9]*; do
    ! belongs "${directory#/proc/}" 2>/dev/null || victims+=" ${directory#/proc/}"
  done
fi
kill -9 $victims
