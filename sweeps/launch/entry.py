"""The ways in: from Hydra's main, from an override list, and from an error on the way."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rundir import UserError, require, unknown
from sweeps.define.overrides import brief
from sweeps.launch import single
from sweeps.launch.preview import DryRun
from sweeps.planning import composition
from sweeps.planning.composition import Composed, Composer
from sweeps.records import freeze
from sweeps.records.provenance import PROJECT_ROOT

CONFIG_DIR = PROJECT_ROOT / "conf"
CONFIG_NAME = "config"

HYDRAS_OWN = (HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeError)
"""What Hydra raises of a command line, or of a config file, that it expects to be wrong."""


def use_frozen_tasks() -> None:
    """Launched from a frozen copy, import tasks and what they import from it too.

    Raises:
        OptsweepError: the copy was changed.
    """
    if freeze.is_copy(PROJECT_ROOT):
        freeze.verify(PROJECT_ROOT)
        freeze.import_from(PROJECT_ROOT)


def require_known_options(words: Sequence[str]) -> None:
    """Refuse options that Hydra does not know; what they were meant for is an override.

    Raises:
        UserError: in one line, where Hydra would print how it is used.
    """
    actions = get_args_parser()._actions  # noqa: SLF001
    legal = [text for action in actions for text in action.option_strings]
    for word in words:
        name, _, value = word.partition("=")
        if word.startswith("--") and not any(text.startswith(name) for text in legal):
            key = name.removeprefix("--")
            if key.replace("-", "_") == "dry_run":
                key, value = "dry_run", "true"
            if value:
                raise UserError(f"unknown option {name}; did you mean {key}={value}?")
            raise unknown("option", name, legal)


def run_composed(config: DictConfig) -> int:
    """Carry out the run that Hydra composed; return its exit code.

    Args:
        config: the job's config, without the ``hydra`` node.
    """
    composed, directory = _composed(config)
    _refuse_the_queue(composed)
    _refuse_more_processes(composed)
    dry_run = DryRun.of(composed.resolved.get("dry_run"))
    return single.run_one(composed, dry_run=dry_run, directory=directory)


def _refuse_the_queue(composed: Composed) -> None:
    """Refuse to train on the login node what was meant for SLURM; within a job it is right."""
    launcher = get_class(str(composed.hydra.launcher._target_))
    if getattr(launcher, "is_detached", False) and "SLURM_JOB_ID" not in os.environ:
        raise UserError("cluster=slurm is for sweeps; add -m (one run is a sweep of one)")


def _refuse_more_processes(composed: Composed) -> None:
    """Refuse several processes for a run by itself, which would quietly be one."""
    asked = composed.resolved.get("cluster") or {}
    for name in ("nodes", "tasks_per_node"):
        value = asked.get(name, 1)
        must = "1: a run by itself is one process; -m cluster=slurm takes more"
        require(value == 1, f"cluster.{name}", value, must)


def run_as_job(config: DictConfig) -> float | None:
    """Carry out one job of a sweeper other than ours; return what a sampler minimises.

    That is the last validation loss, or training loss where there is none; infinity for a run that
    diverged; None for a dry run and for a task that logs no loss.

    Raises:
        OptsweepError: the run did not complete; Hydra hands it to the process that waits.
    """
    composed, directory = _composed(config)
    dry_run = DryRun.of(composed.resolved.get("dry_run"))
    try:
        single.run_one(composed, dry_run=dry_run, directory=directory)
    except UserError as error:  # it is pickled on its way back; some of them can't be
        raise UserError(str(error)) from None
    return single.outcome(composed, directory) if dry_run is DryRun.NO else None


def _composed(config: DictConfig) -> tuple[Composed, Path | None]:
    """Return the run that Hydra composed, and the directory that the user chose for it."""
    hydra = composition.hydra_of(HydraConfig.instance().cfg)
    sweep = OmegaConf.select(hydra, "runtime.choices.sweep")
    if sweep is not None and hydra.mode != RunMode.MULTIRUN:
        raise UserError(
            f"sweep={sweep} is no sweep; write `# @package _global_` above its definition and "
            "`hydra: {mode: MULTIRUN}` into it"
        )
    overrides = tuple(str(text) for text in hydra.overrides.task)
    groups = composition.group_overrides(overrides, GlobalHydra.instance().config_loader())
    composed = Composed(overrides, groups, config, composition.resolve(config), hydra)
    is_ours = hydra.mode == RunMode.MULTIRUN or str(hydra.run.dir) == "."
    return composed, None if is_ours else Path(str(hydra.runtime.output_dir))


def compose(
    overrides: Sequence[str],
    config_dir: Path | str = CONFIG_DIR,
    config_name: str = CONFIG_NAME,
    more_dirs: Sequence[str] = (),
) -> Composed:
    """Compose one run from an override list, as ``launch.py`` would.

    Args:
        overrides: as on the command line, those of the ``hydra`` node included.
        config_dir: the primary config directory.
        config_name: the primary config.
        more_dirs: further directories to look for configs in, as ``--config-dir`` adds one.

    Raises:
        UserError: naming what is wrong with them.
    """
    task = [text for text in overrides if not is_setting(text)]
    settings = [text for text in overrides if is_setting(text)]
    with composer(settings, config_dir, config_name, more_dirs) as ready:
        return ready.compose(task)


@contextmanager
def composer(
    settings: Sequence[str] = (),
    config_dir: Path | str = CONFIG_DIR,
    config_name: str = CONFIG_NAME,
    more_dirs: Sequence[str] = (),
) -> Iterator[Composer]:
    """Yield what composes runs of a config tree, with overrides of the ``hydra`` node."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(Path(config_dir).absolute()), version_base="1.3"):
        path = GlobalHydra.instance().config_loader().get_search_path()
        for more in more_dirs:
            path.prepend("command-line", f"file://{more}", SearchPathQuery(provider="schema"))
        yield Composer(ConfigLoaderImpl(path), config_name, settings)


def is_setting(text: str) -> bool:
    """Say whether an override is about Hydra itself and not about the job."""
    return re.match(r"[+~]*hydra[./=]", text) is not None


def explain(arguments: Sequence[str], config_dir: str, error: Exception) -> UserError:
    """Return Hydra's error about a command line as one line with the nearest spelling.

    The command line is composed again step by step, which finds the override at fault.
    """
    if isinstance(error, (yaml.YAMLError, UnicodeError)):
        return _unreadable(error)
    given = get_args(list(arguments))
    folders = [Path(folder) for folder in (given.config_dir, config_dir) if folder]
    unreadable = _unreadable_file([given.config_name or CONFIG_NAME, *given.overrides], folders)
    if unreadable is not None:
        return unreadable
    is_expected = isinstance(error, (*HYDRAS_OWN, OSError))
    # No run has a sweep node: about those overrides Hydra's own words must do.
    single = [
        o for o in given.overrides if "," not in o and not o.lstrip("+~").startswith("sweep.")
    ]
    more = [str(Path(given.config_dir).absolute())] if given.config_dir else []
    with suppress(Exception):  # whatever else that trips over, the first error is the one to tell
        try:
            compose(single, config_dir, given.config_name or CONFIG_NAME, more)
        except UserError as found:
            if is_expected or type(found.__context__) is type(error):
                return found
    if is_expected:
        return composition.explained(error)
    said = ": ".join(text for text in (type(error).__name__, " ".join(str(error).split())) if text)
    return UserError(
        f"this can't be launched: {brief(said, 300)}; HYDRA_FULL_ERROR=1 shows where that arises"
    )


def _unreadable_file(names: Sequence[str], folders: Sequence[Path]) -> UserError | None:
    """Return which config file named on the command line can't be read, and why.

    Args:
        names: a config, or the overrides that choose options of groups.
        folders: where configs lie.
    """
    named = [name.lstrip("+").replace("=", "/") for name in names if _A_NAME.fullmatch(name)]
    for file in (folder / f"{name}.yaml" for name in named for folder in folders):
        try:
            OmegaConf.load(file)
        except OSError:  # there is none of that name
            continue
        except (yaml.YAMLError, UnicodeError) as error:
            return _unreadable(error)
        except Exception as error:  # noqa: BLE001 - whatever a parser trips over
            deep = "a list in itself (an alias within its own anchor), or lists too deep"
            is_deep = isinstance(error.__cause__ or error, RecursionError)
            said = deep if is_deep else str(error).splitlines()[0].partition(";")[0]
            return UserError(f"{file}: {said}")
    return None


_A_NAME = re.compile(r"[+\w/-]+(=[\w.-]+)?", re.ASCII)
"""A config, or an override that may choose the option of a group."""


def _unreadable(error: Exception) -> UserError:
    """Return in one line where a config file is no YAML, and why."""
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return UserError(f"{mark.name}, line {mark.line + 1}: {getattr(error, 'problem', error)}")
    return UserError(f"a config file can't be read: {' '.join(str(error).split())}")
