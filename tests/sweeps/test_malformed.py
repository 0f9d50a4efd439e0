"""Whatever is wrong with a definition: one clear line, exit code 2, and nothing written.

The whole family goes through the planner in this process, in front of one composed config; a few of
it, and what no YAML parser lets through, through ``launch.py`` itself.
"""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest
import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import OmegaConf, open_dict

from rundir import exit_code_of
from sweeps.launch import submission
from sweeps.launch.entry import CONFIG_DIR, CONFIG_NAME

LR = "optimizer.optimizer_params.lr"
WD = "optimizer.optimizer_params.weight_decay"
HEAD = "# @package _global_\nhydra: {mode: MULTIRUN}\n"

WRONG_TYPES = ("5", "[1]", "text", "true", "{}", "[]", "''")
"""What no part of a definition that must be a mapping or a list of mappings may be."""


def sampled(how: str, n: str = "3", more: str = "") -> str:
    return f"sample: {{n: {n}, keys: {{{LR}: {how}}}{more}}}"


MALFORMED = [
    *(f"grid: {wrong}" for wrong in WRONG_TYPES),
    *(f"grid: {{{LR}: {wrong}}}" for wrong in ("5", "text", "true", "{}", "[]", "null", "{a: 1}")),
    *(f"zip: {wrong}" for wrong in WRONG_TYPES),
    *(f"runs: {wrong}" for wrong in (*WRONG_TYPES, "[[1]]", "[null]", "[{}]", "{seed: 1}")),
    *(f"blocks: {wrong}" for wrong in (*WRONG_TYPES, "[[1]]", "[null]", "[{}]", "{grid: {}}")),
    *(f"exclude: {wrong}\nseeds: 2" for wrong in (*WRONG_TYPES, "[{}]", "{seed: 1}")),
    *(f"cluster: {wrong}" for wrong in WRONG_TYPES if wrong != "{}"),
    *(f"sample: {wrong}" for wrong in WRONG_TYPES),
    *(f"params_file: {wrong}" for wrong in ("5", "[1]", "true", "''", "nowhere.json", "{}", "/")),
    *(f"seeds: {wrong}" for wrong in ("0", "-1", "1.5", "true", "two", "[]", "[1.5]", "{a: 1}")),
    # empty, as where every entry is commented out
    *(f"{key}: null" for key in ("grid", "zip", "runs", "seeds", "sample", "blocks", "cluster")),
    "grid: null\nzip: null",
    "grid: null\ncluster: {timeout_min: 5}",
    "cluster: null\nexclude: null",
    "blocks: [{grid: null}]",
    "grid: {seed: [1]}\nblocks: [{seeds: null, exclude: null}]",
    "{}",
    "name: empty",
    # numbers that no float holds, and those that Python does not write out
    f"grid: {{seed: [{10**400}]}}",
    f"grid: {{seed: [[1, 0x{'f' * 5_000}]]}}",
    f"runs: [{{seed: 0x{'f' * 5_000}}}]",
    f"seeds: [0x{'f' * 5_000}]",
    f"seeds: [0x{'f' * 5_000}, 1.5]",
    f"seeds: 0x{'f' * 5_000}",
    f"seeds: {10**400}",
    *(sampled(f"{{{how}: [0, {10**400}]}}") for how in ("uniform", "log_uniform", "int_uniform")),
    sampled(f"{{uniform: [-{10**400}, 1.5]}}"),
    sampled("{uniform: [-1.0e+308, 1.0e+308]}"),
    sampled("{uniform: [0, 1]}", n=str(10**30)),
    # lengths and sizes
    f"zip: {{{LR}: [1, 2], {WD}: [1]}}",
    f"zip: {{{LR}: [1, 2], {WD}: []}}",
    "seeds: 1000000000",
    "seeds: 25\n" + sampled("{uniform: [0, 1]}", n="99999"),
    # the same thing twice
    f"grid: {{{LR}: [0.1, 0.1]}}",
    f"grid: {{{LR}: [1, 1.0]}}",
    f"grid: {{{LR}: [1]}}\nruns: [{{{LR}: 2}}]",
    f"grid: {{{LR}: [1]}}\nblocks: [{{grid: {{{LR}: [2]}}}}]",
    f"blocks: [{{grid: {{{LR}: [1]}}}}, {{runs: [{{{LR}: 1}}]}}]",
    "blocks: [{seeds: [1], cluster: {timeout_min: 5}}, {seeds: [1], cluster: {timeout_min: 6}}]",
    "seeds: [3, 3]",
    f"grid: {{{LR}: [1], +{LR}: [2]}}\nruns: [{{++{LR}: 2}}]",
    # nothing left, nothing meant
    "seeds: 1\nexclude: [{seed: 0}]",
    "seeds: 2\nexclude: [{seed: 7}]",
    "seeds: 2\nexclude: [{sed: 1}]",
    "seeds: [1]\nexclude: [{seed: true}]",
    # unknown words
    "gird: {seed: [1]}",
    "seeds: 1\nsede: 2",
    "blocks: [{name: inner, seeds: 1}]",
    "blocks: [{after: quickstart, seeds: 1}]",
    "blocks: [{seeds: 1, gird: {}}]",
    "grid: {optimizer.optimizer_params.lrr: [1]}",
    "grid: {optimizr: [adamw]}",
    "grid: {optimizer: [adamx]}",
    "grid: {model: [gpt-tiny, gpt-huge]}",
    f"grid: {{{LR}.x: [1]}}",
    f"grid: {{{LR}: [fast]}}",
    f"grid: {{{LR}: [-1]}}",
    # keys that are none
    "grid: {1: [1]}",
    "grid: {'a b': [1]}",
    "grid: {'seed=1,2': [1]}",
    "grid: {'seed;rm': [1]}",
    'grid: {"seed\\n": [1]}',
    "grid: {'': [1]}",
    "grid: {~seed: [1]}",
    "grid: {true: [1]}",
    "runs: [{'$(x)': 1}]",
    "grid: {hydra.job.chdir: [true, false]}",
    "grid: {hydra/launcher: [basic]}",
    "grid: {sweep: [quickstart]}",
    "grid: {sweep.seeds: [1]}",
    "grid: {dry_run: [true]}",
    "grid: {cluster: [local, slurm]}",
    "grid: {paths.multirun: [a, b]}",
    "grid: {paths.sweep: [a, b]}",
    # values that no override can write
    "grid: {seed: [!!binary aGVsbG8=]}",
    "runs: [{seed: !!binary aGVsbG8=}]",
    sampled("{choice: [!!binary aGVsbG8=, 1]}", n="2"),
    *(f"grid: {{+tag: [{{{key}: 1}}]}}" for key in ("''", "'1'", "'true'", "\u00e9", '"a\'b"')),
    "grid: {seed: ['???']}",
    "grid: {seed: ['${nowhere.at.all}']}",
    "grid: {seed: ['${best:seed}']}",
    # samples
    *(sampled(f"{{uniform: {wrong}}}") for wrong in ("5", "[1]", "[2, 1]", "[1, 1]", "[a, b]")),
    *(sampled(f"{{uniform: {wrong}}}") for wrong in ("[0, .inf]", "[.nan, 1]", "[true, 2]", "{}")),
    *(sampled(f"{{log_uniform: {wrong}}}") for wrong in ("[0, 1]", "[-1, 1]", "[1]", "[1, 2, 3]")),
    *(sampled(f"{{int_uniform: {wrong}}}") for wrong in ("[0.5, 2]", "[3, 1]", "[1]")),
    *(sampled(f"{{choice: {wrong}}}") for wrong in ("[]", "5", "{a: 1}")),
    *(sampled("{uniform: [0, 1]}", n=n) for n in ("0", "-1", "1.5", "true", "many", "null")),
    sampled("{choice: [1, 2]}", n="3"),
    sampled("{normal: [0, 1]}"),
    sampled("{uniform: [0, 1], choice: [1]}"),
    sampled("[0, 1]"),
    sampled("{uniform: [0, 1]}", more=", seed: x"),
    sampled("{uniform: [0, 1]}", more=", sede: 1"),
    "sample: {n: 2}",
    "sample: {n: 2, keys: {}}",
    "sample: {n: 2, keys: {'a b': {uniform: [0, 1]}}}",
    # clusters
    "seeds: 1\ncluster: {timeout_mni: 3}",
    "seeds: 1\ncluster: {workers: many}",
    "seeds: 1\ncluster: {workers: 0}",
    *(f"seeds: 1\ncluster: {{{name}: -1}}" for name in ("timeout_min", "mem_gb", "cpus_per_task")),
    *(f"seeds: 1\ncluster: {{{name}: 9999999999999}}" for name in ("timeout_min", "mem_gb")),
    "seeds: 1\ncluster: {partition: gpu}",
    "seeds: 1\ncluster: {'a b': 1}",
    "seeds: 1\ncluster: {1: 1}",
    "cluster: {timeout_min: 5}\nruns: [{cluster.timeout_min: 6}]",
    # second stages
    *(f"seeds: 1\nafter: {wrong}" for wrong in ("5", "[quickstart]", "true", "{}", "''", "..")),
    "seeds: 1\nafter: a/b",
    "seeds: 1\nafter: '${best:x}'",
    "seeds: 1\nafter: {sweep: '${best:x}'}",
    "seeds: 1\nname: '${best:x}'",
    "grid: {seed: ['${best:}']}",
    "seeds: 1\nafter: quickstrat",
    "seeds: 1\nafter: s",
    "seeds: 1\nafter: {sweep: quickstart, mode: least}",
    "seeds: 1\nafter: {sweep: quickstart, metric: loss}",
    "seeds: 1\nafter: {sweep: quickstart, metric: 5}",
    "seeds: 1\nafter: {sweep: quickstart, metrc: val/loss}",
    "seeds: 1\nafter: {sweep: quickstart, allow_failed: maybe}",
    "seeds: 1\nafter: {metric: val/loss}",
    "seeds: 1\nafter: quickstart",
    # names
    *(f"seeds: 1\nname: {wrong}" for wrong in ("a/b", "..", ".hidden", "'a b'", "'a;b'", "'%j'")),
    "seeds: 1\nname: [a]",
    'seeds: 1\nname: "a\\nb"',
    f"seeds: 1\nname: {'x' * 300}",
    # what no file can be called
    f"grid: {{optimizer: [{'x' * 10_000}]}}",
    f"grid: {{optimizer: [{'x' * 200}]}}",
    f"grid: {{{'x' * 1_000}: [1]}}",
    f"params_file: {'x' * 5_000}",
    f"params_file: {{path: {'x/' * 2_000}}}",
    f"params_file: {'x' * 255}",
    f"seeds: 1\nafter: {'x' * 5_000}",
    f"seeds: 1\nafter: {{sweep: {'x' * 120}}}",
    f"seeds: 1\nafter: {{sweep: quickstart, metric: val/x, {'y' * 1_000}: 1}}",
    'grid: {optimizer: ["a\\nb"]}',
    'grid: {optimizer: ["a\\0b"]}',
    'seeds: 1\nafter: "a\\nb"',
    'seeds: 1\nafter: "a\\0b"',
    'params_file: "a\\nb"',
    'params_file: "a\\0b"',
]  # fmt: skip


@pytest.fixture(scope="module")
def plan():
    """Return a function that plans a definition, given as the YAML of its ``sweep`` node."""
    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        overrides = ["paths.sweep=s", "hydra.mode=MULTIRUN"]
        master = loader.load_configuration(CONFIG_NAME, overrides, run_mode=RunMode.MULTIRUN)
        context = HydraContext(config_loader=loader, callbacks=None)

        HydraConfig.instance().set_config(master)
        sweeper = Plugins.instance().instantiate_sweeper(
            hydra_context=context, task_function=None, config=master
        )

        def planned(text: str | None, *overrides: str) -> None:
            with open_dict(sweeper.config):
                sweeper.config.sweep = text and OmegaConf.create(text)
            sweeper.sweep(["paths.sweep=s", *overrides])

        yield planned


@pytest.fixture(autouse=True)
def launch_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    # What is not refused, and should be, fails its test and trains nothing.
    monkeypatch.setattr(submission, "_require_writable", lambda _: pytest.fail("not refused"))


def test_the_family_is_large_and_of_different_definitions():
    assert len(set(MALFORMED)) == len(MALFORMED) >= 100
    for text in MALFORMED:
        assert isinstance(yaml.safe_load(text), dict), text


@pytest.mark.parametrize("text", MALFORMED)
def test_a_malformed_definition_is_one_line_with_exit_code_2_and_nothing_written(
    text, plan, capsys, tmp_path
):
    code = exit_code_of(lambda: plan(text))
    said = capsys.readouterr()
    assert code == 2, said
    assert said.out == ""
    assert len(said.err.splitlines()) == 1, said.err
    assert said.err.startswith("error: ")
    assert len(said.err) > len("error: ") + 15
    assert len(said.err) < 700
    assert os.listdir(tmp_path) == []


def test_a_mistyped_key_of_a_definition_is_told_with_the_nearest(plan, capsys):
    assert exit_code_of(lambda: plan("grd: {seed: [1]}")) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: unknown key grd in sweep; must be one of: after, blocks, ")
    assert said.endswith("; did you mean grid?\n")


SWEPT = [
    "seed=range(0,5,0)",
    "seed=range(0,5,nan)",
    "seed=range(0,inf)",
    "seed=range(0,5,-1)",
    "seed=range(3,3)",
    "seed=range(0,1000000000)",
    "seed=range(0,1,0.000000001)",
    "seed=shuffle(range(0,1000000000))",
    f"seed=range(0,{10**400})",
    f"seed=1,{'1' * 5_000}",
    f"{LR}=interval(0,1)",
    "optimizer=glob(x*)",
    "optimizer=adamw,adamx",
    "seed=1,2 seed=3",
    "seed=3 +seed=1,2",
    "seed=range(0,1000) training.training_params.max_steps=range(1,1000)",
    "seed=choice()",
    "sweep.seeds=1,2",
]  # fmt: skip
"""Overrides in Hydra's sweep syntax that mean nothing, nothing at all, or far too much."""


@pytest.mark.parametrize("text", SWEPT)
def test_a_malformed_sweep_in_hydras_syntax_is_one_line_too(text, plan, capsys, tmp_path):
    assert exit_code_of(lambda: plan(None, *text.split())) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert 25 < len(said.err) < 700
    assert os.listdir(tmp_path) == []


def test_a_definition_and_a_sweep_in_hydras_syntax_are_bounded_together(plan, capsys):
    sweep = "training.training_params.max_steps=range(1,1001)"
    assert exit_code_of(lambda: plan("seeds: 1000", sweep)) == 2
    said = "error: the sweep has 1,000,000 runs; must be at most 100,000 in one sweep\n"
    assert capsys.readouterr().err == said


UNREADABLE = {
    "duplicate": "sweep:\n  grid: {seed: [1]}\n  grid: {seed: [2]}\n",
    "duplicate_inside": "sweep:\n  grid: {seed: [1], seed: [2]}\n",
    "unclosed": "sweep: {grid: {seed: [1\n",
    "tab": "\tsweep: {seeds: 1}\n",
    "unhashable": "sweep: {grid: {? [1, 2] : [1]}}\n",
    "null_key": "sweep: {grid: {null: [1]}}\n",
    "foreign_tag": "sweep: {grid: {seed: [!!python/object:os.system x]}}\n",
    "half_an_interpolation": "sweep: {grid: {seed: ['${nope']}}\n",
    "number": "sweep: 5\n",
    "list": "sweep: [1]\n",
    "no_group": "defaults: [override /model: nope]\nsweep: {seeds: 1}\n",
    "another_key": "optimzer: {x: 1}\nsweep: {seeds: 1}\n",
    "digits": f"sweep: {{grid: {{seed: [{'1' * 5_000}]}}}}\n",
    "within_itself": "sweep: {grid: {seed: &a [1, *a]}}\n",
    "deep": f"sweep: {{grid: {{seed: [{'[' * 2_000}1{']' * 2_000}]}}}}\n",
    "cluster_no_mapping": "cluster: 5\nsweep: {seeds: 1}\n",
    "paths_no_mapping": "paths: [a]\nsweep: {seeds: 1}\n",
    "defaults_no_list": "defaults: 5\nsweep: {seeds: 1}\n",
    "defaults_of_no_names": "defaults: [5]\nsweep: {seeds: 1}\n",
    "cluster_only": "cluster: {timeout_min: 5}\nsweep: {}\n",
}
"""Definitions that no parser, or Hydra itself, lets through."""


IDLE = {
    "launcher: {timeout_min: 5}": "hydra.launcher.timeout_min has no effect here; write cluster.",
    "sweep: {dir: elsewhere}": "hydra.sweep.dir has no effect in a sweep; write paths.multirun=",
    "sweep: {subdir: x}": "hydra.sweep.subdir has no effect in a sweep; write paths.group=",
    "job: {chdir: true}": "hydra.job.chdir has no effect in a sweep; runs of a sweep stay",
}
"""What a definition may ask of Hydra that no run of a sweep would notice."""


@pytest.mark.parametrize("text", IDLE)
def test_a_setting_of_hydra_without_effect_is_refused_in_a_definition_too(text, shell, toy):
    folder = shell.cwd / "mine" / "sweep"
    folder.mkdir(parents=True)
    head = f"# @package _global_\nhydra: {{mode: MULTIRUN, {text}}}\n"
    (folder / "idle.yaml").write_text(head + "sweep: {seeds: 2}\n")
    done = shell("launch", "--config-dir", "mine", *toy, "sweep=idle", code=2)
    assert done.stderr.startswith(f"error: {IDLE[text]}")
    assert len(done.stderr.splitlines()) == 1


def test_a_setting_of_hydra_that_has_the_value_it_has_anyway_is_none(shell, toy):
    folder = shell.cwd / "mine" / "sweep"
    folder.mkdir(parents=True)
    head = "# @package _global_\nhydra: {mode: MULTIRUN, job: {chdir: false}}\n"
    (folder / "mine.yaml").write_text(head + "sweep: {seeds: 2}\n")
    command = ("launch", "--config-dir", "mine", *toy, "sweep=mine", "dry_run=true")
    assert "2 runs to submit" in shell(*command).stdout
    assert "2 runs to submit" in shell(*command, "hydra.job.chdir=null").stdout
    assert "hydra.sweep.dir has no effect" in shell(*command, "hydra.sweep.dir=x", code=2).stderr


def test_a_key_that_is_taken_out_may_be_given_again(shell, toy):
    words = ("-m", *toy, "~seed", "+seed=1,2", "dry_run=true")
    assert "2 runs to submit" in shell("launch", *words).stdout


@pytest.mark.parametrize("name", [*UNREADABLE, "no_utf8", "empty", "no_sweep"])
def test_what_is_no_definition_at_all_is_one_line_of_launch_py(name, shell, tmp_path):
    folder = tmp_path / "mine" / "sweep"
    folder.mkdir(parents=True)
    content = {"no_utf8": b"\xff\xfe", "empty": b"", "no_sweep": b"just text"}.get(name)
    (folder / "bad.yaml").write_bytes(content or (HEAD + UNREADABLE.get(name, "")).encode())
    if name == "empty":
        (folder / "bad.yaml").write_bytes(b"")
    done = shell("launch", "--config-dir", "mine", "sweep=bad", code=2)
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert os.listdir(tmp_path) == ["mine"]


@pytest.mark.parametrize(
    ("number", "said"), [("1e999", "1e999 is too large"), ("1" * 5_000, "4300")]
)
def test_a_params_file_holds_no_number_beyond_all_bounds(number, said, plan, capsys, tmp_path):
    (tmp_path / "p.json").write_text(f'{{"seed": [1,\n{number}]}}')
    assert exit_code_of(lambda: plan("params_file: p.json")) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("override", [f"seed={'1' * 5_000}", f"+tag={'[' * 3_000}{']' * 3_000}"])
@pytest.mark.parametrize("more", [(), ("-m",)])
def test_what_python_can_not_read_on_the_command_line_is_one_line(override, more, shell):
    done = shell("launch", *more, override, code=2)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"error: override '{override[:50]}")


@pytest.mark.parametrize("in_full", [False, True])
def test_what_nobody_expected_of_a_definition_is_one_line_before_there_is_a_plan(in_full, shell):
    """Stands for whatever else Hydra, OmegaConf or ours may trip over."""
    shell.cwd.joinpath("mine.py").write_text(
        "import sys, launch\nfrom rundir import exit_code_of\n"
        "from sweeps.define import definition\n"
        "definition.points = lambda *_, **__: {}['what?']\n"
        "sys.exit(exit_code_of(launch.launch))\n"
    )
    shell.env["HYDRA_FULL_ERROR"] = str(int(in_full))
    done = shell("mine.py", "sweep=quickstart", code=2)
    *more, last = done.stderr.splitlines()
    assert last == (
        "error: this can't be launched: KeyError: 'what?'; "
        "HYDRA_FULL_ERROR=1 shows where that arises"
    )
    assert ("Traceback (most recent call last):" in more) == in_full
    assert more == [] or in_full


AT_WORK = "from sweeps.launch import submission\nsubmission.launch = lambda *_: "
BEFORE = "from sweeps.define import definition\ndefinition.points = lambda *_, **__: "


@pytest.mark.parametrize(
    ("code", "last"),
    [
        (f"{AT_WORK}{{}}['what?']", "KeyError: 'what?'"),
        (f"{AT_WORK}OmegaConf.structured(5)", "omegaconf.errors.ValidationError"),
        (f"{AT_WORK}chr(0xd800).encode()", "UnicodeEncodeError: "),
        (f"{BEFORE}__import__('no_module')", "ModuleNotFoundError: No module named 'no_module'"),
        (f"{BEFORE}bytearray(1 << 62)", "MemoryError"),
    ],
)
def test_a_bug_of_ours_or_of_the_installation_shows_its_traceback(code, last, shell, toy):
    shell.cwd.joinpath("mine.py").write_text(
        "import sys, launch\nfrom omegaconf import OmegaConf\nfrom rundir import exit_code_of\n"
        f"{code}\nsys.exit(exit_code_of(launch.launch))\n"
    )
    done = shell("mine.py", "-m", *toy, "+sweep.seeds=2", code=1)
    assert "Traceback (most recent call last):" in done.stderr
    assert last in done.stderr
    assert "error: " not in done.stderr


def test_a_deep_definition_is_refused_or_planned_but_never_a_traceback(plan, capsys):
    text = "seeds: 1"
    for _ in range(40):
        text = "blocks:\n" + textwrap.indent(text, "    ").replace("    ", "  - ", 1)
    text = text.replace("seeds: 1", "seeds: 0")
    assert exit_code_of(lambda: plan(text)) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
