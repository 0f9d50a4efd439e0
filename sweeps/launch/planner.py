"""Hydra's sweeper for ``-m`` and ``sweep=NAME``: expand, check, plan, submit, and let go."""

from __future__ import annotations

import itertools
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, cast

import yaml
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rundir import UserError, require, unknown
from rundir.files import MULTIRUN
from sweeps.cluster import launchers
from sweeps.define import axes, definition
from sweeps.define.definition import Point
from sweeps.define.overrides import brief
from sweeps.launch import references, stages, submission, successor
from sweeps.launch.outlook import Outlook, asked_by
from sweeps.launch.preview import DryRun
from sweeps.launch.references import Best
from sweeps.planning.candidates import candidates
from sweeps.planning.composition import Composer
from sweeps.planning.identity import MAX_NAME_BYTES
from sweeps.planning.phase import begin_work
from sweeps.planning.plan import Plan


class Planner(Sweeper):
    """Plans the sweep and hands it to the launcher that ``cluster=…`` chose."""

    config: DictConfig
    hydra_context: HydraContext

    def __init__(self, params: Mapping[str, Any] | None = None) -> None:
        """Take ``hydra.sweeper.params``: key → values in Hydra's sweep syntax."""
        self.params = dict(params or {})

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Called by Hydra."""
        self.config = config
        self.hydra_context = hydra_context
        _refuse_idle_settings(config)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Plan and submit. Ends the process with an exit code other than 0 if a run failed."""
        launcher = self.launcher
        if not isinstance(launcher, (launchers.LocalLauncher, launchers.SlurmLauncher)):
            raise UserError(
                "hydra/launcher is chosen by cluster=…; to use another one add hydra/sweeper=basic"
            )
        name = sweep_name(self.config)
        root = Path(str(OmegaConf.select(self.config, "paths.multirun") or MULTIRUN)) / name
        dry_run = DryRun.of(OmegaConf.select(self.config, "dry_run"))
        try:
            best = self._first_stage(name, root.parent)
        except stages.Unfinished as error:
            is_queued = launcher.is_detached and bool(error.jobs)
            if dry_run is DryRun.NO and not is_queued:
                raise
            # What is wrong with the definition is said here, before anything waits.
            points, _ = self._expand(arguments, references.placeholder)
            tasks = {str(point.get("task", self.config.task)) for point in points}
            node = _node(self.config, "cluster")
            clusters = [asked_by(point, node, launcher) for point in points]
            begin_work()
            if dry_run is DryRun.NO:
                successor.submit(error, root, node, tasks)
            else:
                script = successor.script(error, root, node, tasks) if is_queued else None
                Outlook(error, root, points, clusters, launcher, script).show(dry_run)
            return
        points, fixed = self._expand(arguments, best)
        composer = Composer(
            self.hydra_context.config_loader,
            str(self.config.hydra.job.config_name),
            list(self.config.hydra.overrides.hydra),
        )
        found = candidates(composer, name, points, fixed, here=not launcher.is_detached)
        begin_work()
        if dry_run is not DryRun.NO:
            submission.show(Plan.read(root) or Plan(name, root), found, launcher, dry_run)
            return
        code = submission.launch(Plan(name, root), found, launcher)
        if code:
            sys.exit(code)

    def _first_stage(self, name: str, multirun: Path) -> Best:
        """Return what ``${best:…}`` stands for.

        Raises:
            UserError: the sweep named by ``after`` does not exist, failed, or is not over.
        """
        after = stages.After.read(_of_sweep(self.config, "after"))
        if after is None:
            return references.no_first_stage
        folders = [folder / "sweep" for folder in _config_folders(self.config)]
        stages.require_no_circle(after, [name, _chosen(self.config)], folders)
        return stages.FirstStage.find(after, name, multirun, folders).best

    def _expand(self, arguments: Sequence[str], best: Best) -> tuple[list[Point], list[str]]:
        """Return the points to run and the overrides that all of them share.

        A key given on the command line replaces what the definition says about it.
        """
        given = self._given(arguments)
        typed = {definition.bare(key) for key in given}
        # Those of the sweep node have made the definition what it is, a dry run is one of all runs.
        ours = {
            key: override
            for key, override in given.items()
            if not definition.bare(key).startswith("sweep.") and definition.bare(key) != "dry_run"
        }
        fixed = [o.input_line for o in ours.values() if not o.is_sweep_override()]
        swept = {key: axes.values(o) for key, o in given.items() if o.is_sweep_override()}
        with references.resolving(best):
            node = _node(self.config, "sweep")
        if not self.params and not swept:
            _require_points(self.config, node)
        folders = [Path(), *(folder / "sweep" for folder in _config_folders(self.config))]
        defined = definition.points(node, folders=folders) if node else [{}]
        kept = [
            {k: v for k, v in point.items() if definition.bare(k) not in typed} for point in defined
        ]
        if kept != defined:
            kept = list({repr(point): point for point in kept}.values())
        definition.bounded([len(kept), *map(len, swept.values())], "the sweep")
        points = [
            {**point, **dict(zip(swept, values, strict=True))}
            for point in kept
            for values in itertools.product(*swept.values())
        ]
        return points, [str(line) for line in fixed]

    def _given(self, arguments: Sequence[str]) -> dict[str, Override]:
        """Return the overrides of ``hydra.sweeper.params`` and of the command line, by key.

        Of two for one key the later counts, as in Hydra's own sweeper, unless one on the command
        line is a sweep, whose values would be lost without a word.
        """
        for key, value in self.params.items():
            must = "values in Hydra's sweep syntax, such as 1,2 or range(1,5)"
            require(value is not None, f"hydra.sweeper.params.{key}", value, must)
        loader = self.hydra_context.config_loader
        swept = axes.parsed([f"{key}={value}" for key, value in self.params.items()], loader)
        found = {one.get_key_element(): one for one in swept}
        typed: dict[str, Override] = {}
        for one in axes.parsed(arguments, loader):
            found[one.get_key_element()] = one
            if one.is_delete():  # it makes room for another
                continue
            first = typed.setdefault(definition.bare(one.get_key_element()), one)
            if first is not one and (first.is_sweep_override() or one.is_sweep_override()):
                both = f"{first.input_line} and {one.input_line}"
                raise UserError(f"{first.key_or_group} is given twice, as {both}; remove one")
        return found


_NAME = re.compile(r"\w[\w.+=-]*")
"""It goes into paths, into sbatch's %-patterns and into squeue's comma-separated lists."""


def sweep_name(config: DictConfig) -> str:
    """Return the sweep's name: its definition's, ``paths.sweep``, or the time of the launch."""
    given = _of_sweep(config, "name") or OmegaConf.select(config, "paths.sweep") or _chosen(config)
    name = str(given or time.strftime("%Y-%m-%d_%H-%M-%S"))
    if not _NAME.fullmatch(name) or len(name.encode()) > MAX_NAME_BYTES:
        raise UserError(
            f"sweep name {name[:200]!r} must be a plain directory name of at most "
            f"{MAX_NAME_BYTES} bytes: letters, digits and . _ + = -"
        )
    return name


def _of_sweep(config: DictConfig, key: str) -> object:
    """Return what the definition says of itself; its values may still need resolving."""
    node = OmegaConf.select(config, "sweep")
    if node is not None and not isinstance(node, DictConfig):
        raise UserError(f"sweep = {node!r}; must be a mapping such as {{grid: …}}")
    try:
        with references.resolving(references.no_reference):
            return None if node is None else node.get(key)
    except OmegaConfBaseException as error:
        raise _unresolvable(error, f"sweep.{key}") from None


def _chosen(config: DictConfig) -> str | None:
    chosen = OmegaConf.select(config, "hydra.runtime.choices.sweep")
    return None if chosen is None else str(chosen)


def _config_folders(config: DictConfig) -> list[Path]:
    """Return the folders that configs come from, the primary one first."""
    sources = OmegaConf.select(config, "hydra.runtime.config_sources") or ()
    return [Path(str(source.path)) for source in sources if source.schema == "file"]


def _node(config: DictConfig, key: str) -> dict[str, Any]:
    try:
        node = OmegaConf.select(config, key)
        plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    except OmegaConfBaseException as error:
        raise _unresolvable(error, key) from None
    if plain is not None and not isinstance(plain, dict):
        raise UserError(f"{key} = {plain!r}; must be a mapping")
    return {str(k): v for k, v in (plain or {}).items()}


def _unresolvable(error: OmegaConfBaseException, key: str) -> UserError:
    said = str(error).splitlines()[0]
    said = said.removeprefix("UserError raised while resolving interpolation: ")
    return UserError(f"{error.full_key or key}: {said}")


def _require_points(config: DictConfig, node: Mapping[str, Any]) -> None:
    """Refuse a definition that does not say what to run, or says it beside ``sweep:``."""
    if config.get("sweep") is not None:
        for key in node:
            if key not in definition.TOP_KEYS:
                raise unknown("key", key, definition.TOP_KEYS, "sweep")
        if all(node.get(key) is None for key in definition.KEYS):
            said = "must say what to run: {grid: {KEY: [values]}}, {seeds: 3}, …"
            raise UserError(f"sweep = {brief(node)}; {said}")
        return
    if _chosen(config) is None:
        return
    misplaced = [key for key in definition.TOP_KEYS if key != "cluster" and key in config]
    if misplaced:
        raise UserError(
            f"sweep {_chosen(config)}: {', '.join(misplaced)} must stand below `sweep:`; "
            "as it is, the definition is one run"
        )


_ELSEWHERE = {
    "hydra.sweep.dir": "write paths.multirun=… and paths.sweep=…",
    "hydra.sweep.subdir": "write paths.group=… and paths.run_name=…",
    "hydra.job.chdir": "runs of a sweep stay where it was launched",
    "hydra.callbacks": "runs of a sweep are no Hydra jobs; the task can do it",
}
"""Settings of Hydra's own that would count for nothing here, and what to do instead."""

_BY_VALUE = ("hydra.sweep.dir", "hydra.sweep.subdir", "hydra.job.chdir")
"""Those that are harmless with Hydra's own value."""


def _refuse_idle_settings(config: DictConfig) -> None:
    """Refuse settings of the ``hydra`` node that a planned sweep does not heed."""
    typed = [str(text).lstrip("+~").partition("=")[0] for text in config.hydra.overrides.hydra]
    for key in (*(key for key in typed if key not in _BY_VALUE), *_changed(config.hydra)):
        for idle, instead in _ELSEWHERE.items():
            if key == idle or key.startswith(f"{idle}."):
                raise UserError(f"{key} has no effect in a sweep; {instead}")
        if key.startswith("hydra.launcher."):
            field = key.removeprefix("hydra.launcher.")
            legal = [str(name) for name in _node(config, "cluster")]
            if field in legal:
                raise UserError(f"{key} has no effect here; write cluster.{field}=…")
            raise unknown("key", field, legal, "cluster")


def _changed(hydra: DictConfig) -> Iterator[str]:
    """Yield the settings without effect that differ from what Hydra, or our launcher, has there."""
    given = _unresolved(hydra)
    sweep, usual = given["sweep"], _hydras_output()["sweep"]
    yield from (f"hydra.sweep.{key}" for key in usual if sweep.get(key) != usual[key])
    if given["job"].get("chdir"):  # null, as false, stays
        yield "hydra.job.chdir"
    if given["callbacks"]:
        yield "hydra.callbacks"
    kind = getattr(get_class(given["launcher"]["_target_"]), "cluster_type", None)
    if kind is not None:
        ours = _unresolved(OmegaConf.structured(kind))
        yield from (f"hydra.launcher.{k}" for k, v in given["launcher"].items() if v != ours[k])


def _hydras_output() -> dict[str, Any]:
    """Return what Hydra itself says of where output goes."""
    file = resources.files("hydra.conf") / "hydra" / "output" / "default.yaml"
    output: dict[str, Any] = yaml.safe_load(file.read_text())
    return output


def _unresolved(node: DictConfig) -> dict[str, Any]:
    return cast("dict[str, Any]", OmegaConf.to_container(node))
