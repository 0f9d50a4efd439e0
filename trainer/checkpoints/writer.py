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
        """Have ``work`` begun; the one before must be over, see :meth:`finish`."""

        def carry_out() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - it is raised where somebody listens
                self._error = error

        # No daemon: should nobody finish it, the interpreter does before it ends.
        self._thread = threading.Thread(target=carry_out, name="checkpoint", daemon=False)
        self._thread.start()

    def finish(self) -> None:
        """Wait for the work.

        Raises:
            BaseException: whatever it raised.
        """
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        self._raise()

    def look(self) -> None:
        """Raise what finished work raised; costs nothing."""
        if self._error is not None:
            self.finish()

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error
