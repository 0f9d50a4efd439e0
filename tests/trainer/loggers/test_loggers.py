"""The real wandb, offline, and real event files of TensorBoard, of runs that are interrupted."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import trainer
from rundir import Run, UserError, write_json
from rundir.files import METRICS_FILE, RUN_FILE, iter_metrics
from trainer.config.logging import WandbParams, _is_installed
from trainer.loggers.relay import Relay
from trainer.loggers.tensor_board import TensorBoard
from trainer.loggers.weights_and_biases import _last_steps

ROOT = Path(trainer.__file__).parents[1]
KEY = "0123456789abcdef0123456789abcdef01234567"
SIGNATURE = "3fa9c1" + "0" * 58

INTERRUPTED = """
import json, sys, trainer
from rundir import Preempted, Run

class Stopping(Run):
    def log(self, stream, step, **metrics):
        super().log(stream, step, **metrics)
        if (stream, step) == ("train", 6):
            self.request_stop("SIGTERM")

config, path = json.loads(sys.argv[1]), sys.argv[2]
try:
    with Stopping(path, threads=1) as run:
        trainer.run(config, run)
except Preempted:
    (newest,) = run.checkpoints.glob("step-00000006.*256")
    newest.unlink()  # so that it goes on from step 4, and measures two steps again
with Run(path, threads=1) as run:
    trainer.run(config, run)
"""


def wandb_records(path: Path) -> list[Any]:
    """Return the records in one of wandb's files, which has the format of LevelDB's logs."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole, found = path.read_bytes(), 7, b"", []
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # too little of the block is left for a header
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in {1, 4}:  # a full record, or the last part of one
            found.append(Record.FromString(whole))
            whole = b""
    return found


def history(records: list[Any]) -> dict[tuple[int, str], float]:
    found = {}
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = {
                (item.key or item.nested_key[0]): item.value_json for item in record.history.item
            }
            step = record.history.step.num
            for name, value in items.items():
                if "/" in name:
                    assert (step, name) not in found
                    found[step, name] = json.loads(value)
    return found


@pytest.fixture(scope="module")
def logged(tiny_mapping: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of twelve steps that was interrupted after the sixth and went on from the fourth."""
    path = tmp_path_factory.mktemp("logged") / "lr-0.01-3fa9c1"
    path.mkdir()
    config = json.loads(json.dumps(tiny_mapping))
    extra = {"wandb": {"project": "probe", "mode": "offline", "tags": ["a"]}, "tensorboard": {}}
    config["logging"]["logging_params"] |= extra
    record = {"signature": SIGNATURE, "sweep": "lr_sensitivity", "config": {"lr": 0.01}}
    write_json(path / RUN_FILE, record)
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, json.dumps(config), str(path)],
        cwd=ROOT,
        env={**os.environ, "WANDB_API_KEY": KEY},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return path


def test_wandb_knows_a_resumed_run_by_its_signature_and_its_sweep(logged: Path) -> None:
    files = sorted((logged / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    runs = [r.run for file in files for r in wandb_records(file) if r.HasField("run")]
    assert {run.run_id for run in runs} == {runs[0].run_id}
    assert runs[0].run_id.startswith(SIGNATURE[:16])
    assert {(run.project, run.run_group, run.display_name, tuple(run.tags)) for run in runs} == {
        ("probe", "lr_sensitivity", logged.name, ("a",))
    }
    told = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert told["lr"] == 0.01


def test_wandb_holds_each_step_once_with_the_runs_own_numbers(logged: Path) -> None:
    files = sorted((logged / "wandb").glob("offline-run-*/run-*.wandb"))
    first, second = (history(wandb_records(file)) for file in files)
    assert not first.keys() & second.keys()
    records = list(iter_metrics(logged / METRICS_FILE))
    assert min(r["step"] for r in records if r["attempt"] == 2) == 5
    ours = {(r["step"], f"{r['stream']}/loss"): r["loss"] for r in records}
    theirs = {key: value for key, value in (first | second).items() if key[1].endswith("loss")}
    assert theirs == ours
    assert (12, "train/grad_norm") in second


KILLED = """
import json, os, signal, sys, threading, time, trainer
from rundir import Run
from trainer.loggers import weights_and_biases
from trainer.loggers.weights_and_biases import WeightsAndBiases

given, log = threading.Event(), WeightsAndBiases.log
weights_and_biases.FLUSH_S = 1.0

def logged(self, stream, step, metrics):
    log(self, stream, step, metrics)
    if step == 6:
        given.set()

WeightsAndBiases.log = logged

class Killed(Run):
    def log(self, stream, step, **metrics):
        super().log(stream, step, **metrics)
        if self.attempt == 1 and step == 7:
            given.wait(60)
            time.sleep(float(sys.argv[3]))
            os.kill(os.getpid(), signal.SIGKILL)

with Killed(sys.argv[2], threads=1) as run:
    trainer.run(json.loads(sys.argv[1]), run)
"""


@pytest.mark.parametrize("flushed", [False, True])
def test_what_a_killed_attempt_could_not_write_is_written_by_the_next(
    tiny_mapping: dict[str, Any], tmp_path: Path, flushed: bool
) -> None:
    config = json.loads(json.dumps(tiny_mapping))
    wanted = {"wandb": {"project": "probe", "mode": "offline"}, "tensorboard": {}}
    config["logging"]["logging_params"] |= wanted
    # On the disk after 1 s, and noted to be there after 2.
    wait = "1.5" if flushed else "0"
    command = [sys.executable, "-c", KILLED, json.dumps(config), str(tmp_path), wait]
    for ended in (-signal.SIGKILL, 0):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == ended, done.stderr
    files = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    first, second = (history(wandb_records(file)) for file in files)
    assert not first.keys() & second.keys()
    assert first or not flushed
    theirs = first | second
    ours = {
        (record["step"], f"{record['stream']}/loss"): record["loss"]
        for record in iter_metrics(tmp_path / METRICS_FILE)
    }
    assert len(ours) == 16
    assert {key: value for key, value in theirs.items() if key[1].endswith("loss")} == ours
    assert scalars(tmp_path, "train/loss") == pytest.approx(
        {step: loss for (step, name), loss in ours.items() if name == "train/loss"}
    )


KILLED_TWICE = """
import os, signal, sys, time
from pathlib import Path
from trainer.config.logging import WandbParams
from trainer.loggers.identity import Identity
from trainer.loggers.wandb_file import last_steps_offline
from trainer.loggers.weights_and_biases import WeightsAndBiases

def attempt():
    identity = Identity("3fa9c1", "run", None, {})
    logger = WeightsAndBiases(WandbParams("probe", mode="offline"), identity, Path(sys.argv[1]))
    logger.open()
    return logger

first = attempt()
for step in (1, 2, 3):
    first.log("train", step, {"loss": 0.5})
first.close()
end = time.monotonic() + 20
while not last_steps_offline(Path(sys.argv[1], "wandb")) and time.monotonic() < end:
    time.sleep(0.05)  # wandb writes on in a process of its own
Path(sys.argv[1], "wandb/logged.txt").unlink()  # as if it had been killed before it noted them
attempt()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_attempt_that_is_killed_at_once_hides_nothing_of_the_one_before(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_TWICE, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert _last_steps(tmp_path / "wandb" / "logged.txt") == {"train": 3}


def scalars(path: Path, name: str) -> dict[int, float]:
    """Return what TensorBoard shows by step, each of which it shows once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path / "tensorboard"))
    events.Reload()
    shown = events.Scalars(name)
    steps = [event.step for event in shown]
    assert len(steps) == len(set(steps))
    return {event.step: event.value for event in shown}


def test_the_key_reaches_no_file(logged: Path) -> None:
    files = [path for path in logged.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_a_validation_made_up_for_is_shown_once(tmp_path: Path) -> None:
    """It may be on record before the writer is open, and come through the queue after that."""
    with Run(tmp_path, threads=1) as run:
        for step in (5, 6):
            run.log("train", step, loss=step / 10)
        run.log("val", 6, loss=0.5)
        logger = TensorBoard(tmp_path, 6)
        logger.open()
        logger.log("val", 6, {"loss": 0.5})
        logger.log("train", 7, {"loss": 0.7})
        logger.log("val", 7, {"loss": 0.4})
        logger.close()
    assert scalars(tmp_path, "val/loss") == pytest.approx({6: 0.5, 7: 0.4})
    assert scalars(tmp_path, "train/loss") == pytest.approx({5: 0.5, 6: 0.6, 7: 0.7})


def test_tensorboard_shows_each_step_once_with_the_runs_own_numbers(logged: Path) -> None:
    records = iter_metrics(logged / METRICS_FILE)
    ours = {r["step"]: r["loss"] for r in records if r["stream"] == "train"}
    assert list(ours) == list(range(1, 13))
    assert scalars(logged, "train/loss") == pytest.approx(ours)
    assert list(scalars(logged, "val/loss")) == [3, 6, 9, 12]


class Faulty:
    """A logger that fails, or hangs, in one of its verbs."""

    name = "Faulty"

    def __init__(self, verb: str, seconds: float) -> None:
        self._verb, self._seconds = verb, seconds
        self.is_abandoned = False

    def _do(self, verb: str) -> None:
        if verb == self._verb:
            time.sleep(self._seconds)
            raise OSError(28, "No space left on device")

    def open(self) -> None:
        self._do("open")

    def log(self, stream: str, step: int, metrics: dict[str, float]) -> None:
        self._do("log")

    def close(self) -> None:
        self._do("close")

    def abandon(self) -> None:
        self.is_abandoned = True


@pytest.mark.parametrize("verb", ["open", "log", "close"])
@pytest.mark.parametrize(
    ("seconds", "why"),
    [(0.0, "[Errno 28] No space left on device"), (2.0, "not done 0 s after the end")],
)
def test_a_logger_that_fails_or_hangs_costs_one_warning_and_no_time(
    verb: str,
    seconds: float,
    why: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trainer.loggers.relay.CLOSING_S", 0.3)
    logger = Faulty(verb, seconds)
    began = time.monotonic()
    relay = Relay([logger])
    for step in range(100):
        relay.log("train", step, loss=1.0)
    assert time.monotonic() - began < 1.0
    relay.close()
    assert time.monotonic() - began < 1.9
    assert caplog.messages == [
        f"Faulty gets no more records ({why}); the run goes on, metrics.jsonl has them all"
    ]
    assert logger.is_abandoned == (seconds > 0)


def test_a_missing_package_is_one_line_at_launch_and_nothing_is_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _is_installed.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        WandbParams()
    _is_installed.cache_clear()
    bring = "pip install -e '.[wandb]' in optsweep's directory brings it"
    assert str(error.value) == f"+logging=wandb needs wandb: {bring}"


def test_a_server_that_does_not_answer_leaves_the_records_here(
    tiny_mapping: dict[str, Any], tmp_path: Path
) -> None:
    config = json.loads(json.dumps(tiny_mapping))
    config["logging"]["logging_params"]["wandb"] = {"project": "probe", "mode": "online"}
    program = (
        "import json, logging, sys, trainer\n"
        "from rundir import Run\n"
        "from trainer.loggers import weights_and_biases\n"
        "weights_and_biases.INIT_TIMEOUT_S = 1.0\n"
        "logging.basicConfig(level=logging.WARNING)\n"
        "with Run(sys.argv[2], threads=1) as run:\n"
        "    trainer.run(json.loads(sys.argv[1]), run)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(config), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (warning,) = done.stderr.splitlines()
    assert "records are kept in" in warning
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert len([key for key in history(wandb_records(file)) if key[1] == "train/loss"]) == 12


@pytest.mark.parametrize("chosen", ["wandb", "tensorboard", "[wandb,tensorboard]"])
def test_the_words_that_users_type_compose(chosen: str) -> None:
    import sweeps
    from sweeps.planning.identity import signature, task_config

    composed = sweeps.compose([f"+logging={chosen}", "logging.logging_params.val_step=64"])
    params = composed.resolved["logging"]["logging_params"]
    named = {"wandb", "tensorboard"}
    assert {name for name in named if params.get(name) is not None} == {
        name for name in named if name in chosen
    }
    assert signature(composed.resolved) == signature(sweeps.compose([]).resolved)
    config = trainer.TrainConfig.from_mapping(task_config(composed.resolved))
    assert config.logging.val_step == 64
