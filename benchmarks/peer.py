"""Our config tree under Hydra's own sweeper and hydra-submitit-launcher; see plan.py."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

CONFIG = str(Path(__file__).resolve().parent.parent / "conf")


@hydra.main(version_base="1.3", config_path=CONFIG, config_name="config")
def job(config: DictConfig) -> None:
    """Is what a job would do; none of them starts."""


if __name__ == "__main__":
    job()
