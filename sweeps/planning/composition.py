"""Configurations of runs, as Hydra composes them, but composed once per choice of config groups.

Hydra composes a job's whole defaults tree anew, 0.1–0.2 s a run. Runs of a sweep mostly differ in
values, so the tree is composed once for each set of group overrides, and Hydra's own function then
applies the value overrides to a copy: 10 ms. Where many runs set other values of the same keys,
:class:`sweeps.planning.shapes.Shape` spares most of that.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, flag_override
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from rundir import IllegalValue, UserError, unknown
from rundir.errors import nearest
from sweeps.define.overrides import parse
from sweeps.planning.identity import MAX_NAME_BYTES
from sweeps.planning.shapes import Shape, copied, shape_of


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

    @cached_property
    def _seen(self) -> DictConfig:
        return OmegaConf.create({"hydra": self.hydra})

    def show(self) -> None:
        """Let ``${hydra:…}`` in a job's config read this base; Hydra keeps it in a global."""
        HydraConfig.instance().cfg = self._seen  # type: ignore[assignment]


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
    _shapes: dict[tuple[str, ...], tuple[tuple[str, ...], Shape | None]] = field(
        default_factory=dict
    )
    _groups: dict[str, bool] = field(default_factory=dict)

    def compose(self, overrides: Sequence[str]) -> Composed:
        """Compose one run.

        Raises:
            UserError: naming the override, the legal keys or options and the nearest spelling.
        """
        groups = group_overrides(overrides, self.loader)
        return compose_on(self.base(groups), overrides, groups)

    def resolved(self, overrides: Sequence[Override]) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Return the group overrides and the resolved config of one of many runs.

        Both are those of :meth:`compose`, and so are the errors; runs of a shape that was seen
        twice cost a hundredth of it.
        """
        form, values = shape_of(overrides, self._is_group)
        groups, shape = self._shapes.get(form, ((), None))
        if shape is not None and shape.is_quick:
            self.base(groups).show()
            with suppress(OmegaConfBaseException):
                return groups, shape.resolved(values)
        composed = self.compose([str(one.input_line) for one in overrides])
        if form in self._shapes and shape is None and values:
            base = self.base(composed.groups).config
            rest = [one for one in overrides if one.input_line not in composed.groups]
            shape = Shape(base, composed.config, copied(composed.resolved), rest, values)
        self._shapes[form] = composed.groups, shape
        return composed.groups, composed.resolved

    def _is_group(self, key: str) -> bool:
        if key not in self._groups:
            self._groups[key] = is_group(key, self.loader)
        return self._groups[key]

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
            raise _misplaced_plus(groups, error) or explained(error) from error
        except (AssertionError, OSError, TypeError, ValueError) as error:
            raise self._explained_group(groups, error) from error
        return split(whole)

    def _explained_group(self, groups: Sequence[str], error: Exception) -> UserError:
        """Explain why Hydra can't read the overrides that choose groups."""
        for one in map(parse, groups):
            value = one.value()
            options = value if isinstance(value, list) else [value]
            if one.is_delete():
                continue
            for option in options:
                if not isinstance(option, str):
                    must = "the name of an option of this group"
                    return IllegalValue(one.key_or_group, value, must)
                if "\0" in option or len(option.encode()) > MAX_NAME_BYTES:  # no file's name
                    legal = self.loader.get_group_options(one.key_or_group)
                    return unknown("option", option, legal, one.key_or_group)
        return explained(error)


def compose_on(base: Base, overrides: Sequence[str], groups: tuple[str, ...]) -> Composed:
    """Apply the value overrides of one run to the base that its group overrides compose to."""
    base.show()
    config = apply_values(base.config, [text for text in overrides if text not in groups])
    return Composed(tuple(overrides), groups, config, resolve(config), base.hydra)


def group_overrides(overrides: Sequence[str], loader: ConfigLoader) -> tuple[str, ...]:
    """Return the overrides that choose config groups, or change the ``hydra`` node."""
    texts = dict.fromkeys(overrides)
    return tuple(text for text in texts if is_group(parse(text).key_or_group, loader))


def is_group(key: str, loader: ConfigLoader) -> bool:
    """Say whether the key names a config group, or a part of the ``hydra`` node."""
    exists = False
    with suppress(OSError, ValueError):  # no directory can be called that
        exists = loader.repository.group_exists(key)  # type: ignore[attr-defined]
    return exists or key.partition(".")[0] == "hydra"


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
    for i, text in enumerate(overrides):
        try:
            ConfigLoaderImpl._apply_overrides_to_config([parse(text)], config)
        except (HydraException, OmegaConfBaseException) as error:
            before = apply_values(base, overrides[:i])
            raise _explained_value(text, before, error) from error
        except (AssertionError, KeyError, TypeError, ValueError) as error:  # e.g. list.key=1
            said = f"{text} can't be set: {error or type(error).__name__}"
            before = apply_values(base, overrides[:i])
            raise (_no_item(text, before) or UserError(said)) from error
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
    if isinstance(error, MissingMandatoryValue) and error.full_key:
        return UserError(f"{error.full_key} is missing; it has no default: {error.full_key}=VALUE")
    cause: BaseException | None = error
    while cause is not None and not str(cause).strip():  # Hydra wraps some in an empty one
        cause = cause.__cause__
    said = str(cause or type(error).__name__)
    return UserError(" ".join(line.strip() for line in said.splitlines() if line.strip()))


def _misplaced_plus(groups: Sequence[str], error: Exception) -> UserError | None:
    """Explain a + before a group that the defaults list has, or one that is missing.

    Hydra's own words for the first are for who writes a config file.
    """
    for text in groups:
        one, said = parse(text), str(error)
        key = one.key_or_group
        if one.is_add() and said.startswith(f"Multiple values for {key}."):
            return UserError(f"{text}: {key} is in the defaults list; write {text.lstrip('+')}")
        if not one.is_add() and said.startswith(f"Could not override '{key}'. No match"):
            return UserError(f"{text}: {key} is not in the defaults list; write +{text}")
    return None


def _explained_value(text: str, config: DictConfig, error: Exception) -> UserError:
    """Explain why an override could not be applied to a config."""
    override = parse(text)
    key = override.key_or_group
    if override.package is not None:
        return explained(error)
    no_item = _no_item(text, config)
    if no_item is not None:
        return no_item
    parent, name = _deepest(config, key)
    if override.is_add() or not isinstance(error, ConfigCompositionException):
        return explained(error)
    if name is None:
        return UserError(f"{text}: {_cause(error)}; to add keys write +{text}")
    node = OmegaConf.select(config, parent) if parent else config
    if not isinstance(node, Mapping):
        return UserError(f"{text}: {parent} is a value, not a mapping; it has no key {name}")
    if not parent and name in _ADDED:
        return UserError(f"{text}: no {name} is chosen; write {_ADDED[name]} before it")
    legal = list(node.keys())
    said = unknown("key", name, legal, parent or "the config")
    if nearest(name, legal) is not None:
        return said
    places = _places(config, key.rpartition(".")[2])
    return UserError(f"{said}; did you mean {' or '.join(places)}?") if places else said


def _places(config: DictConfig, name: str, most: int = 3) -> list[str]:
    """Return the dotted keys that end in a name: what ``lr=0.1`` may have been meant for."""
    found = []
    for key, value in config.items_ex(resolve=False):
        if isinstance(value, DictConfig) and not value._is_none() and not value._is_interpolation():
            found += [f"{key!s}.{below}" for below in _places(value, name, most)]
        elif key == name:
            found.append(name)
    return found[:most]


_ADDED = {"logging": "+logging=default"}
"""Config groups that the defaults leave out, and what brings them in."""


def _no_item(text: str, config: DictConfig) -> UserError | None:
    """Explain an override of what a list does not hold; None if it is about something else."""
    parent, name = _deepest(config, parse(text).key_or_group)
    node = OmegaConf.select(config, parent) if parent else config
    if name is None or not isinstance(node, ListConfig):
        return None
    return UserError(f"{text}: {parent} is a list of {len(node)}; it has no item {name}")


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).splitlines()[0]


def _deepest(config: DictConfig, key: str) -> tuple[str, str | None]:
    """Return the longest existing prefix of a dotted key and the first part that does not exist."""
    parts = key.split(".")
    for i, part in enumerate(parts):
        node = OmegaConf.select(config, ".".join(parts[:i])) if i else config
        if isinstance(node, ListConfig) and part.isdecimal() and int(part) < len(node):
            continue
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
