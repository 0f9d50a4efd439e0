"""Freed memory is used again at once, measured by the pages that the kernel has to bring."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import trainer

PROGRAM = """
import os, resource, sys
import numpy as np
from trainer.compute.allocation import keep_freed_memory

def brought():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        np.ones(2**24)  # 128 MiB: beyond what glibc keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert keep_freed_memory(os.environ)
brought()
print(brought())
"""


def pages(**variables: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(trainer.__file__).parents[1],
        env={**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0", **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is what is told")
def test_freed_memory_brings_no_new_pages_unless_the_user_says_otherwise() -> None:
    assert pages() < 100
    assert pages(MALLOC_MMAP_THRESHOLD_="1048576") > 4 * 2**27 / 4096 * 0.9
