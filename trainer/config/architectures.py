"""What transformers knows: its causal language models and the keys of their configurations.

Importing transformers takes seconds and loads torch, which whatever looks at a configuration must
not do. Where torch is not loaded yet, a process of its own looks, once for each architecture.

    python -m trainer.config.architectures ARCHITECTURE
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from rundir import OptsweepError

_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Architecture:
    """The configuration of one architecture, among others."""

    names: tuple[str, ...]
    """The ``model_type`` of every causal language model of transformers."""
    defaults: dict[str, Any] | None
    """Its keys and what they are by default, null where no JSON can hold it; None where it is not
    one of ``names``."""


@lru_cache
def architecture(name: str) -> Architecture:
    """Return what transformers knows of an architecture.

    Raises:
        OptsweepError: transformers is installed, but does not load.
    """
    found = _look_up(name) if "torch" in sys.modules else _looked_up(name)
    return Architecture(tuple(found["names"]), found["defaults"])


def _looked_up(name: str) -> Any:
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", __name__, name],
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise OptsweepError(f"transformers does not load: {last}")
    return json.loads(done.stdout)


def _look_up(name: str) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    legal = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    if name not in legal:
        return {"names": legal, "defaults": None}
    config = AutoConfig.for_model(name)
    defaults = json.loads(json.dumps(config.to_dict(), default=lambda _: None))
    # Other names that transformers takes for a key, e.g. hidden_size for n_embd.
    defaults |= {key: defaults.get(to) for key, to in config.attribute_map.items()}
    return {"names": legal, "defaults": defaults}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_look_up(sys.argv[1])))
