"""What collecting costs: 10,000 runs of 200 steps and 6 metrics, from scratch, unchanged, and in part.

The runs have the files that the trainer and Hydra leave, with a real composed config. The peer reads
every tenth run the way a notebook does: OmegaConf.load, resolved, json.loads line by line, a frame a
run, pandas.concat. Each collect is a command of its own, its interpreter's start included.

    python benchmarks/collect.py [--runs 10000] [--steps 200]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from report import ROOT, Report, environment, workplace

from rundir import State, Status
from rundir.files import METRICS_FILE, RUN_FILE, STATUS_FILE

FULL_S, NOTHING_S, METRIC_S, RATIO = 60.0, 1.0, 0.5, 50.0
REPEATS = 5
METRICS = ("loss", "lr", "grad_norm", "tokens", "step_time", "tokens_per_second")
SHARE_CHANGED = 100
"""Every hundredth run grows before the third collect."""

COLLECT = (sys.executable, "-m", "analysis", "collect")
LOAD = """
import resource, sys, time
from analysis import history
began = time.perf_counter()
frame = history("train", metrics="loss")
seconds = time.perf_counter() - began
print(seconds, len(frame), frame["loss"].sum())
"""


def composed() -> dict[str, Any]:
    """Return the trainer's default config, as Hydra composes it."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", ["paths.output_dir=."] if False else [])
    container = OmegaConf.to_container(config, resolve=False)
    if not isinstance(container, dict):
        raise SystemExit("the config is no mapping")
    return {str(key): value for key, value in container.items()}
