"""What README.md and docs/ tell to type is what the commands take; what they name is there."""

from __future__ import annotations

import argparse
import re
import shlex
from importlib import import_module
from itertools import chain
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

ROOT = Path(__file__).resolve().parent.parent
TEXTS = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if path.name != "log.md"  # a dated entry tells of its day
}
PARSERS = ("analysis.__main__", "sweeps.__main__", "trainer.prepare", "trainer.sample")


def told(beginning: str) -> list[str]:
    """Return the lines and quotations that begin so, without prompts and comments."""
    text = "\n".join(TEXTS.values())
    lines = re.findall(r"^(?:\$ )?((?:python|make) .*(?:\n {10,}\[.*)*)", text, re.MULTILINE)
    quoted = re.findall(r"`((?:python|make) [^`]*)`", text)
    alone = (re.split(r"\s+# |;| \| ", line)[0] for line in (*lines, *quoted))
    parts = chain.from_iterable(line.split(" && ") for line in alone)
    return sorted(
        {line for line in (" ".join(part.split()) for part in parts) if line.startswith(beginning)}
    )


def options_of(parser: argparse.ArgumentParser, command: str) -> set[str]:
    """Return the options that a command takes; a program without commands has one."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            assert command in action.choices, command
            parser = action.choices[command]
    return {text for action in parser._actions for text in action.option_strings}


@pytest.mark.parametrize("name", PARSERS)
def test_commands_and_options_exist(name):
    lines = told(f"python -m {name.removesuffix('.__main__')} ")
    assert lines
    for line in lines:
        command, *words = shlex.split(line.replace("[", "").replace("]", ""))[3:]
        if command != "…":
            options = {word for word in (command, *words) if word.startswith("-")}
            assert not options - options_of(import_module(name)._parser(), command), line


def composable(line: str) -> bool:
    """Say whether a line is meant as it stands: neither an ellipsis nor names of one's own."""
    return not re.search(r"…|=mine |PROJECT", line)


@pytest.mark.parametrize("line", list(filter(composable, told("python launch.py "))))
def test_what_is_launched_can_be_composed(line):
    parser = argparse.ArgumentParser()
    parser.add_argument("-m", action="store_true")
    parser.add_argument("--config-dir", default="conf")
    parser.add_argument("--config-name", default="config")
    parser.add_argument("words", nargs="*")
    given = parser.parse_args(shlex.split(line.replace(" --help", ""))[2:])
    overrides = []
    for override in OverridesParser.create().parse_overrides(given.words):
        first = next(override.sweep_string_iterator()) if override.is_sweep_override() else None
        key = f"{override.get_key_element()}={first}"
        overrides.append(key if first is not None else override.input_line)
    overrides.append(f"hydra.searchpath=[file://{ROOT / 'conf'}]")
    with initialize_config_dir(str(ROOT / given.config_dir), version_base=None):
        assert "task" in compose(given.config_name, overrides)


def test_targets_are_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for line in told("make "):
        assert re.search(rf"^{line.split()[1]}:", makefile, re.MULTILINE), line


def test_python_blocks_import_what_there_is():
    blocks = chain.from_iterable(
        re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        for text in TEXTS.values()
    )
    found = re.findall(
        r"^from (analysis|trainer|rundir) import (.*)$", "".join(blocks), re.MULTILINE
    )
    assert found
    for module, names in found:
        for name in names.split(", "):
            assert hasattr(import_module(module), name), f"{module}.{name}"


def test_modules_and_links_that_they_name_are_there():
    modules = {str(path.relative_to(ROOT)) for path in ROOT.glob("[!.]*/**/*.py")} | {"launch.py"}
    for file, text in TEXTS.items():
        if file.startswith("docs/tasks"):
            continue  # its modules are the reader's
        for name in re.findall(r"`([a-z_/]+\.py)`", text):
            assert any(f"/{module}".endswith(f"/{name}") for module in modules), f"{file}: {name}"
        for link in re.findall(r"\]\(([^)#:]+)", text):
            assert ((ROOT / file).parent / link).exists(), f"{file}: {link}"
