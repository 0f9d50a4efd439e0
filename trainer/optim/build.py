"""From parameters to an optimizer: which class builds what."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from trainer.optim import params as p
from trainer.optim.ademamix import build_ademamix
from trainer.optim.dap import build_dap
from trainer.optim.division import divide_groups, group_table
from trainer.optim.euclidean import build_adam, build_momentum, build_nadam, build_sgd
from trainer.optim.mars import build_mars
from trainer.optim.momo import build_momo, build_momo_adam
from trainer.optim.muon import build_muon
from trainer.optim.noneuclidean import build_spectral
from trainer.optim.schedule_free import build_schedule_free
from trainer.optim.sign import build_sign
from trainer.optim.soap import build_soap

_BUILDERS: dict[type[p.OptimizerParams], Callable[[nn.Module, Any], torch.optim.Optimizer]] = {
    p.SgdParams: build_sgd,
    p.MomentumParams: build_momentum,
    p.AdamParams: build_adam,
    p.NAdamParams: build_nadam,
    p.NAdamWParams: build_nadam,
    p.ScionParams: build_spectral,
    p.MuonParams: build_spectral,
    p.MuonMomoParams: build_spectral,
    p.MuonMaxMomoParams: build_spectral,
    p.MuonTorchParams: build_muon,
    p.NorMuonParams: build_muon,
    p.MomoParams: build_momo,
    p.MomoAdamParams: build_momo_adam,
    p.SignParams: build_sign,
    p.LionParams: build_sign,
    p.DapParams: build_dap,
    p.DapAcceleratedParams: build_dap,
    p.AdEMAMixParams: build_ademamix,
    p.MarsParams: build_mars,
    p.ScheduleFreeParams: build_schedule_free,
    p.SoapParams: build_soap,
}

_log = logging.getLogger(__name__)


def build_optimizer(model: nn.Module, params: p.OptimizerParams) -> torch.optim.Optimizer:
    """Build the optimizer of a model's trainable parameters, and log its groups as a table.

    Each group has ``initial_lr``; a schedule sets ``lr`` to it times
    :func:`trainer.optim.lr_factor` before a step. Build it once the model is on its device. DAP
    registers hooks on the model's linear layers.

    Raises:
        UserError: the backend that ``params`` asks for cannot work here, a rule of its groups does
            not fit the model, or muP does not know the model's width.
    """
    optimizer = _BUILDERS[type(params)](model, params)
    divide_groups(optimizer, model, params)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    _log.info("parameter groups\n%s", group_table(optimizer, model, params))
    return optimizer
