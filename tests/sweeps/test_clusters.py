"""The ``cluster`` node: what may reach an sbatch script, and what may not."""

from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

from rundir import IllegalValue, UserError
from sweeps.cluster.clusters import LocalCluster, SlurmCluster, cluster, submitit_parameters
from sweeps.cluster.launchers import LocalLauncher, SlurmLauncher

EVIL = "x\\''\ntouch F #"


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"comment": EVIL}, "cluster.comment = "),
        ({"partition": "a\rb"}, "cluster.partition = "),
        ({"gres": "gpu:1\x00"}, "cluster.gres = "),
        ({"additional_parameters": {"mail-user": EVIL}}, "cluster.additional_parameters.mail-user"),
        ({"additional_parameters": {"x\ntouch F #": 1}}, "key of cluster.additional_parameters"),
        ({"additional_parameters": {"x y": 1}}, "key of cluster.additional_parameters"),
        ({"additional_parameters": {"x": ["a\nb"]}}, "cluster.additional_parameters.x"),
    ],
)
def test_nothing_that_a_shell_would_run_reaches_an_sbatch_script(node, said):
    with pytest.raises(UserError) as error:
        cluster(SlurmCluster, node)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


NUMBERS = (
    *("timeout_min", "signal_delay_s", "gpus_per_node", "gpus_per_task", "nodes", "tasks_per_node"),
    *("cpus_per_task", "cpus_per_gpu", "mem_gb", "array_parallelism", "workers", "runs_per_gpu"),
    *("runs_per_node",),
)


@pytest.mark.parametrize("value", [-5, 10**22])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (k, each.name)
        for k in (LocalCluster, SlurmCluster)
        for each in fields(k)
        if each.name in NUMBERS
    ],
)
def test_no_number_beyond_its_bounds_reaches_a_plan(kind, name, value):
    """Where sbatch would refuse it only after the plan is written, or a worker end at once."""
    with pytest.raises(IllegalValue) as error:
        cluster(kind, {name: value})
    assert error.value.name == f"cluster.{name}"


def test_all_the_memory_of_a_node_may_be_asked_for():
    assert submitit_parameters(cluster(SlurmCluster, {"mem_gb": 0}))["mem_gb"] == 0


@pytest.mark.parametrize("kind", [LocalCluster, SlurmCluster])
def test_every_number_of_a_cluster_has_bounds(kind):
    hints = get_type_hints(kind)
    numbers = {each.name for each in fields(kind) if hints[each.name] in (int, int | None)}
    assert numbers - {"max_requeues", "max_failures", "max_num_timeout"} <= set(NUMBERS)


@pytest.mark.parametrize(
    "name", ["array", "job-name", "job_name", "wrap", "output", "error", "arr"]
)
def test_sbatch_options_that_are_the_engines_own_are_refused(name):
    with pytest.raises(IllegalValue, match=r"^cluster.additional_parameters.* must be left to "):
        cluster(SlurmCluster, {"additional_parameters": {name: "0-9"}})


def test_the_lines_of_setup_are_shell_code_and_pass():
    lines = ["module load cuda\nexport X=1"]
    built = cluster(SlurmCluster, {"setup": lines, "comment": 'my sweep\'s "best" ü'})
    assert built.setup == lines


@pytest.mark.parametrize("launcher", [LocalLauncher, SlurmLauncher])
def test_a_sweeps_directory_with_control_characters_is_refused(launcher):
    with pytest.raises(UserError, match="control characters"):
        launcher.require(Path("a\nb") / "s")


@pytest.mark.parametrize("sign", ["%", "\\"])
def test_a_directory_that_sbatch_would_not_take_as_it_is_is_refused(sign):
    with pytest.raises(
        UserError, match=r"which sbatch would not take as it is; set paths.multirun"
    ):
        SlurmLauncher.require(Path(f"a{sign}j") / "s")
    LocalLauncher.require(Path(f"a{sign}j") / "s")


def test_another_sweepers_jobs_are_as_safe_from_it():
    waiting = SlurmLauncher(timeout_min=9, comment=EVIL)
    with pytest.raises(UserError, match=r"^cluster.comment = "):
        waiting.launch([["seed=1"]], 0)
