# Sourced by the scripts beside it: puts the SLURM that install.sh unpacked, if any, on the search paths.
#   SLURM_ROOT   where it was unpacked [.slurm/root of this checkout]
SLURM_ROOT=${SLURM_ROOT:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/.slurm/root}
PATH=$PATH:/usr/sbin:/sbin
SLURM_PLUGINS=$(find "$SLURM_ROOT/usr/lib" -name libslurmfull.so -printf '%h' -quit 2>/dev/null) || true
if [ -n "$SLURM_PLUGINS" ]; then
  PATH=$SLURM_ROOT/usr/bin:$SLURM_ROOT/usr/sbin:$PATH
  # a triplet such as x86_64-linux-gnu; packages put libraries under /usr/lib and under /lib
  LIBRARIES=${SLURM_PLUGINS%/*}
  LD_LIBRARY_PATH=$SLURM_PLUGINS:$LIBRARIES:$SLURM_ROOT/lib/${LIBRARIES##*/}${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  export LD_LIBRARY_PATH
fi
export PATH
