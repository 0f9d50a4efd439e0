"""What `make test` has installed must run in CI: there a skip in those rooms is a failure."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")


@pytest.mark.parametrize(
    ("room", "ci", "outcome"),
    [
        ("slurm", "true", "1 failed"),
        ("browser", "true", "1 failed"),
        ("corpus", "true", "1 failed"),
        ("slurm", "", "1 skipped"),
        ("gpu", "true", "1 skipped"),
    ],
)
def test_in_ci_a_skip_fails_where_everything_is_installed(room, ci, outcome, tmp_path):
    shutil.copy(CONFTEST, tmp_path)
    tests = tmp_path / room
    tests.mkdir()
    (tests / "test_it.py").write_text(
        "import pytest\n\ndef test_it(): pytest.skip('no such machine')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", tmp_path],
        env=os.environ | {"CI": ci, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        cwd=tmp_path, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert outcome in done.stdout
    assert "no such machine" in done.stdout
