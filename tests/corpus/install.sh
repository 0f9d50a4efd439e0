#!/usr/bin/env bash
# Fetch the text that tests/corpus reads: the dictionary in Debian's package dict-gcide (15 MB; 40 MB unpacked).
# Nothing is installed; it lies under .corpus of this checkout. Does nothing when it is there.
# Exit 69 and one line on stderr where it cannot be had.
set -euo pipefail
CORPUS=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/.corpus
PACKAGE=dict-gcide
TEXT=$CORPUS/gcide.dict.dz
LOG=$CORPUS/install.log

unavailable() {
  echo "corpus: not available: $1" >&2
  exit 69
}

logged() { "$@" >>"$LOG" 2>&1; }

[ ! -s "$TEXT" ] || { echo "corpus: already here: $TEXT"; exit 0; }
for program in apt-get dpkg-deb; do
  command -v "$program" >/dev/null || unavailable "no $program on this machine"
done

mkdir -p "$CORPUS"
: >"$LOG"
work=$(mktemp -d "$CORPUS/apt.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
if ! logged apt-get download "$PACKAGE"; then # no package lists here: fetch our own, for any user
  own=(-o "Dir::State=$work/state" -o "Dir::Cache=$work/cache" -o Dir::State::status=/var/lib/dpkg/status)
  mkdir -p state/lists/partial cache/archives/partial
  logged apt-get "${own[@]}" update || unavailable "apt-get update failed; see $LOG"
  logged apt-get "${own[@]}" download "$PACKAGE" || unavailable "apt-get download failed; see $LOG"
fi
logged dpkg-deb -x "$PACKAGE"_*.deb . || unavailable "the package cannot be unpacked; see $LOG"
mv usr/share/dictd/gcide.dict.dz "$TEXT" 2>>"$LOG" || unavailable "$PACKAGE holds no gcide.dict.dz; see $LOG"
echo "corpus: fetched $TEXT"
