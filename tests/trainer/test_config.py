from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import trainer
from rundir import Run, UserError
from trainer.config.device import may_have_cuda
from trainer.data import sources

Mapping = dict[str, Any]
Change = Callable[..., Mapping]

TRAINING = "training__training_params__"
MODEL = "model__config__"
DATA = "data__dataset__"
LOGGING = "logging__logging_params__"

KNOWN = "fineweb10B, fineweb1B, finewebmini, shakespeare, slim_pajama10B, slim_pajama1B, text"
REFUSED = [
    (
        {f"{TRAINING}batch_size": 24},
        (
            "training.training_params.tokens_processed = 128; must be a multiple of "
            "batch_size x context_length = 24 x 16 = 384"
        ),
    ),
    (
        {
            f"{TRAINING}context_length": 2**20,
            f"{TRAINING}tokens_processed": 2**22,
            f"{TRAINING}val_tokens_processed": 2**20,
        },
        (
            "training.training_params.context_length = 1048576; must be at most 118881: "
            "shakespeare has 1188824 tokens, a tenth for validation"
        ),
    ),
    (
        {f"{TRAINING}tokens_processed": 2**22, f"{TRAINING}max_steps": None},
        (
            "training.training_params.tokens_processed = 4194304; must be at most 1069942, "
            "the tokens of 1 epoch(s), or max_steps given"
        ),
    ),
    (
        {f"{MODEL}vocab_size": 255},
        "model.config.vocab_size = 255; must be at least 256, the vocabulary of tokenizer bytes",
    ),
    (
        {f"{DATA}tokenizer": "gpt2"},
        "data.dataset.vocab_size = 256; must be at least 50257, the vocabulary of tokenizer gpt2",
    ),
    (
        {f"{MODEL}n_embd": 18, f"{MODEL}n_head": 4},
        (
            "model.config.n_embd = 18; must be a multiple of 2 x n_head = 8 "
            "(rotary positions turn pairs)"
        ),
    ),
    ({f"{MODEL}n_layer": 0}, "model.config.n_layer = 0; must be at least 1"),
    (
        {f"{DATA}name": "shakespear"},
        f"unknown dataset shakespear; must be one of: {KNOWN}; did you mean shakespeare?",
    ),
    ({f"{DATA}name": "c4"}, f"unknown dataset c4; must be one of: {KNOWN}"),
    (
        {f"{DATA}tokenizer": "byte"},
        "unknown tokenizer byte; must be one of: bytes, gpt2; did you mean bytes?",
    ),
    ({f"{DATA}name": "text"}, "data.dataset.path = null; must be the path of a text file"),
    (
        {f"{DATA}name": "text", f"{DATA}path": "/no/such/*.txt"},
        (
            "data.dataset.path = '/no/such/*.txt'; must be a text file, a glob that matches some, "
            "or a directory with *.txt files"
        ),
    ),
    (
        {f"{DATA}path": "mine.txt"},
        "data.dataset.path = 'mine.txt'; must be null for dataset shakespeare",
    ),
    (
        {f"{TRAINING}max_steps": 0},
        "training.training_params.max_steps = 0; must be at least 1, or null",
    ),
    (
        {f"{TRAINING}max_steps": "many"},
        "training.training_params.max_steps = 'many'; must be a whole number or null",
    ),
    (
        {f"{TRAINING}gradnorm": -1.0},
        "training.training_params.gradnorm = -1.0; must be at least 0 (0 does not clip)",
    ),
    (
        {f"{TRAINING}mixed_precision": "float8"},
        (
            "training.training_params.mixed_precision = 'float8'; must be one of "
            "bfloat16, float16, float32"
        ),
    ),
    (
        {f"{TRAINING}batchsize": 16},
        (
            "unknown key batchsize in training.training_params; must be one of: "
            "activation_checkpointing, autocast, batch_size, compile, context_length, "
            "deterministic, gradnorm, max_skipped_steps, max_steps, mixed_precision, non_finite, "
            "num_epochs, parallel, profile_steps, tensorcore_precision, tokens_processed, "
            "val_tokens_processed; did you mean batch_size?"
        ),
    ),
    (
        {"optimizer__optimizer_params__lr": -0.1},
        "optimizer.optimizer_params.lr = -0.1; must be a finite number, at least 0",
    ),
    (
        {f"{TRAINING}max_skipped_steps": 0},
        "training.training_params.max_skipped_steps = 0; must be at least 1",
    ),
    ({"seed": -1}, "seed = -1; must be at least 0"),
    ({"device": "gpu"}, "device = 'gpu'; must be one of auto, cpu, cuda"),
    (
        {"sed": 1},
        (
            "unknown key sed; must be one of: data, device, logging, model, optimizer, seed, "
            "training; did you mean seed?"
        ),
    ),
    ({"model": "nano"}, "model = 'nano'; must be a mapping with keys name, config"),
    ({"data": {}}, "data.dataset is missing; it has no default"),
    (
        {f"{LOGGING}load_ckpt_step": 500},
        (
            "logging.logging_params.load_ckpt_step = 500; must be 0: "
            "a run resumes from its newest good checkpoint by itself"
        ),
    ),
    (
        {f"{LOGGING}wandb": {"mode": "offlin"}},
        "logging.logging_params.wandb.mode = 'offlin'; must be one of online, offline or null",
    ),
    (
        {f"{LOGGING}wandb": {"project": ""}},
        "logging.logging_params.wandb.project = ''; must be a name",
    ),
    (
        {f"{LOGGING}wandb": "mine"},
        (
            "logging.logging_params.wandb = 'mine'; must be a mapping with keys "
            "project, entity, group, tags, mode or null"
        ),
    ),
    (
        {f"{LOGGING}val_tokens_processed": 64},
        (
            "logging.logging_params.val_tokens_processed = 64; must be null; "
            "set training.training_params.val_tokens_processed"
        ),
    ),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=[m[:60] for _, m in REFUSED])
def test_a_wrong_value_is_refused_in_one_line(
    tiny: Mapping, change: Change, values: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError) as error:
        trainer.check(change(tiny, **values))
    assert str(error.value) == message


def test_an_unknown_optimizer_gets_its_nearest_spelling(tiny: Mapping, change: Change) -> None:
    with pytest.raises(UserError, match=r"unknown optimizer adamww .*; did you mean adamw\?"):
        trainer.check(change(tiny, optimizer__optimizer_params__name="adamww"))


def test_a_missing_group_is_named(tiny: Mapping) -> None:
    del tiny["optimizer"]
    with pytest.raises(UserError, match=r"^optimizer is missing; it has no default$"):
        trainer.check(tiny)


def test_logging_seed_and_device_may_be_left_out(tiny: Mapping) -> None:
    for key in ("logging", "device"):
        del tiny[key]
    config = trainer.TrainConfig.from_mapping(tiny)
    assert (config.seed, config.device, config.logging.log_step) == (42, "auto", 8)


def test_logging_may_repeat_the_tokens_of_a_validation(tiny: Mapping, change: Change) -> None:
    trainer.check(change(tiny, **{f"{LOGGING}val_tokens_processed": 128}))


def test_max_steps_outlasts_the_epochs_and_null_means_them(tiny: Mapping, change: Change) -> None:
    config = trainer.TrainConfig.from_mapping(change(tiny, **{f"{TRAINING}max_steps": 10**6}))
    assert config.total_steps(9_000) == 10**6
    config = trainer.TrainConfig.from_mapping(
        change(tiny, **{f"{TRAINING}max_steps": None, f"{TRAINING}num_epochs": 3})
    )
    assert config.total_steps(9_000) == 3 * 9_000 // 128


def test_data_too_short_is_found_by_its_size_alone(
    tiny: Mapping, change: Change, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("x" * 169)
    tiny = change(tiny, **{f"{DATA}name": "text"})
    tiny["data"]["dataset"]["path"] = str(tmp_path)
    with pytest.raises(UserError, match=r"context_length = 16; must be at most 15: text has 169"):
        trainer.check(tiny)
    (tmp_path / "b.txt").write_text("x")
    trainer.check(tiny)


@pytest.mark.parametrize("text", ["", "too short"])
def test_a_text_of_no_length_is_named(
    tiny: Mapping, change: Change, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "text.txt"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        trainer.check(change(tiny, **{f"{DATA}name": "text", f"{DATA}path": str(path)}))
    assert str(error.value) == f"data.dataset = 'text'; must be longer than {len(text)} tokens"


def test_cuda_where_there_is_none_is_refused_before_the_first_step(
    tiny: Mapping, change: Change, tmp_path: Path
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    trainer.check(change(tiny, device="cuda"))
    with pytest.raises(UserError) as error, Run(tmp_path, threads=1) as run:
        trainer.run(tiny, run)
    assert str(error.value) == (
        "device = 'cuda'; must be auto or cpu: this machine has no CUDA device"
    )


@pytest.mark.parametrize("hidden", ["", "-1", " -1,0"])
def test_cuda_that_is_hidden_is_refused_at_a_launch_here_and_not_onto_a_cluster(
    tiny: Mapping, change: Change, monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    change(tiny, device="cuda")
    trainer.check(tiny)
    with pytest.raises(UserError, match=r"^device = 'cuda'; must be auto or cpu: this machine has"):
        trainer.check(tiny, here=True)
    trainer.check(change(tiny, device="auto"), here=True)


def test_a_launch_looks_for_what_the_system_shows_of_a_gpu() -> None:
    import torch

    # Were this one wrong, a machine with a GPU would refuse to use it.
    assert may_have_cuda() or not torch.cuda.is_available()


NOT_UTF8 = b"ab\xc3\xa9\xff"


@pytest.mark.parametrize(
    ("before", "text", "said"),
    [
        (0, NOT_UTF8, "is not UTF-8 at byte 4"),
        (0, "é".encode()[:1], "is not UTF-8 at byte 0"),
        (sources._CHUNK_BYTES - 3, NOT_UTF8, f"is not UTF-8 at byte {sources._CHUNK_BYTES + 1}"),
        (sources._CHUNK_BYTES - 1, "é".encode(), None),
        (3000, b"\xff", "is not UTF-8 at byte 3000"),
    ],
)
@pytest.mark.parametrize("here", [True, False])
def test_a_text_that_is_not_utf8_is_refused_at_launch(
    tiny: Mapping,
    change: Change,
    tmp_path: Path,
    before: int,
    text: bytes,
    said: str | None,
    here: bool,
) -> None:
    (tmp_path / "a.txt").write_text("a whole file" * 100)
    path = tmp_path / "b.txt"
    path.write_bytes(b"x" * before + text)
    change(tiny, **{f"{DATA}name": "text", f"{DATA}path": str(tmp_path)})
    if said is None:
        trainer.check(tiny, here=here)
        return
    with pytest.raises(UserError) as error:
        trainer.check(tiny, here=here)
    assert str(error.value) == f"data.dataset.path: {path} {said}"


def test_of_a_long_text_a_launch_reads_the_beginning(
    tiny: Mapping, change: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "CHECKED_BYTES", 1000)
    for name, text in (("a", b"x" * 400), ("b", b"x" * 599 + "é".encode()), ("c", b"\xff" * 9)):
        (tmp_path / f"{name}.txt").write_bytes(text)
    change(tiny, **{f"{DATA}name": "text", f"{DATA}path": str(tmp_path)})
    trainer.check(tiny, here=True)  # the end of what is read is in the middle of a character
    (tmp_path / "b.txt").write_bytes(b"x" * 599 + b"\xff")
    with pytest.raises(UserError, match=r"b\.txt is not UTF-8 at byte 599"):
        trainer.check(tiny, here=True)


def test_checking_a_configuration_loads_neither_torch_nor_numpy() -> None:
    program = (
        "import sys, trainer\n"
        "try: trainer.check({'model': {'config': {}}, 'data': {'dataset': {}}, 'training':"
        " {'training_params': {}}, 'optimizer': {'optimizer_params': {'name': 'muon'}}})\n"
        "finally: print([name for name in ('torch', 'numpy') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_the_defaults_train_as_they_stand() -> None:
    trainer.TrainConfig()
