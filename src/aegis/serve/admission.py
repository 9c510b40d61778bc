"""The line before the service: so many questions and no more, each in a thread of its own, each of
which can be abandoned."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from starlette.requests import Request

from aegis.errors import AegisError
from aegis.serve.service import AnswerRequest, AnswerResult, AnswerService


class ClientDisconnected(AegisError):  # noqa: N818
    """The client has left."""


class QueueFullError(AegisError):
    """As many questions wait as may wait."""


@dataclass(frozen=True)
class Ticket:
    """A question on its way through the service."""

    future: asyncio.Future[AnswerResult]
    abandoned: threading.Event


class RequestQueue:
    """Bridges the event loop and the service's threads.

    Args:
        places: questions answered or waiting at once.
        changed: told how many there are.
    """

    def __init__(
        self,
        service: AnswerService,
        *,
        places: int,
        changed: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.service, self.places, self._changed, self._taken = service, places, changed, 0
        self._pool = ThreadPoolExecutor(places, thread_name_prefix="aegis-service")

    def join(self, ask: AnswerRequest) -> Ticket:
        """The question is being worked on.

        Raises:
            QueueFullError: if there is no place; nothing was begun.
        """
        if self._taken >= self.places:
            raise QueueFullError("as many questions as may wait are waiting; try again later")
        abandoned = threading.Event()
        self._take(1)
        future = asyncio.get_running_loop().run_in_executor(
            self._pool, self.service.answer, ask, abandoned.is_set
        )
        future.add_done_callback(
            self._done
        )  # the place is free when the work has ended, not when its asker leaves
        return Ticket(future, abandoned)

    async def wait(
        self, working: Ticket, request: Request, *, seconds: float | None = None
    ) -> bool:
        """True once the answer is there; False after so many seconds.

        Raises:
            ClientDisconnected: if the client has left; the work is abandoned.
        """
        left = asyncio.ensure_future(_left(request))
        try:
            await asyncio.wait(
                {working.future, left}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if not working.future.done() and left.done():
                raise ClientDisconnected("the client has left")
            return working.future.done()
        except BaseException:
            working.abandoned.set()
            raise
        finally:
            left.cancel()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _done(self, future: asyncio.Future[AnswerResult]) -> None:
        self._take(-1)
        if not future.cancelled():
            future.exception()  # an abandoned question's error is nobody's any more

    def _take(self, places: int) -> None:
        self._taken += places
        self._changed(self._taken)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
