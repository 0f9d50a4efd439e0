"""Configurations of runs, as Hydra composes them, but composed once per choice of config groups.

Hydra composes a job's whole defaults tree anew, 0.1–0.2 s a run. Runs of a sweep mostly differ in
values, so the tree is composed once for each set of group overrides, and Hydra's own function then
applies the value overrides to a copy.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from rundir import UserError, unknown
from sweeps.overrides import parse


@dataclass(frozen=True)
class Base:
    """What one set of group overrides composes to, before value overrides."""

    config: DictConfig
    """The job's config, interpolations unresolved."""
    hydra: DictConfig
    """The ``hydra`` node."""

    @cached_property
    def yaml(self) -> tuple[str, str]:
        """Both as YAML. Cost: 5 ms, once a base and not once a run."""
        return OmegaConf.to_yaml(self.config), OmegaConf.to_yaml(self.hydra)


@dataclass(frozen=True)
class Composed:
    """The configuration of one run."""

    overrides: tuple[str, ...]
    groups: tuple[str, ...]
    """The overrides that chose config groups; the others changed values."""
    config: DictConfig
    resolved: dict[str, Any]
    hydra: DictConfig


@dataclass
class Composer:
    """Composes runs of one config tree."""

    loader: ConfigLoader
    config_name: str
    hydra_overrides: Sequence[str] = ()
    """Overrides of the ``hydra`` node, common to all runs."""
    _bases: dict[tuple[str, ...], Base] = field(default_factory=dict)

    def compose(self, overrides: Sequence[str]) -> Composed:
        """Compose one run.

        Raises:
            UserError: naming the override, the legal keys or options and the nearest spelling.
        """
        groups = group_overrides(overrides, self.loader)
        return compose_on(self.base(groups), overrides, groups)

    def base(self, groups: tuple[str, ...]) -> Base:
        """Return the configuration that the group overrides alone compose to; cached."""
        if groups not in self._bases:
            self._bases[groups] = self._load(groups)
        return self._bases[groups]

    def _load(self, groups: tuple[str, ...]) -> Base:
        try:
            whole = self.loader.load_configuration(
                config_name=self.config_name,
                overrides=[*self.hydra_overrides, *groups],
                run_mode=RunMode.RUN,
            )
        except (HydraException, OmegaConfBaseException) as error:
            raise explained(error) from error
        return split(whole)


def compose_on(base: Base, overrides: Sequence[str], groups: tuple[str, ...]) -> Composed:
    """Apply the value overrides of one run to the base that its group overrides compose to."""
    # ${hydra:…} in the job's config reads this global.
    HydraConfig.instance().cfg = OmegaConf.create({"hydra": base.hydra})  # type: ignore[assignment]
    config = apply_values(base.config, [text for text in overrides if text not in groups])
    return Composed(tuple(overrides), groups, config, resolve(config), base.hydra)


def group_overrides(overrides: Sequence[str], loader: ConfigLoader) -> tuple[str, ...]:
    """Return the overrides that choose config groups, or change the ``hydra`` node."""
    repository = loader.repository  # type: ignore[attr-defined]
    keys = {text: parse(text).key_or_group for text in overrides}
    return tuple(
        text
        for text, key in keys.items()
        if key.split(".")[0] == "hydra" or repository.group_exists(key)
    )


def split(whole: DictConfig) -> Base:
    """Split a composed config into the job's part and the ``hydra`` node."""
    config = copy.deepcopy(whole)
    with flag_override(config, ["struct", "readonly"], [False, False]):
        config.pop("hydra")
        if config.get("sweep") is not None:
            config.sweep = None  # a run is no sweep; it would be copied and resolved with every run
    OmegaConf.set_struct(config, value=True)
    return Base(config, hydra_of(whole))


def hydra_of(whole: Any) -> DictConfig:
    """Return a copy of the ``hydra`` node without the help texts, as Hydra saves it."""
    if whole is None:
        raise UserError("Hydra has composed no configuration")
    hydra: DictConfig = copy.deepcopy(whole).hydra
    with flag_override(hydra, ["struct", "readonly"], [False, False]):
        hydra.pop("help", None)
        hydra.pop("hydra_help", None)
    return hydra


def apply_values(base: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Return a copy of ``base`` with value overrides applied by Hydra's own function."""
    config = copy.deepcopy(base)
    for text in overrides:
        try:
            ConfigLoaderImpl._apply_overrides_to_config([parse(text)], config)
        except (HydraException, OmegaConfBaseException) as error:
            raise _explained_value(text, base, error) from error
    return config


def resolve(config: DictConfig) -> dict[str, Any]:
    """Return the config as plain containers with every interpolation resolved."""
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise explained(error) from error
    if not isinstance(plain, dict):
        raise UserError("the configuration is not a mapping")
    return {str(key): value for key, value in plain.items()}


def explained(error: Exception) -> UserError:
    """Return Hydra's or OmegaConf's error as one line, with the nearest option where one exists."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        missing = (error.missing_cfg_file or "").removesuffix(".yaml")
        group, _, option = missing.rpartition("/")
        if group:
            return unknown("option", option, error.options, group)
    cause: BaseException | None = error
    while cause is not None and not str(cause).strip():  # Hydra wraps some in an empty one
        cause = cause.__cause__
    said = str(cause or type(error).__name__)
    return UserError(" ".join(line.strip() for line in said.splitlines() if line.strip()))


def _explained_value(text: str, config: DictConfig, error: Exception) -> UserError:
    """Explain why an override could not be applied to a config."""
    override = parse(text)
    key = override.key_or_group
    if override.package is not None:
        return explained(error)
    parent, name = _deepest(config, key)
    if override.is_add() or not isinstance(error, ConfigCompositionException):
        return explained(error)
    if name is None:
        return UserError(f"{text}: {_cause(error)}; to add keys write +{text}")
    node = OmegaConf.select(config, parent) if parent else config
    if not isinstance(node, Mapping):
        return UserError(f"{text}: {parent} is a value, not a mapping; it has no key {name}")
    return unknown("key", name, list(node.keys()), parent or "the config")


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).splitlines()[0]


def _deepest(config: DictConfig, key: str) -> tuple[str, str | None]:
    """Return the longest existing prefix of a dotted key and the first part that does not exist."""
    parts = key.split(".")
    for i, part in enumerate(parts):
        node = OmegaConf.select(config, ".".join(parts[:i])) if i else config
        if not isinstance(node, DictConfig) or part not in node:
            return ".".join(parts[:i]), part
    return key, None


def hydra_node(composed: Composed, run_dir: str, number: int) -> DictConfig:
    """Return the ``hydra`` node as Hydra would save it in ``.hydra/hydra.yaml`` of this run.

    Args:
        composed: the run.
        run_dir: absolute path of the run directory.
        number: the run's index in its sweep.
    """
    hydra = copy.deepcopy(composed.hydra)
    with flag_override(hydra, ["struct", "readonly"], [False, False]):
        hydra.overrides.task = list(composed.overrides)
        hydra.runtime.output_dir = run_dir
        hydra.output_subdir = ".hydra"
        hydra.job.num = number
    return hydra
