"""What collecting costs: 10,000 runs of 200 steps and 6 metrics, all, none and few of them new.

The runs have the files that Hydra and the trainer leave, with the real default config. Each collect
is a command of its own, its interpreter's start included. The peer reads every tenth run the
way a notebook does: OmegaConf.load of Hydra's three files (only hydra.yaml tells sweep and number),
json.loads line by line, a frame a run, and pandas.concat. Its time a run is compared with that of
the first collect; what it is without hydra.yaml is told too. Processor times stand beside: others
on the machine change them less.

    python benchmarks/collect.py [--runs 10000] [--steps 200]
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report import ROOT, Report, environment, workplace

FULL_S, NOTHING_S, METRIC_S, RATIO = 60.0, 1.0, 0.5, 50.0
REPEATS = 5
GROWN = 100
"""Every so many-th run goes on before the third collect."""
NEW_STEPS = 20
VALIDATION = 20
"""Steps from one validation to the next."""

COLLECT = ("-m", "analysis", "collect")
LOAD = """
import time
from analysis import history
began = time.perf_counter()
frame = history("train", metrics="loss")
print(time.perf_counter() - began, len(frame))
"""
RUNS = "multirun/bench/gpt/shakespeare/adamw"
MEASURED = """
import resource, runpy, sys
if __name__ == "__main__":  # not in the processes that collect spawns
    code = None
    try:
        if sys.argv[1] == "-m":
            sys.argv[:3] = sys.argv[2:3]
            runpy.run_module(sys.argv[0], run_name="__main__")
        else:
            exec(sys.argv[2])
    except SystemExit as end:
        code = end.code
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    used = [resource.getrusage(kind) for kind in kinds]
    sys.stdout.flush()
    spent = sum(one.ru_utime + one.ru_stime for one in used)
    print(max(one.ru_maxrss for one in used), spent, file=sys.stderr)
    sys.exit(code)
"""
"""Runs a module or a text; prints its largest process's kilobytes and all its processor seconds."""


def composed() -> tuple[dict[str, Any], str]:
    """Return the trainer's default config, and what Hydra writes into hydra.yaml beside it."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf, open_dict

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        whole = compose("config", return_hydra_config=True)
    text = OmegaConf.to_yaml(OmegaConf.create({"hydra": OmegaConf.to_container(whole.hydra)}))
    with open_dict(whole):
        del whole["hydra"]
    container = OmegaConf.to_container(whole)
    if not isinstance(container, dict):
        raise SystemExit("the default config is no mapping")
    return {str(key): value for key, value in container.items()}, text


def write_runs(place: Path, count: int, steps: int) -> int:
    """Write the run directories; return the bytes of their metrics."""
    from omegaconf import OmegaConf

    (config, hydra), size = composed(), 0
    config["seed"] = "SEED"
    text = OmegaConf.to_yaml(OmegaConf.create(config))
    for index in range(count):
        directory = place / RUNS / f"seed-{index}"
        (directory / ".hydra").mkdir(parents=True)
        (directory / ".hydra/config.yaml").write_text(text.replace("SEED", str(index)))
        (directory / ".hydra/overrides.yaml").write_text(f"- seed={index}\n")
        (directory / ".hydra/hydra.yaml").write_text(hydra)
        record = _record(index, {**config, "seed": index})
        (directory / "run.json").write_text(json.dumps(record, indent=1))
        status = {"version": 1, "state": "completed", "attempt": 1, "step": steps}
        status |= {"total_steps": steps, "started_at": 1e9, "ended_at": 1e9 + steps}
        (directory / "status.json").write_text(json.dumps(status, indent=1))
        (directory / "metrics.jsonl").write_text(metrics(index, 0, steps))
        size += (directory / "metrics.jsonl").stat().st_size
    return size


def _record(index: int, config: dict[str, Any]) -> dict[str, Any]:
    attempt = {"attempt": 1, "host": "node", "started_at": 1e9, "threads": 1, "gpus": []}
    return {
        "version": 1,
        "name": f"seed-{index}",
        "sweep": "bench",
        "index": index,
        "signature": f"{index:064x}",
        "task": "trainer.run",
        "created_at": 1e9,
        "config": config,
        "overrides": [f"seed={index}"],
        "git": {"sha": "0" * 40, "dirty": False, "diff_sha256": None},
        "python": "3.11.7",
        "packages": {"torch": "2.13.0", "numpy": "2.3.0"},
        "attempts": [attempt],
    }


def metrics(index: int, first: int, last: int) -> str:
    """Return lines of six metrics, with as many digits as real ones have, and validations between.

    The learning rate is a whole double, as a constant one can be.
    """
    draw = random.Random(index * 1000 + first).random  # noqa: S311 - no secret
    lines = []
    for step in range(first + 1, last + 1):
        key = {"step": step, "t": 1e9 + step * draw(), "attempt": 1}
        figures = {
            "loss": 3 + draw(),
            "lr": 1.0,
            "grad_norm": draw(),
            "tokens": step * 4096,
            "step_time": draw(),
            "tokens_per_second": 1e5 * draw(),
        }
        lines.append({"stream": "train", **key, **figures})
        if step % VALIDATION == 0:
            lines.append({"stream": "val", **key, "loss": 3 + draw()})
    return "".join(json.dumps(line) + "\n" for line in lines)


@dataclass(frozen=True)
class Cost:
    """What a command took."""

    seconds: float
    """By the clock on the wall."""
    processor_s: float
    """Of all its processes, but for the start of the first interpreter."""
    peak_mb: float
    """Memory of its largest process."""


def command(place: Path, *arguments: str) -> tuple[Cost, str]:
    """Run a command; return what it took and what it printed."""
    script = place / "measured.py"
    script.write_text(MEASURED)
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=place,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: exit {done.returncode}\n{done.stderr}")
    peak, spent = done.stderr.splitlines()[-1].split()
    return Cost(seconds, float(spent), int(peak) / 1024), done.stdout + done.stderr


def collect(place: Path, said: str) -> Cost:
    """Collect; return what it took, after making sure of what the summary says."""
    cost, printed = command(place, *COLLECT)
    if said not in printed:
        raise SystemExit(f"collect was to say {said!r}; it said:\n{printed}")
    return cost


def naive(place: Path, count: int) -> tuple[float, float, float]:
    """Return the seconds a run that the notebook's way takes, from every tenth run.

    The second number is that without hydra.yaml, the third the first's processor time.
    """
    import pandas as pd
    from omegaconf import OmegaConf

    directories = [place / RUNS / f"seed-{index}" for index in range(0, count, 10)]
    began, began_cpu = time.perf_counter(), time.process_time()
    rows, frames, spent = [], [], 0.0
    for directory in directories:
        config = OmegaConf.load(directory / ".hydra/config.yaml")
        row = pd.json_normalize(OmegaConf.to_container(config))  # type: ignore[arg-type]
        overrides = OmegaConf.load(directory / ".hydra/overrides.yaml")
        start = time.perf_counter()
        hydra = OmegaConf.load(directory / ".hydra/hydra.yaml")
        spent += time.perf_counter() - start
        row = row.assign(sweep=str(OmegaConf.to_container(hydra)["hydra"]["sweep"]["dir"]))  # type: ignore[call-overload, index]
        status = json.loads((directory / "status.json").read_text())
        rows.append(row.assign(run=directory.name, overrides=str(overrides), **status))
        with (directory / "metrics.jsonl").open() as file:
            frame = pd.DataFrame([json.loads(line) for line in file])
        frames.append(frame.assign(run=directory.name))
    table, curves = pd.concat(rows), pd.concat(frames)
    seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    if len(table) != len(directories) or curves["loss"].isna().any():
        raise SystemExit("the notebook's way has lost something")
    runs = len(directories)
    return seconds / runs, (seconds - spent) / runs, cpu / runs


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=200)
    chosen = parser.parse_args()
    count, steps = chosen.runs, chosen.steps
    report = Report("collect")
    with workplace() as place:
        size = write_runs(place, count, steps)
        first = collect(place, f"{count} new, 0 changed, 0 unchanged")
        full = first.seconds
        told = f"{count:,} runs × {steps} steps × 6 metrics, {size / 1e6:.0f} MB, start included"
        report.add("collect_s", full, told, most=FULL_S)
        report.add("collect_processor_s", first.processor_s, "processor time of its processes")
        peak = "memory of the largest of its processes"
        report.add("collect_largest_process_mb", first.peak_mb, peak)
        peer, shorter, peer_cpu = naive(place, count)
        report.add("peer_naive_ms", peer * 1e3, "peer: a run by OmegaConf, json and pandas")
        report.add("peer_naive_processor_ms", peer_cpu * 1e3, "its processor time")
        report.add("naive_ratio", peer / (full / count), "peer / collect, a run", least=RATIO)
        told = "the same, of a notebook that leaves hydra.yaml unread"
        report.add("naive_ratio_without_hydra_yaml", shorter / (full / count), told)
        idle = [collect(place, f"{count} unchanged") for _ in range(REPEATS)]
        nothing = min(cost.seconds for cost in idle)
        told = f"the same command again, start included; least of {REPEATS}"
        report.add("nothing_new_s", nothing, told, most=NOTHING_S)
        least = min(cost.processor_s for cost in idle)
        report.add("nothing_new_processor_s", least, "its processor time")
        report.add("naive_again_ratio", peer * count / nothing, "peer / that: it reads all again")
        grown = range(0, count, GROWN)
        for index in grown:
            with (place / RUNS / f"seed-{index}" / "metrics.jsonl").open("a") as file:
                file.write(metrics(index, steps, steps + NEW_STEPS))
        some = collect(place, f"{len(grown)} changed")
        told = f"after {len(grown)} runs have gone on by {NEW_STEPS} steps"
        report.add("one_percent_s", some.seconds, told)
        report.add("one_percent_processor_s", some.processor_s, "its processor time")
        loads = [command(place, "-c", LOAD)[1].split() for _ in range(REPEATS)]
        rows = count * steps + len(grown) * NEW_STEPS
        if any(int(load[1]) != rows for load in loads):
            raise SystemExit(f"history was to have {rows} rows; it has {loads[0][1]}")
        told = f"one metric of all runs into pandas, {rows:,} rows; least of {REPEATS}"
        report.add("one_metric_s", min(float(load[0]) for load in loads), told, most=METRIC_S)
        stored = sum(path.stat().st_size for path in (place / "store").rglob("*.parquet"))
        report.add("store_mb", stored / 1e6, "Parquet on disk")
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
