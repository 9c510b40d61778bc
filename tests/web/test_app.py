from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from aegis.protocol.decisions import Decision
from aegis.web.app import build_ui, with_pages
from tests.serve.fakes import FakeEngine, house
from tests.web.runs import new_run

OWN = "http://127.0.0.1:8080"


@pytest.mark.parametrize("path", ["/", "/ui", "/ui/"])
def test_every_door_leads_to_the_runs(browser: TestClient, path: str) -> None:
    assert browser.get(path, follow_redirects=False).headers["location"] == "/ui/runs"
    assert browser.get(path).status_code == 200


def test_nothing_but_our_own_files_may_run(browser: TestClient, runs: Path) -> None:
    name = new_run(runs).session_id
    for path in ("/ui/runs", f"/ui/runs/{name}", "/ui/nothing", "/ui/runs/nothing"):
        headers = browser.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"


def test_the_language_is_kept_and_leads_back(browser: TestClient) -> None:
    to_japanese = browser.get("/ui/language/ja?from=/ui/runs")
    assert 'lang="ja"' in to_japanese.text
    assert "実行" in browser.get("/ui/runs").text
    assert 'lang="en"' in browser.get("/ui/language/en?from=/ui/runs").text
    assert browser.get("/ui/language/xx").status_code == 404


@pytest.mark.parametrize("back", ["https://elsewhere.example", "//elsewhere.example", "/think"])
def test_the_language_leads_nowhere_else(browser: TestClient, back: str) -> None:
    answer = browser.get("/ui/language/ja", params={"from": back}, follow_redirects=False)
    assert answer.headers["location"] == "/ui/runs"


def test_pages_elsewhere_cannot_reach_it_under_their_own_name(runs: Path) -> None:
    stranger = TestClient(build_ui(runs), base_url="http://rebound.example")
    assert stranger.get("/ui/runs").status_code == 421


@pytest.mark.parametrize("path", ["/ui/static/../app.py", "/ui/static/%2e%2e/app.py", "/ui/x/y"])
def test_no_other_file_is_given_out(browser: TestClient, path: str) -> None:
    assert browser.get(path).status_code == 404


@pytest.mark.parametrize("name", ["ui.css", "live.js", "review.js", "ask.js", "judge.js"])
def test_the_files_of_the_pages_are_there(browser: TestClient, name: str) -> None:
    assert browser.get(f"/ui/static/{name}").status_code == 200


def test_the_server_has_the_pages_below_ui_and_answers_beside_them(
    tmp_path: Path, runs: Path
) -> None:
    made = house(tmp_path, FakeEngine(judges=lambda prompt: Decision.ESCALATION))
    app = with_pages(made.app, made.service, runs)
    client = TestClient(app, base_url=OWN, headers={"origin": OWN})
    asked = client.post("/think", json={"query": "May I?"}).json()
    assert client.post("/ui/review/next").status_code == 200
    client.post(f"/ui/review/{asked['id']}/answer", data={"decision": "DENY"})
    assert client.get(f"/escalations/{asked['id']}").json()["state"] == "resolved"
    outcomes = [entry.outcome for entry in made.audit.entries]
    assert outcomes == ["decided", "review: claimed", "review: answered"]
    assert client.get("/uix").status_code == 404
    assert "aegis_requests" in client.get("/metrics").text
