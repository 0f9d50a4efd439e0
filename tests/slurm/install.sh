#!/usr/bin/env bash
# Install what a private one-machine SLURM needs, with accounting; nothing is configured or started.
#   install.sh          as root: Debian packages; otherwise the same packages unpacked under .slurm/root
#   install.sh --check  install nothing; exit 0 if everything is there
# Does nothing when it is all there. Exit 69 and one line on stderr where it cannot be had.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

PACKAGES=(munge slurmctld slurmd slurm-client slurmdbd mariadb-server-core mariadb-client-core)
PROGRAMS=(munged slurmctld slurmd slurmstepd slurmdbd sbatch sacct sacctmgr mariadbd mariadb mariadb-install-db)
LOG=${SLURM_ROOT%/*}/install.log

missing() {
  local program
  for program in "${PROGRAMS[@]}"; do command -v "$program" >/dev/null || printf '%s ' "$program"; done
}

unavailable() {
  echo "slurm: not available: $1" >&2
  exit 69
}

logged() { "$@" >>"$LOG" 2>&1; }

# Also true of a package name that apt has only heard of: no version, no candidate.
known() { [ -n "$(apt-cache "${APT[@]}" show --no-all-versions slurmctld 2>/dev/null)" ]; }

install_as_root() {
  export DEBIAN_FRONTEND=noninteractive
  # The daemons' own units would be started by the packages; no policy-rc.d means that they may be.
  # They find no configuration and stay down; munged alone comes up where systemd runs.
  logged apt-get install -y --no-install-recommends "${PACKAGES[@]}" ||
    { logged apt-get update && logged apt-get install -y --no-install-recommends "${PACKAGES[@]}"; } ||
    unavailable "apt-get install failed; see $LOG"
}

# Simulated as an ordinary user, apt names exactly the packages that this machine lacks.
unpack_privately() {
  local names name
  if ! known; then # no package lists, and only root may fetch them for all: fetch our own
    APT=(-o "Dir::State=$PRIVATE/state" -o "Dir::Cache=$PRIVATE/cache" -o Dir::State::status=/var/lib/dpkg/status)
    mkdir -p "$PRIVATE"/{state/lists,cache/archives}/partial
    logged apt-get "${APT[@]}" update || unavailable "apt-get update failed; see $LOG"
  fi
  names=$(apt-get "${APT[@]}" -s install --no-install-recommends "${PACKAGES[@]}" 2>>"$LOG" | awk '$1 == "Inst" {print $2}')
  [ -n "$names" ] || unavailable "apt does not know the packages ${PACKAGES[*]}; see $LOG"
  mkdir -p "$PRIVATE/debs" "$SLURM_ROOT"
  (cd "$PRIVATE/debs" && logged apt-get "${APT[@]}" download $names) || unavailable "apt-get download failed; see $LOG"
  for name in "$PRIVATE"/debs/*.deb; do logged dpkg -x "$name" "$SLURM_ROOT"; done
  for name in slurmctld slurmd slurmstepd; do ln -sf "$name-wlm" "$SLURM_ROOT/usr/sbin/$name"; done
  rm -rf "$PRIVATE"
}

lacking=$(missing)
[ -n "$lacking" ] || { echo "slurm: already here: $(command -v slurmctld)"; exit 0; }
[ "${1:-}" != --check ] || unavailable "no ${lacking% }; make slurm installs it"
command -v apt-get >/dev/null || unavailable "no apt-get on this machine, and no ${lacking% }"

APT=() PRIVATE=${SLURM_ROOT%/*}/apt
mkdir -p "${LOG%/*}"
: >"$LOG"
began=$SECONDS
if [ "$(id -u)" = 0 ]; then
  echo "slurm: installing ${PACKAGES[*]} with apt-get (half a minute)"
  install_as_root
else
  echo "slurm: unpacking ${PACKAGES[*]} under $SLURM_ROOT (half a minute)"
  unpack_privately
fi
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
lacking=$(missing)
[ -z "$lacking" ] || unavailable "installed, but no ${lacking% }; see $LOG"
echo "slurm: installed in $((SECONDS - began)) s"
