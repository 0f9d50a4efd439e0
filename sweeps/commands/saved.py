"""What a run directory still knows of the run: enough to compose it again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rundir import UserError, read_json
from rundir.files import HYDRA_DIR, RUN_FILE, SWEEP_DIR
from sweeps.define.overrides import parse
from sweeps.launch.entry import CONFIG_DIR, CONFIG_NAME, composer, is_setting
from sweeps.planning.composition import Composed, Composer
from sweeps.records.freeze import CODE_DIR

_PLACES = re.compile(
    r"[+~]*hydra[./](run|sweep|launcher|sweeper|mode|output_subdir|runtime|job\.(num|id))\b"
)
"""Settings of Hydra's that say where and how the saved run was launched, not what it was."""


@dataclass(frozen=True)
class Saved:
    """A run directory, with or without the ``run.json`` that optsweep adds to Hydra's files."""

    directory: Path
    overrides: tuple[str, ...]
    hydra: Mapping[str, Any]
    """The saved ``hydra`` node; empty where there is none."""
    record: Mapping[str, Any]
    """Contents of run.json; empty where there is none."""

    @classmethod
    def read(cls, directory: Path) -> Saved:
        """Read a run directory.

        Raises:
            UserError: it is none, or its overrides can't be read.
        """
        if not directory.is_dir():
            raise UserError(f"{directory} is not a directory")
        path = directory / HYDRA_DIR / "overrides.yaml"
        overrides = _yaml(path)
        if overrides is None and not path.exists():
            named = f"{HYDRA_DIR}/{path.name}"
            raise UserError(f"{directory} has no {named}; it is not a run directory")
        if not isinstance(overrides, list) or not all(isinstance(text, str) for text in overrides):
            raise UserError(f"{path} does not hold a list of overrides")
        node = _yaml(directory / HYDRA_DIR / "hydra.yaml")
        hydra = node.get("hydra") if isinstance(node, dict) else None
        record = read_json(directory / RUN_FILE)
        return cls(directory, tuple(overrides), hydra or {}, record or {})

    @property
    def attempt(self) -> Mapping[str, Any]:
        """The record of the latest attempt."""
        attempts = self.record.get("attempts") or [{}]
        return attempts[-1] if isinstance(attempts[-1], Mapping) else {}

    @property
    def cwd(self) -> str | None:
        """Where it was launched."""
        return (self.hydra.get("runtime") or {}).get("cwd")

    @property
    def frozen_code(self) -> Path | None:
        """The code that the run of a sweep used, where that still lies there."""
        code = self.record.get("code")
        for parent in self.directory.resolve().parents if code else ():
            frozen = parent / SWEEP_DIR / CODE_DIR / str(code)
            if frozen.is_dir():
                return frozen
        return None

    def config(self) -> dict[str, Any] | None:
        """Return the saved config, resolved; None where there is none that resolves here."""
        if isinstance(self.record.get("config"), dict):
            return dict(self.record["config"])
        try:
            loaded = OmegaConf.load(self.directory / HYDRA_DIR / "config.yaml")
            plain = OmegaConf.to_container(loaded, resolve=True)
        except (OSError, yaml.YAMLError, OmegaConfBaseException):
            return None
        return {str(k): v for k, v in plain.items()} if isinstance(plain, dict) else None

    def overrides_with(self, extra: Sequence[str]) -> list[str]:
        """Return the overrides to compose it again from.

        Raises:
            UserError: one of them is a sweep, or says where a run is to go.
        """
        for text in extra:
            if _PLACES.match(text):
                raise UserError(f"{text} has no effect on a rerun; leave it out")
        settings = [str(t) for t in (self.hydra.get("overrides") or {}).get("hydra") or []]
        kept = [text for text in settings if not _PLACES.match(text)]
        texts = _last_of_each_key([*kept, *self.overrides, *extra])
        for text in texts:
            if parse(text).is_sweep_override():
                raise UserError(f"{text} is a sweep; a rerun repeats one run, give one value")
        return texts

    @contextmanager
    def composer(self, settings: Sequence[str]) -> Iterator[Composer]:
        """Yield what composes runs from the present config files, where the saved one's lay."""
        sources = (self.hydra.get("runtime") or {}).get("config_sources") or []
        more = [str(s["path"]) for s in sources if s.get("provider") == "command-line"]
        for path in more:
            if not Path(path).is_dir():
                raise UserError(f"{self.directory} was composed with --config-dir {path}; no such")
        name = str((self.hydra.get("job") or {}).get("config_name") or CONFIG_NAME)
        places = [CONFIG_DIR, *map(Path, more)]
        if not any((place / f"{name}.yaml").is_file() for place in places):
            name = CONFIG_NAME
        with composer(settings, config_name=name, more_dirs=more) as ready:
            yield ready

    def compose(self, overrides: Sequence[str]) -> Composed:
        """Compose the run from the present config files.

        Raises:
            UserError: they no longer have what it was composed from; names it and the nearest.
        """
        task = [text for text in overrides if not is_setting(text)]
        with self.composer([text for text in overrides if is_setting(text)]) as ready:
            try:
                return ready.compose(task)
            except UserError as error:
                raise UserError(f"{self.directory} does not compose any more: {error}") from None


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return None


def _last_of_each_key(overrides: Sequence[str]) -> list[str]:
    """Drop what a later override of the same key replaces; a ``+`` that added the key stays."""
    last: dict[str, str] = {}
    for text in overrides:
        key = parse(text).get_key_element().lstrip("+")
        adds = last.get(key, "").startswith("+") and not text.startswith("+")
        last[key] = f"+{text}" if adds else text
    return list(last.values())
