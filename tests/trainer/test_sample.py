from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

import trainer
from rundir import Run, write_json
from trainer import sample
from trainer.checkpoints import Keeper
from trainer.config import HuggingFaceConfig, TrainConfig
from trainer.data.tokenizers import Gpt2Tokenizer
from trainer.generate import Choice, _keys_and_values_kept, generate
from trainer.model import build_model
from trainer.parallel import Ranks
from trainer.sample import Trained
from trainer.training import Training

Mapping = dict[str, Any]

CONTEXT = 16
GREEDY = Choice(temperature=0)
SMALL = {
    "llama": {"num_key_value_heads": 1, "intermediate_size": 24},
    "qwen2_moe": {
        "num_key_value_heads": 2,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 12,
        "shared_expert_intermediate_size": 20,
    },
    "gpt2": {},
    "mamba": {"state_size": 4},
}
"""Architectures of transformers', and what else is small in them. What mamba keeps is no keys and
values, and few versions hand it out as they do those."""
COUNT = CONTEXT + 4
"""Tokens after which the window of a prompt of four has been full once."""
SAVES = "+logging=default logging.logging_params.save_ckpt_step=100"


def train(config: Mapping, path: Path) -> Path:
    """Train and leave what launch.py does."""
    with Run(path, threads=1) as run:
        write_json(path / "run.json", {"config": config, "task": "trainer.run"})
        trainer.run(config, run)
    return path


@pytest.fixture(scope="module")
def config(tiny_mapping: Mapping) -> Mapping:
    found = copy.deepcopy(tiny_mapping)
    found["model"]["config"] |= {"n_layer": 2, "n_embd": 32}
    found["training"]["training_params"] |= {"max_steps": 150, "tokens_processed": 256}
    found["logging"]["logging_params"] |= {"val_step": 50, "save_ckpt_step": 50, "keep_last": 3}
    return found


@pytest.fixture(scope="module")
def run_dir(config: Mapping, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(config, tmp_path_factory.mktemp("sample") / "run")


@pytest.fixture(scope="module")
def trained(run_dir: Path) -> Trained:
    return sample.load(run_dir)


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Return a function that gives the exit code, stdout and stderr of a command line."""

    def run(*words: object) -> tuple[int, str, str]:
        threads = torch.get_num_threads()
        try:
            code = sample.main([str(word) for word in words])
        finally:
            torch.set_num_threads(threads)
        return code, *capsys.readouterr()

    return run


Say = Callable[..., tuple[int, str, str]]


def tokens_of(trained: Trained, prompt: bytes, count: int, **options: Any) -> list[int]:
    given = {"choice": GREEDY, "context": CONTEXT, "vocabulary": 256, "seed": 0, **options}
    return list(islice(generate(trained.model, list(prompt), **given), count))


def test_it_prints_what_a_trained_model_has_learned(run_dir: Path, say: Say) -> None:
    code, out, err = say(run_dir, "--prompt", "ROMEO:", "--tokens", 200)
    assert code == 0
    assert out.startswith("ROMEO:")
    assert 150 < len(out) <= len("ROMEO:") + 200 + 1
    letters = [c for c in out if c.isalpha() or c in " \n.,:;'!?-"]
    assert len(letters) > 0.95 * len(out)  # of 256 bytes it has learned which are English
    assert 0.08 < out.count(" ") / len(out) < 0.35
    assert err.startswith("step 150, validation loss ")
    assert err.endswith(", seed 0\n")


def test_the_seed_decides_and_each_sample_has_the_next(run_dir: Path, say: Say) -> None:
    words = (run_dir, "--prompt", "A", "--tokens", 30)
    first, again = say(*words, "--seed", 3), say(*words, "--seed", 3)
    assert first == again
    other = say(*words, "--seed", 4)
    assert other[1] != first[1]
    code, out, err = say(*words, "--seed", 3, "--samples", 2)
    assert (code, out, err) == (0, first[1] + other[1], first[2] + other[2])


def test_json_holds_what_was_printed(run_dir: Path, say: Say) -> None:
    words = (run_dir, "--prompt", "A", "--tokens", 30, "--top-k", 5, "--checkpoint", "100")
    _, printed, _ = say(*words)
    code, out, err = say(*words, "--json")
    said = json.loads(out)
    assert (code, err, said["step"], said["top_k"], said["top_p"]) == (0, "", 100, 5, None)
    assert printed == f"A{said['samples'][0]['text']}\n"
    assert said["samples"][0]["seed"] == 0


@pytest.mark.parametrize("prompt", [b"R", b"ROMEO: what is thy name, and where?"])
def test_greedy_is_the_argmax_of_the_whole_model_token_by_token(
    trained: Trained, prompt: bytes
) -> None:
    window = list(prompt)[-CONTEXT:]
    for token in tokens_of(trained, prompt, 5 * CONTEXT):
        with torch.no_grad():
            logits = trained.model(torch.tensor([window]))[0, -1]
        assert token == int(logits.argmax())
        window.append(token)
        if len(window) > CONTEXT:
            window = window[-CONTEXT // 2 :]


@pytest.mark.parametrize("count", [3, CONTEXT - 1, 4 * CONTEXT])
def test_kept_keys_and_values_change_no_token(trained: Trained, count: int) -> None:
    for options in ({}, {"choice": Choice(temperature=1.0), "seed": 5}):
        kept = tokens_of(trained, b"The ", count, **options)
        assert kept == tokens_of(trained, b"The ", count, is_cached=False, **options)


@torch.no_grad()
@pytest.mark.parametrize("first", [1, 7, CONTEXT - 1])
def test_a_sequence_read_in_parts_has_the_logits_of_the_whole(trained: Trained, first: int) -> None:
    whole = torch.tensor([list(b"KING HENRY:\nNow,"[:CONTEXT])])
    expected = trained.model(whole)[0]
    with _keys_and_values_kept(trained.model, CONTEXT, wanted=True) as layers:
        assert len(layers) == 2
        parts = [trained.model(whole[:, :first])[0]]
        parts += [trained.model(whole[:, at : at + 1])[0] for at in range(first, CONTEXT)]
    torch.testing.assert_close(torch.cat(parts), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(trained.model(whole)[0], expected)  # the layers are back


@pytest.mark.parametrize("architecture", ["llama", "qwen2_moe", "gpt2", "mamba"])
def test_kept_keys_and_values_of_transformers_change_no_token(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers", reason="the extra [hf] is not installed")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "initializer_range": 0.5}
    heads = {} if architecture == "mamba" else {"num_attention_heads": 2}
    settings = HuggingFaceConfig(architecture, 256, sizes | heads | SMALL[architecture])
    model = build_model(settings, CONTEXT).eval()
    read, lengths = type(model.network).forward, []

    def counted(network: Any, input_ids: torch.Tensor, **more: Any) -> Any:
        lengths.append(input_ids.shape[1])
        return read(network, input_ids=input_ids, **more)

    monkeypatch.setattr(type(model.network), "forward", counted)
    options: Mapping = {"choice": GREEDY, "context": CONTEXT, "vocabulary": 256, "seed": 0}
    kept, whole = (
        list(islice(generate(model, list(b"The "), is_cached=cached, **options), COUNT))
        for cached in (True, False)
    )
    assert kept == whole
    assert len(set(kept)) > 2
    # With the cache the window is read at first, and anew when it is full.
    assert architecture == "mamba" or lengths[:COUNT].count(1) == COUNT - 2


def test_a_network_of_transformers_can_be_sampled_too(config: Mapping, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the extra [hf] is not installed")
    config = copy.deepcopy(config)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    llama = {"architecture": "llama", "vocab_size": 256, "overrides": sizes}
    config["model"]["config"] = llama
    config["training"]["training_params"]["max_steps"] = 20
    found = sample.load(train(config, tmp_path))
    text = list(b"The ")
    for token in tokens_of(found, b"The ", CONTEXT - 4):
        assert token == int(found.model(torch.tensor([text]))[0, -1].argmax())
        text.append(token)


def test_a_token_is_drawn_as_often_as_its_probability_says() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    draws = 2000

    def frequencies(choice: Choice) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.tensor([choice.next(logits, generator) for _ in range(draws)])
        return torch.bincount(drawn, minlength=4) / draws

    expected = (logits / 0.7).softmax(-1)
    assert torch.allclose(frequencies(Choice(0.7)), expected, atol=0.03)
    two = torch.tensor([2.0, 1.0, -torch.inf, -torch.inf]).softmax(-1)
    assert torch.allclose(frequencies(Choice(1.0, top_k=2)), two, atol=0.03)
    # The likeliest has 0.64, the next 0.24.
    assert torch.allclose(frequencies(Choice(1.0, top_p=0.65)), two, atol=0.03)
    assert frequencies(Choice(1.0, top_p=0.6))[0] == 1
    assert frequencies(Choice(5.0, top_k=1))[0] == 1
    assert frequencies(Choice(1.0, top_k=9, top_p=1.0))[3] > 0


def test_tokens_without_a_text_are_never_drawn(trained: Trained) -> None:
    assert max(tokens_of(trained, b"a", 40, choice=Choice(50.0), vocabulary=100)) < 100


def test_best_and_each_step_can_be_had(run_dir: Path, say: Say) -> None:
    losses = {step: sample.load(run_dir, str(step)).loss for step in (50, 100, 150)}
    best = sample.load(run_dir, "best")
    assert best.loss == min(filter(None, losses.values()))
    assert losses[best.step] == best.loss


def test_what_is_sampled_has_the_loss_that_was_validated(
    config: Mapping, run_dir: Path, trained: Trained
) -> None:
    training = Training(TrainConfig.from_mapping(config), Ranks(0, 1, torch.device("cpu")))
    training.model = training._forward = trained.model
    assert training.validation_loss() == trained.loss


def test_an_optimizer_that_averages_is_sampled_at_its_average(
    config: Mapping, tmp_path: Path
) -> None:
    config = copy.deepcopy(config)
    config["training"]["training_params"]["max_steps"] = 20
    config["optimizer"]["optimizer_params"] = {"name": "schedule-free-adamw", "lr": 0.01}
    found = sample.load(train(config, tmp_path))
    training = Training(TrainConfig.from_mapping(config), Ranks(0, 1, torch.device("cpu")))
    with Run(tmp_path, threads=1) as run, Keeper(training, run) as keeper:
        keeper.resume()
    weights = dict(training.model.named_parameters())
    trained_ones = {name: weight.detach().clone() for name, weight in weights.items()}
    assert isinstance(training.optimizer, torch.optim.Optimizer)
    training.optimizer.eval()  # type: ignore[attr-defined]
    for name, weight in found.model.named_parameters():
        assert torch.equal(weight, weights[name])
        assert not torch.equal(weight, trained_ones[name])


def test_the_data_need_not_be_there(config: Mapping, tmp_path: Path, say: Say) -> None:
    config = copy.deepcopy(config)
    text = tmp_path / "text.txt"
    text.write_text("abcdefgh\n" * 500)
    config["training"]["training_params"]["max_steps"] = 60
    config["optimizer"]["optimizer_params"]["lr"] = 0.03
    config["data"]["dataset"] |= {"name": "text", "path": str(text)}
    train(config, tmp_path / "run")
    text.unlink()
    code, out, _ = say(tmp_path / "run", "--prompt", "abc", "--temperature", 0, "--tokens", 15)
    assert (code, out) == (0, "abcdefgh\nabcdefgh\n\n")


def test_an_empty_prompt_and_one_that_is_no_utf_8_are_fine(run_dir: Path, say: Say) -> None:
    assert say(run_dir, "--tokens", 5)[0] == 0
    code, out, _ = say(run_dir, "--prompt", os.fsdecode(b"\xff"), "--tokens", 5)
    assert (code, out[0]) == (0, "\ufffd")


def test_what_would_steer_a_terminal_is_not_printed() -> None:
    assert sample._shown("a\x1b[31m\r\b\x9b\n\té") == "a\ufffd[31m\ufffd\ufffd\ufffd\n\té"


def test_characters_of_several_tokens_come_out_whole(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tiktoken", reason="the extra [gpt2] is not installed")
    tokenizer = Gpt2Tokenizer()
    for text in ("naïve 😀 你好", "plain\n\nwords"):
        ids = [int(token) for token in tokenizer.encode(text)]
        assert b"".join(map(tokenizer.bytes_of, ids)).decode() == text
    said = iter([*"é😀".encode(), 0xE2, 0x82])
    monkeypatch.setattr("trainer.generate.generate", lambda *_, **__: said)
    assert "".join(sample.pieces(trained, "x", 50, GREEDY, 0)) == "é😀\ufffd"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--temperature", "-1"], "temperature = -1.0; must be a number of at least 0"),
        (["--temperature", "nan"], "temperature = nan; must be a number of at least 0"),
        (["--top-k", "0"], "top_k = 0; must be at least 1"),
        (["--top-p", "1.5"], "top_p = 1.5; must be above 0 and at most 1"),
        (["--tokens", "0"], "--tokens = 0; must be at least 1"),
        (["--samples", "0"], "--samples = 0; must be at least 1"),
        (["--seed", "-1"], "--seed = -1; must be at least 0"),
        (
            ["--tokens", "some"],
            "argument --tokens: invalid int value: 'some'; see python -m trainer.sample --help",
        ),
        (
            ["--checkpoint", "70"],
            "unknown checkpoint 70; must be one of: 100, 150, 50, best, last",
        ),
        (
            ["--checkpoint", "lsat"],
            "unknown checkpoint lsat; must be one of: 100, 150, 50, best, last; did you mean last?",
        ),
    ],
)
def test_a_mistake_is_one_line(run_dir: Path, say: Say, words: list[str], message: str) -> None:
    assert say(run_dir, *words) == (2, "", f"error: {message}\n")


def test_a_mistyped_option_is_one_line_with_the_nearest(run_dir: Path, say: Say) -> None:
    code, out, said = say(run_dir, "--temprature", "1")
    assert (code, out) == (2, "")
    assert said.startswith("error: unknown option --temprature in python -m trainer.sample; must ")
    assert said.endswith("; did you mean --temperature?\n")
    assert said.count("\n") == 1


def test_what_is_no_run_of_the_trainer_is_said(run_dir: Path, tmp_path: Path, say: Say) -> None:
    must = "must be a run's directory, such as outputs/MODEL/DATASET/OPTIMIZER/NAME"
    said = f"error: RUN_DIR = '{tmp_path}'; {must}: it has no run.json\n"
    assert say(tmp_path) == (2, "", said)
    absent = tmp_path / "absent"
    said = f"error: RUN_DIR = '{absent}'; {must}: there is no such directory\n"
    assert say(absent) == (2, "", said)
    write_json(tmp_path / "run.json", {"config": {"lr": 1}, "task": "mine.fit"})
    said = f"RUN_DIR = '{tmp_path}'; must be a run of trainer.run: its task is mine.fit\n"
    assert say(tmp_path) == (2, "", f"error: {said}")
    shutil.copy(run_dir / "run.json", tmp_path)
    said = f"error: {tmp_path} has no checkpoint; train with {SAVES} to have some\n"
    assert say(tmp_path) == (2, "", said)


def test_a_damaged_checkpoint_is_passed_over_unless_it_is_asked_for(
    run_dir: Path, tmp_path: Path, say: Say, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(run_dir, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step-00000150.pt"
    newest.write_bytes(newest.read_bytes()[:-1])
    _, _, err = say(tmp_path / "run", "--tokens", 5)
    assert err.startswith("step 100, ")
    assert any("step-00000150.pt is not usable" in message for message in caplog.messages)
    code, out, err = say(tmp_path / "run", "--tokens", 5, "--checkpoint", "150")
    assert (code, out) == (2, "")
    assert err == f"error: checkpoint {newest} is not usable: its hash does not match\n"


def test_a_checkpoint_of_another_model_is_refused(
    config: Mapping, run_dir: Path, tmp_path: Path, say: Say
) -> None:
    shutil.copytree(run_dir, tmp_path / "run")
    other = copy.deepcopy(config)
    other["model"]["config"]["n_layer"] = 3
    write_json(tmp_path / "run" / "run.json", {"config": other, "task": "trainer.run"})
    code, out, err = say(tmp_path / "run")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "holds checkpoints with model_config" in err
