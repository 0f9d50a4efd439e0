"""A thread that writes while training goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Writer:
    """Carries out one piece of work at a time beside the thread that gives it."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Have ``work`` begun; the one before must be over, see :meth:`wait`."""

        def carry_out() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - it is raised where somebody listens
                self._error = error

        # No daemon: should nobody finish it, the interpreter does before it ends.
        self._thread = threading.Thread(target=carry_out, name="checkpoint", daemon=False)
        self._thread.start()

    def wait(self) -> None:
        """Wait for the work."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()

    def fault(self) -> BaseException | None:
        """Return what finished work raised, once; costs nothing."""
        error = self._error
        if error is not None:  # else the work may be under way, and end as this is cleared
            self._error = None
        return error
