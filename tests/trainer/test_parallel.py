"""Two processes train one model over gloo on this machine."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import sweeps
import trainer
from rundir import Preempted, Run, State, UserError, read_status
from rundir.files import METRICS_FILE, iter_metrics
from sweeps.planning.identity import task_config
from trainer import GPTConfig
from trainer.model import GPT
from trainer.optim import build_optimizer, optimizer_params
from trainer.sharding import Shards

Mapping = dict[str, Any]
PROGRAM = Path(__file__).with_name("rank.py")

OPTIMIZERS: dict[str, Mapping] = {
    "adamw": {"name": "adamw", "lr": 0.01},
    "muon": {"name": "muon", "lr": 0.01},
    "scion": {"name": "scion", "lr": 0.01},
    "momo": {"name": "momo", "lr": 3.0, "lb": 5.0},
    "dap": {"name": "dap-ns-nadam", "lr": 0.01},
    "dap-average": {"name": "dap-ns-nadam", "lr": 0.01, "ema_beta": 0.5},
    "dap-rows": {
        "name": "dap-ns-nadam",
        "lr": 0.01,
        "xtx_subsample": 0.6,
        "mb_subsampling": False,
    },
    "dap-batches": {
        "name": "dap-ns-nadam",
        "lr": 0.01,
        "xtx_subsample": 0.5,
        "mb_subsampling": True,
    },
}

SHARDED = ("adamw", "sgd-m", "nadamw", "schedule-free-adamw")
"""Optimizers that are also tried with the weights cut into the ranks' parts."""


def order(config: Mapping, path: Path, **more: Any) -> Mapping:
    return {
        "config": config,
        "path": str(path),
        "attempt": 1,
        "fates": [],
        "digest": False,
        **more,
    }


def carried_out(
    orders: Sequence[Mapping], folder: Path, ports: Iterator[str]
) -> list[dict[str, str]]:
    """Carry out the orders on two ranks, the last of which kills rank 1.

    Returns:
        What each rank said, by the order's path.
    """
    script = folder / "orders.json"
    given = [{**each, "port": next(ports)} for each in orders]  # who meets twice needs two
    script.write_text(json.dumps(given))
    ranks = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(script)],
            env={
                **os.environ,
                "PYTHONPATH": str(Path(trainer.__file__).parents[1]),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        errors = [rank.communicate(timeout=180)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, -signal.SIGKILL], errors
    return [json.loads((folder / f"orders.json.{rank}").read_text()) for rank in (0, 1)]


def curve(path: Path | str, metric: str = "loss") -> dict[tuple[str, int], float]:
    records = iter_metrics(Path(path) / METRICS_FILE)
    return {(r["stream"], r["step"]): r[metric] for r in records if metric in r}


def alone(config: Mapping, path: Path) -> dict[tuple[str, int], float]:
    with Run(path, threads=1) as run:
        trainer.run(config, run)
    return curve(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def configs(tiny_mapping: Mapping) -> dict[str, Mapping]:
    """A configuration for each optimizer, with two micro-batches a step."""
    found = {}
    for name, params in OPTIMIZERS.items():
        config = copy.deepcopy(tiny_mapping)
        config["optimizer"]["optimizer_params"] = params
        found[name] = config
    return found


@pytest.fixture(scope="module")
def sharded(tiny_mapping: Mapping) -> dict[str, Mapping]:
    """Configurations with FSDP2; what does not divide by two is cut as well."""
    found = {}
    for name in SHARDED:
        config = copy.deepcopy(tiny_mapping)
        config["optimizer"]["optimizer_params"] = {"name": name, "lr": 0.01}
        # Five windows of validation: two batches for rank 0, one for rank 1.
        more = {"parallel": "fsdp", "gradnorm": 0.3, "val_tokens_processed": 80}
        config["training"]["training_params"] |= more
        config["model"]["config"]["ffn_multiple_of"] = 5
        found[name] = config
    return found


@pytest.fixture(scope="module")
def said(
    configs: dict[str, Mapping],
    sharded: dict[str, Mapping],
    folder: Path,
    stopping_run: Callable[[Path, int], Run],
    ports: Iterator[str],
) -> list[dict[str, str]]:
    """What two ranks said after everything that the tests below look at."""
    adamw = configs["adamw"]
    stop = {"step": 6, "rank": 1, "fate": "stop"}
    poison = [{"step": step, "rank": 1, "fate": "poison"} for step in (4, 6)]
    death = {"step": 3, "rank": 1, "fate": "die"}
    skipping = {name: copy.deepcopy(configs[name]) for name in ("adamw", "dap")}
    for config in skipping.values():
        config["training"]["training_params"]["non_finite"] = "skip"
    alone_first = folder / "sharded-more"
    with contextlib.suppress(Preempted), stopping_run(alone_first, 6) as run:
        trainer.run(sharded["adamw"], run)
    orders = [
        *(order(config, folder / f"sharded-{name}") for name, config in sharded.items()),
        order(sharded["adamw"], folder / "sharded-stopped", fates=[stop]),
        order(sharded["adamw"], folder / "sharded-stopped", attempt=2),
        order(sharded["adamw"], folder / "sharded-fewer", fates=[stop]),
        order(sharded["adamw"], alone_first, attempt=2),
        order(sharded["adamw"], folder / "sharded-poisoned", fates=poison),
        *(order(config, folder / name) for name, config in configs.items()),
        *(order(c, folder / f"{name}-3", digest=True) for name, c in configs.items()),
        order(adamw, folder / "stopped", fates=[stop]),
        order(adamw, folder / "stopped", attempt=2),
        order(adamw, folder / "fewer", fates=[stop]),
        order(adamw, folder / "poisoned", fates=poison),
        *(order(c, folder / f"{name}-skips", fates=poison) for name, c in skipping.items()),
        order(adamw, folder / "dead", fates=[death]),
    ]
    return carried_out(orders, folder, ports)


@pytest.mark.usefixtures("said")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_promise_21_two_ranks_have_the_losses_of_one_process(
    configs: dict[str, Mapping], folder: Path, name: str, tmp_path: Path
) -> None:
    losses = alone(configs[name], tmp_path)
    assert curve(folder / name) == pytest.approx(losses, rel=1e-5)
    assert {step for stream, step in losses if stream == "train"} == set(range(1, 13))
    norms = curve(tmp_path, "grad_norm")
    assert curve(folder / name, "grad_norm") == pytest.approx(norms, rel=1e-3)
    assert curve(folder / name, "tokens") == curve(tmp_path, "tokens")
    taken = curve(tmp_path, "step_size")
    assert len(taken) == (12 if name == "momo" else 0)
    assert curve(folder / name, "step_size") == pytest.approx(taken, rel=1e-3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_promise_21_the_weights_of_all_ranks_are_equal_to_the_bit(
    said: list[dict[str, str]], folder: Path, name: str
) -> None:
    path = str(folder / f"{name}-3")
    assert said[0][path] == said[1][path]


@pytest.mark.usefixtures("said")
def test_promise_21_a_run_of_two_ranks_leaves_the_files_of_one_process(
    configs: dict[str, Mapping], folder: Path, tmp_path: Path
) -> None:
    alone(configs["adamw"], tmp_path)
    files = [
        sorted(str(file.relative_to(path)) for file in path.rglob("*"))
        for path in (tmp_path, folder / "adamw")
    ]
    assert files[0] == files[1]
    records = list(iter_metrics(folder / "adamw" / METRICS_FILE))
    assert [r["step"] for r in records if r["stream"] == "train"] == list(range(1, 13))


@pytest.mark.usefixtures("said")
@pytest.mark.parametrize("name", SHARDED)
def test_sharded_ranks_have_the_losses_of_one_process(
    sharded: dict[str, Mapping], folder: Path, name: str, tmp_path: Path
) -> None:
    losses = alone(sharded[name], tmp_path)
    assert curve(folder / f"sharded-{name}") == pytest.approx(losses, rel=1e-5)
    norms = curve(tmp_path, "grad_norm")
    assert max(norms.values()) > 0.3, "nothing was clipped"
    assert curve(folder / f"sharded-{name}", "grad_norm") == pytest.approx(norms, rel=1e-3)


def test_parts_follow_weights_that_torch_lays_elsewhere(tmp_path: Path) -> None:
    """Some versions of torch do so in the first pass, where ranks' parts differ in size."""
    network = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 64}
    plain = GPT(GPTConfig(**network), 8)
    tokens = torch.arange(8)[None]
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        cut = copy.deepcopy(plain)
        shards = Shards(cut, list(cut.blocks), torch.device("cpu"))
        for weight in cut.parameters():
            weight._local_tensor = weight._local_tensor.clone()  # type: ignore[attr-defined]
        params = optimizer_params({"name": "adamw", "lr": 0.01}, "")
        for model, stepped in ((plain, plain), (cut, shards.parts)):
            optimizer = build_optimizer(stepped, params)
            for _ in range(2):
                model(tokens, tokens).backward()
                if model is cut:
                    shards.take_gradients()
                optimizer.step()
                optimizer.zero_grad()
        whole, _ = shards.state_dicts(optimizer)
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(whole, dict(plain.state_dict()))


@pytest.mark.usefixtures("said")
def test_a_checkpoint_of_sharded_ranks_is_that_of_one_process(
    sharded: dict[str, Mapping], folder: Path, tmp_path: Path
) -> None:
    alone(sharded["adamw"], tmp_path)
    theirs, ours = (
        torch.load(path / "checkpoints" / "step-00000012.pt", weights_only=True)
        for path in (folder / "sharded-adamw", tmp_path)
    )
    assert theirs.keys() == ours.keys()
    for key in ("model", "optimizer"):
        torch.testing.assert_close(theirs[key], ours[key], rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("said")
def test_sharded_ranks_continue_to_the_bit(folder: Path) -> None:
    assert curve(folder / "sharded-stopped") == curve(folder / "sharded-adamw")


@pytest.mark.usefixtures("said")
@pytest.mark.parametrize("name", ["sharded-fewer", "sharded-more"])
def test_one_process_and_sharded_ranks_continue_each_other(
    sharded: dict[str, Mapping], folder: Path, name: str
) -> None:
    if name == "sharded-fewer":
        alone(sharded["adamw"], folder / name)
    records = list(iter_metrics(folder / name / METRICS_FILE))
    # What stopped before the validation of step 6 leaves it to who goes on.
    by_whom = {(r["attempt"], r["step"] > (6 if r["stream"] == "train" else 5)) for r in records}
    assert by_whom == {(1, False), (2, True)}
    assert curve(folder / name) == pytest.approx(curve(folder / "sharded-adamw"), rel=1e-5)


def test_a_part_of_a_gradient_that_is_not_finite_ends_all_sharded_ranks(
    said: list[dict[str, str]], folder: Path
) -> None:
    diverged = "Diverged: loss is nan at step 5 of 12"
    assert [rank[str(folder / "sharded-poisoned")] for rank in said] == [diverged, diverged]


@pytest.mark.parametrize("name", ["muon", "dap-ns-nadam", "momo", "soap"])
def test_an_optimizer_that_needs_whole_weights_is_refused_with_fsdp(
    tiny: Mapping, name: str
) -> None:
    tiny["training"]["training_params"]["parallel"] = "fsdp"
    tiny["optimizer"]["optimizer_params"] = {"name": name}
    with pytest.raises(UserError) as error:
        trainer.check(tiny)
    assert str(error.value) == (
        f"training.training_params.parallel = 'fsdp'; must be ddp for {name}, which needs whole "
        "weights; fsdp trains with adam, adamw, ademamix, lion, nadam, nadamw, "
        "schedule-free-adamw, sgd, sgd-m, sgd-nesterov, sign-gd"
    )


def test_a_model_of_transformers_is_refused_with_fsdp() -> None:
    composed = sweeps.compose(
        ["model=qwen2moe-small", "training.training_params.parallel=fsdp", "data=shakespeare_gpt2"]
    )
    with pytest.raises(UserError, match=r"parallel = 'fsdp'; must be ddp for a model of transf"):
        trainer.check(task_config(composed.resolved))


def test_fp16_is_refused_with_fsdp(tiny: Mapping) -> None:
    tiny["training"]["training_params"] |= {"parallel": "fsdp", "mixed_precision": "float16"}
    with pytest.raises(
        UserError, match=r"mixed_precision = 'float16'; must be bfloat16 or float32"
    ):
        trainer.check(tiny)


def test_a_signal_to_one_rank_stops_all_after_the_same_step(
    said: list[dict[str, str]], folder: Path
) -> None:
    stopped = "Preempted: SIGUSR1 at step 6 of 12; checkpoint written"
    assert [rank[str(folder / "fewer")] for rank in said] == [stopped, stopped]
    assert max(step for _, step in curve(folder / "fewer")) == 6
    assert (folder / "fewer" / "checkpoints" / "step-00000006.pt").exists()


@pytest.mark.usefixtures("said")
def test_as_many_ranks_continue_to_the_bit(folder: Path) -> None:
    assert curve(folder / "stopped") == curve(folder / "adamw")
    records = list(iter_metrics(folder / "stopped" / METRICS_FILE))
    resumed = [(r["step"], r["stream"]) for r in records if r["attempt"] == 2]
    assert resumed[:3] == [(6, "val"), (7, "train"), (8, "train")]


@pytest.mark.usefixtures("said")
def test_another_number_of_ranks_continues_and_says_what_differs(
    configs: dict[str, Mapping], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        losses = alone(configs["adamw"], folder / "fewer")
    assert losses == pytest.approx(curve(folder / "adamw"), rel=1e-5)
    lines = [line for line in caplog.messages if "ranks" in line]
    assert lines == [
        "saved by 2 ranks, continued by 1: sums have another order and other last bits"
    ]


def test_a_gradient_of_one_rank_that_is_not_finite_ends_all_at_its_step(
    said: list[dict[str, str]], folder: Path
) -> None:
    diverged = "Diverged: loss is nan at step 5 of 12"
    assert [rank[str(folder / "poisoned")] for rank in said] == [diverged, diverged]
    assert max(step for _, step in curve(folder / "poisoned")) == 5


@pytest.mark.parametrize("name", ["adamw", "dap"])
def test_a_gradient_of_one_rank_that_is_not_finite_skips_the_step_on_all(
    said: list[dict[str, str]], folder: Path, name: str
) -> None:
    path = folder / f"{name}-skips"
    assert [rank[str(path)] for rank in said] == ["completed", "completed"]
    counts = [int(count) for count in curve(path, "skipped_steps").values()]
    assert counts == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2]
    assert all(math.isfinite(curve(path)["val", step]) for step in (3, 6, 9, 12))


def test_a_rank_that_dies_ends_the_others_in_words(
    said: list[dict[str, str]], folder: Path
) -> None:
    assert said[0][str(folder / "dead")].startswith("RanksLost: rank 0 lost the others: ")
    status = read_status(folder / "dead")
    assert status is not None
    assert status.state is State.FAILED
    assert max(step for _, step in curve(folder / "dead")) == 3


def test_rows_that_the_ranks_cannot_share_are_refused_before_they_meet(
    tiny: Mapping, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error, Run(tmp_path, rank=0, world_size=3) as run:
        trainer.run(tiny, run)
    assert str(error.value) == (
        "training.training_params.batch_size = 4; must be a multiple of 3, "
        "the processes of the run: cluster.nodes x cluster.tasks_per_node"
    )
