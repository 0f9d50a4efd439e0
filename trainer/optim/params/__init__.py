"""What an optimizer can be told: one dataclass per family, checked, without torch.

Every key of an ``optimizer_params`` mapping is a field here; its meaning, unit and default stand
beneath it. The formulas that the fields appear in are in the module of the family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rundir.errors import UserError, unknown
from trainer.fields import from_mapping
from trainer.optim.params.ademamix import AdEMAMixParams
from trainer.optim.params.base import OptimizerParams
from trainer.optim.params.dap import DapAcceleratedParams, DapParams
from trainer.optim.params.euclidean import (
    AdamParams,
    MomentumParams,
    NAdamParams,
    NAdamWParams,
    SgdParams,
)
from trainer.optim.params.mars import MarsParams
from trainer.optim.params.rules import GroupRule
from trainer.optim.params.schedule_free import ScheduleFreeParams
from trainer.optim.params.sign import LionParams, SignParams
from trainer.optim.params.soap import SoapParams
from trainer.optim.params.spectral import (
    MuonMaxMomoParams,
    MuonMomoParams,
    MuonParams,
    MuonTorchParams,
    NorMuonParams,
    ScionParams,
)
from trainer.optim.params.truncated import MomoAdamParams, MomoParams, TruncatedParams

__all__ = [
    "REGISTRY",
    "AdEMAMixParams",
    "AdamParams",
    "DapAcceleratedParams",
    "DapParams",
    "GroupRule",
    "LionParams",
    "MarsParams",
    "MomentumParams",
    "MomoAdamParams",
    "MomoParams",
    "MuonMaxMomoParams",
    "MuonMomoParams",
    "MuonParams",
    "MuonTorchParams",
    "NAdamParams",
    "NAdamWParams",
    "NorMuonParams",
    "OptimizerParams",
    "ScheduleFreeParams",
    "ScionParams",
    "SgdParams",
    "SignParams",
    "SoapParams",
    "TruncatedParams",
    "optimizer_params",
]

REGISTRY: dict[str, type[OptimizerParams]] = {
    name: cls
    for cls in (
        SgdParams,
        MomentumParams,
        AdamParams,
        NAdamParams,
        NAdamWParams,
        ScionParams,
        MuonParams,
        MuonMomoParams,
        MuonMaxMomoParams,
        MuonTorchParams,
        NorMuonParams,
        MomoParams,
        MomoAdamParams,
        SignParams,
        LionParams,
        DapParams,
        DapAcceleratedParams,
        AdEMAMixParams,
        MarsParams,
        ScheduleFreeParams,
        SoapParams,
    )
    for name in cls.NAMES
}
"""Every optimizer's name and the class of its parameters."""


def optimizer_params(values: Mapping[str, Any], where: str) -> OptimizerParams:
    """Build the parameters that ``values["name"]`` asks for.

    Args:
        values: e.g. the ``optimizer.optimizer_params`` node of the resolved config.
        where: dotted name of that node, for messages.

    Raises:
        UserError: there is no such optimizer, it has no such key, or a value is illegal.
    """
    if not isinstance(values, Mapping) or "name" not in values:
        raise UserError(f"{where}.name is missing; must be one of: {', '.join(sorted(REGISTRY))}")
    name = str(values["name"])
    if name not in REGISTRY:
        raise unknown("optimizer", name, REGISTRY, f"{where}.name")
    return from_mapping(REGISTRY[name], values, where)
