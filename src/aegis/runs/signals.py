"""Stop signals: the first ends work at the next step's end, the second ends the process at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from aegis.errors import EXIT_RESUMABLE, StoppedError

_NAMES = ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP")
STOP_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


class Interrupt:
    """While entered, stop signals set `requested` instead of tearing the work apart.

    The second signal leaves with exit code 75 without any clean-up: what is being written stands in
    a staging folder, so the last snapshot stays sound. Outside the main thread, where Python has no
    signal handlers, it only holds `requested`.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores one
                    self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def check(self) -> None:
        """Return if no stop was asked for.

        Raises:
            StoppedError: if one was.
        """
        if self.requested:
            raise StoppedError(
                f"stopped by {self.requested}; what was finished is kept. "
                "Run the same command again to go on"
            )

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.requested:
            text = f"\nerror: stopped at once by a second {name}; the last snapshot is sound\n"
            os.write(2, text.encode())
            os._exit(EXIT_RESUMABLE)
        self.requested = name
        text = f"\n{name}: stopping at the end of this step; once more to stop at once\n"
        os.write(2, text.encode(sys.stderr.encoding or "utf-8", "replace"))
