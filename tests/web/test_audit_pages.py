from __future__ import annotations

from pathlib import Path

from starlette.testclient import TestClient

from aegis.audit import AuditEntry, AuditKeys, AuditLog
from aegis.audit.reader import segments
from aegis.web.app import build_ui
from aegis.web.audit_pages import AuditPages

OWN = "http://127.0.0.1:8080"


def test_entries_are_shown_without_words_and_damage_is_found(tmp_path: Path, runs: Path) -> None:
    keys = AuditKeys.create(tmp_path / "audit.keys")
    with AuditLog.open(tmp_path / "audit", keys) as log:
        for number in range(3):
            log.append(
                AuditEntry(
                    request_id=f"r{number}",
                    user="mai",
                    decision="ALLOW",
                    escalated=False,
                    model="<b>tiny",
                    query="a private question",
                    sections={},
                    final="a private answer",
                    outcome="decided",
                )
            )
    app = build_ui(runs, audit=AuditPages(tmp_path / "audit", keys))
    browser = TestClient(app, base_url=OWN, headers={"origin": OWN})
    shown = browser.get("/ui/audit").text
    assert shown.index(">r2<") < shown.index(">r0<")
    assert "&lt;b&gt;tiny" in shown
    assert "private" not in shown
    assert "Sound: 3 records" in browser.post("/ui/audit").text
    (segment,) = segments(tmp_path / "audit")
    segment.write_bytes(segment.read_bytes().replace(b'"r1"', b'"r7"'))
    told = browser.post("/ui/audit").text
    assert "Not sound:" in told
    assert "Sound: 3" not in told


def test_without_a_log_the_page_says_so(browser: TestClient) -> None:
    assert "no audit log here" in browser.get("/ui/audit").text
    assert "no audit log here" in browser.post("/ui/audit", headers={"origin": OWN}).text
