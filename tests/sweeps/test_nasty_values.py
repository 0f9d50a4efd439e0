"""Legal but nasty values: written as overrides that mean exactly them, and found in their runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from sweeps.define.definition import points
from sweeps.define.overrides import override, parse

HEAD = "# @package _global_\nhydra: {mode: MULTIRUN}\n"


NASTY = [
    "",
    " ",
    " leading and trailing ",
    "a\nb",
    "\n",
    "a\tb",
    "a\r\nb",
    "\x1b[31mred",
    "it's",
    'say "so"',
    "both ' and \"",
    "back\\slash",
    "ends in \\",
    "\\'",
    "\\\\'\\",
    "$HOME",
    "$(touch /tmp/owned)",
    "`touch /tmp/owned`",
    "; rm -rf x",
    "a && b || c | d > e < f &",
    "*?[a-z]{b,c}~!#%^",
    "%j %A %a",
    "a=b",
    "a,b",
    "a=1,b=2",
    "[1,2]",
    "{a: 1}",
    "key: value",
    "# no comment",
    "choice(1,2)",
    "range(1,5)",
    "[bold]markup[/bold] [/]",
    "null",
    "true",
    "1e3",
    "nan",
    "0x10",
    "???x",
    "-rf",
    "--help",
    "../../etc",
    "/",
    ".",
    "\u00e9\u00fc\u20ac",
    "\u65e5\u672c\u8a9e",
    "\U0001f600",
    "\u202eright to left",
    "\ufeffmark",
    "\u2028line",
    "a\u00a0b",
    "x" * 10_000,
    "'\"\\ \n" * 2_000,
]


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_a_legal_but_nasty_value_is_written_as_an_override_that_means_exactly_it(text):
    assert parse(override("+tag", text)).value() == text
    (point,) = points(OmegaConf.to_container(OmegaConf.create({"grid": {"+tag": [text]}})))
    assert point == {"+tag": text}


@pytest.mark.parametrize(
    "key", [1, -2, 1.5, True, None, "a b", " a ", "a:b,c", "\\", "yes", "a\tb"]
)
def test_a_mapping_is_written_with_keys_of_any_type(key):
    back = parse(override("+tag", {key: {key: [1]}})).value()
    assert back == {key: {key: [1]}}
    assert type(next(iter(back))) is type(key)


def test_nasty_values_arrive_in_their_runs_byte_for_byte(shell, toy, tmp_path):
    folder = tmp_path / "mine" / "sweep"
    folder.mkdir(parents=True)
    node = {"sweep": {"grid": {"+tag": NASTY}}}
    # Quoted: OmegaConf takes a bare 1e3 for a number, PyYAML does not.
    (folder / "nasty.yaml").write_text(HEAD + yaml.safe_dump(node, default_style='"'))
    command = ("launch", "--config-dir", "mine", *toy, "sweep=nasty")
    dry = shell(*command, "dry_run=true")
    assert f"{len(NASTY)} runs to submit" in dry.stdout
    shell(*command)
    files = sorted((tmp_path / "multirun" / "nasty").rglob("run.json"))
    assert len(files) == len(NASTY)
    assert sorted(json.loads(file.read_text())["config"]["tag"] for file in files) == sorted(NASTY)
    for file in files:
        name = file.parent.name
        assert len(name.encode()) <= 120
        assert name.isascii()
        assert not set(name) & set(" '\"\\$`;&|<>*?[]{}~!#%\n\t")
        saved = yaml.safe_load((file.parent / ".hydra" / "config.yaml").read_text())
        assert saved["tag"] == json.loads(file.read_text())["config"]["tag"]
    assert not Path("/tmp/owned").exists()
