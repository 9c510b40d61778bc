"""A running server: everything checked before the model is loaded, and an end that leaves no stream
hanging."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

from aegis.errors import BadInputError
from aegis.serve.middleware import is_loopback
from aegis.serve.service import AnswerService

_log = logging.getLogger("aegis.serve")


def require_guarded(host: str, tokens: Path | None) -> None:
    """Only this machine reaches the host, or tokens are asked for.

    Raises:
        BadInputError: if anybody could come in.
    """
    if tokens is None and not is_loopback(host):
        raise BadInputError(
            f"--host {host}: others could reach it, and no tokens are asked for; make some with `aegis token new NAME "
            "--tokens FILE` and give --tokens FILE"
        )


def bind(host: str, port: int) -> socket.socket:
    """The socket, bound but not yet listening.

    Raises:
        BadInputError: if the host is none of this machine's, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.set_inheritable(True)
    except (OSError, OverflowError) as error:
        bound.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise BadInputError(
            f"--host {host} --port {port}: {reason.lower()}; choose another"
        ) from error
    return bound


def log_to_stderr() -> None:
    """One line an event on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("aegis.serve", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.level, logger.propagate = [handler], level, False


class Server(uvicorn.Server):
    """uvicorn, which at a stop signal takes no new questions, gives those on their way `grace_s`
    and then lets them go."""

    def __init__(self, app: Any, service: AnswerService, *, grace_s: float = 20) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            ws="none",
            timeout_keep_alive=15,
            timeout_graceful_shutdown=round(grace_s) + 5,
            h11_max_incomplete_event_size=1 << 16,
        )
        super().__init__(config)
        self.service, self.grace_s = service, grace_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.draining.set()
        latest = asyncio.get_running_loop().call_later(self.grace_s, self.service.stopping.set)
        try:
            await super().shutdown(sockets)
        finally:
            latest.cancel()

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.service.draining.set()
        _log.info(
            "%s: finishing what was asked; once more to leave at once", signal.Signals(sig).name
        )
        super().handle_exit(sig, frame)
        if self.force_exit:
            self.service.stopping.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a stop that was asked for is no failure: the signal is not raised again
        at the end."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()


def freeze_loaded_objects() -> None:
    """What is alive now is taken to live as long as the process, and collections of garbage pass it
    by.

    Python looks for garbage among all that is old only once what is new comes to a quarter of it.
    Beside the six hundred thousand objects of torch and transformers that is late, and such a
    collection looks at every one of them.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # only a whole collection counts what is old anew


def serve(app: Any, service: AnswerService, bound: socket.socket, *, grace_s: float = 20) -> None:
    """Answer until a stop signal; returns when the last answer has left."""
    server = Server(app, service, grace_s=grace_s)
    bound.listen(128)
    freeze_loaded_objects()
    server.run(sockets=[bound])
    if not server.started:
        raise BadInputError("the server could not start; its log says why")
