"""The ``cluster`` node: what may reach an sbatch script, and what may not."""

from pathlib import Path

import pytest

from rundir import UserError
from sweeps.cluster.clusters import SlurmCluster, cluster
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
