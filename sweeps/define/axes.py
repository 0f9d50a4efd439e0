"""Sweeps in Hydra's own syntax, on the command line or in ``hydra.sweeper.params``.

``1,2``, ``choice(…)``, ``range(…)`` and ``glob(…)`` stand for a list of values each.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.errors import HydraException

from rundir import UserError
from sweeps.define.definition import bare, bounded
from sweeps.define.overrides import brief, parse, unreadable


def parsed(texts: Iterable[str], loader: ConfigLoader) -> list[Override]:
    """Parse overrides that may be sweeps.

    Args:
        texts: the overrides.
        loader: knows what a ``glob`` may match.

    Raises:
        UserError: a text does not follow Hydra's grammar.
    """
    parser = OverridesParser.create(config_loader=loader)
    found: list[Override] = []
    for text in texts:
        try:
            found += parser.parse_overrides([text])
        except HydraException as error:
            raise UserError(" ".join(str(error).split())) from None
        except (ValueError, RecursionError) as error:
            raise unreadable(text, error) from None
    return found


def values(override: Override) -> list[Any]:
    """Return the values that a sweep stands for.

    Raises:
        UserError: it stands for none, for too many, or for an interval.
    """
    said = brief(override.input_line, 200)
    if bare(override.get_key_element()).startswith("sweep."):
        raise UserError(f"{said}: a sweep is one sweep; launch each by itself")
    if not override.is_discrete_sweep():
        raise UserError(
            f"{said}: an interval needs a sampler; list the values, "
            "or choose a sampling sweeper with hydra/sweeper=…"
        )
    swept = override.value()
    if isinstance(swept, RangeSweep):
        bounded([_length(swept, said)], said)
    texts = override.sweep_string_iterator()
    found = [parse(f"{override.key_or_group}={text}").value() for text in texts]
    if not found:
        raise UserError(f"{said} stands for no value; nothing is left to run")
    bounded([len(found)], said)
    return found


def _length(swept: RangeSweep, said: str) -> int:
    """Return how many values a range has, without making any."""
    ends = (swept.start or 0, swept.stop or 0, swept.step)
    if swept.step == 0 or not all(abs(end) <= sys.float_info.max for end in ends):
        must = "range(start, stop, step) of finite numbers with a step other than 0"
        raise UserError(f"{said}; must be {must}")
    start, stop, step = map(Fraction, ends)
    return max(0, math.ceil((stop - start) / step))
