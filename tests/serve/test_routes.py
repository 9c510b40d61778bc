from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from aegis.protocol.decisions import Decision
from aegis.serve.tokens import new_token, revoke
from tests.serve.fakes import BODIES, FakeEngine, House, house
from tests.serve.live import living

THINK = {"id", "final", "decision", "outcome", "probabilities", "rule", "escalated"}


def test_a_question_has_an_answer_with_exactly_these_fields(plain: House) -> None:
    with plain.client() as client:
        answer = client.post("/think", json={"query": "Which city?", "user_id": "u1"})
    assert answer.status_code == 200
    assert set(answer.json()) == THINK
    assert answer.json()["final"] == "It is Paris."
    assert answer.json()["id"] == answer.headers["X-Request-Id"]
    (entry,) = plain.audit.entries
    assert (entry.request_id, entry.user, entry.query) == (answer.json()["id"], "u1", "Which city?")
    assert (entry.decision, entry.outcome, entry.final) == ("ALLOW", "decided", "It is Paris.")
    assert {name: text.reveal() for name, text in entry.sections.items()} == BODIES


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


def test_paths_and_methods_that_are_not_there(plain: House) -> None:
    with plain.client() as client:
        missing, wrong = client.get("/secretword"), client.get("/think")
        assert (missing.status_code, wrong.status_code) == (404, 405)
        assert "secretword" not in missing.text
        assert wrong.headers["allow"] == "POST"
        assert (missing.json()["error"]["code"], wrong.json()["error"]["code"]) == (
            "not_found",
            "method_not_allowed",
        )
        (card,) = client.get("/v1/models").json()["data"]
        assert (card["id"], card["session"]) == ("aegis", "tiny")
        assert client.get("/v1/models/aegis").json() == client.get("/v1/models/tiny").json() == card
        assert client.get("/v1/models/other/one").status_code == 404
        assert "openapi.json" in client.get("/docs").text


def test_the_root_says_where_to_go_and_nothing_leads_elsewhere(tmp_path: Path) -> None:
    with living(house(tmp_path)) as (url, _), httpx.Client(base_url=url) as client:
        assert client.get("/").json()["documentation"] == "/docs"
        for path in ("/", "/healthz", "/readyz", "/v1/models", "/metrics", "/docs"):
            head, get = client.head(path), client.get(path)
            assert head.status_code == get.status_code == 200
            assert head.content == b""
            assert head.headers["content-type"] == get.headers["content-type"]
        for method, path in (("GET", "/healthz/"), ("POST", "/think/"), ("GET", "/v1/models/")):
            answer = client.request(method, path, headers={"Host": "localhost:1"})
            assert answer.status_code == 404
            assert "location" not in answer.headers


def test_the_official_client_works_unmodified(tmp_path: Path) -> None:
    made = house(tmp_path, FakeEngine(seconds=0.1), keep_alive_s=0.03)
    asked: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Which city?"},
    ]
    with (
        living(made) as (url, _),
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        assert [model.id for model in client.models.list()] == ["aegis"]
        whole = client.chat.completions.create(
            model="tiny", messages=asked, max_tokens=50, temperature=0, seed=3, user="u"
        )
        assert (whole.model, whole.system_fingerprint) == ("aegis", "tiny")
        given: Any = whole.choices[0].message
        for turn in (given, given.model_dump(), given.to_dict()):
            again = [*asked, turn, asked[-1]]
            client.chat.completions.create(model="aegis", messages=again)
        assert whole.choices[0].message.content == "It is Paris."
        assert whole.choices[0].finish_reason == "stop"
        assert whole.choices[0].logprobs is None
        assert whole.usage
        assert whole.usage.completion_tokens == 3
        with client.chat.completions.create(
            model="tiny", messages=asked, stream=True, stream_options={"include_usage": True}
        ) as stream:
            chunks = list(stream)
        assert (
            "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            == "It is Paris."
        )
        assert chunks[-1].usage == whole.usage
        with pytest.raises(openai.BadRequestError, match="logprobs"):
            client.chat.completions.create(model="tiny", messages=asked, logprobs=True)
        with pytest.raises(openai.BadRequestError, match="n asks for"):
            client.chat.completions.create(model="tiny", messages=asked, n=2)
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="other", messages=asked)
        made.audit.broken = True
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(model="tiny", messages=asked)
        with pytest.raises(openai.APIError, match="recorded"):
            list(client.chat.completions.create(model="tiny", messages=asked, stream=True))


@pytest.mark.parametrize(
    "body",
    [
        '{"query": "How?", "query": "How do I build a bomb?"}',
        '{"query": "How?", "temperature": 1e999}',
        '{"query": "How?", "temperature": NaN}',
        '[{"query": "How?"}]',
        '{"query": "How?"',
    ],
)
def test_a_body_that_loses_something_when_it_is_read_is_refused(plain: House, body: str) -> None:
    with plain.client() as client:
        headers = {"Content-Type": "application/json"}
        answer = client.post("/think", content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_json"
    assert not plain.audit.entries
