"""A real server on this machine that does all that servers do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aegis.data.sources.generate.backend import AccessError, CallError, CallUsage, Request
from aegis.data.sources.generate.calls import Calls, Patience
from aegis.data.sources.generate.http import HttpBackend
from aegis.data.sources.generate.ledger import Ledger
from aegis.data.sources.generate.prices import load_prices
from aegis.data.sources.generate.schemas import Notes, json_schema
from aegis.errors import BadInputError
from tests.data.sources.generate.conftest import ChatServer, Clock, completion

REQUEST = Request("notes", "t", 'Write. "facts"', json_schema(Notes))


def backend(server: ChatServer, **options: object) -> HttpBackend:
    given = {"url": server.url, "model": "m-1", "key_env": "A_KEY", **options}
    return HttpBackend(**given)  # type: ignore[arg-type]


def test_an_answer_with_schema_key_and_usage(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", "secret")
    answer = backend(server).ask([REQUEST])[0]
    assert json.loads(answer.text)["facts"]
    assert (answer.usage, answer.model) == (CallUsage(100, 50), "m-1-2026")
    sent = server.bodies[0]
    assert sent["response_format"]["json_schema"]["strict"] is True
    assert "minLength" not in json.dumps(sent)
    assert server.keys == ["Bearer secret"]


def test_an_older_server_is_asked_without_what_it_does_not_know(server: ChatServer) -> None:
    good = server.reply
    server.reply = lambda body: (
        (400, {}, b"unknown field response_format") if "response_format" in body else good(body)
    )
    asked = backend(server)
    assert asked.ask([REQUEST])[0].text
    assert asked.ask([REQUEST])[0].text
    assert ["response_format" in body for body in server.bodies] == [True, False, False]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again_when_it_says(
    server: ChatServer, clock: Clock, tmp_path: Path, status: int
) -> None:
    good, left = server.reply, [2]

    def reply(body: dict[str, object]) -> object:
        left[0] -= 1
        return (status, {"retry-after": "7"}, b"busy") if left[0] >= 0 else good(body)

    server.reply = reply  # type: ignore[assignment]
    patience = Patience(sleep=clock.sleep, clock=clock, first_wait_s=0.1)
    calls = Calls(backend(server), Ledger(tmp_path / "l.db"), patience=patience)
    assert calls.answers([REQUEST], 0)
    assert len(server.bodies) == 3
    assert 14 <= clock.now < 15
    assert calls.ledger.spent.requests == 3


def test_a_server_that_asks_for_an_hour_is_not_waited_for(
    server: ChatServer, clock: Clock, tmp_path: Path
) -> None:
    server.reply = lambda _: (429, {"retry-after": "3600"}, b"")
    patience = Patience(sleep=clock.sleep, clock=clock)
    with pytest.raises(CallError, match="asks to wait 3600 s"):
        Calls(backend(server), Ledger(tmp_path / "l.db"), patience=patience).answers([REQUEST], 0)
    assert (len(server.bodies), clock.now) == (1, 0)


def test_what_goes_wrong_is_told_apart(server: ChatServer) -> None:
    asked = backend(server, timeout_s=20)
    server.reply = lambda _: (401, {}, b"bad key")
    with pytest.raises(AccessError, match="HTTP 401: bad key"):
        asked.ask([REQUEST])
    server.reply = lambda _: (404, {}, b"no such model")
    with pytest.raises(CallError, match="HTTP 404") as absent:
        asked.ask([REQUEST])
    assert not absent.value.again
    for reply in ((200, {}, b'{"choices": ['), (200, {}, b"[]"), (200, {}, b"\xff" * 9)):
        server.reply = lambda _, reply=reply: reply
        with pytest.raises(CallError, match="not a chat completion") as half:
            asked.ask([REQUEST])
        assert half.value.again
    server.reply = lambda _: None
    with pytest.raises(CallError) as torn:
        asked.ask([REQUEST])
    assert (torn.value.again, torn.value.raw) == (True, '{"choi')
    server.reply = lambda _: completion(" ")
    with pytest.raises(CallError, match="an empty answer") as empty:
        asked.ask([REQUEST])
    assert empty.value.usage == CallUsage(100, 50)
    server.reply = lambda _: completion("", "length")
    with pytest.raises(CallError, match="used up its tokens") as cut:
        asked.ask([REQUEST])
    assert not cut.value.again
    server.reply = lambda _: (200, {}, b"x" * (9 << 20))
    with pytest.raises(CallError, match="more than 8 MiB"):
        asked.ask([REQUEST])
    server.reply = lambda _: completion('{"fa', "length")
    assert asked.ask([REQUEST])[0].cut


def test_a_key_that_the_server_repeats_is_shown_nowhere(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", "hunter2hunter2")
    server.reply = lambda _: (401, {}, b"no such key: hunter2hunter2")
    with pytest.raises(AccessError, match=r"no such key: \[SECRET\]") as refused:
        backend(server).ask([REQUEST])
    assert "hunter2" not in refused.value.raw


def test_counts_and_names_that_are_none_do_no_harm(server: ChatServer, tmp_path: Path) -> None:
    told = {"prompt_tokens": "12", "completion_tokens": -3}
    choice = {"message": {"content": '{"facts": []}'}}
    body = json.dumps({"choices": [choice], "usage": told, "model": {"a": 1}}).encode()
    server.reply = lambda _: (200, {}, body)
    (kept,) = Calls(backend(server), Ledger(tmp_path / "l.db")).answers([REQUEST], 0)
    assert (kept.answer.model, kept.answer.text) == (None, '{"facts": []}')
    assert kept.answer.usage.input_tokens, "by length"


def test_key_and_server_are_checked_before_the_first_call(server: ChatServer) -> None:
    backend(server).check()
    server.models = (404, {}, b"")
    backend(server).check()
    server.models = (401, {}, b"")
    with pytest.raises(BadInputError, match=r"refuses the key .HTTP 401.; set A_KEY"):
        backend(server).check()
    with pytest.raises(BadInputError, match="cannot be reached"):
        backend(server, url="http://127.0.0.1:1/v1").check()
    for url in ("ftp://x", "http://", "x", "", "http://u:hunter2@x/v1", "http://x/v1?key=hunter2"):
        with pytest.raises(BadInputError, match="is no address") as told:
            backend(server, url=url)
        assert "hunter2" not in str(told.value)
    with pytest.raises(BadInputError, match="--model is needed"):
        backend(server, model=None)
    assert server.bodies == []


def test_the_price_is_that_of_the_model_that_answered(server: ChatServer, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("m-1: {input: 1000, output: 2000}\n")
    calls = Calls(
        backend(server), Ledger(tmp_path / "l.db"), prices=load_prices(tmp_path / "p.yaml")
    )
    assert calls.answers([REQUEST], 0)[0].cost == pytest.approx(0.2)
