"""What a process that only collects goes without: pandas, which Arrow imports wherever it is.

Arrow does so before it makes its first array, to know pandas' objects from others; it takes a
third of a second, and no collector has one.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder


class _WithoutPandas(MetaPathFinder):
    def find_spec(self, name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("not for a process that only collects", name=name)


def forgo_pandas() -> None:
    """Make pandas unknown to this process, once and for all; where it is loaded, it stays."""
    sys.meta_path.insert(0, _WithoutPandas())
