"""The benchmark of the optimizers compares what it says, and reports what it measured."""

from __future__ import annotations

import importlib
import json
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from trainer import GPTConfig
from trainer.kernels import threads
from trainer.optim.params import REGISTRY

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
SMALL = GPTConfig(n_embd=16, n_layer=2, n_head=2, vocab_size=32)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def bench(monkeypatch) -> SimpleNamespace:
    """The scripts' modules; they are no package."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    names = ("clock", "contenders", "optimizers", "report", "rows")
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


def quick_clock(clock: ModuleType):
    """Return a clock that empties no caches."""

    class Quick(clock.Clock):
        least_pairs, most_pairs = 2, 2

        def seconds(self, side):
            if side.before is not None:
                side.before()
            began = time.perf_counter()
            side.call()
            return time.perf_counter() - began

    return Quick()


class StoppedTime:
    """In place of ``time`` and ``signal``: no time passes, however slow the machine, but asleep."""

    ITIMER_REAL, SIGALRM = signal.ITIMER_REAL, signal.SIGALRM

    def __init__(self):
        self.now, self.due, self.handler = 0.0, None, None

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        rings = self.due is not None and self.due <= self.now + seconds
        self.now = self.due if rings else self.now + seconds
        if rings:
            self.handler()

    def signal(self, _, handler):
        before, self.handler = self.handler, handler
        return before

    def setitimer(self, _, seconds, again=0.0):
        left = 0.0 if self.due is None else self.due - self.now
        self.due = self.now + seconds if seconds else None
        return left, again


@pytest.fixture
def rows(bench):
    """Return what is measured of an optimizer on a small model, as on a device of known rates."""
    device = bench.optimizers.Device(CPU, quick_clock(bench.clock), 1e9, 1e9, 1.0)
    measuring = bench.optimizers.Bench(device, 0.0)

    def rows(name: str):
        return list(measuring.rows(name, bench.contenders.Shapes("nano", SMALL)))

    return SimpleNamespace(of=rows, device=device)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_optimizer_of_the_registry_is_measured(name, rows, bench):
    first, *clipped = rows.of(name)
    assert first.timing.seconds > 0
    assert bool(first.peer) == bool(bench.contenders.peers(name, first.shapes, CPU))
    assert len(first.cells(rows.device)) == len(first.HEADER)
    assert [row.name for row in clipped] in ([], [f"{name}+clip"])


def test_the_floor_of_adamw_is_28_bytes_and_that_of_sgd_12(rows):
    # torch's step counts are 4 bytes of each parameter.
    assert rows.of("adamw")[0].floor == pytest.approx(28, abs=0.1)
    assert rows.of("sgd")[0].floor == pytest.approx(12, abs=0.1)


def test_one_matrix_after_the_other_is_muon_indeed(bench):
    contender = bench.contenders.per_matrix(bench.contenders.Shapes("nano", SMALL), CPU)
    matrix = next(w for w in contender.weights if w.shape == (3 * 16, 16))
    matrix.data.zero_()
    contender.step()
    moved = -(matrix.detach() / bench.contenders.LR).double()
    u, _, vh = torch.linalg.svd(matrix.grad.double(), full_matrices=False)
    along = (u.mT @ moved @ vh.mT).diagonal()
    assert along.min() > 0.6
    assert along.max() < 1.3


def test_a_polar_factor_s_products_are_counted_once_for_each_block(bench):
    shapes = bench.contenders.Shapes("nano", SMALL)
    f = SMALL.ffn_width
    sides = [(16, 48), (16, 16), (16, f), (16, f), (16, f)]
    plain = 2 * 5 * sum(4 * m * m * n + 2 * m**3 for m, n in sides)
    counted = bench.contenders.step_flops("muon", shapes, CPU)
    assert 0.7 * plain < counted <= plain  # symmetric products may be halved
    assert bench.contenders.step_flops("adamw", shapes, CPU) == 0


def test_products_are_counted_however_many_threads_share_them(bench, monkeypatch):
    monkeypatch.setattr(threads, "_LEAST_US", 0.0)
    monkeypatch.setattr(threads, "_LEAST_BUSY", 0.0)
    shapes = bench.contenders.Shapes("nano", SMALL)
    alone = bench.contenders.step_flops("muon", shapes, CPU)
    torch.set_num_threads(2)
    assert bench.contenders.step_flops("muon", shapes, CPU) == alone
    assert torch.get_num_threads() == 2


def test_sides_take_turns_and_the_first_turn_is_not_kept(bench):
    order = []
    ours, theirs = (bench.clock.Side(lambda name=name: order.append(name)) for name in "ab")
    timing = quick_clock(bench.clock).in_turns(ours, theirs, 0.0)
    assert "".join(order) == "ababab"
    assert len(timing.ours) == len(timing.theirs) == len(timing.ratios) == 2


def test_there_are_as_many_turns_as_asked_for_however_long_they_take(bench):
    side = bench.clock.Side(lambda: None)
    clock = quick_clock(bench.clock)
    type(clock).most_pairs = 9
    assert len(clock.in_turns(side, side, 0.0, 5).ours) == 5


def test_a_report_ends_in_a_line_of_json_and_fails_outside_its_budget(bench, capsys, tmp_path):
    report = bench.report.Report("b", device={"device": "d"})
    report.add("quick.ratio", 0.9, "turns", least=1.0)
    report.add("aside.ms", 5.0, "median")
    assert report.end("rows", tmp_path / "d" / "m-b.txt") == 1
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["figures"] == {"quick.ratio": 0.9, "aside.ms": 5.0}
    assert record["budgets"] == {"quick.ratio": [1.0, None]}
    assert record["machine"]["device"] == "d"
    assert json.loads((tmp_path / "d" / "m-b.json").read_text()) == record
    text = (tmp_path / "d" / "m-b.txt").read_text()
    on, _, rest = text.partition("\n\n")
    assert on.endswith(", device d")
    assert "load_1min " in on
    assert rest.startswith("rows\n")
    assert "MISSED" in text
    assert "aside.ms" not in text


@pytest.mark.parametrize(
    ("device", "name", "size", "blocks", "least"),
    [
        ("cuda", "adamw+clip", "gpt-tiny", 2, 1.15),
        ("cuda", "muon", "gpt-small", 12, 2.0),
        ("cuda", "muon", "gpt-medium", 24, 1.3),
        ("cuda", "muon", "gpt-small", 2, None),
        ("cuda", "dap-ns-nadam", "gpt-small", 12, 5.0),
        ("cuda", "dap-ns-nadam", "gpt-tiny", 2, None),
        ("cpu", "adamw", "gpt-tiny", 2, None),
        ("cpu", "adamw+clip", "gpt-tiny", 2, 1.0),
        ("cpu", "lion", "gpt-tiny", 2, None),
    ],
)
def test_budgets_hold_where_they_are_meant_to(bench, device, name, size, blocks, least):
    from trainer.presets import SIZES

    shapes = bench.contenders.Shapes.of(size, SIZES[size], blocks)
    where = SimpleNamespace(is_cuda=device == "cuda")
    assert bench.optimizers.least_ratio(name, shapes, where) == least


def test_muon_as_shipped_has_a_budget_only_where_bf16_is_slow(bench):
    shapes, name = bench.contenders.Shapes("nano", SMALL), bench.optimizers.SHIPPED
    for bf16, least in ((0.01, 50.0), (1.0, None)):
        where = SimpleNamespace(is_cuda=False, bf16=bf16)
        assert bench.optimizers.least_ratio(name, shapes, where) == least


def test_torch_s_own_step_is_called_that_and_its_clipped_form_is_beside_clip_grad_norm(rows):
    first, clipped = rows.of("adamw")
    # Ours is the fused one; which of torch's is the quickest, and so beside it, is measured.
    assert first.peer.endswith("(torch's own step)") == ("fused" in first.peer)
    assert clipped.peer.endswith("clip_grad_norm_")


def test_dap_has_the_cost_of_its_inputs_on_both_sides(rows):
    row, *_ = rows.of("dap-ns-nadam")
    assert row.peer.startswith("own ")
    assert row.inputs_s >= 0
    assert replace(row, inputs_s=0.0).ratio_with_inputs == pytest.approx(row.ratio)
    timing = replace(row.timing, ours=[1.0, 1.0], theirs=[3.0, 5.0])
    assert replace(row, timing=timing, inputs_s=1.0).ratio_with_inputs == pytest.approx(2.5)


@pytest.mark.parametrize("size", ["nano", "gpt-tiny", "gpt-small", "gpt-medium"])
def test_there_are_twice_as_many_inputs_as_the_longest_side_of_a_matrix(size, bench):
    from trainer.presets import SIZES

    shapes = bench.contenders.Shapes(size, SIZES[size])
    longest = max(3 * SIZES[size].n_embd, SIZES[size].ffn_width)
    assert shapes.sequences * bench.contenders.CONTEXT >= 2 * longest


def test_newton_s_steps_are_counted_until_its_own_rule_ends_it(bench):
    from trainer.optim import inverse

    shapes = bench.contenders.Shapes("nano", SMALL)
    contender = bench.contenders.ours("dap-ns-nadam", shapes, CPU, accelerated=False)
    power, newton = bench.contenders._steps_until_stopped(contender)
    assert 1 <= power <= 50
    assert 5 < newton < 50
    assert inverse.largest_eigenvalue.__module__ == inverse.__name__


def test_a_limit_ends_what_takes_longer_and_an_inner_one_leaves_the_outer(bench):
    clock = bench.clock

    def nested():
        with clock.limited(0.2):
            try:
                with clock.limited(0.02):
                    time.sleep(5)
            except clock.OutOfTime:
                inner.append("ended")
            time.sleep(5)

    inner: list[str] = []
    with pytest.raises(clock.OutOfTime, match=r"0\.2 s"):
        nested()
    assert inner == ["ended"]
    with clock.limited(0.05):
        pass
    time.sleep(0.1)


def test_what_does_not_fit_into_the_time_is_listed_beside_what_does(
    bench, capsys, monkeypatch, tmp_path
):
    monkeypatch.setitem(bench.optimizers.SIZES, "nano", SMALL)
    device = bench.optimizers.Device(CPU, quick_clock(bench.clock), 1e9, 1e9, 1.0)
    monkeypatch.setattr(bench.optimizers.Device, "measure", lambda *_, **__: device)
    stopped = StoppedTime()
    monkeypatch.setattr(bench.optimizers, "time", stopped)
    monkeypatch.setattr(bench.clock, "time", stopped)
    monkeypatch.setattr(bench.clock, "signal", stopped)
    monkeypatch.setattr(type(device.clock), "most_pairs", 6)
    shipped = bench.optimizers.Bench.muon_as_shipped

    def slow(self, shapes):
        stopped.sleep(60)
        yield from shipped(self, shapes)

    monkeypatch.setattr(bench.optimizers.Bench, "muon_as_shipped", slow)
    out = tmp_path / "r.txt"
    arguments = ["--sizes", "nano", "--optimizers", "muon", "lion", "--device", "cpu"]
    bench.optimizers.main([*arguments, "--seconds", "6", "--out", str(out)])
    text = out.read_text()
    turns = [line.split() for line in text.splitlines() if line.startswith("nano,")]
    assert len(turns) == 3
    missing = "not measured: gpt-tiny matrices, 1 block: muon, torch's as shipped"
    assert f"{missing}: takes longer than the 6 s that there are for it" in text
    assert stopped.now == 6
    figures = json.loads(out.with_suffix(".json").read_text())["figures"]
    assert figures["gpt-tiny-matrices-1.muon, torch's as shipped.ratio"] is None
    assert figures["nano-2.lion.ms"] > 0
    capsys.readouterr()


def test_what_fails_is_listed_and_fails_the_run(bench):
    def broken(_):
        raise ValueError("no such thing")
        yield

    shapes = bench.contenders.Shapes("nano", SMALL)
    job = bench.optimizers.Job(shapes, ("lion",), broken)
    device = bench.optimizers.Device(CPU, quick_clock(bench.clock), 1e9, 1e9, 1.0)
    (missing,) = bench.optimizers._rows(job, bench.optimizers.Bench(device, 0.0), 5.0)
    assert str(missing).endswith("lion: ValueError: no such thing")
    report = bench.report.Report("b")
    missing.report(report)
    assert report.end() == 1
