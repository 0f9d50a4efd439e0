"""The optimizers in fp64 numpy, one matrix at a time, from their formulas; no torch.

Written without a look at the package: plain inverses, plain loops, no batching, no shortcuts.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

EXPRESS = [
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
]


def singular_value_polynomials(method: str, steps: int, compat: bool = False) -> list[Any]:
    if method == "jordan":
        return [(3.4445, -4.7750, 2.0315)] * steps
    out = []
    for i in range(steps):
        a, b, c = EXPRESS[min(i, 7)]
        if i < 7:
            a, b, c = a / 1.01, b / 1.01**3, c / 1.01**5
        if compat:
            a, b, c = a / 1.01, b / 1.01, c / 1.01
        out.append((a, b, c))
    return out


def polar(g: Array, method: str = "polar-express", steps: int = 5, compat: bool = False) -> Array:
    """By the singular values: each goes through the scalar polynomials."""
    if not g.any():
        return g
    u, s, vt = np.linalg.svd(g, full_matrices=False)
    if method == "svd":
        return np.asarray(u[:, s > 1e-12] @ vt[s > 1e-12])
    s = s / (1.01 * math.sqrt((s**2).sum()))
    for a, b, c in singular_value_polynomials(method, steps, compat):
        s = a * s + b * s**3 + c * s**5
    return np.asarray((u * s) @ vt)


class Spectral:
    """muon and scion."""

    def __init__(self, name: str, p: Any) -> None:
        self.name, self.p = name, p
        self.m: dict[str, Array] = {}
        self.v: dict[str, Array] = {}

    def step(
        self, weights: dict[str, Array], gradients: dict[str, Array], matrices: set[str], lr: float
    ) -> None:
        p = self.p
        for key, g in gradients.items():
            matrix = key in matrices
            mu = p.momentum if matrix or self.name == "scion" else p.betas[0]
            self.m[key] = mu * self.m.get(key, g) + (1 - mu) * g
            if matrix:
                ratio = 1.0 if p.muon_lr_ratio is None else p.muon_lr_ratio
                if p.muon_lr is not None:
                    ratio = p.muon_lr / p.lr
                lmo = ratio * polar(self.m[key], p.polar, p.ns_steps, p.gptopt_compat)
            elif self.name == "scion":
                lmo = np.sign(self.m[key])
            else:
                b2 = p.betas[1]
                self.v[key] = b2 * self.v.get(key, g * g) + (1 - b2) * g * g
                lmo = self.m[key] / (np.sqrt(self.v[key]) + p.eps)
            weights[key] = (1 - lr * p.weight_decay) * weights[key] - lr * lmo


class Truncated:
    """muon-momo and muonmax-momo; a weight without gradient is no part of that step."""

    def __init__(self, p: Any) -> None:
        self.p = p
        self.m: dict[str, Array] = {}
        self.v: dict[str, Array] = {}
        self.nuclear: dict[str, float] = {}
        self.loss: float | None = None
        self.offset: dict[str, float] = {}
        self.cases: set[str] = set()

    def step(
        self,
        w: dict[str, Array],
        g: dict[str, Array],
        matrices: set[str],
        loss: float,
        lr: float,
    ) -> float:
        """Return tau."""
        p = self.p
        d, lmo = {}, {}
        for k, gk in g.items():
            mu = p.momentum if k in matrices or p.rest_norm == "linf" else p.betas[0]
            self.m[k] = mu * self.m.get(k, gk) + (1 - mu) * gk
            d[k], lmo[k] = self._norm(k, gk, k in matrices)
        whole, a = self._product(d, matrices)
        tau = lr
        if p.truncate_loss is not None:
            self.loss = loss if self.loss is None else self.loss
            self.loss = h = p.momentum * self.loss + (1 - p.momentum) * loss
            for k, gk in g.items():
                now = float((w[k] * gk).sum())
                self.offset[k] = p.momentum * self.offset.get(k, now) + (1 - p.momentum) * now
                h += float((w[k] * self.m[k]).sum()) - self.offset[k]
            reach = max(h - p.truncate_loss, 0.0) / (whole if p.lmo else whole**2)
            tau = min(lr, reach)
            self.cases.add("zero" if tau == 0 else "full" if tau == lr else "truncated")
        for k in g:
            move = tau * a[k] * (1.0 if p.lmo else whole) * lmo[k]
            w[k] = (1 - lr * p.weight_decay) * w[k] - move
        return tau

    def _norm(self, k: str, g: Array, matrix: bool) -> tuple[float, Array]:
        p, m = self.p, self.m[k]
        if matrix:
            ratio = 1.0 if p.muon_lr_ratio is None else p.muon_lr_ratio
            if p.muon_lr is not None:
                ratio = p.muon_lr / p.lr
            s = ratio if p.lmo else math.sqrt(ratio)
            u = polar(m, p.polar, p.ns_steps, p.gptopt_compat)
            nuclear = float((m * u).sum())
            before, self.nuclear[k] = self.nuclear.get(k, nuclear), nuclear
            frobenius = math.sqrt(float((m**2).sum()))
            size = {"exact": nuclear, "frobenius": frobenius, "last": before}[p.nuc_approx]
            return s * size, np.asarray(s * u)
        if p.rest_norm == "linf":
            return float(np.abs(m).sum()), np.asarray(np.sign(m))
        b2 = p.betas[1]
        self.v[k] = b2 * self.v.get(k, g**2) + (1 - b2) * g**2
        root = np.sqrt(self.v[k]) + p.eps
        if p.rest_norm == "adam_inf":
            return float((m**2 / root).sum()), np.asarray(m / root)
        size = math.sqrt(float((m**2 / root).sum()))
        return size, np.asarray(m / (root * size))

    def _product(self, d: dict[str, float], matrices: set[str]) -> tuple[float, dict[str, float]]:
        if self.p.prod_norm == "linf":
            return sum(d.values()), dict.fromkeys(d, 1.0)
        if self.p.prod_norm == "l2":
            whole = math.sqrt(sum(each**2 for each in d.values()))
            return whole, {k: d[k] / whole for k in d}
        s = sum(d[k] for k in d if k in matrices)
        whole = math.sqrt(s**2 + sum(d[k] ** 2 for k in d if k not in matrices))
        return whole, {k: (s if k in matrices else d[k]) / whole for k in d}


class Muon:
    """muon-torch and normuon."""

    def __init__(self, name: str, p: Any) -> None:
        self.name, self.p = name, p
        self.b: dict[str, Array] = {}
        self.v: dict[str, Array] = {}
        self.t: dict[str, int] = {}

    def step(self, w: dict[str, Array], g: dict[str, Array], matrices: set[str], lr: float) -> None:
        """``lr`` is that of everything that is no matrix."""
        p = self.p
        ratio = 1.0 if p.muon_lr_ratio is None else p.muon_lr_ratio
        if p.muon_lr is not None:
            ratio = p.muon_lr / p.lr
        for k, gk in g.items():
            own = lr * ratio if k in matrices else lr
            update = self._matrix(k, gk) if k in matrices else self._adam(k, gk)
            w[k] = w[k] - own * p.weight_decay * w[k] - own * update

    def _matrix(self, k: str, g: Array) -> Array:
        p = self.p
        self.b[k] = p.momentum * self.b.get(k, 0 * g) + (1 - p.momentum) * g
        u = (1 - p.momentum) * g + p.momentum * self.b[k] if p.nesterov else self.b[k]
        if p.polar == "jordan":
            left, s, right = np.linalg.svd(u, full_matrices=False)
            s = s / math.sqrt((s**2).sum())
            for _ in range(p.ns_steps):
                s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
            o = np.asarray((left * s) @ right)
        else:
            o = polar(u, p.polar, p.ns_steps)
        rows, columns = g.shape
        if self.name == "normuon":
            n = np.empty_like(o)
            v = self.v.setdefault(k, np.zeros(rows))
            for i in range(rows):
                v[i] = p.beta2 * v[i] + (1 - p.beta2) * (o[i] ** 2).sum() / columns
                n[i] = o[i] / (math.sqrt(v[i]) + p.eps)
            return 0.2 * math.sqrt(rows * columns) / float(np.linalg.norm(n)) * n
        if p.adjust_lr_fn == "match_rms_adamw":
            return 0.2 * math.sqrt(max(rows, columns)) * o
        return math.sqrt(max(1.0, rows / columns)) * o

    def _adam(self, k: str, g: Array) -> Array:
        (b1, b2), t = self.p.betas, self.t.get(k, 0) + 1
        self.t[k] = t
        self.b[k] = b1 * self.b.get(k, 0 * g) + (1 - b1) * g
        self.v[k] = b2 * self.v.get(k, 0 * g) + (1 - b2) * g**2
        root = np.sqrt(self.v[k] / (1 - b2**t)) + self.p.eps
        return np.asarray(self.b[k] / (1 - b1**t) / root)


def soderstrom_stewart(c: Array, rcond: float, cap: int) -> Array:
    epsilon = rcond * np.linalg.eigvalsh(c)[-1]
    alpha = 1 / (np.abs(c).sum(0).max() * np.abs(c).sum(1).max())
    x: Array = alpha * c.T
    whole = 0
    for k in range(cap):
        following = (2 * np.eye(len(c)) - x @ c) @ x
        trace = math.floor(np.trace(x @ c))
        if trace > whole:
            whole = trace
            if np.linalg.norm(following - x) / (2.0**k * alpha) <= epsilon:
                return x
        x = np.asarray(following)
    return x


def chebyshev(c: Array, add: float | None, rcond: float, cap: int) -> Array:
    largest = np.linalg.eigvalsh(c)[-1]
    u, low = 1.2 * largest, rcond * largest
    k = low / u
    a = c / u + (add or 0.0) / u * np.eye(len(c))
    if add is None:
        y, r = 2 * a / (1 + k * k), (1 - k * k) / (1 + k * k)
        phi = k * 2 * k / (1 + k * k)
    else:
        den = 1 + 6 * k + k * k
        y, r = 8 / den * ((1 + k) * np.eye(len(c)) - a), (1 - k) ** 2 / den
        phi = k * 8 / den * ((1 + k) - k)
    for _ in range(cap):
        s = 2 / (2 - r * r)
        y = s * y @ (2 * np.eye(len(c)) - a @ y)
        phi = s * phi * (2 - phi)
        r = r * r / (2 - r * r)
        if abs(1 - phi) < 1e-6:
            break
    return np.asarray(y / u)


class Dap:
    """DAP; a key of ``inputs`` is a matrix."""

    def __init__(self, p: Any) -> None:
        self.p = p
        self.t: dict[str, int] = {}
        self.m: dict[str, Array] = {}
        self.v: dict[str, Array] = {}
        self.c: dict[str, Array] = {}

    def step(
        self,
        weights: dict[str, Array],
        gradients: dict[str, Array],
        inputs: dict[str, list[Array]],
        lr: float,
    ) -> None:
        for key, g in gradients.items():
            self.t[key] = self.t.get(key, 0) + 1
            update = self._matrix(key, g, inputs[key]) if key in inputs else self._adam(key, g)
            weights[key] = (1 - lr * self.p.weight_decay) * weights[key] - lr * update

    def _adam(self, key: str, g: Array) -> Array:
        (b1, b2), t = self.p.betas, self.t[key]
        self.m[key] = b1 * self.m.get(key, 0 * g) + (1 - b1) * g
        self.v[key] = b2 * self.v.get(key, 0 * g) + (1 - b2) * g**2
        mean, square = self.m[key] / (1 - b1**t), self.v[key] / (1 - b2**t)
        return np.asarray(mean / (np.sqrt(square) + self.p.eps))

    def _matrix(self, key: str, g: Array, batches: list[Array]) -> Array:
        p, t = self.p, self.t[key]
        c = sum(x.T @ x for x in batches) / sum(len(x) for x in batches)
        if p.ema_beta and key in self.c:
            c = p.ema_beta * self.c[key] + (1 - p.ema_beta) * c
        self.c[key] = np.asarray(c)
        c = c + p.damping * np.trace(c) / len(c) * np.eye(len(c))
        b = p.dap_beta1
        if b:
            self.m[key] = b * self.m.get(key, 0 * g) + (1 - b) * g
            if p.nesterov:
                n = b * self.m[key] / (1 - b ** (t + 1)) + (1 - b) * g / (1 - b**t)
            else:
                n = self.m[key] / (1 - b**t)
        else:
            self.m[key] = p.momentum * self.m.get(key, 0 * g) + g
            n = g + p.momentum * self.m[key] if p.nesterov else self.m[key]
        u = np.asarray(self._precondition(n, np.asarray(c)))
        if p.dap_beta2:
            b = p.dap_beta2
            self.v[key] = b * self.v.get(key, 0 * u) + (1 - b) * u**2
            u = u / (np.sqrt(self.v[key]) / math.sqrt(1 - b**t) + p.dap_eps)
        if p.update_opnorm:
            return np.asarray(u / np.linalg.norm(u, 2))
        if p.update_norm:
            return np.asarray(u * 0.2 / math.sqrt((u**2).mean()))
        return u

    def _precondition(self, n: Array, c: Array) -> Any:
        p = self.p
        if p.disable_preconditioning:
            return n
        if p.scalar:
            return np.asarray(n / np.linalg.eigvalsh(c)[-1])
        if p.accelerated is False:
            return n @ soderstrom_stewart(c, p.rcond, p.ns_pinv_steps)
        if p.accelerated is True or p.gptopt_compat:
            add = None if p.accelerated is True else p.accelerated
            return n @ chebyshev(c, add, p.rcond, p.ns_pinv_steps)
        return n @ np.linalg.inv(c + p.accelerated * np.eye(len(c)))


class Momo:
    """momo, momo-adam and their stars; a weight without gradient is no part of that step."""

    def __init__(self, name: str, p: Any) -> None:
        self.p, self.adam, self.star = p, "adam" in name, name.endswith("star")
        self.zero = self.adam or p.bias_correction
        self.t, self.f_star = 0, p.lb
        self.f: float | None = None
        self.gammas: dict[str, float] = {}
        self.steps: dict[str, int] = {}
        self.d: dict[str, Array] = {}
        self.v: dict[str, Array] = {}
        self.cases: set[str] = set()

    def step(
        self, x: dict[str, Array], g: dict[str, Array], loss: float, lr: float
    ) -> tuple[float, float]:
        """Return tau and the estimate of f*."""
        p, lam = self.p, self.p.weight_decay
        beta = p.betas[0] if self.adam else p.beta
        self.t += 1
        if self.f is None:
            self.f = 0.0 if self.zero else loss
        self.f = beta * self.f + (1 - beta) * loss
        scale: dict[str, Any] = {}
        for k, gk in g.items():
            self.steps[k] = self.steps.get(k, 0) + 1
            gx = float((gk * x[k]).sum())
            first = 0.0 if self.zero else gx
            self.gammas[k] = beta * self.gammas.get(k, first) + (1 - beta) * gx
            self.d[k] = beta * self.d.get(k, 0 * gk if self.zero else gk) + (1 - beta) * gk
            scale[k] = 1.0
            if self.adam:
                b2 = p.betas[1]
                self.v[k] = b2 * self.v.get(k, 0 * gk) + (1 - b2) * gk**2
                scale[k] = np.sqrt(self.v[k] / (1 - b2 ** self.steps[k])) + p.eps
        gamma = sum(self.gammas[k] for k in g)
        rho = 1 - beta**self.t if self.zero else 1.0
        dx = sum(float((self.d[k] * x[k]).sum()) for k in g)
        norm = sum(float((self.d[k] ** 2 / scale[k]).sum()) for k in g)
        if self.star:
            cap = (1 + lr * lam) * self.f + dx - (1 + lr * lam) * gamma
            if cap < (1 + lr * lam) * rho * self.f_star:
                self.f_star = max(cap / (2 * (1 + lr * lam) * rho), p.lb)
                self.cases.add("reset")
        above = (1 + lr * lam) * (self.f - rho * self.f_star) + dx - (1 + lr * lam) * gamma
        t_star = max(above, 0.0) / norm
        tau = min(lr / rho, t_star)
        self.cases.add("zero" if tau == 0 else "full" if tau < t_star else "truncated")
        if self.star and tau * norm != 0:
            h = self.f + dx - gamma
            self.f_star = max((h - 0.5 * tau * norm) / rho, p.lb)
            self.cases.add("at lb" if self.f_star == p.lb else "above lb")
        for k in g:
            move = tau * self.d[k] / scale[k]
            if self.adam and not p.divide:
                x[k] = (1 - lr * lam) * x[k] - move
            else:
                x[k] = (x[k] - move) / (1 + lr * lam)
        return tau, self.f_star


class Sign:
    """sign-gd, sign-gd-nonlmo and lion."""

    def __init__(self, name: str, p: Any) -> None:
        self.name, self.p = name, p
        self.b: dict[str, Array] = {}

    def step(self, x: dict[str, Array], g: dict[str, Array], lr: float) -> None:
        q: dict[str, Array] = {}
        for k, gk in g.items():
            b = self.b.get(k, 0 * gk)
            if self.name == "lion":
                b1, b2 = self.p.betas
                q[k] = b1 * b + (1 - b1) * gk
                self.b[k] = b2 * b + (1 - b2) * gk
            else:
                mu = self.p.momentum
                self.b[k] = mu * b + gk
                q[k] = gk + mu * self.b[k] if self.p.nesterov else self.b[k]
        size = lr
        if self.name == "sign-gd-nonlmo":
            size *= sum(float(np.abs(each).sum()) for each in q.values())
        for k, each in q.items():
            x[k] = (1 - lr * self.p.weight_decay) * x[k] - size * np.sign(each)
