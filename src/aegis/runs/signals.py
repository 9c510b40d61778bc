"""Stop signals: the first asks, and work ends at the next step's end; the second ends the process
at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

from aegis.errors import EXIT_RESUMABLE, StoppedError

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP")
    if hasattr(signal, name)
)


class Interrupt:
    """While entered, stop signals set `requested` instead of tearing the work apart.

    The second signal leaves with exit code 75 without any clean-up: what is being written stands in
    a staging folder, so the last snapshot stays sound. Outside the main thread, where Python has no
    signal handlers, it only holds `requested`.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            heeded = [
                number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN
            ]  # nohup ignores one
            self._before = {number: signal.signal(number, self._on_signal) for number in heeded}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def request(self, why: str) -> None:
        """Ask for a stop, as a signal would."""
        self.requested = self.requested or why

    def check(self) -> None:
        """Return if nothing was asked.

        Raises:
            StoppedError: if a stop was asked for.
        """
        if self.requested:
            raise StoppedError(
                f"stopped by {self.requested}; what was finished is kept. Run the same command again to go on"
            )

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.requested:
            os.write(
                2,
                f"\nerror: stopped at once by a second {name}; the last snapshot is sound\n".encode(),
            )
            os._exit(EXIT_RESUMABLE)
        self.requested = name
        text = f"\n{name}: stopping at the end of this step; once more to stop at once\n"
        os.write(2, text.encode(sys.stderr.encoding or "utf-8", "replace"))
