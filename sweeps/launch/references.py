"""What ``${best:KEY,FILTER,…}`` stands for, in each place where a definition is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from omegaconf import OmegaConf

from rundir import UserError

Best: TypeAlias = Callable[..., object]
"""What ``${best:key,filter,…}`` stands for."""


def no_first_stage(*_: object) -> object:
    """Refuse ``${best:…}`` in a definition that comes after nothing."""
    raise UserError("${best:…} needs a first stage; write after: NAME into the definition")


def no_reference(*_: object) -> object:
    """Refuse ``${best:…}`` where a definition names itself or its first stage."""
    raise UserError("${best:…} stands for a value of a run, and for no name or first stage")


def placeholder(key: str, *filters: object) -> object:
    """Stand for a value that the first stage has yet to find."""
    return f"best({', '.join(str(part) for part in (key, *filters))})"


def is_placeholder(value: object) -> bool:
    """Say whether a value is one, or holds one."""
    return "best(" in str(value)


@contextmanager
def resolving(best: Best) -> Iterator[None]:
    """Give ``${best:…}`` its meaning for a while."""

    def resolver(*parts: object) -> object:
        if not parts or not str(parts[0]).strip():
            raise UserError("${best:} names no key; must be ${best:KEY} or ${best:KEY,FILTER,…}")
        return best(*parts)

    OmegaConf.register_new_resolver("best", resolver, replace=True)
    try:
        yield
    finally:
        OmegaConf.clear_resolver("best")
