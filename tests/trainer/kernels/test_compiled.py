from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
READS_AND_WRITES: dict[str, tuple[int, int]] = {
    "adam": (4, 3),
    "adamw": (4, 3),
    "nadam": (4, 3),
    "nadamw": (4, 3),
    "lion": (3, 2),
    "lion-sums": (2, 1),
    "sign": (3, 2),
    "sign-nesterov": (3, 2),
    "ademamix": (5, 4),
    "mars": (5, 4),
    "mars-sums": (2, 0),
    "schedule-free": (4, 3),
    "sign-sums": (2, 1),
    "sign-nesterov-sums": (2, 1),
    "sign-apply": (2, 1),
    "sign-nesterov-apply": (3, 1),
    "momo-sums": (3, 1),
    "momo-apply": (2, 1),
    "momo-adam-sums": (4, 2),
    "momo-adam-apply": (3, 1),
    "squares": (1, 0),
}
"""Tensors that a kernel reads and writes 128 bits at a time, each twice a thread and block."""
VARIANTS = ("-lr-in-memory", "-undivided")
"""Endings of compilations that move the same."""


CAPABILITIES = (80, 90, 100)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory, with_triton: Any) -> Path:
    """Where every kernel is, compiled by one process: starting it costs a fifth of its time."""
    directory = tmp_path_factory.mktemp("compiled")
    cache = {"TRITON_CACHE_DIR": str(directory / "cache"), "TRITON_INTERPRET": "0"}
    done = with_triton(HERE / "compile_kernels.py", directory, *CAPABILITIES, **cache)
    assert done.returncode == 0, done.stderr
    return directory


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_kernel_compiles_to_128_bit_accesses_without_spills(
    capability: int, compiled: Path
) -> None:
    directory = compiled / str(capability)
    kernels = {path.stem: path.read_text() for path in directory.glob("*.ptx")}
    assert set(READS_AND_WRITES) <= set(kernels)
    for name, ptx in kernels.items():
        assert f".target sm_{capability}" in ptx, name
        assert ".local" not in ptx, name
        told = (directory / f"{name}.txt").read_text()
        assert "0 bytes spill stores, 0 bytes spill loads" in told, name
    for name, (reads, writes) in _accesses(set(kernels)).items():
        assert kernels[name].count("ld.global.v4.b32") == 2 * reads, name
        assert kernels[name].count("st.global.v4.b32") == 2 * writes, name
        # A read behind a write would wait for it: the assembler can't tell that they don't overlap.
        last_read = kernels[name].rindex("ld.global.v4.b32")
        assert writes == 0 or last_read < kernels[name].index("st.global.v4.b32"), name


def _accesses(names: set[str]) -> dict[str, tuple[int, int]]:
    """Return what is read and written of each kernel that moves weights."""
    stems = {name: name for name in names} | {
        name: name.removesuffix(ending)
        for name in names
        for ending in VARIANTS
        if name.endswith(ending)
    }
    return {name: READS_AND_WRITES[s] for name, s in stems.items() if s in READS_AND_WRITES}
