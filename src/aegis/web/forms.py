"""What a form sends, read without another package."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from aegis.errors import BadInputError

_MOST_FIELDS = 20


def with_form(
    answer: Callable[[Request, dict[str, str]], Response],
) -> Callable[[Request], Awaitable[Response]]:
    """Return an endpoint that reads the form and then waits for the disk in another thread."""

    async def endpoint(request: Request) -> Response:
        return await run_in_threadpool(answer, request, await form_of(request))

    return endpoint


async def form_of(request: Request) -> dict[str, str]:
    """Return the fields of a form, the last of each name.

    Raises:
        BadInputError: if it is none.
    """
    try:
        text = (await request.body()).decode()
        fields = parse_qs(
            text, keep_blank_values=True, max_num_fields=_MOST_FIELDS, errors="strict"
        )
    except ValueError:
        raise BadInputError("the form cannot be read; load the page again") from None
    return {name: values[-1].replace("\r\n", "\n") for name, values in fields.items()}
