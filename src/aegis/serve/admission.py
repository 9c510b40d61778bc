"""Bridge the event loop and the service's threads: so many requests at once, each of which can be
abandoned."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from starlette.requests import Request

from aegis.errors import AegisError
from aegis.serve.service import AbandonedError, AnswerRequest, AnswerResult, AnswerService


class ClientDisconnected(AegisError):  # noqa: N818
    """The client has left."""


class QueueFullError(AegisError):
    """As many requests wait as may wait."""


@dataclass(frozen=True)
class Ticket:
    """A request that was admitted."""

    future: asyncio.Future[AnswerResult]
    abandoned: threading.Event
    stopping: threading.Event

    async def wait(self, request: Request, *, timeout_s: float = math.inf) -> bool:
        """Return true once the result is there, false after `timeout_s`.

        Raises:
            ClientDisconnected: if the client has left; the work is abandoned.
            AbandonedError: if the server goes down and waits no more.
        """
        disconnect = asyncio.ensure_future(_disconnect(request))
        clock = asyncio.get_running_loop().time
        latest = clock() + timeout_s
        try:
            while not self.future.done() and (left := latest - clock()) > 0:
                await asyncio.wait(
                    {self.future, disconnect},
                    timeout=min(left, 0.2),  # to see whether the server still waits
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not self.future.done() and disconnect.done():
                    raise ClientDisconnected("the client has left")
                if not self.future.done() and self.stopping.is_set():
                    raise AbandonedError("the server goes down")
            return self.future.done()
        except BaseException:
            self.abandoned.set()
            raise
        finally:
            disconnect.cancel()


class RequestQueue:
    """Admit at most `capacity` requests at a time; reject the rest with 429.

    Args:
        on_change: called with the number of admitted requests.
    """

    def __init__(
        self, service: AnswerService, *, capacity: int, on_change: Callable[[int], None]
    ) -> None:
        self.service, self.capacity, self.on_change = service, capacity, on_change
        self._admitted = 0
        self._pool = ThreadPoolExecutor(capacity, thread_name_prefix="aegis-answer")

    def submit(self, request: AnswerRequest) -> Ticket:
        """Begin to answer the request.

        Raises:
            QueueFullError: if there is no room; nothing was begun.
        """
        if self._admitted >= self.capacity:
            raise QueueFullError("as many questions as may wait are waiting; try again later")
        abandoned = threading.Event()
        self._count(1)
        future = asyncio.get_running_loop().run_in_executor(
            self._pool, self.service.answer, request, abandoned.is_set
        )
        # There is room again when the work has ended, not when its client leaves.
        future.add_done_callback(self._done)
        return Ticket(future, abandoned, self.service.stopping)

    def close(self) -> None:
        """Wait for what runs, drop what does not."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _done(self, future: asyncio.Future[AnswerResult]) -> None:
        self._count(-1)
        if not future.cancelled():
            future.exception()  # nobody waits for an abandoned request's error

    def _count(self, change: int) -> None:
        self._admitted += change
        self.on_change(self._admitted)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
