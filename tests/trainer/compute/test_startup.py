"""What a short run need not pay for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import trainer

Mapping = dict[str, Any]

PROGRAM = """
import json, sys, trainer
from rundir import Run
for name in ("adamw", "nadam", "sgd-m", "muon"):
    config = json.loads(sys.argv[1])
    config["optimizer"]["optimizer_params"]["name"] = name
    with Run(f"{sys.argv[2]}/{name}", threads=1) as run:
        trainer.run(config, run)
print(*sorted({name.partition(".")[0] for name in sys.modules} | set(sys.modules)))
"""

STEPS = """
import sys, torch, trainer
from trainer.optim import clipping
trainer.preload()

def stepped(kind):
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(5, 3))
    optimizer = kind([weight], lr=0.1)
    for _ in range(3):
        weight.grad = weight.detach().cos()
        optimizer.step(lambda: (weight**2).sum())
    return weight.detach()

kinds = (clipping.AdamW, clipping.NAdam)
plain = [stepped(kind) for kind in kinds]
print("torch._dynamo" in sys.modules)
import torch._dynamo
print(*(torch.equal(weight, stepped(kind)) for kind, weight in zip(kinds, plain)))
"""


def test_a_run_that_compiles_nothing_loads_no_compiler_and_no_hydra(
    tiny: Mapping, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(tiny), str(tmp_path)],
        cwd=Path(trainer.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert "torch" in loaded
    heavy = {"torch._dynamo", "sympy", "hydra", "omegaconf", "wandb", "tensorboard"}
    assert not loaded & heavy


def test_a_step_without_its_wrapper_is_the_same_to_the_bit() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STEPS],
        cwd=Path(trainer.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False", "True", "True"]
