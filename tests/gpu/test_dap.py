from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch

from trainer.config import GPTConfig
from trainer.kernels.gram import gram_by_parts, measured_split, split_of
from trainer.model import GPT
from trainer.optim import build_optimizer, optimizer_params
from trainer.optim.cholesky import DampedInverse, Way
from trainer.optim.gram import gram, symmetric
from trainer.optim.precision import full_precision

BASE: dict[str, Any] = {"name": "dap-ns-nadam", "lr": 0.01, "weight_decay": 0.1}
ITERATED = {"rcond": 0.05, "damping": 0.3}
CASES: list[dict[str, Any]] = [
    {},
    {"dap_beta2": 0.0, "dap_beta1": 0.0, "momentum": 0.5},
    {"backend": "triton", "ema_beta": 0.5},
    {"backend": "triton", "dap_beta2": 0.9, "dap_eps": 1.0},
    {"backend": "torch", "xtx_subsample": 0.5, "mb_subsampling": False},
    {"xtx_subsample": 0.5},
    {"disable_preconditioning": True},
    {"scalar": True},
    {"update_norm": True},
    {"update_opnorm": True},
    {"accelerated": False, **ITERATED},
    {"accelerated": True, **ITERATED},
    {"accelerated": 1e-8, "gptopt_compat": True, **ITERATED},
]


def model() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(n_embd=128, n_layer=2, n_head=4, vocab_size=64), 32)


def batch(seed: int, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 64, (8, 32), generator=generator).to(device)


def train(forward: Any, optimizer: torch.optim.Optimizer, batches: list[torch.Tensor]) -> None:
    optimizer.zero_grad()
    for tokens in batches:
        forward(tokens, tokens).backward()
    optimizer.step()


@pytest.mark.parametrize("values", CASES, ids=str)
def test_a_gpu_steps_as_a_cpu_does(cuda: torch.device, values: dict[str, Any]) -> None:
    # Divided by its own root, a direction that rounding decides would be as large as any.
    given = {**BASE, "accelerated": 0.05, "dap_beta2": 0.0, **values}
    here, there = model(), model().to(cuda)
    cpu_backend = {**given, "backend": "auto"}
    ours = build_optimizer(here, optimizer_params(cpu_backend, ""))
    theirs = build_optimizer(there, optimizer_params(given, ""))
    start = copy.deepcopy(here.state_dict())
    torch.set_float32_matmul_precision("highest")
    for step in range(3):
        seeds = (2 * step, 2 * step + 1)
        train(here, ours, [batch(seed, torch.device("cpu")) for seed in seeds])
        train(there, theirs, [batch(seed, cuda) for seed in seeds])
    for (name, expected), weight in zip(here.named_parameters(), there.parameters(), strict=True):
        moved = (expected - start[name]).norm()
        assert (weight.cpu() - expected).norm() < 1e-2 * moved + 1e-6, name


@pytest.mark.parametrize("values", CASES, ids=str)
def test_neither_hooks_nor_step_make_the_host_wait(
    cuda: torch.device,
    no_sync: Callable[[], AbstractContextManager[None]],
    values: dict[str, Any],
) -> None:
    net = model().to(cuda)
    optimizer = build_optimizer(net, optimizer_params({**BASE, **values}, ""))
    batches = [batch(seed, cuda) for seed in (0, 1)]
    train(net, optimizer, batches)
    with no_sync():
        for _ in range(2):
            train(net, optimizer, batches)


@pytest.mark.parametrize("values", CASES, ids=str)
def test_a_graph_of_passes_and_step_replayed_is_as_many_eager_steps(
    cuda: torch.device, values: dict[str, Any]
) -> None:
    given = {**BASE, "accelerated": 0.05, "dap_beta2": 0.0, **values}
    net, twin = model().to(cuda), model().to(cuda)
    start = [weight.detach().clone() for weight in net.parameters()]
    torch.set_float32_matmul_precision("highest")
    captured, eager = (build_optimizer(each, optimizer_params(given, "")) for each in (net, twin))
    for group in captured.param_groups:
        group["lr"] = torch.tensor(group["lr"], device=cuda)
    static = [batch(seed, cuda) for seed in (0, 1)]
    side = torch.cuda.Stream(cuda)
    side.wait_stream(torch.cuda.current_stream(cuda))
    with torch.cuda.stream(side):
        train(net, captured, static)
        train(net, captured, static)
    torch.cuda.current_stream(cuda).wait_stream(side)
    for _ in range(2):
        train(twin, eager, static)
    captured.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        train(net, captured, static)
    for step in range(1, 4):
        for tokens, seed in zip(static, (2 * step, 2 * step + 1), strict=True):
            tokens.copy_(batch(seed, cuda))
        for ours_group, group in zip(captured.param_groups, eager.param_groups, strict=True):
            group["lr"] = group["initial_lr"] / step
            ours_group["lr"].fill_(group["lr"])
        graph.replay()
        train(twin, eager, static)
    for group in captured.param_groups:
        group["lr"] = group["initial_lr"] / 3
    train(net, captured, static)  # and an eager step goes on from there
    train(twin, eager, static)
    for ours, expected, before in zip(net.parameters(), twin.parameters(), start, strict=True):
        assert (ours - expected).norm() < 1e-3 * (expected - before).norm() + 1e-6


def test_what_a_graph_cannot_replay_is_refused(cuda: torch.device) -> None:
    net, tokens = model().to(cuda), batch(0, cuda)
    optimizer = build_optimizer(net, optimizer_params({**BASE, "ema_beta": 0.5}, ""))
    net(tokens, tokens).backward()
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        tokens.add_(0)
        with pytest.raises(RuntimeError, match="take a step before capturing one"):
            optimizer.step()
    optimizer.step()
    net(tokens, tokens).backward()
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        tokens.add_(0)
        with pytest.raises(RuntimeError, match="must be captured in one CUDA graph"):
            optimizer.step()


@pytest.mark.parametrize(("rows", "parts"), [(8192, 6), (32768, 3), (5000, 4), (63, 8)])
@pytest.mark.parametrize("size", [768, 2730])
def test_x_transposed_x_by_parts_agrees_with_fp64(
    cuda: torch.device, rows: int, parts: int, size: int
) -> None:
    generator = torch.Generator(cuda).manual_seed(0)
    x = torch.randn(rows, size, generator=generator, device=cuda).to(torch.bfloat16)
    exact = x.double().mT @ x.double()
    ours = gram_by_parts(x, parts)
    assert (ours - exact).norm() < 1e-4 * exact.norm()
    assert torch.equal(ours, gram_by_parts(x, parts))


def same_inputs(ours: Any, theirs: Any, net: GPT, twin: GPT) -> None:
    """Assert that both have summed the same rows, in the precision that they were summed in."""
    for block, other in zip(net.blocks, twin.blocks, strict=True):
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_gate", "mlp.c_proj"):
            seen = ours._moments.of(block.get_submodule(name).weight)
            expected = theirs._moments.of(other.get_submodule(name).weight)
            assert seen.rows == expected.rows
            total, exact = seen.total_NN.tril(), expected.total_NN.tril()
            assert (total - exact).norm() < 1e-4 * exact.norm(), name
        fc, gate = (ours._moments.of(w.weight) for w in (block.mlp.c_fc, block.mlp.c_gate))
        assert fc is gate


@pytest.mark.parametrize(("rows", "size"), [(8192, 1024), (32768, 768), (32768, 2752)])
def test_measured_shapes_are_left_to_the_kernel_and_agree_with_fp64(
    cuda: torch.device, rows: int, size: int
) -> None:
    generator = torch.Generator(cuda).manual_seed(0)
    x = torch.randn(rows, size, generator=generator, device=cuda).to(torch.bfloat16)
    exact = x.double().mT @ x.double()
    known = torch.cuda.get_device_capability(cuda) == (9, 0)
    assert split_of(x) == (measured_split(rows, size) if known else None)
    ours = symmetric(gram(x)[None])[0]
    assert (ours - exact).norm() < 2e-4 * exact.norm()


@pytest.mark.filterwarnings("ignore")  # what torch's compiler warns of is its own
def test_a_compiled_model_shares_its_sums_and_is_compiled_once(cuda: torch.device) -> None:
    eager, net = model().to(cuda), model().to(cuda)
    start = [weight.detach().clone() for weight in net.parameters()]
    params = optimizer_params({**BASE, "accelerated": 0.05, "dap_beta2": 0.0}, "")
    reference, optimizer = build_optimizer(eager, params), build_optimizer(net, params)
    compiled = torch.compile(net)
    torch.set_float32_matmul_precision("highest")
    for step in range(4):
        batches = [batch(2 * step, cuda), batch(2 * step + 1, cuda)]
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            for forward, stepped in ((eager, reference), (compiled, optimizer)):
                stepped.zero_grad()
                for tokens in batches:
                    forward(tokens, tokens).backward()
        same_inputs(optimizer, reference, net, eager)
        reference.step()
        optimizer.step()
    for ours, expected, old in zip(net.parameters(), eager.parameters(), start, strict=True):
        assert (ours - expected).norm() < 1e-3 * (expected - old).norm() + 1e-6


@pytest.mark.parametrize("way", ["solve", "blocks", "triton"])
@pytest.mark.parametrize(("size", "outputs"), [(300, 64), (768, 2304), (2048, 768)])
def test_cholesky_keeps_fp32s_digits_where_tf32_is_allowed(
    cuda: torch.device, way: Way, size: int, outputs: int
) -> None:
    generator = torch.Generator(cuda).manual_seed(0)
    x = torch.randn(3, 2 * size, size, generator=generator, device=cuda, dtype=torch.float64)
    x = x * torch.logspace(-2, 0, size, device=cuda, dtype=torch.float64)
    c = x.mT @ x / (2 * size)
    m = torch.randn(3, outputs, size, generator=generator, device=cuda, dtype=torch.float64)
    damped = c + 1e-3 * torch.eye(size, device=cuda, dtype=torch.float64)
    exact = torch.linalg.solve(damped, m.mT).mT
    torch.set_float32_matmul_precision("high")
    with full_precision(cuda):
        ours = DampedInverse(c.float(), 1e-3, way).applied(m.float())
    assert torch.get_float32_matmul_precision() == "high"
    torch.set_float32_matmul_precision("highest")
    assert (ours - exact).norm() < 2e-4 * exact.norm()


@pytest.mark.parametrize("size", [1, 33, 128, 200])
def test_the_kernel_drops_what_rounding_leaves_nothing_of(cuda: torch.device, size: int) -> None:
    x = torch.randn(5, 1 + size // 4, size, device=cuda)
    singular = x.mT @ x
    solved = DampedInverse(singular, 0.0, "triton").applied(torch.ones(5, 2, size, device=cuda))
    assert solved.isfinite().all()
    singular[1, 0, 0] = float("nan")
    solved = DampedInverse(singular, 0.0, "triton").applied(torch.ones(5, 2, size, device=cuda))
    assert solved[1].isnan().any()
    assert solved[2:].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_summed_in_fp32_and_never_widened(
    cuda: torch.device, dtype: torch.dtype
) -> None:
    x = torch.randn(1 << 16, 256, device=cuda).to(dtype)
    torch.cuda.synchronize()
    gram(x)  # workspaces
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ours = gram(x)
    assert torch.cuda.max_memory_allocated() - before < x.numel() * 4
    assert ours.dtype == torch.float32
    exact = x.double().mT @ x.double()
    difference = (symmetric(ours[None])[0] - exact).abs().max()
    # Tensor cores cut off what fp32 does not hold, 16 rows at a time: along one chain of 4096
    # additions 2^-24 each, of sums half as large on average, is 1.2e-4. Sums in half precision
    # would end with an error of 2^-12 at the least, and fp16's beyond its range.
    assert difference < 2e-4 * exact.abs().max()
