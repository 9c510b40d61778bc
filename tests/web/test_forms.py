from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from aegis.errors import BadInputError
from aegis.web.forms import with_form


def echo(_: Request, form: dict[str, str]) -> Response:
    return JSONResponse(form)


def refuse(_: Request, error: Exception) -> Response:
    return Response(str(error), 400)


CLIENT = TestClient(
    Starlette(
        routes=[Route("/", with_form(echo), methods=["POST"])],
        exception_handlers={BadInputError: refuse},
    )
)


def test_fields_are_read_whole_the_last_of_each_name_with_one_kind_of_line_break() -> None:
    sent = "a=1&a=2&empty=&text=%E6%97%A5%0D%0A%2B+%26"
    assert CLIENT.post("/", content=sent).json() == {"a": "2", "empty": "", "text": "日\n+ &"}


@pytest.mark.parametrize("sent", [b"\xff", b"a=%ff", b"&".join([b"a=1"] * 21)])
def test_what_is_no_form_of_ours_is_refused(sent: bytes) -> None:
    answer = CLIENT.post("/", content=sent)
    assert (answer.status_code, "cannot be read" in answer.text) == (400, True)
