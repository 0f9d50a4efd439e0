from __future__ import annotations

import gc
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import trainer
from rundir import Diverged, OptsweepError, Preempted, Run, State, UserError, read_status
from rundir.files import METRICS_FILE, iter_metrics
from trainer import training
from trainer.optim.params import REGISTRY

Mapping = dict[str, Any]
Change = Callable[..., Mapping]
Stopping = Callable[[Path, int], Run]
Curve = dict[tuple[str, int], float]

OPTIMIZER = "optimizer__optimizer_params__"
LOGGING = "logging__logging_params__"


def curve(path: Path, metric: str = "loss") -> Curve:
    """Return the metric by stream and step; a later attempt's record replaces an earlier one's."""
    records = iter_metrics(path / METRICS_FILE)
    return {(r["stream"], r["step"]): r[metric] for r in records if metric in r}


def trained(config: Mapping, path: Path) -> Curve:
    with Run(path, threads=1) as run:
        trainer.run(config, run)
    return curve(path)


def interrupted(config: Mapping, path: Path, stopping_run: Stopping, step: int) -> None:
    with pytest.raises(Preempted), stopping_run(path, step) as run:
        trainer.run(config, run)


def test_the_same_configuration_gives_the_same_curve_to_the_bit(
    tiny: Mapping, tmp_path: Path
) -> None:
    assert trained(tiny, tmp_path / "a") == trained(tiny, tmp_path / "b")


def test_another_seed_gives_another_curve(tiny: Mapping, change: Change, tmp_path: Path) -> None:
    first = trained(tiny, tmp_path / "a")
    assert first != trained(change(tiny, seed=43) | {}, tmp_path / "b")


def test_the_loss_falls_from_the_logarithm_of_the_vocabulary(tiny: Mapping, tmp_path: Path) -> None:
    losses = trained(tiny, tmp_path)
    assert losses["train", 1] == pytest.approx(math.log(256), abs=0.05)
    assert losses["val", 12] < losses["val", 3] < math.log(256)


def test_accumulating_micro_batches_changes_only_rounding(
    tiny: Mapping, change: Change, tmp_path: Path
) -> None:
    accumulated = trained(tiny, tmp_path / "a")
    whole = trained(change(tiny, training__training_params__batch_size=8), tmp_path / "b")
    assert whole == pytest.approx(accumulated, rel=1e-4)


def test_every_metric_is_logged_when_it_is_due(
    tiny: Mapping, change: Change, tmp_path: Path
) -> None:
    trained(change(tiny, **{f"{LOGGING}log_step": 5, f"{LOGGING}val_step": 5}), tmp_path)
    records = list(iter_metrics(tmp_path / METRICS_FILE))
    train = [record for record in records if record["stream"] == "train"]
    assert [record["step"] for record in train] == [1, 5, 10, 12]
    assert [r["step"] for r in records if r["stream"] == "val"] == [5, 10, 12]
    assert set(train[0]) - {"stream", "step", "t", "attempt"} == {
        "loss",
        "lr",
        "grad_norm",
        "step_time",
        "tokens_per_second",
        "tokens",
        "memory",
    }
    assert train[-1]["tokens"] == 12 * 128
    assert train[-1]["tokens_per_second"] == pytest.approx(128 / train[-1]["step_time"])


def test_the_learning_rate_follows_its_schedule(
    tiny: Mapping, change: Change, tmp_path: Path
) -> None:
    tiny["optimizer"]["optimizer_params"] |= {
        "lr": 0.01,
        "lr_schedule": "constant-linear",
        "warm_up_fraction": 0.5,
    }
    trained(tiny, tmp_path)
    rates = [rate for (_, _), rate in sorted(curve(tmp_path, "lr").items(), key=lambda x: x[0][1])]
    flat, falling = [0.01] * 7, [0.01 * (1 - k / 6) for k in range(1, 6)]
    assert rates == pytest.approx(flat + falling)


def test_a_run_ends_completed_with_its_last_figures(tiny: Mapping, tmp_path: Path) -> None:
    losses = trained(tiny, tmp_path)
    status = read_status(tmp_path)
    assert status is not None
    assert (status.state, status.step, status.total_steps) == (State.COMPLETED, 12, 12)
    assert status.figures is not None
    assert status.figures["loss"] == losses["train", 12]


def test_a_model_goes_with_its_run(
    tiny: Mapping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only once Python looks for cycles, which knows nothing of a GPU's memory."""
    built: list[weakref.ref[training.Training]] = []
    models: list[weakref.ref[torch.nn.Module]] = []
    start = training.Training.__init__

    def noted(self: training.Training, *arguments: Any) -> None:
        start(self, *arguments)
        built.append(weakref.ref(self))
        models.append(weakref.ref(self.model))

    monkeypatch.setattr(training.Training, "__init__", noted)
    gc.disable()
    try:
        trained(tiny, tmp_path)
        assert [found() for found in (*built, *models)] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_an_interrupted_run_continues_to_the_bit(
    tiny: Mapping, tmp_path: Path, stopping_run: Stopping, name: str
) -> None:
    tiny["optimizer"]["optimizer_params"] = {"name": name, "lr": 0.01}
    undisturbed = trained(tiny, tmp_path / "a")
    interrupted(tiny, tmp_path / "b", stopping_run, step=6)
    assert ("train", 7) not in curve(tmp_path / "b")
    assert trained(tiny, tmp_path / "b") == undisturbed


def test_stopping_says_where_and_saves_even_when_saving_is_off(
    tiny: Mapping, change: Change, tmp_path: Path, stopping_run: Stopping
) -> None:
    change(tiny, **{f"{LOGGING}save_ckpt_step": 0})
    interrupted(tiny, tmp_path, stopping_run, step=5)
    status = read_status(tmp_path)
    assert status is not None
    assert status.state is State.PREEMPTED
    assert status.reason == "SIGTERM at step 5 of 12; checkpoint written"
    assert (tmp_path / "checkpoints" / "step-00000005.pt").exists()


def test_a_torn_newest_checkpoint_costs_steps_but_no_bit(
    tiny: Mapping, tmp_path: Path, stopping_run: Stopping
) -> None:
    undisturbed = trained(tiny, tmp_path / "a")
    interrupted(tiny, tmp_path / "b", stopping_run, step=6)
    newest = tmp_path / "b" / "checkpoints" / "step-00000006.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert trained(tiny, tmp_path / "b") == undisturbed
    resumed = [r["step"] for r in iter_metrics(tmp_path / "b" / METRICS_FILE) if r["attempt"] == 2]
    assert min(resumed) == 5


def test_a_killed_run_continues_to_the_bit(tiny: Mapping, change: Change, tmp_path: Path) -> None:
    change(tiny, training__training_params__max_steps=120, **{f"{LOGGING}val_step": 50})
    change(tiny, **{f"{LOGGING}save_ckpt_step": 10})
    program = (
        "import json, sys, trainer\n"
        "from rundir import Run\n"
        "trainer.run(json.loads(sys.argv[1]), Run(sys.argv[2], threads=1))\n"
    )
    path = tmp_path / "b"
    victim = subprocess.Popen([sys.executable, "-c", program, json.dumps(tiny), str(path)])
    deadline = time.monotonic() + 60
    while not (path / "checkpoints" / "step-00000020.pt.sha256").exists():
        assert victim.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(victim.pid, signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    assert trained(tiny, path) == trained(tiny, tmp_path / "a")


def test_a_finished_run_trained_again_does_nothing(tiny: Mapping, tmp_path: Path) -> None:
    finished = trained(tiny, tmp_path)
    assert trained(tiny, tmp_path) == finished
    assert {record["attempt"] for record in iter_metrics(tmp_path / METRICS_FILE)} == {1}


def test_a_checkpoint_of_another_model_is_refused(
    tiny: Mapping, change: Change, tmp_path: Path, stopping_run: Stopping
) -> None:
    interrupted(tiny, tmp_path, stopping_run, step=5)
    with pytest.raises(UserError, match=r"holds checkpoints with model_config = .*'n_layer': 1"):
        trained(change(tiny, model__config__n_layer=2), tmp_path)


def test_a_checkpoint_of_another_optimizer_is_refused(
    tiny: Mapping, change: Change, tmp_path: Path, stopping_run: Stopping
) -> None:
    interrupted(tiny, tmp_path, stopping_run, step=5)
    with pytest.raises(UserError, match=r"optimizer_name = 'adamw'; must be 'muon', as configured"):
        trained(change(tiny, **{f"{OPTIMIZER}name": "muon"}), tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"name": "adamw", "eps": 1e-2},
        {"name": "muon", "ns_steps": 2},
        {"name": "momo-adam", "eps": 1e-2},  # which is in no group
    ],
)
def test_a_resumed_run_has_the_options_of_its_configuration_not_of_its_checkpoint(
    tiny: Mapping, change: Change, tmp_path: Path, stopping_run: Stopping, options: Mapping
) -> None:
    change(tiny, **{f"{OPTIMIZER}name": options["name"]})
    interrupted(tiny, tmp_path / "same", stopping_run, step=5)
    shutil.copytree(tmp_path / "same", tmp_path / "other")
    same = trained(tiny, tmp_path / "same")
    changed = change(tiny, **{f"{OPTIMIZER}{key}": value for key, value in options.items()})
    other = trained(changed, tmp_path / "other")
    assert other["train", 5] == same["train", 5]
    assert other["train", 12] != same["train", 12]


def test_a_checkpoint_of_other_groups_is_refused(
    tiny: Mapping, change: Change, tmp_path: Path, stopping_run: Stopping
) -> None:
    interrupted(tiny, tmp_path, stopping_run, step=5)
    rules = [{"match": "embed", "lr_scale": 0.3, "weight_decay": 0.1}]
    with pytest.raises(UserError) as error:
        trained(change(tiny, **{f"{OPTIMIZER}groups": rules}), tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/checkpoints holds checkpoints with embed_tokens.weight in group 0, lr 0.01, "
        "weight decay 0; must be group 0, lr 0.003, weight decay 0.1, as configured; train in "
        "another directory"
    )
    change(tiny, **{f"{OPTIMIZER}groups": [], f"{OPTIMIZER}lr": 0.02})
    with pytest.raises(UserError, match=r"lr 0\.01, weight decay 0; must be group 0, lr 0\.02"):
        trained(tiny, tmp_path)


def test_a_group_that_does_not_fit_the_model_is_refused_by_its_whole_name(
    tiny: Mapping, change: Change, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        trained(change(tiny, **{f"{OPTIMIZER}groups": [{"match": "wte"}]}), tmp_path)
    assert str(error.value) == (
        "optimizer.optimizer_params.groups[0].match = 'wte'; must be part of the name of a "
        "trainable parameter that no earlier group has"
    )


def test_triton_where_there_is_no_cuda_is_refused_before_any_step(
    tiny: Mapping, change: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    change(tiny, device="auto", **{f"{OPTIMIZER}backend": "triton"})
    with pytest.raises(
        UserError, match=r"^optimizer\.optimizer_params\.backend = 'triton'; must be"
    ):
        trained(tiny, tmp_path)
    assert not curve(tmp_path)


def test_a_loss_that_is_not_finite_ends_the_run_as_diverged(
    tiny: Mapping, change: Change, tmp_path: Path
) -> None:
    change(tiny, **{f"{OPTIMIZER}name": "sgd", f"{OPTIMIZER}lr": 1e30, f"{LOGGING}log_step": 8})
    with pytest.raises(Diverged, match=r"(loss|gradient norm) is (nan|inf) at step \d of 12"):
        trained(tiny, tmp_path)
    last = list(iter_metrics(tmp_path / METRICS_FILE))[-1]
    assert not math.isfinite(last["loss"] + last["grad_norm"])
    status = read_status(tmp_path)
    assert status is not None
    assert status.state is State.DIVERGED


def test_what_a_cpu_does_not_do_is_said_once(
    tiny: Mapping,
    change: Change,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change(tiny, training__training_params__max_steps=2)
    tiny["training"]["training_params"] |= {"autocast": True, "compile": True}
    monkeypatch.setenv("CXX", "no-such-compiler")
    with caplog.at_level(logging.INFO):
        trained(tiny, tmp_path)
    assert [message for message in caplog.messages if "not used" in message] == [
        "training_params.compile: not used, there is no C++ compiler here",
        "training_params.autocast: not used on cpu, float32 it is",
    ]


FIVE_LINES = """
from trainer import GPTConfig, TrainConfig, TrainingParams, train
model = GPTConfig(n_embd=16, n_layer=1, n_head=2)
steps = TrainingParams(tokens_processed=64, batch_size=4, context_length=16, max_steps=12)
result = train(TrainConfig(model=model, training=steps), "some/place")
print(result.directory, result.step, result.val_loss, result.best_val_loss, result.best_step)
import sys
assert not {"hydra", "omegaconf"} & set(sys.modules)
"""


def test_a_notebook_needs_five_lines_and_no_hydra(tmp_path: Path) -> None:
    said = [
        subprocess.run(
            [sys.executable, "-c", FIVE_LINES],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(trainer.__file__).parents[1])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for _ in range(2)
    ]
    assert said[0] == said[1], "the second time there was nothing left to do"
    losses = curve(tmp_path / "some/place")
    val = {step: loss for (stream, step), loss in losses.items() if stream == "val"}
    best = min(val, key=lambda step: val[step])
    assert said[0] == ["some/place", "12", str(val[12]), str(val[best]), str(best)]
    assert {
        record["attempt"] for record in iter_metrics(tmp_path / "some/place/metrics.jsonl")
    } == {1}


def test_recomputed_activations_change_no_bit(
    tiny: Mapping, change: Change, tmp_path: Path
) -> None:
    kept = trained(tiny, tmp_path / "a")
    change(tiny, training__training_params__activation_checkpointing=True)
    assert trained(tiny, tmp_path / "b") == kept


def test_profiled_steps_are_in_a_trace_and_a_table(
    tiny: Mapping,
    change: Change,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    plain = trained(tiny, tmp_path / "a")
    change(tiny, training__training_params__profile_steps=2)
    export = torch.profiler.profile.export_chrome_trace

    def slowly(self: torch.profiler.profile, path: str) -> None:
        time.sleep(2)
        export(self, path)

    monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", slowly)
    with caplog.at_level(logging.INFO, logger="trainer.compute.profiling"):
        assert trained(tiny, tmp_path / "b") == plain
    trace = json.loads((tmp_path / "b" / "profile" / "trace.json").read_text())
    named = [event["name"] for event in trace["traceEvents"] if "name" in event]
    assert sum(name.startswith("ProfilerStep#") for name in named) == 2
    assert "aten::mm" in named
    (said,) = caplog.messages
    assert said.startswith("2 steps profiled, see ")
    assert max(curve(tmp_path / "b", "step_time").values()) < 2
    assert "aten::mm" in said


def test_data_that_only_tokenizing_can_measure_is_checked_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np
    import torch

    from trainer import TrainConfig
    from trainer.data.corpus import Corpus
    from trainer.parallel import Ranks

    short = Corpus(np.zeros(900, np.uint8), np.zeros(100, np.uint8), *["5f70bf18a086"] * 2)
    monkeypatch.setattr(training, "load_corpus", lambda _: short)
    with pytest.raises(OptsweepError, match=r"context_length = 128; must be at most 99"):
        training.Training(TrainConfig(), Ranks(0, 1, torch.device("cpu")))


def test_clipping_inside_the_kernel_changes_only_rounding(
    tiny: Mapping, change: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.optim.adamw import KernelAdamW

    def kernel_adamw(model: Any, params: Any) -> KernelAdamW:
        names = ("lr", "betas", "eps", "weight_decay")
        hyper = {name: getattr(params, name) for name in names}
        groups = [{"params": model.parameters(), "initial_lr": params.lr}]
        return KernelAdamW(groups, **hyper, backend="torch")

    change(tiny, training__training_params__gradnorm=0.1, **{f"{OPTIMIZER}eps": 1.0})
    apart = trained(tiny, tmp_path / "a")
    monkeypatch.setattr(training, "build_optimizer", kernel_adamw)
    assert trained(tiny, tmp_path / "b") == pytest.approx(apart, rel=1e-5)
    norms = curve(tmp_path / "b", "grad_norm")
    assert norms == pytest.approx(curve(tmp_path / "a", "grad_norm"), rel=1e-3)
    assert min(norms.values()) > 0.1
    trained(change(tiny, training__training_params__gradnorm=0.0), tmp_path / "c")
    assert curve(tmp_path / "c") != pytest.approx(apart, rel=1e-5)


def test_waiting_threads_soon_leave_their_core_to_others() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", "import trainer; trainer.preload()"],
        env={"PATH": os.environ["PATH"], "OMP_DISPLAY_ENV": "VERBOSE"},
        cwd=Path(trainer.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    if "GOMP_SPINCOUNT" not in shown:
        pytest.skip("this torch does not run on GNU's OpenMP")
    assert "GOMP_SPINCOUNT = '1000'" in shown


@pytest.mark.parametrize(
    "chosen", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "ACTIVE"}], ids=str
)
def test_how_threads_wait_is_left_to_who_has_chosen(
    chosen: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    trainer.preload()
    assert os.environ.get("GOMP_SPINCOUNT") == chosen.get("GOMP_SPINCOUNT")
