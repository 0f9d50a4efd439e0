"""ademamix, mars, schedule-free-adamw and soap in fp64 numpy, weight by weight, from the papers.

Written without a look at the package: all of a method's sequences are kept, nothing is rearranged.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class AdamW:
    def __init__(self, betas: tuple[float, float], eps: float) -> None:
        self.betas, self.eps = betas, eps
        self.t = 0
        self.m: Any = 0.0
        self.v: Any = 0.0

    def direction(self, g: Array) -> Array:
        b1, b2 = self.betas
        self.t += 1
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * g**2
        mean, square = self.m / (1 - b1**self.t), self.v / (1 - b2**self.t)
        return np.asarray(mean / (np.sqrt(square) + self.eps))

    def step(self, x: Array, g: Array, lr: float, decay: float) -> Array:
        return np.asarray(x - lr * (self.direction(g) + decay * x))


class AdEMAMix:
    """Algorithm 1 of arXiv 2409.03137, its schedulers as printed there."""

    def __init__(self, p: Any, x: Array) -> None:
        self.p, self.t = p, 0
        self.m1, self.m2, self.v = 0 * x, 0 * x, 0 * x

    def alpha(self) -> float:
        if self.p.alpha_warmup is None:
            return float(self.p.alpha)
        return float(min(self.t * self.p.alpha / self.p.alpha_warmup, self.p.alpha))

    def beta3(self) -> float:
        start, end, over = self.p.betas[0], self.p.beta3, self.p.beta3_warmup
        if over is None or self.t >= over:
            return float(end)
        up, mu = math.log(start) * math.log(end), self.t / over
        return min(math.exp(up / ((1 - mu) * math.log(end) + mu * math.log(start))), end)

    def step(self, x: Array, g: Array, lr: float, decay: float) -> Array:
        b1, b2 = self.p.betas
        self.t += 1
        b3 = self.beta3()
        self.m1 = b1 * self.m1 + (1 - b1) * g
        self.m2 = b3 * self.m2 + (1 - b3) * g
        self.v = b2 * self.v + (1 - b2) * g * g
        fast, square = self.m1 / (1 - b1**self.t), self.v / (1 - b2**self.t)
        move = (fast + self.alpha() * self.m2) / (np.sqrt(square) + self.p.eps)
        return np.asarray(x - lr * (move + decay * x))


class Mars:
    """Algorithm 2 of arXiv 2411.10438 with the gradients of the steps as they come."""

    def __init__(self, p: Any, x: Array) -> None:
        self.p = p
        self.plain = x.ndim < 2 and not p.optimize_1d
        self.adamw = AdamW(p.betas_1d if self.plain else p.betas, p.eps)
        self.before: Array | None = None
        self.clipped = 0

    def step(self, x: Array, g: Array, lr: float, decay: float) -> Array:
        if self.plain:
            return self.adamw.step(x, g, lr, decay)
        b1 = self.p.betas[0]
        c = g if self.before is None else g + self.p.gamma * b1 / (1 - b1) * (g - self.before)
        self.before = g
        length = math.sqrt((c**2).sum())
        if length > 1:
            c = c / length
            self.clipped += 1
        return self.adamw.step(x, c, lr, decay)


class ScheduleFree:
    """Algorithm 1 of arXiv 2405.15682: x, y and z side by side."""

    def __init__(self, p: Any, x: Array) -> None:
        self.p, self.t = p, 0
        self.x, self.z, self.v = x.copy(), x.copy(), 0 * x
        self.gammas: list[float] = []

    def step(self, y: Array, g: Array, lr: float, decay: float) -> Array:
        b1, b2 = self.p.betas
        self.t += 1
        self.v = b2 * self.v + (1 - b2) * g**2
        gamma = lr * math.sqrt(1 - b2**self.t)
        if self.p.warmup_steps:
            gamma *= min(1, self.t / self.p.warmup_steps)
        self.gammas.append(gamma)
        self.z = self.z - gamma * g / (np.sqrt(self.v) + self.p.eps) - gamma * decay * y
        total = sum(each**2 for each in self.gammas)
        c = gamma**2 / total if total else 0.0
        self.x = (1 - c) * self.x + c * self.z
        return np.asarray((1 - b1) * self.z + b1 * self.x)


class Soap:
    """Algorithm 3 of arXiv 2409.11321 with Adam's corrections, from given eigenvectors on.

    Those of a matrix that is not regular are not unique, so that they are taken from outside.
    """

    def __init__(self, p: Any, w: Array, bases: tuple[Array | None, Array | None]) -> None:
        self.p, self.t = p, 0
        rows, columns = w.shape
        self.turned = [basis is not None for basis in bases]
        self.q = [
            np.eye(n) if basis is None else basis
            for n, basis in zip((rows, columns), bases, strict=True)
        ]
        self.c = [np.zeros((n, n)) for n in (rows, columns)]
        self.m, self.v = 0 * w, 0 * w

    def learn(self, g: Array) -> None:
        b = self.p.betas[1] if self.p.shampoo_beta is None else self.p.shampoo_beta
        for i, found in enumerate((g @ g.T, g.T @ g)):
            self.c[i] = b * self.c[i] + (1 - b) * found

    def step(self, w: Array, g: Array, lr: float, decay: float) -> Array:
        b1, b2 = self.p.betas
        self.t += 1
        left, right = self.q
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * (left.T @ g @ right) ** 2
        mean = left.T @ self.m @ right / (1 - b1**self.t)
        n = mean / (np.sqrt(self.v / (1 - b2**self.t)) + self.p.eps)
        w = w - lr * (left @ n @ right.T + decay * w)
        self.learn(g)
        if self.t % self.p.precondition_frequency == 0:
            for i in (0, 1):
                if self.turned[i]:
                    self._refresh(i)
        return np.asarray(w)

    def _refresh(self, i: int) -> None:
        columns = list(self.q[i].T)
        parts = [float(u @ self.c[i] @ u) for u in columns]
        order = sorted(range(len(parts)), key=lambda k: -parts[k])
        self.v = self.v[order, :] if i == 0 else self.v[:, order]
        self.q[i] = gram_schmidt([self.c[i] @ columns[k] for k in order])


def gram_schmidt(vectors: list[Array]) -> Array:
    """Orthonormal columns, each vector less its part along those before; twice, for accuracy."""
    done: list[Array] = []
    for vector in vectors:
        rest = vector
        for _ in range(2):
            for u in done:
                rest = rest - (u @ rest) * u
            rest = rest / np.linalg.norm(rest)
        done.append(rest)
    return np.stack(done, axis=1)
