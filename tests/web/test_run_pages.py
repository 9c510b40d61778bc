from __future__ import annotations

import shutil
from html import unescape
from pathlib import Path

from starlette.testclient import TestClient

from aegis.runs.events import LogMessage, Metrics, Progress, StageEnded
from aegis.runs.record import DATABASE, RECORD
from aegis.web.run_history import RunHistory
from aegis.web.run_pages import charts
from tests.web.runs import finish, judged, measured, new_run, told

HOSTILE = '"><img src=x onerror=alert(1)>{{ 7*7 }}\u202egnp'


def test_the_list_shows_what_a_run_measured(browser: TestClient, runs: Path) -> None:
    assert "aegis run examples/quickstart.yaml" in browser.get("/ui/runs").text
    session = new_run(runs)
    finish(session)
    judged(session)
    text = browser.get("/ui/runs").text
    assert f'href="/ui/runs/{session.session_id}"' in text
    for words in (">finished<", "0.803", "0.072", "≤ 0.106, n = 321", "tiny"):
        assert words in text


def test_a_run_shows_stages_progress_curves_warnings_and_log(
    browser: TestClient, runs: Path
) -> None:
    session = new_run(runs)
    told(
        session,
        measured(1, loss=4.5, alpha=-5.0, kl=0.1, gradient_norm=3.0),
        measured(2, loss=2.5, alpha=-4.0, kl=0.2, gradient_norm=2.0),
        LogMessage(text="the machine is hot", level="warning"),
        LogMessage(text="all is well"),
        Progress(label="judging", done=3, total=9),
    )
    text = browser.get(f"/ui/runs/{session.session_id}").text
    for words in ("collect", "judging", "3 / 9", "the machine is hot", "all is well", "<polyline"):
        assert words in text
    history = RunHistory(session.folder)
    history.read_on()
    drawn = charts(history, "sft")
    assert [(c.name, c.main) for c in drawn] == [
        ("alpha", True),
        ("kl", True),
        ("loss", True),
        ("gradient_norm", False),
    ]
    assert drawn[2].last == drawn[2].low == "2.5"


def test_hostile_names_and_texts_are_shown_as_text(browser: TestClient, runs: Path) -> None:
    name = 'aegis_v2_<script>alert(1)<script>"\u202e'
    session = new_run(runs, settings=f"base: '{HOSTILE}'\n")
    told(
        session,
        LogMessage(text=HOSTILE, level="warning"),
        Metrics(training=HOSTILE, step=1, steps=1, values={HOSTILE: 1.0}),
    )
    told(session, StageEnded(stage=HOSTILE, outcome="failed", seconds=1, error=HOSTILE))
    session.stages[0].error, session.stages[0].name = HOSTILE, HOSTILE
    session.stages[0].steps = {HOSTILE: {"state": HOSTILE}}
    session.save()
    session.folder.rename(runs / name)
    listed = browser.get("/ui/runs").text
    address = listed.split('href="/ui/runs/aegis')[1].split('"')[0]
    shown = browser.get(f"/ui/runs/aegis{address}")
    assert shown.status_code == 200
    for text in (listed, shown.text):
        assert "<img" not in text
        assert "<script>" not in text
        assert "49" not in text.split("onerror")[1][:40]
        assert "\u202e" not in text
    assert shown.text.count("&lt;img") >= 8
    assert "\\u202egnp" in unescape(shown.text)


def test_a_damaged_run_has_a_page_that_says_so(browser: TestClient, runs: Path) -> None:
    session = new_run(runs)
    for name in (DATABASE, RECORD):
        (session.folder / name).write_text("{")
    answer = browser.get(f"/ui/runs/{session.session_id}")
    assert answer.status_code == 200
    assert "no readable session record" in answer.text


def test_a_run_of_an_older_version_says_what_is_missing(browser: TestClient, runs: Path) -> None:
    session = new_run(runs)
    (session.folder / DATABASE).unlink()
    record = (session.folder / RECORD).read_text().replace('"version": 2', '"version": 1')
    (session.folder / RECORD).write_text(record)
    assert "older AEGIS" in browser.get(f"/ui/runs/{session.session_id}").text


def test_a_run_that_vanishes_while_it_is_watched_says_so(browser: TestClient, runs: Path) -> None:
    session = new_run(runs)
    path = f"/ui/runs/{session.session_id}"
    assert browser.get(path).status_code == 200
    shutil.rmtree(session.folder)
    answer = browser.get(path)
    assert (answer.status_code, "moved or removed" in answer.text) == (404, True)
