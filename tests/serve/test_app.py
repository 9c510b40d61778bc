from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from aegis.protocol.decisions import Decision
from aegis.protocol.fixed_texts import fixed_text
from aegis.serve import service as service_module
from aegis.serve.tokens import new_token, revoke
from tests.serve.fakes import BODIES, FakeEngine, House, house, thinking

WORD = "".join(map(chr, range(0x4E00, 0x4E80)))
THINK = {"id", "final", "decision", "probabilities", "escalated"}


@pytest.fixture
def plain(tmp_path: Path) -> House:
    return house(tmp_path)


def events(text: str) -> list[Any]:
    found = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    return [json.loads(line) for line in found if line != "[DONE]"]


def test_a_question_has_an_answer_with_exactly_five_fields(plain: House) -> None:
    with plain.client() as client:
        answer = client.post("/think", json={"query": "Which city?", "user_id": "u1"})
    assert answer.status_code == 200
    assert set(answer.json()) == THINK
    assert answer.json()["final"] == "It is Paris."
    assert answer.json()["id"] == answer.headers["X-Request-Id"]
    (entry,) = plain.audit.entries
    assert (entry.request_id, entry.user, entry.query) == (answer.json()["id"], "u1", "Which city?")
    assert (entry.decision, entry.outcome, entry.final) == ("ALLOW", "answered", "It is Paris.")
    assert {name: text.reveal() for name, text in entry.sections.items()} == BODIES


@pytest.mark.parametrize("decision", [Decision.DENY, Decision.REFUSE, Decision.ESCALATION])
@pytest.mark.parametrize(("query", "language"), [("Which city?", "en"), ("どの都市ですか", "ja")])
def test_what_is_not_allowed_gets_a_fixed_text_of_its_language(
    tmp_path: Path, decision: Decision, query: str, language: str
) -> None:
    made = house(tmp_path, FakeEngine(judges=lambda _: decision))
    with made.client() as client:
        answer = client.post("/think", json={"query": query}).json()
    assert (answer["final"], answer["decision"]) == (fixed_text(decision, language), decision.name)
    assert answer["escalated"] is (decision is Decision.ESCALATION)
    assert made.cases.waiting() == (decision is Decision.ESCALATION)


@pytest.mark.parametrize("slow", [0.0, 0.15])
@pytest.mark.parametrize(
    "final",
    ["It is Paris.", "  パリは\n\nフランスの首都です。 é́ 👩‍👩‍👧", WORD, "a  b\tc \n"],
)
def test_a_stream_says_what_the_answer_says(tmp_path: Path, slow: float, final: str) -> None:
    made = house(
        tmp_path, FakeEngine(says=lambda *_: thinking(final), seconds=slow), keep_alive_s=0.05
    )
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "Say it"}]}
    with made.client() as client:
        whole = client.post("/think", json={"query": "Say it"}).json()
        streamed = client.post("/think", json={"query": "Say it", "stream": True})
        chat = client.post("/v1/chat/completions", json=asked).json()
        chunks = client.post("/v1/chat/completions", json={**asked, "stream": True})
    assert (b": thinking" in streamed.content) == bool(slow)
    *parts, last = events(streamed.text)
    assert "".join(part["text"] for part in parts) == whole["final"] == final.strip()
    assert {**last, "id": ""} == {**whole, "id": ""}
    found = events(chunks.text)
    assert (
        "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in found) == final.strip()
    )
    assert chat["choices"][0]["message"]["content"] == final.strip()
    assert found[-1]["choices"][0]["finish_reason"] == chat["choices"][0]["finish_reason"] == "stop"


def test_earlier_turns_are_the_opening_and_the_severest_verdict_counts(tmp_path: Path) -> None:
    engine = FakeEngine(
        judges=lambda prompt: Decision.REFUSE if "bomb" in prompt else Decision.ALLOW
    )
    made = house(tmp_path, engine, canary=False)
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "About a bomb"}]},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "Go on"},
    ]
    with made.client() as client:
        answer = client.post(
            "/v1/chat/completions", json={"model": "tiny", "messages": turns}
        ).json()
    assert answer["choices"][0]["message"]["content"] == fixed_text(Decision.REFUSE, "en")
    assert answer["choices"][0]["finish_reason"] == "content_filter"
    assert engine.told == [Decision.REFUSE]
    assert engine.prompts[0].split("\n")[1:] == [
        "instruction: Be kind.",
        "user: About a bomb",
        "assistant: No.",
        "",
        "The user now says:",
        "Go on",
    ]
    assert answer["usage"]["completion_tokens"] == len(fixed_text(Decision.REFUSE, "en").split())


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"logprobs": True}, "unsupported"),
        ({"top_logprobs": 3}, "unsupported"),
        ({"n": 2}, "unsupported"),
        ({"echo": True}, "unsupported"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "unsupported"),
        ({"stop": ["secretword"]}, "unsupported"),
        ({"response_format": {"type": "json_object"}}, "unsupported"),
        ({"secretword": 1}, "unknown_field"),
        ({"messages": []}, "invalid_value"),
        ({"messages": [{"role": "assistant", "content": "secretword"}]}, "invalid_value"),
        ({"messages": [{"role": "tool", "content": "secretword"}]}, "invalid_value"),
        ({"temperature": "secretword"}, "invalid_value"),
        ({"temperature": 3}, "invalid_value"),
        ({"max_tokens": 0}, "invalid_value"),
        ({"max_tokens": 1025}, "invalid_value"),
        ({"model": "secretword"}, "model_not_found"),
    ],
)
def test_a_chat_that_asks_for_what_there_is_not_is_turned_away(
    plain: House, changed: dict[str, Any], code: str
) -> None:
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], **changed}
    with plain.client() as client:
        answer = client.post("/v1/chat/completions", json=asked)
    assert answer.status_code == (404 if code == "model_not_found" else 400)
    assert answer.json()["error"]["code"] == code
    assert "secretword" not in answer.text
    assert plain.engine.thought == 0


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b'{"query": "secretword"', 400),
        (b"[]", 400),
        (b'"secretword"', 400),
        (b'{"query": "\xff secretword"}', 400),
        (b'{"query": "\\ud800 secretword"}', 400),
        (b'{"query": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", 400),
        (b'{"query": ' + b'{"a":' * 40_000 + b"1" + b"}" * 40_000 + b"}", 400),
        (b'{"query": ""}', 400),
        (b'{"query": "   "}', 400),
        (b'{"query": 7}', 400),
        (b'{"query": null}', 400),
        (b'{"query": "hi", "secretword": 1}', 400),
        (b'{"query": "hi", "temperature": NaN}', 400),
        (b'{"query": "hi", "temperature": 1e400}', 400),
        (b'{"query": "hi", "max_new_tokens": 1' + b"0" * 5000 + b"}", 400),
        (b'{"query": "hi", "max_new_tokens": true}', 400),
        (b'{"query": "hi", "stream": "secretword"}', 400),
        (b'{"query": "hi", "user_id": "' + b"secretword" * 20 + b'"}', 413),
        (b'{"query": "' + b"secretword" * 10_000 + b'"}', 413),
        (b'{"query": "' + b"secretword" * 100_000 + b'"}', 413),
    ],
)
def test_bad_input_is_told_and_never_repeated(plain: House, body: bytes, status: int) -> None:
    with plain.client(raise_server_exceptions=False) as client:
        answer = client.post("/think", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert answer.json()["error"]["message"]
    assert "secretword" not in answer.text + str(answer.headers)
    assert plain.engine.thought == 0


def test_a_page_elsewhere_cannot_use_an_open_door(plain: House) -> None:
    with plain.client() as client:
        simple = client.post(
            "/think", content=b'{"query": "hi"}', headers={"Content-Type": "text/plain"}
        )
        rebound = client.post("/think", json={"query": "hi"}, headers={"Host": "evil.example"})
        preflight = client.options(
            "/think",
            headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"},
        )
        crossed = client.post(
            "/think", json={"query": "hi"}, headers={"Origin": "http://evil.example"}
        )
    assert [simple.status_code, rebound.status_code, preflight.status_code] == [400, 421, 405]
    for answer in (simple, rebound, preflight, crossed):
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_tokens_open_what_their_scope_says(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    ask, review, admin = (new_token(file, name, [name]) for name in ("ask", "review", "admin"))
    made = house(tmp_path, FakeEngine(judges=lambda _: Decision.ESCALATION), tokens=file)

    def under(token: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {token}"}

    with made.client() as client:
        assert client.get("/healthz").status_code == 200
        assert client.post("/think", json={"query": "hi"}).status_code == 401
        assert (
            client.post("/think", json={"query": "hi"}, headers=under(ask[:-1])).status_code == 401
        )
        assert client.post("/think", json={"query": "hi"}, headers=under(review)).status_code == 403
        answer = client.post("/think", json={"query": "hi"}, headers=under(ask))
        assert answer.status_code == 200
        assert made.audit.entries[0].user == "ask"
        assert client.get("/escalations", headers=under(ask)).status_code == 403
        assert client.get("/metrics", headers=under(review)).status_code == 403
        assert client.get("/metrics", headers=under(admin)).status_code == 200
        waiting = client.get("/escalations", headers=under(review)).json()
        assert [case["query"] for case in waiting["cases"]] == ["hi"]
        case = f"/escalations/{answer.json()['id']}"
        assert client.get(case, headers=under(ask)).json()["state"] == "open"
        assert client.post(case, json={"answer": "Yes."}, headers=under(ask)).status_code == 403
        assert client.post(case, json={"answer": "Yes."}, headers=under(review)).status_code == 200
        assert client.post(case, json={"answer": "No."}, headers=under(review)).status_code == 409
        seen = client.get(case, headers=under(ask)).json()
        assert (seen["answer"], seen["query"], seen["reviewer"]) == ("Yes.", None, None)
        stranger = new_token(file, "stranger", ["ask"])
        assert client.get(case, headers=under(stranger)).status_code == 404
        assert client.get("/escalations/" + "0" * 32, headers=under(review)).status_code == 404
        revoke(file, "ask")
        assert client.post("/think", json={"query": "hi"}, headers=under(ask)).status_code == 401
        file.write_text("no", encoding="utf-8")
        assert client.post("/think", json={"query": "hi"}, headers=under(review)).status_code == 503
    assert ask not in (tmp_path / "tokens.json").read_text(encoding="utf-8")


def test_a_token_has_so_many_requests_a_minute(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    first, second = (new_token(file, name, ["ask"]) for name in ("first", "second"))
    made = house(tmp_path, tokens=file, rate=3)
    with made.client() as client:

        def ask(token: str) -> Any:
            return client.post(
                "/think", json={"query": "hi"}, headers={"Authorization": f"Bearer {token}"}
            )

        assert [ask(first).status_code for _ in range(4)] == [200, 200, 200, 429]
        assert 1 <= int(ask(first).headers["Retry-After"]) <= 20
        assert ask(second).status_code == 200


def test_more_than_may_wait_are_turned_away_and_nothing_is_lost(tmp_path: Path) -> None:
    engine = FakeEngine(hold=threading.Event())
    made = house(tmp_path, engine, places=2)
    with made.client() as client:
        found: list[int] = []

        def ask() -> None:
            found.append(client.post("/think", json={"query": "hi"}).status_code)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        while len(engine.prompts) < 2:
            pass
        refused = client.post("/think", json={"query": "hi"})
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        assert engine.hold
        engine.hold.set()
        for thread in threads:
            thread.join()
        assert found == [200, 200]
        assert client.post("/think", json={"query": "hi"}).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("slow", [0.0, 0.15])
def test_what_cannot_be_recorded_is_not_answered(tmp_path: Path, stream: bool, slow: float) -> None:
    engine = FakeEngine(judges=lambda _: Decision.ESCALATION, seconds=slow)
    made = house(tmp_path, engine, keep_alive_s=0.05)
    made.audit.broken = True
    with made.client() as client:
        answer = client.post("/think", json={"query": "hi", "stream": stream})
        assert answer.status_code == (200 if stream and slow else 503)
        assert "unavailable" in answer.text
        assert fixed_text(Decision.ESCALATION, "en") not in answer.text
        assert made.cases.waiting() == 0
        made.audit.broken = False
        assert client.post("/think", json={"query": "hi"}).status_code == 200


def test_an_engine_that_fails_gives_the_fixed_refusal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(prompt: str, seed: int) -> None:
        raise RuntimeError("secretword in " + prompt)

    made = house(tmp_path, FakeEngine(says=fails))
    with caplog.at_level(logging.DEBUG), made.client() as client:
        answer = client.post("/think", json={"query": "hi"})
    assert answer.json()["final"] == fixed_text(Decision.REFUSE, "en")
    assert made.audit.entries[0].outcome == "withheld: engine error"
    assert "RuntimeError at test_app.py" in caplog.text
    assert "secretword" not in caplog.text + answer.text


def test_a_check_that_fails_gives_the_fixed_refusal(
    plain: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ValueError("secretword")

    monkeypatch.setattr(service_module, "find_leak", fails)
    with plain.client() as client:
        answer = client.post("/think", json={"query": "hi"})
    assert answer.json()["final"] == fixed_text(Decision.REFUSE, "en")
    assert plain.audit.entries[0].outcome == "withheld: check failed"


def test_an_engine_that_cannot_decide_is_unavailable(tmp_path: Path) -> None:
    def fails(prompt: str) -> Decision:
        raise RuntimeError("secretword")

    with house(tmp_path, FakeEngine(judges=fails)).client() as client:
        answer = client.post("/think", json={"query": "hi"})
    assert answer.status_code == 503
    assert "secretword" not in answer.text


def test_no_answer_in_time_is_the_fixed_refusal(tmp_path: Path) -> None:
    made = house(tmp_path, FakeEngine(hold=threading.Event()), answer_s=0.1)
    with made.client() as client:
        answer = client.post("/think", json={"query": "hi"}).json()
    assert answer["final"] == fixed_text(Decision.REFUSE, "en")
    assert made.audit.entries[0].outcome == "withheld: out of time"


def test_a_prompt_must_leave_room(tmp_path: Path) -> None:
    with house(tmp_path, FakeEngine(context=400)).client() as client:
        answer = client.post("/think", json={"query": "secretword " * 100})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert "secretword" not in answer.text


def test_nothing_is_asked_of_a_server_that_is_stopping(plain: House) -> None:
    with plain.client() as client:
        assert client.get("/readyz").status_code == 200
        plain.service.draining.set()
        assert client.get("/readyz").status_code == 503
        assert client.post("/think", json={"query": "hi"}).status_code == 503


def test_paths_and_methods_that_are_not_there(plain: House) -> None:
    with plain.client() as client:
        missing, wrong = client.get("/secretword"), client.get("/think")
        assert (missing.status_code, wrong.status_code) == (404, 405)
        assert "secretword" not in missing.text
        assert wrong.headers["allow"] == "POST"
        assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
        assert client.get("/v1/models/tiny").status_code == 200
        assert client.get("/v1/models/other/one").status_code == 404
        assert "openapi.json" in client.get("/docs").text


def test_logs_and_metrics_hold_no_words_of_anyone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = house(tmp_path, FakeEngine(says=lambda *_: thinking("finalword")))
    with caplog.at_level(logging.DEBUG), made.client() as client:
        client.post("/think?secretword=1", json={"query": "secretword", "user_id": "secretword"})
        client.post("/secretword", json={"query": "secretword"})
        metrics = client.get("/metrics").text
    assert 'aegis_decisions_total{decision="ALLOW"} 1.0' in metrics
    assert "/think 200" in caplog.text
    ours = "".join(
        record.getMessage() for record in caplog.records if not record.name.startswith("httpx")
    )
    said = (ours + metrics).replace('"ALLOW"', "")
    assert not [word for word in ("secretword", "finalword", *BODIES.values()) if word in said]
