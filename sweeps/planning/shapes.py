"""Resolved configs of runs that differ in plain values only, without composing each of them.

The *shape* of a run is its override list with the plain values left out. Of the runs of one shape
two are composed. For the others the last one's live config gets their values, and OmegaConf
resolves again only what may see the change, mostly nothing: 0.05 ms a run instead of 10.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from hydra.core.override_parser.types import Override, OverrideType, ValueType
from omegaconf import AnyNode, DictConfig, ListConfig, OmegaConf

Keys: TypeAlias = tuple[Any, ...]
"""Keys of mappings and indices of lists, from the top of a config."""

_PLAIN = frozenset({bool, int, float, str, type(None)})

_REFERENCE = re.compile(r"\$\{(\w[\w-]*(?:\.\w[\w-]*)*)\}")
"""An interpolation that reads one other place of the config and nothing else."""


def shape_of(
    overrides: Sequence[Override], is_group: Callable[[str], bool]
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return the shape of an override list and the values left out of it, by dotted key.

    What chooses a group, deletes, or sets a mapping or an interpolation stays in the shape.
    """
    shape, values = [], {}
    for one in overrides:
        value = one.value()
        if (
            one.value_type is ValueType.ELEMENT
            and is_plain(value)
            and one.package is None
            and not one.is_delete()
            and not is_group(one.key_or_group)
        ):
            shape.append(one.get_key_element() + ("[]" if type(value) is list else ""))
            values[one.key_or_group] = value
        else:
            shape.append(f"={one.input_line}")
    return tuple(shape), values


def is_plain(value: object) -> bool:
    """Say whether OmegaConf stores the value as it is, whatever else the config holds."""
    if type(value) is str:
        return "${" not in value and value != "???"
    if type(value) is list:
        return all(type(item) is not list and is_plain(item) for item in value)
    return type(value) in _PLAIN


class Shape:
    """What the runs of one shape share."""

    def __init__(
        self,
        base: DictConfig,
        config: DictConfig,
        resolved: Mapping[str, Any],
        overrides: Sequence[Override],
        varying: Iterable[str],
    ) -> None:
        """Take one run of the shape.

        Args:
            base: the config that the overrides were applied to.
            config: the run's config, interpolations unresolved; the shape's own from here on.
            resolved: the same, resolved; the shape's own, too.
            overrides: the run's overrides but those that choose groups.
            varying: the dotted keys of those that are left out of the shape.
        """
        self._base = base
        self._config = config
        self._resolved = resolved
        keys = [_split(one.key_or_group) for one in overrides]
        found = {dotted: _place(config, _split(dotted)) for dotted in varying}
        self._places = {dotted: place for dotted, place in found.items() if place is not None}
        self._seeing = list(_seeing(config, keys))
        self._typed = {
            key
            for key, place in self._places.items()
            if type(place.parent._get_node(place.keys[-1])) is not AnyNode
        }
        self.is_quick = (
            len(self._places) == len(found)
            and all(isinstance(key, str) for key in config)
            and all(_acts_on_its_own(one, base) for one in overrides)
            and not any(_overlap(key, other) for i, key in enumerate(keys) for other in keys[:i])
        )
        """Whether no override's effect depends on another's; otherwise every run is composed."""

    def resolved(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the resolved config of the run with these values; the caller owns it.

        Raises:
            OmegaConfBaseException: a value of a wrong type, or an interpolation that fails.
        """
        fresh: dict[str, Any] = copied(self._resolved)
        for key, value in values.items():
            self._places[key].put(fresh, value)
        if not self._seeing and self._typed.isdisjoint(values):
            return fresh
        OmegaConf.copy_cache(self._base, self._config)
        for key, value in values.items():
            self._places[key].set(value)
        for place in (*(self._places[key] for key in self._typed), *self._seeing):
            place.put(fresh, place.get())
        return fresh


@dataclass(frozen=True)
class _Place:
    """A key of a mapping, or an index of a list, in a live config."""

    keys: Keys
    parent: Any

    def set(self, value: object) -> None:
        self.parent[self.keys[-1]] = value

    def get(self) -> object:
        """Return what stands here, resolved."""
        value = self.parent[self.keys[-1]]
        if not OmegaConf.is_config(value):
            return value
        return OmegaConf.to_container(value, resolve=True, throw_on_missing=True)

    def put(self, plain: Any, value: object) -> None:
        """Write a value into the same place of a plain config."""
        for key in self.keys[:-1]:
            plain = plain[key]
        plain[self.keys[-1]] = value


def _place(config: DictConfig, keys: Keys) -> _Place | None:
    """Return the place of a key of a mapping; None if it is of a list, or an alias of another."""
    parent = _at(config, keys[:-1])
    is_there = isinstance(parent, DictConfig) and keys[-1] in parent
    return _Place(keys, parent) if is_there else None


def copied(plain: Any) -> Any:
    """Return a copy of plain containers; copy.deepcopy takes ten times as long."""
    if isinstance(plain, Mapping):
        return {key: copied(value) for key, value in plain.items()}
    if isinstance(plain, list):
        return [copied(value) for value in plain]
    return plain


def _split(dotted: str) -> Keys:
    return tuple(dotted.split("."))


def _overlap(one: Keys, other: Keys) -> bool:
    return all(a == b for a, b in zip(one, other, strict=False))


def _at(config: DictConfig, keys: Keys) -> object:
    """Return what stands at these keys, ``_THROUGH`` when an interpolation stands on the way."""
    node: Any = config
    for key in keys:
        if not isinstance(node, DictConfig) or key not in node.keys():  # noqa: SIM118 - `in` resolves
            return None
        if OmegaConf.is_interpolation(node, key):
            return _THROUGH
        node = None if OmegaConf.is_missing(node, key) else node[key]
    return node


_THROUGH = object()


def _acts_on_its_own(override: Override, base: DictConfig) -> bool:
    """Say whether what the override does to ``base`` is read off the override alone."""
    value = override.value()
    if override.is_delete() and value is not None:
        return False
    keys = _split(override.key_or_group)
    # A plain value replaces an interpolation; all else may be merged into what it leads to.
    replaces = override.type is OverrideType.CHANGE and is_plain(value) and type(value) is not list
    return _at(base, keys[:-1] if replaces else keys) is not _THROUGH


def _seeing(config: DictConfig, changing: Sequence[Keys]) -> Iterator[_Place]:
    """Yield the interpolations that may resolve to something else when these keys change."""
    changed = list(changing)
    hidden = list(_interpolations(config, OmegaConf.to_container(config), ()))
    while seeing := [one for one in hidden if _sees(one[1], changed)]:
        hidden = [one for one in hidden if one not in seeing]
        changed += [tuple(map(str, place.keys)) for place, _ in seeing]
        yield from (place for place, _ in seeing)


def _interpolations(node: Any, raw: Any, keys: Keys) -> Iterator[tuple[_Place, str]]:
    """Yield every interpolation of a config with its text."""
    for key in range(len(node)) if isinstance(node, ListConfig) else list(node):
        if OmegaConf.is_interpolation(node, key):
            yield _Place((*keys, key), node), str(raw[key])
        elif not OmegaConf.is_missing(node, key) and OmegaConf.is_config(node[key]):
            yield from _interpolations(node[key], raw[key], (*keys, key))


def _sees(text: str, changed: Sequence[Keys]) -> bool:
    """Say whether an interpolation may see a change; one that calls a resolver always may."""
    if "$" in _REFERENCE.sub("", text) or "\\" in text:
        return True
    read = [_split(dotted) for dotted in _REFERENCE.findall(text)]
    return any(_overlap(one, other) for one in read for other in changed)
