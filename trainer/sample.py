"""Print text from a trained run: ``python -m trainer.sample RUN_DIR --prompt "ROMEO:"``.

Reads run.json for what was trained and a checkpoint for its weights; the data need not be here.
"""

from __future__ import annotations

import argparse
import codecs
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rundir import UserError, exit_code_of, read_json
from rundir.commandline import Parser, options_of
from rundir.errors import require, tell, unknown
from rundir.files import CHECKPOINT_DIR, RUN_FILE
from trainer import preload
from trainer.config import TrainConfig
from trainer.data.sources import TOKENIZERS

if TYPE_CHECKING:  # torch loads once the words are right
    from torch import nn

    from trainer.data.tokenizers import ByteTokenizer, Gpt2Tokenizer
    from trainer.generate import Choice

_TASK = "trainer.run"
_KEYS = ("model", "data", "training", "optimizer", "seed", "device")
_WORTH_SHARING = 10_000_000
"""Weights from which on a token's products are worth a second thread: with two on two busy cores
nano takes 40 times as long as with one."""
_SAVES = "+logging=default logging.logging_params.save_ckpt_step=100"


@dataclass(frozen=True)
class Trained:
    """A model to sample from."""

    config: TrainConfig
    model: nn.Module
    """In evaluation mode, with the weights that the run validates."""
    tokenizer: ByteTokenizer | Gpt2Tokenizer
    step: int
    loss: float | None
    """Validation loss of that step in nats per token, where it is on record."""


def load(directory: Path, checkpoint: str = "last", device: str = "auto") -> Trained:
    """Read a run's model from one of its checkpoints.

    Args:
        directory: the run's.
        checkpoint: ``last``, ``best`` or a step.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        UserError: it is no run of this trainer, there is no such checkpoint or device, or the
            checkpoint is damaged or of another model.
    """
    config = _config(directory)
    from trainer.checkpoints import losses_of, read_checkpoint, weights_to_validate
    from trainer.data.tokenizers import ByteTokenizer, Gpt2Tokenizer
    from trainer.parallel import pick_device

    place = pick_device(device, 0)
    path = _chosen(directory, checkpoint)
    state = read_checkpoint(path)
    step = int(state["step"])
    is_bytes = config.data.tokenizer == "bytes"
    return Trained(
        config,
        weights_to_validate(config, state, path.parent, place),
        ByteTokenizer() if is_bytes else Gpt2Tokenizer(config.data.vocab_bpe),
        step,
        losses_of(path.parent).get(step),
    )


def pieces(
    trained: Trained, prompt: str, count: int, choice: Choice, seed: int, *, is_cached: bool = True
) -> Iterator[str]:
    """Yield the text that follows ``prompt`` as it comes: up to ``count`` tokens.

    Bytes that are no UTF-8 become U+FFFD. GPT-2's token between documents ends the text.
    """
    from trainer.data.tokenizers import END_OF_TEXT
    from trainer.generate import generate

    tokenizer, vocabulary = trained.tokenizer, TOKENIZERS[trained.config.data.tokenizer]
    tokens = [int(token) for token in tokenizer.encode(prompt)]
    if not tokens:  # as if a line, or a document, began
        tokens = [END_OF_TEXT if vocabulary > END_OF_TEXT else ord("\n")]
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    context = trained.config.training.context_length
    options: dict[str, Any] = {"context": context, "vocabulary": vocabulary, "seed": seed}
    for token in islice(
        generate(trained.model, tokens, choice, is_cached=is_cached, **options), count
    ):
        if token == END_OF_TEXT:
            break
        yield decoder.decode(tokenizer.bytes_of(token))
    yield decoder.decode(b"", final=True)


def _config(directory: Path) -> TrainConfig:
    """Return what a run of launch.py trained; its data is not looked for.

    Raises:
        UserError: it is none of ours.
    """
    record = read_json(directory / RUN_FILE) or {}
    config = record.get("config")
    if not isinstance(config, Mapping):
        said = f"it has no {RUN_FILE}" if directory.is_dir() else "there is no such directory"
        raise UserError(
            f"RUN_DIR = '{directory}'; must be a run's directory, such as "
            f"outputs/MODEL/DATASET/OPTIMIZER/NAME: {said}"
        )
    task = record.get("task", _TASK)
    if task != _TASK:
        raise UserError(f"RUN_DIR = '{directory}'; must be a run of {_TASK}: its task is {task}")
    mapping = {key: config[key] for key in _KEYS if key in config}
    # What stands in for the data has its tokenizer, and is always there.
    dataset = {**config["data"]["dataset"], "name": "shakespeare", "path": None}
    steps = {**config["training"]["training_params"], "max_steps": 1}
    mapping |= {"data": {"dataset": dataset}, "training": {"training_params": steps}}
    return TrainConfig.from_mapping(mapping)


def _chosen(directory: Path, wanted: str) -> Path:
    """Return the checkpoint that ``last``, ``best`` or a step means.

    Raises:
        UserError: there is none such, or it is damaged.
    """
    from trainer.checkpoints import (
        best_steps,
        fault_of,
        list_checkpoints,
        losses_of,
        newest_checkpoint,
    )

    folder = directory / CHECKPOINT_DIR
    found = dict(list_checkpoints(folder))
    if not found:
        raise UserError(f"{directory} has no checkpoint; train with {_SAVES} to have some")
    if wanted == "last":
        newest = newest_checkpoint(folder)
        if newest is None:
            raise UserError(f"{directory} has no checkpoint that is whole; see the log above")
        return newest
    if wanted == "best":
        losses = {step: loss for step, loss in losses_of(folder).items() if step in found}
        best = best_steps(losses, 1)
        if not best:
            raise UserError(
                f"--checkpoint = best; must be last or a step ({_listed(found)}): no checkpoint of "
                f"{directory} has its validation loss on record"
            )
        step = best[0]
    else:
        step = int(wanted) if wanted.isdecimal() and len(wanted) < 20 else -1
        if step not in found:
            raise unknown("checkpoint", wanted, ["best", "last", *map(str, sorted(found))])
    fault = fault_of(found[step])
    if fault is not None:
        raise UserError(f"checkpoint {found[step]} is not usable: {fault}")
    return found[step]


def _listed(steps: Mapping[int, object]) -> str:
    return ", ".join(map(str, sorted(steps)))


def _shown(text: str) -> str:
    """Return the text without what would steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _run(options: argparse.Namespace) -> int:
    for name, least in (("tokens", 1), ("samples", 1), ("seed", 0)):
        value = getattr(options, name)
        require(value >= least, f"--{name}", value, f"at least {least}")
    require(options.seed < 2**63, "--seed", options.seed, "less than 2**63")
    prompt = os.fsencode(options.prompt).decode("utf-8", "replace")
    _config(options.run_dir)  # mistakes are said before torch loads
    preload()
    import torch

    from trainer.generate import Choice

    choice = Choice(options.temperature, options.top_k, options.top_p)
    trained = load(options.run_dir, options.checkpoint, options.device)
    if sum(weight.numel() for weight in trained.model.parameters()) < _WORTH_SHARING:
        torch.set_num_threads(1)
    seeds = range(options.seed, options.seed + options.samples)
    texts = [pieces(trained, prompt, options.tokens, choice, seed) for seed in seeds]
    if options.json:
        said = {
            "run": str(options.run_dir),
            "step": trained.step,
            "validation_loss": trained.loss,
            **dataclasses.asdict(choice),
            "prompt": prompt,
            "samples": [
                {"seed": seed, "text": "".join(text)}
                for seed, text in zip(seeds, texts, strict=True)
            ],
        }
        sys.stdout.write(json.dumps(said) + "\n")
        return 0
    loss = "" if trained.loss is None else f", validation loss {trained.loss:.4f}"
    for seed, text in zip(seeds, texts, strict=True):
        tell(f"step {trained.step}{loss}, seed {seed}")
        sys.stdout.write(_shown(prompt))
        for piece in text:
            sys.stdout.write(_shown(piece))
            sys.stdout.flush()
        sys.stdout.write("\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m trainer.sample", description="Print text from a trained run.")
    add = parser.add_argument
    add("run_dir", type=Path, metavar="RUN_DIR", help="below outputs/ or multirun/")
    add("--prompt", default="", metavar="TEXT", help="what it goes on from; default: a new line")
    add("--tokens", type=int, default=300, metavar="N", help="at most; default: 300")
    add("--temperature", type=float, default=0.8, metavar="T", help="0: the likeliest; default 0.8")
    add("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens")
    add("--top-p", type=float, metavar="P", help="draw from the likeliest of probability P in all")
    add("--seed", type=int, default=0, metavar="S", help="of the first sample; default: 0")
    add("--samples", type=int, default=1, metavar="N", help="with seeds S, S + 1, …; default: 1")
    add("--checkpoint", default="last", metavar="WHICH", help="last, best or a step; default: last")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: auto")
    add("--json", action="store_true", help="one JSON object")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Print the text; return the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    words = sys.argv[1:] if arguments is None else arguments
    return exit_code_of(lambda: _run(options_of(_parser(), words)))


if __name__ == "__main__":
    sys.exit(main())
