#!/usr/bin/env bash
# Stop the SLURM that up.sh started in LAB, and what its jobs left running: only processes that its own pid
# files name, or whose environment names its configuration. Does nothing when it is down already.
#   LAB=DIR down.sh
set -u
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
: "${LAB:?set LAB to the directory given to up.sh}"
export SLURM_CONF=$LAB/etc/slurm.conf

pid_of() { # PIDFILE PROGRAM: its pid, if that program still runs under it
  local pid
  pid=$(cat "$1" 2>/dev/null) && [ -n "$pid" ] || return 1
  case $(readlink "/proc/$pid/exe" 2>/dev/null) in */"$2" | */"$2"-wlm) echo "$pid" ;; *) return 1 ;; esac
}

# A zombie still answers kill -0.
alive() { [ -e "/proc/$1" ] && [ "$(awk '{print $3}' "/proc/$1/stat" 2>/dev/null)" != Z ]; }

stop() { # PIDFILE PROGRAM: ask, and after 5 s insist
  local pid _
  pid=$(pid_of "$1" "$2") || return 0
  kill "$pid" 2>/dev/null
  for _ in $(seq 100); do alive "$pid" || return 0; sleep 0.05; done
  kill -9 "$pid" 2>/dev/null
}

cancel_jobs() {
  local _
  pid_of "$LAB/run/slurmctld.pid" slurmctld >/dev/null || return 0
  timeout 5 scancel --state=PENDING --user="$(id -un)"
  timeout 5 scancel --signal=KILL --full --user="$(id -un)"
  timeout 5 scancel --user="$(id -un)"
  for _ in $(seq 30); do [ -n "$(timeout 5 squeue -h)" ] || return 0; sleep 0.1; done
}

# Daemons whose pid files are lost, steps and job processes that outlived them: each has our SLURM_CONF, and
# a job process has a job id besides. Not this script and the processes that it was called from.
kill_leftovers() {
  local pid=$$ above=" " variables
  while [ "${pid:-0}" -gt 1 ]; do above+="$pid " pid=$(awk '/^PPid:/ {print $2}' "/proc/$pid/status"); done
  for directory in /proc/[0-9]*; do
    pid=${directory#/proc/}
    [[ $above != *" $pid "* ]] || continue
    variables=$(tr '\0' '\n' <"$directory/environ") && grep -qxF "SLURM_CONF=$SLURM_CONF" <<<"$variables" || continue
    case $(readlink "$directory/exe") in
      */slurm* | */munged | */mariadbd) kill -9 "$pid" ;;
      *) ! grep -q '^SLURM_JOB_ID=' <<<"$variables" || kill -9 "$pid" ;;
    esac
  done
}

watcher=$(pid_of "$LAB/run/watch.pid" bash) && kill -- "-$watcher" 2>/dev/null
cancel_jobs 2>/dev/null
for file in "$LAB"/run/slurmd.*.pid; do stop "$file" slurmd & done
wait
stop "$LAB/run/slurmctld.pid" slurmctld
stop "$LAB/run/slurmdbd.pid" slurmdbd
stop "$LAB/run/mariadbd.pid" mariadbd
stop "$LAB/run/munged.pid" munged
kill_leftovers 2>/dev/null
rm -f "$LAB"/run/*.pid
