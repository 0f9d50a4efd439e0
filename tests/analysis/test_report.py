"""What the report's page holds; tests/browser opens it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from analysis.__main__ import main
from analysis.collecting.collector import collect
from analysis.report import write_report
from analysis.report.curves import thinned
from analysis.report.embedding import embedded, plain

HOSTILE = "</script><script>alert(1)</script> & <b>'\"\u2028\u2029"


@pytest.fixture
def store(sweep_place: Path) -> Path:
    collect()
    return sweep_place


def blocks(page: str) -> dict[str, object]:
    found = re.findall(r'<script type="application/json" id="([\w-]+)">(.*?)</script>', page)
    return {name: json.loads(text) for name, text in found}


def test_the_command_writes_one_file_and_says_its_size(store: Path, capsys) -> None:
    assert main(["report", "quickstart"]) == 0
    out, _ = capsys.readouterr()
    path = store / "reports/quickstart.html"
    assert sorted(p.name for p in path.parent.iterdir()) == ["quickstart.html"]
    size = f"{path.stat().st_size / 1e6:.1f} MB"
    assert re.fullmatch(
        rf"reports/quickstart.html: 7 runs, {size}, of which \d\.\d MB are Plotly\n", out
    )
    assert f"connects to nothing: {size}, of which" in path.read_text()


def test_open_hands_the_page_to_the_browser(store: Path) -> None:
    browser = store / "browser.sh"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" >{store}/opened\n')
    browser.chmod(0o755)
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-m", "analysis", "report", "quickstart", "--open"],
        env={**os.environ, "PYTHONPATH": root, "BROWSER": str(browser)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (store / "opened").read_text() == (store / "reports/quickstart.html").as_uri()


def test_the_same_store_gives_the_same_bytes(store: Path) -> None:
    pages = [write_report("quickstart", Path(name)).path.read_bytes() for name in ("a", "b")]
    assert pages[0] == pages[1]


def test_every_run_and_curve_is_in_it(store: Path) -> None:
    report = blocks(write_report("quickstart").path.read_text())
    content = report["report"]
    states = next(c for c in content["columns"] if c["key"] == "state")["values"]
    assert sorted(states) == ["completed"] * 4 + ["diverged", "failed", "planned"]
    assert content["telling"] == ["optimizer", "lr"]
    assert content["rerun"].count(
        "python launch.py optimizer=muon optimizer.optimizer_params.lr=0.1"
    )
    assert [metric["name"] for metric in content["curves"]][:2] == ["val.loss", "train.loss"]
    loss = report["curve-1"]
    diverged = content["diverged"].index(True)
    curve = next(curve for curve in loss["curves"] if curve[0] == diverged)
    assert np.cumsum(loss["grids"][curve[1]]).tolist() == list(range(1, 11))
    assert curve[2] == [9.0] * 5 + [None] * 5
    assert content["sensitivity"]["final.val.loss"][0]["group"] == "adamw"
    assert content["sensitivity"]["final.val.loss"][0]["diverged"] == [0, 0, 1]


def test_every_attempt_of_a_run_counts_in_its_hours(bare) -> None:
    attempts = [{"gpus": ["H100"] * 2}, {"gpus": ["H100"] * 2}]
    record = {"version": 1, "sweep": "s", "config": {}, "attempts": attempts}
    status = {"version": 1, "state": "completed", "started_at": 1000.0, "ended_at": 1007.0}
    lines = [(1, 1, 10.0), (2, 1, 30.0), (3, 1, 50.0), (3, 2, 1002.0), (4, 2, 1006.0)]
    text = "".join(
        json.dumps({"stream": "train", "step": step, "attempt": attempt, "t": t, "loss": 1.0})
        + "\n"
        for step, attempt, t in lines
    )
    files = {"status_json": json.dumps(status), "metrics_jsonl": text}
    bare("multirun/s/x", run_json=json.dumps(record), **files)
    collect()
    use = blocks(write_report("s").path.read_text())["report"]["use"]
    # From 10 s to 30 s, as step 3 was done again, and the 7 s of the last attempt.
    assert use["gpu_s"] == 2 * (20.0 + 7.0)
    assert use["restarted"] == 1


def test_nothing_that_a_run_says_ends_its_block(run_maker) -> None:
    run_maker("x", error=RuntimeError(HOSTILE), overrides=[f"a={HOSTILE}"], sweep="<b>&")
    collect()
    page = write_report(None).path.read_text()
    assert "alert(1)</script>" not in page
    report = blocks(page)["report"]
    assert report["overrides"] == [[f"a={HOSTILE}"]]
    assert "<b>'\"" in report["texts"]["reason"][0]


def test_a_page_is_named_after_its_sweep_but_stays_in_its_directory(bare) -> None:
    bare("multirun/x", run_json=json.dumps({"version": 1, "sweep": "../<b>/.."}))
    collect()
    path = write_report("../<b>/..").path
    assert path == Path("reports/b.html")
    assert "<title>../&lt;b&gt;/.. · optsweep</title>" in path.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quickstrat"], "error: unknown sweep quickstrat; must be one of: quickstart; "),
        (["--out", "file/page.html"], "error: out = file/page.html; must be a writable file; "),
        (["--out", "directory"], "error: out = directory; must be a writable file; "),
        (["--store", "nowhere"], "error: store = nowhere; "),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(store: Path, capsys, arguments, message) -> None:
    Path("file").touch()
    Path("directory").mkdir()
    before = sorted(Path().rglob("*"))
    assert main(["report", *arguments]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(message)
    assert sorted(Path().rglob("*")) == before


def test_a_sweep_without_metrics_settings_or_configs_still_has_a_page(bare) -> None:
    bare("multirun/alone/x", run_json=json.dumps({"version": 1, "sweep": "alone", "config": {}}))
    collect()
    content = blocks(write_report("alone").path.read_text())["report"]
    assert content["curves"] == []
    assert content["sensitivity"] == {}
    assert content["verdicts"] == []


def test_thinning_keeps_spikes_ends_and_means() -> None:
    values = np.sin(np.arange(10_000) / 500)
    values[4321], values[777] = 50.0, -50.0
    values[5000:5200] = np.nan
    index, starts, means = thinned(values, 200)
    assert len(index) <= 204
    assert {0, 777, 4321, 9_999} <= set(index.tolist())
    assert np.nanmax(values[index]) == 50.0
    assert np.nanmin(values[index]) == -50.0
    assert len(starts) == len(means) == 100
    assert means[10] == pytest.approx(values[1000:1100].mean())
    assert np.isnan(means[50])
    assert np.isnan(values[index]).any()
    assert thinned(values[:200], 200) is None


def test_embedded_json_is_strict_and_survives_the_round_trip() -> None:
    value = {"a": [HOSTILE, None, True, 1.5], "\u2028": "\ud800"}
    text = embedded(value)
    assert not re.search("[<>&\u2028\u2029]", text)
    assert json.loads(text)["a"] == value["a"]
    with pytest.raises(ValueError, match="Out of range float"):
        embedded(float("nan"))
    assert [plain(x) for x in (float("nan"), float("-inf"), 2.0, None)] == [
        "NaN",
        "-Infinity",
        2,
        None,
    ]
