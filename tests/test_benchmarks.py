"""The benchmark of the optimizers compares what it says, and reports what it measured."""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from trainer import GPTConfig
from trainer.optim.params import REGISTRY

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
SMALL = GPTConfig(n_embd=16, n_layer=2, n_head=2, vocab_size=32)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def bench(monkeypatch) -> SimpleNamespace:
    """The scripts' modules; they are no package."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    names = ("clock", "contenders", "optimizers", "report")
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


@pytest.fixture
def rows(bench):
    """Return what is measured of an optimizer on a small model, as on a device of known rates."""
    device = bench.optimizers.Device(CPU, quick_clock(bench.clock), 1e9, 1e9, 1.0)
    measuring = bench.optimizers.Bench(device, 0.0, compiled=False)

    def rows(name: str):
        return list(measuring.rows(name, bench.contenders.Shapes("nano", SMALL)))

    return SimpleNamespace(of=rows, device=device)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_optimizer_of_the_registry_is_measured(name, rows, bench):
    first, *clipped = rows.of(name)
    assert first.timing.seconds > 0
    assert bool(first.peer) == bool(bench.contenders.peers(name, first.shapes, CPU, compiled=False))
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


def test_sides_take_turns_and_the_first_turn_is_not_kept(bench):
    order = []
    ours, theirs = (bench.clock.Side(lambda name=name: order.append(name)) for name in "ab")
    timing = quick_clock(bench.clock).in_turns(ours, theirs, 0.0)
    assert "".join(order) == "ababab"
    assert len(timing.ours) == len(timing.theirs) == len(timing.ratios) == 2


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
    assert text.startswith("rows\n")
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
        ("cpu", "adamw", "gpt-tiny", 2, 0.95),
        ("cpu", "lion", "gpt-tiny", 2, None),
    ],
)
def test_budgets_hold_where_they_are_meant_to(bench, device, name, size, blocks, least):
    from trainer.presets import SIZES

    shapes = bench.contenders.Shapes.of(size, SIZES[size], blocks)
    where = SimpleNamespace(is_cuda=device == "cuda")
    assert bench.optimizers.least_ratio(name, shapes, where) == least
