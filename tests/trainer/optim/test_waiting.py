"""No step reads a number back from the device, which makes the host wait for it.

Seen twice without a GPU: in the source, where every form that may read one is listed with the
reason why it may stand there; and in the steps, where on a CPU too each reading is one operator.
"""

from __future__ import annotations

import ast
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.optim import build_optimizer, optimizer_params
from trainer.optim.params import REGISTRY

SOURCES = Path(__file__).parents[3] / "trainer"
CONVERSIONS = {"float", "int", "bool", "complex"}
READINGS = {"item", "tolist", "cpu", "numpy", "is_nonzero", "synchronize", "equal", "allclose"}
SHAPED_BY_VALUES = {"nonzero", "argwhere", "masked_select", "unique", "unique_consecutive"}
SOLVERS = {"eigh", "eigvalsh", "eig", "svd", "svdvals", "inv", "solve", "lstsq", "pinv", "cholesky"}
"""Of torch.linalg: they ask the device whether they have succeeded, cholesky_ex does not."""
JUDGED = {"any", "all", "isfinite", "isnan", "isinf", "max", "min", "sum", "norm"}
"""Methods whose result as a condition is read."""

BEFORE_STEPS = "before the first step, or from the config"
A_NUMBER = "a number of the config, or a learning rate that is no tensor"
IN_NUMPY = "an array of the host's"
ALLOWED: dict[tuple[str, str], str] = {
    ("kernels/adamw.py", "float(step)"): "a number: tensors have returned before",
    ("kernels/chunks.py", "int(counts.sum())"): IN_NUMPY,
    ("kernels/chunks.py", "int(aligned)"): "a comparison of addresses",
    ("kernels/chunks.py", "int(a)"): IN_NUMPY,
    ("kernels/chunks.py", "int(b - a)"): IN_NUMPY,
    ("kernels/chunks.py", "int(c)"): IN_NUMPY,
    ("kernels/chunks.py", "int(d - c)"): IN_NUMPY,
    ("kernels/elementwise_triton.py", "float(numbers.lr)"): A_NUMBER,
    ("kernels/elementwise_triton.py", "float(numbers.weight_decay)"): A_NUMBER,
    ("kernels/elementwise_triton.py", "float(numbers.beta1)"): A_NUMBER,
    ("kernels/elementwise_triton.py", "float(numbers.eps)"): A_NUMBER,
    ("kernels/nadam.py", "float(numbers.lr)"): "on a CPU only",
    ("kernels/nadam.py", "float(product)"): "on a CPU only",
    ("kernels/nadam.py", "float(step)"): "on a CPU only",
    ("kernels/norm_triton.py", "float(limit)"): A_NUMBER,
    ("kernels/numbers_triton.py", "float(numbers.beta1)"): A_NUMBER,
    ("kernels/numbers_triton.py", "float(numbers.momentum_decay)"): A_NUMBER,
    ("kernels/numbers_triton.py", "float(numbers.ahead)"): A_NUMBER,
    ("kernels/numbers_triton.py", "float(numbers.lr)"): A_NUMBER,
    ("kernels/numbers_triton.py", "float(pace)"): A_NUMBER,
    ("kernels/symmetric_timing.py", "end.synchronize()"): "times products once for each shape",
    ("optim/counted.py", "float(saved[key])"): "when a state is loaded",
    ("optim/counted.py", "bool(self.state.get(weight))"): "whether a dictionary holds something",
    ("optim/curvature.py", "torch.equal(latest, found)"): "when a state is loaded",
    ("optim/dap.py", "torch.cuda.synchronize(weights[0].device)"): "under debug_timing, as it says",
    ("optim/division.py", "float((base / width) ** power)"): BEFORE_STEPS,
    ("optim/division.py", "float(group['initial_lr'])"): BEFORE_STEPS,
    ("optim/division.py", "float(group['weight_decay'])"): BEFORE_STEPS,
    (
        "optim/elementwise.py",
        "bool(self.state.get(weight))",
    ): "whether a dictionary holds something",
    ("optim/euclidean.py", "float(dampening)"): BEFORE_STEPS,
    ("optim/inverse.py", "bool(moving.any())"): "on a CPU only",
    ("optim/moments.py", "int(self._part * here * world)"): "of numbers and shapes",
    ("optim/noneuclidean.py", "bool(self.group['norm'] == 'spectral')"): "of two texts",
    ("optim/dap.py", "bool(group['preconditioned'])"): BEFORE_STEPS,
    ("optim/muon.py", "bool(group['norm'] == 'spectral')"): BEFORE_STEPS,
    ("optim/noneuclidean.py", "bool(group['norm'] == 'spectral')"): BEFORE_STEPS,
    ("optim/noneuclidean.py", "float(part.group['scale'])"): A_NUMBER,
    ("optim/soap.py", "bool(self.state.get(weight))"): "whether a dictionary holds something",
    ("optim/soap.py", "bool(group['rotated'])"): BEFORE_STEPS,
    ("optim/gram.py", "int(part)"): "of a version's text",
    (
        "optim/soap.py",
        "torch.linalg.eigh(moment_BSS.where(finite_B11, 0.0))",
    ): "in a matrix's first step only, as it says",
    (
        "optim/svd.py",
        "torch.linalg.svd(x_BMN.where(finite_B11, 0.0), full_matrices=False)",
    ): "for who asks for polar_method = svd, as it says",
}
WITHOUT_TENSORS = {"schedule.py"}

READ_ON_A_CPU: dict[str, set[str]] = {
    "dap-ns-nadam-accel": {"inverse.py _all_stopped"},
    "nadam": {"nadam.py nadam_step_cpu"},
    "nadamw": {"nadam.py nadam_step_cpu"},
}


def readings(source: str) -> Iterator[str]:
    """Yield the expressions that read a number back, or may."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and _reads(node):
            yield ast.unparse(node)
        elif isinstance(node, ast.If | ast.While | ast.IfExp | ast.Assert):
            yield from map(ast.unparse, _judged(node.test))
        elif isinstance(node, ast.comprehension):
            for condition in node.ifs:
                yield from map(ast.unparse, _judged(condition))


def _reads(call: ast.Call) -> bool:
    if isinstance(call.func, ast.Name):
        constant = all(isinstance(each, ast.Constant) for each in call.args)
        return call.func.id in CONVERSIONS and not constant
    if not isinstance(call.func, ast.Attribute):
        return False
    if call.func.attr == "to":
        return any(isinstance(each, ast.Constant) and each.value == "cpu" for each in call.args)
    return call.func.attr in READINGS | SHAPED_BY_VALUES or (
        call.func.attr in SOLVERS and ast.unparse(call.func.value).endswith("linalg")
    )


def _judged(test: ast.expr) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(test)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in JUDGED
    ]


@pytest.mark.parametrize(
    "form",
    [
        "t.item()",
        "float(t)",
        "x = int(t) + 1",
        "bool(t)",
        "t.tolist()",
        "t.cpu()",
        't.to("cpu")',
        "t.numpy()",
        "t.nonzero()",
        "torch.nonzero(t)",
        "torch.equal(t, t)",
        "torch.linalg.eigh(t)",
        "u = linalg.svd(t).U",
        "torch.cuda.synchronize()",
        "if t.any(): pass",
        "while not t.isfinite().all(): pass",
        "assert torch.isnan(t)",
        "[x for x in y if x.sum() > 0]",
    ],
)
def test_a_form_that_reads_is_seen_in_the_source(form: str) -> None:
    assert list(readings(form))


@pytest.mark.parametrize(
    "form",
    [
        "float('inf')",
        "if t is None: pass",
        "all(f(t) for t in y)",
        "t.to(device)",
        "torch.linalg.cholesky_ex(t)",
        "inverse.solve(t)",
    ],
)
def test_a_form_that_reads_nothing_is_let_pass(form: str) -> None:
    assert not list(readings(form))


def test_no_module_of_the_steps_reads_what_is_not_allowed() -> None:
    modules = [*SOURCES.glob("optim/*.py"), *SOURCES.glob("kernels/*.py")]
    assert len(modules) > 40
    found = {
        (path.relative_to(SOURCES).as_posix(), expression)
        for path in modules
        if path.name not in WITHOUT_TENSORS
        for expression in readings(path.read_text())
    }
    assert found <= set(ALLOWED)


class Readings(TorchDispatchMode):
    """Collects who reads a tensor's value: a function of the package, or torch."""

    OPERATORS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.readers: set[str] = set()

    def __torch_dispatch__(
        self, operator: Any, _types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        if str(operator).split(".")[1] in self.OPERATORS or _picks(operator, arguments):
            self.readers.add(_reader())
        return operator(*arguments, **(named or {}))


def _picks(operator: Any, arguments: Any) -> bool:
    """Whether it indexes by truth values, whose number it must know."""
    if not str(operator).startswith("aten.index."):
        return False
    return any(index is not None and index.dtype == torch.bool for index in arguments[1])


def _reader() -> str:
    """Return the innermost function of the package, or of torch.optim, that called."""
    for frame, _ in traceback.walk_stack(None):
        path = Path(frame.f_code.co_filename)
        if SOURCES in path.parents:
            return f"{path.name} {frame.f_code.co_name}"
        if path.parts[-3:-1] == ("torch", "optim") and path.name != "optimizer.py":
            return f"torch.optim {path.stem}"
    return "a test"


@pytest.mark.parametrize(
    "read",
    [
        lambda t: t.sum().item(),
        lambda t: float(t.sum()),
        lambda t: 1 if t.sum() else 0,
        lambda t: t.nonzero(),
        lambda t: t[t > 0],
        lambda t: torch.equal(t, t + 1),
    ],
)
def test_a_reading_is_seen_as_it_happens(read: Callable[[torch.Tensor], Any]) -> None:
    with Readings() as seen:
        read(torch.ones(3))
    assert seen.readers


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_no_step_reads_a_number_back_but_what_is_free_on_a_cpu(net: Any, name: str) -> None:
    net.float()
    values = {"precondition_frequency": 2} if name == "soap" else {}
    chosen = optimizer_params({"name": name, "lr": 0.01, "weight_decay": 0.1, **values}, "")
    optimizer: Any = build_optimizer(net, chosen)
    for step in range(3):
        optimizer.zero_grad()
        loss = net(torch.arange(8).view(2, 4)).square().mean()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] / (1 + step)
        with Readings() as seen:
            if hasattr(optimizer, "clip_grad_norm"):
                optimizer.clip_grad_norm(1.0)
            optimizer.step(loss.detach)
        assert seen.readers == READ_ON_A_CPU.get(name, set())
