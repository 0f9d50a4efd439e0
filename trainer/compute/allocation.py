"""What the processor's memory costs a training step: let freed memory be used again at once.

glibc returns large blocks to the kernel as soon as they are freed, and a step frees all of its
activations: the next one finds thousands of new pages, each of which the kernel zeroes.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""glibc's names and numbers, malloc.h."""

_LIMITS = {
    "MALLOC_MMAP_THRESHOLD_": (M_MMAP_THRESHOLD, 2**31 - 1),
    "MALLOC_TRIM_THRESHOLD_": (M_TRIM_THRESHOLD, 2**31 - 1),
    "MALLOC_TOP_PAD_": (M_TOP_PAD, 2**26),
}


def keep_freed_memory(environment: Mapping[str, str]) -> bool:
    """Have this process keep what it frees, up to its largest need; say whether it will.

    A user's own setting, in glibc's environment variables, stays. Elsewhere than on glibc nothing
    changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    done = [mallopt(*limit) for name, limit in _LIMITS.items() if name not in environment]
    return all(done)
