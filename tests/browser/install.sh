#!/usr/bin/env bash
# Install the Chromium that tests/browser drives: Debian's headless shell, by apt-get as root.
#   install.sh          print where it is, and install it first where it is not there
#   install.sh --check  install nothing; exit 0 and print its path as the last word if it is there
# Exit 69 and one line on stderr where it cannot be had.
set -euo pipefail

PACKAGE=chromium-headless-shell
PROGRAMS=(chromium-headless-shell chromium chromium-browser google-chrome google-chrome-stable)
LOG=$(mktemp)
trap 'rm -f "$LOG"' EXIT

unavailable() {
  echo "browser: not available: $1" >&2
  exit 69
}

# Ubuntu's chromium-browser is a script that asks for a snap; only what can draw counts.
found() {
  local program
  for program in "${PROGRAMS[@]}"; do
    command -v "$program" >/dev/null && "$program" --version >/dev/null 2>&1 && command -v "$program" && return
  done
  return 1
}

installed() {
  export DEBIAN_FRONTEND=noninteractive
  apt-get install -y --no-install-recommends "$PACKAGE" >>"$LOG" 2>&1
}

if program=$(found); then echo "browser: already here: $program"; exit 0; fi
[ "${1:-}" != --check ] || unavailable "no Chromium; tests/browser/install.sh installs $PACKAGE as root"
command -v apt-get >/dev/null || unavailable "no apt-get on this machine, and no Chromium"
[ "$(id -u)" = 0 ] || unavailable "no Chromium, and only root may install $PACKAGE with apt-get"
began=$SECONDS
echo "browser: installing $PACKAGE with apt-get (half a minute)"
installed || { apt-get update >>"$LOG" 2>&1 && installed; } ||
  unavailable "apt-get install $PACKAGE failed: $(tail -1 "$LOG")"
program=$(found) || unavailable "$PACKAGE is installed, but does not start"
echo "browser: installed in $((SECONDS - began)) s: $program"
