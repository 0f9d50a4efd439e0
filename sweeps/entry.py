"""The ways in: from Hydra's main, from an override list, and from an error on the way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra import initialize_config_dir
from hydra._internal.utils import get_args
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from rundir import UserError
from sweeps import composition, single
from sweeps.composition import Composed, Composer
from sweeps.provenance import PROJECT_ROOT

CONFIG_DIR = PROJECT_ROOT / "conf"
CONFIG_NAME = "config"


def run_composed(config: DictConfig) -> int:
    """Carry out the run that Hydra composed; return its exit code.

    Args:
        config: the job's config, without the ``hydra`` node.
    """
    hydra = composition.hydra_of(HydraConfig.instance().cfg)
    overrides = tuple(str(text) for text in hydra.overrides.task)
    groups = tuple(text for text in overrides if _names_a_group(text, hydra))
    composed = Composed(overrides, groups, config, composition.resolve(config), hydra)
    chosen = None if str(hydra.run.dir) == "." else Path(str(hydra.run.dir))
    return single.run_one(
        composed, dry_run=bool(composed.resolved.get("dry_run")), directory=chosen
    )


def compose(overrides: Sequence[str], config_dir: Path | str = CONFIG_DIR) -> Composed:
    """Compose one run from an override list, as ``launch.py`` would.

    Raises:
        UserError: naming what is wrong with them.
    """
    task = [text for text in overrides if not text.lstrip("+~").startswith("hydra")]
    settings = [text for text in overrides if text not in task]
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(Path(config_dir).absolute()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        return Composer(loader, CONFIG_NAME, settings).compose(task)


def explain(arguments: Sequence[str], config_dir: str, error: Exception) -> UserError:
    """Return Hydra's error about a command line as one line with the nearest spelling.

    The command line is composed again step by step, which finds the override at fault.
    """
    try:
        compose(
            [text for text in get_args(list(arguments)).overrides if "," not in text], config_dir
        )
    except UserError as found:
        return found
    return composition.explained(error)


def _names_a_group(text: str, hydra: DictConfig) -> bool:
    key = text.lstrip("+~").partition("=")[0].partition("@")[0]
    return key in hydra.runtime.choices
