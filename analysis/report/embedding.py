"""Values as JSON that may stand inside an HTML document.

A run's name, an override or an error may hold anything, ``</script>`` included. Inside a script
element only ``<`` has a meaning to HTML; U+2028 and U+2029 end a line to old readers of JavaScript.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

DIGITS = 6
"""Significant digits of a measured value on the page; the store has all of them."""

_ESCAPES = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}


def embedded(value: object) -> str:
    """Return strict JSON without the characters that HTML reads; lone surrogates survive."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def plain(value: Any) -> Any:
    """Return what JSON can hold: null for absent, texts for what is not finite."""
    if value is None or value is pd.NA:
        return None
    if isinstance(value, (float, np.floating)):
        number = float(value)
        if math.isfinite(number):
            return int(number) if number.is_integer() and abs(number) < 2**53 else number
        return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    if isinstance(value, (bool, int, str)):
        return value
    return str(value)


def rounded(values: Iterable[float], digits: int = DIGITS) -> list[float | None]:
    """Return numbers of so many significant digits, null where one is not finite."""
    form = f"%.{digits}g"
    return [float(form % value) if math.isfinite(value) else None for value in values]
