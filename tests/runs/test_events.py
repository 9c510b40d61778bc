"""What is written of a run's events, and what is read of it."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest

from aegis.runs import events
from aegis.runs.events import (
    EVENTS,
    KINDS,
    EventLog,
    LogMessage,
    Metrics,
    Progress,
    Reporter,
    StageEnded,
    TrainingBegun,
    append_event,
    read_events,
)

DOCS = Path(__file__).parents[2] / "docs" / "events.md"


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / EVENTS).read_text("utf-8").splitlines()]


def test_an_event_that_cannot_be_written_never_fails_a_run(tmp_path: Path) -> None:
    said: list[str] = []
    log = EventLog(tmp_path, say=said.append)
    log(LogMessage(text="a lone surrogate \ud800"))
    strange: Any = {"loss": {1, 2}}
    log(Metrics(training="sft", step=1, steps=2, values=strange))
    log(LogMessage(text="after"))
    log.close()
    assert [event.text for event in read_events(tmp_path, LogMessage)][-1] == "after"
    assert len(said) == 1


def test_each_line_says_version_time_and_kind(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    reporter = Reporter(log)
    step = Metrics(training="sft", step=1, steps=2, values={"loss": 1.5, "kl": math.nan})
    reporter.emit(TrainingBegun(training="sft", done=0, steps=2, history=[step]))
    reporter.emit(step)
    reporter.warning("助けて")
    log.close()
    first, second, third = lines(tmp_path)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("at"))
    assert first == {"v": 1, "kind": "training_begun", "training": "sft", "done": 0, "steps": 2}
    assert second["values"] == {"loss": 1.5, "kl": None}
    assert (third["text"], third["level"]) == ("助けて", "warning")


def test_what_is_read_is_what_was_emitted(tmp_path: Path) -> None:
    emitted = [
        LogMessage(text="a"),
        StageEnded(stage="s", outcome="failed", seconds=2.0, error="e"),
    ]
    for event in emitted:
        append_event(tmp_path, event)
    assert list(read_events(tmp_path)) == emitted
    assert list(read_events(tmp_path, StageEnded)) == emitted[1:]
    assert list(read_events(tmp_path / "nowhere")) == []


def test_the_schema_is_documented() -> None:
    table = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", DOCS.read_text("utf-8"), re.MULTILINE))
    assert table.keys() == KINDS.keys()
    for kind, text in table.items():
        recorded = {
            item.name
            for item in events.fields(KINDS[kind])
            if item.metadata.get("recorded", True) and item.name != "at"
        }
        assert recorded == set(re.findall(r"`(\w+)`", text)), kind


@pytest.mark.parametrize("torn", [b'{"v": 1, "at": "2026', b"\0" * 9000, b"x" * 9000, b"\xff"])
def test_a_torn_last_line_is_passed_over_and_removed(tmp_path: Path, torn: bytes) -> None:
    append_event(tmp_path, LogMessage(text="a"))
    with (tmp_path / EVENTS).open("ab") as file:
        file.write(torn)
    assert [event.text for event in read_events(tmp_path, LogMessage)] == ["a"]
    append_event(tmp_path, LogMessage(text="b"))
    assert [line["text"] for line in lines(tmp_path)] == ["a", "b"]


def test_a_file_that_is_one_torn_line_begins_anew(tmp_path: Path) -> None:
    (tmp_path / EVENTS).write_bytes(b"x" * 10_000)
    append_event(tmp_path, LogMessage(text="b"))
    assert [line["text"] for line in lines(tmp_path)] == ["b"]


def test_what_a_later_version_wrote_is_passed_over(tmp_path: Path) -> None:
    rows = [
        {"v": 2, "at": "", "kind": "message", "text": "other"},
        {"v": 1, "at": "", "kind": "new"},
        {"v": 1, "at": "", "kind": "message", "text": "known", "colour": "red"},
        ["no", "object"],
        {"v": 1, "at": "", "kind": "message"},
    ]
    (tmp_path / EVENTS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(read_events(tmp_path)) == [LogMessage(at="", text="known")]


def test_progress_is_written_once_a_second_and_its_last(tmp_path: Path) -> None:
    moment = 0.0
    log = EventLog(tmp_path, clock=lambda: moment)
    for label, count in (("one", 40), ("two", 3)):
        for done in range(1, count + 1):
            log(Progress(label=label, done=done, total=40))
            moment += 0.125
    log(StageEnded(stage="s", outcome="stopped", seconds=4.3))
    log.close()
    found = [(line.get("label"), line.get("done")) for line in lines(tmp_path)]
    assert found == [
        *(("one", done) for done in (1, 9, 17, 25, 33, 40)),
        ("two", 1),
        ("two", 3),
        (None, None),
    ]


def test_a_full_disk_costs_events_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    log = EventLog(tmp_path, say=said.append)
    log(LogMessage(text="before"))
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) > 10:
            write(descriptor, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(events.os, "write", full)
        log(LogMessage(text="lost"))
        log(LogMessage(text="lost, too"))
    log(LogMessage(text="after"))
    log.close()
    assert [line["text"] for line in lines(tmp_path)] == ["before", "after"]
    (message,) = said
    assert "events cannot be written (No space left on device); the run goes on" in message
