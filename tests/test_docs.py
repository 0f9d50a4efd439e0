"""docs/optimizers.md tells of every optimizer, and tells the truth about its state."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from trainer.optim import build_optimizer, optimizer_params
from trainer.optim.params import REGISTRY

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "optimizers.md").read_text()
ROWS, COLUMNS = 5, 12


def entries() -> dict[str, list[str]]:
    """Return the cells of the first table by the name in backticks."""
    lines = re.findall(r"^\| `([a-z-]+)` \|(.*)\|$", TEXT, re.MULTILINE)
    return {name: [cell.strip() for cell in rest.split(" | ")] for name, rest in lines}


ENTRIES = entries()


def bytes_of(cell: str) -> float:
    """Return what a cell such as ``8 + 8 (r/c + c/r)`` says of a matrix of r x c."""
    assert re.fullmatch(r"[0-9rc+/() ]+", cell), cell
    formula = re.sub(r"(?<=\d) (?=\()", " * ", cell)
    return float(eval(formula, {"r": ROWS, "c": COLUMNS}))


class Net(nn.Module):
    """A matrix, and beside it a vector and a table of embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(3, COLUMNS)
        self.layer = nn.Linear(COLUMNS, ROWS, bias=False)
        self.norm = nn.LayerNorm(ROWS, bias=False)

    def forward(self) -> torch.Tensor:
        x: torch.Tensor = self.norm(self.layer(self.wte.weight)).square().mean()
        return x


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def state_bytes(name: str) -> dict[str, float]:
    """Return the bytes per weight that an optimizer keeps of each parameter; scalars left out."""
    torch.manual_seed(0)
    net = Net()
    optimizer = build_optimizer(net, optimizer_params({"name": name, "lr": 1e-3}, ""))
    for _ in range(2):
        optimizer.zero_grad()
        loss = net()
        loss.backward()
        optimizer.step(lambda loss=loss: loss.detach())
    found: dict[str, float] = defaultdict(float)
    for parameter_name, parameter in net.named_parameters():
        for value in optimizer.state[parameter].values():
            if isinstance(value, torch.Tensor) and value.numel() > 1:
                found[parameter_name] += value.nbytes / parameter.numel()
    return found


def test_every_optimizer_has_an_entry_and_a_formula():
    assert set(REGISTRY) <= set(ENTRIES)
    _, *sections = re.split(r"^## ", TEXT, flags=re.MULTILINE)
    headed = {name for section in sections for name in re.split(r"[:,\s]+", section.split("\n")[0])}
    for name in ENTRIES:
        assert name in headed, f"{name} stands in no section's heading"


def test_every_section_has_a_formula_of_each_of_its_names():
    for section in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        assert "```" in body, heading
        for name in heading.partition(": ")[2].split(", "):
            assert name in ENTRIES, f"{name} has no row in the table"


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_the_state_is_as_large_as_stated(name):
    matrices, rest = ENTRIES[name][:2]
    found = state_bytes(name)
    assert found["layer.weight"] == pytest.approx(bytes_of(matrices), abs=1e-9)
    assert found["norm.weight"] == pytest.approx(bytes_of(rest), abs=1e-9)


def test_products_are_stated_of_those_that_keep_another_state_for_matrices():
    stated = re.findall(r"^\| (polar|eigenbases|inverse) \|", TEXT, re.MULTILINE)
    for name in REGISTRY:
        moved, milliseconds = ENTRIES[name][2:4]
        assert float(milliseconds) > 0
        if moved not in stated:
            found = state_bytes(name)
            assert found["layer.weight"] == found["wte.weight"], name
            # Weight and state are read and written, the gradient is read.
            assert int(moved) >= 12 + 2 * found["layer.weight"], name


def test_the_places_that_it_names_are_there():
    named = re.findall(r"`((?:conf|trainer)/[^`]*)`", TEXT)
    assert named
    for path in named:
        assert (ROOT / path.replace("NAME", "adamw")).exists(), path
