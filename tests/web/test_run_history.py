from __future__ import annotations

import time
from pathlib import Path

from aegis.runs.events import (
    EVENTS,
    LogMessage,
    Progress,
    SessionEnded,
    SnapshotSaved,
    StageEnded,
    TakenOver,
    TrainingBegun,
)
from aegis.web.run_history import Histories, RunHistory
from tests.web.runs import measured, new_run, told, write_many


def test_reading_on_gives_the_same_as_reading_at_once(runs: Path) -> None:
    session, bit_by_bit = new_run(runs), None
    bit_by_bit = RunHistory(session.folder)
    events = [
        TrainingBegun(training="sft", done=0, steps=100),
        *(measured(step, loss=1 / step, alpha=-5.0) for step in range(1, 9)),
        SnapshotSaved(stage="train", path="checkpoints/8", number=8, seconds=1, bytes=9),
        TakenOver(text="went on"),
        TrainingBegun(training="sft", done=4, steps=100),
        *(measured(step, loss=2.0) for step in range(5, 7)),
        StageEnded(stage="train", outcome="failed", seconds=2, error="out of memory"),
        LogMessage(text="hot", level="warning"),
        Progress(label="judging", done=1, total=9),
    ]
    for event in events:
        told(session, event)
        bit_by_bit.read_on()
    at_once = RunHistory(session.folder)
    at_once.read_on()
    assert at_once == bit_by_bit
    assert at_once.curves["sft"]["loss"].points[-3:] == [(4, 0.25), (5, 2.0), (6, 2.0)]
    assert at_once.done["sft"] == (6, 100)
    assert [line.text for line in at_once.warnings][1:] == [
        "train failed: out of memory",
        "hot",
    ]
    assert at_once.progress is not None
    assert at_once.snapshot is not None
    told(session, SessionEnded(outcome="stopped", seconds=3))
    at_once.read_on()
    assert at_once.progress is None


def test_a_half_written_line_is_read_once_it_is_whole(runs: Path) -> None:
    session = new_run(runs)
    told(session, measured(1, loss=1.0))
    history, file = RunHistory(session.folder), session.folder / EVENTS
    line = file.read_bytes()
    file.write_bytes(line + line.replace(b'"step": 1', b'"step": 2')[:-9])
    history.read_on()
    assert history.curves["sft"]["loss"].points == [(1, 1.0)]
    file.write_bytes(line + line.replace(b'"step": 1', b'"step": 2'))
    history.read_on()
    assert history.curves["sft"]["loss"].points == [(1, 1.0), (2, 1.0)]


def test_lines_that_are_no_events_are_passed_over(runs: Path) -> None:
    session = new_run(runs)
    begin = '{"v": 1, "at": "x", "kind": "metrics", "training": '
    bad = [
        "",
        "\x00\xff",
        "[" * 5000,
        '{"v": 1, "kind": "no such"}',
        begin + '"sft", "step": 1, "steps": 1, "values": "no mapping"}',
        begin + '"sft", "step": "1", "steps": 1, "values": {"loss": "high"}}',
        begin + '["sft"], "step": 1, "steps": 1, "values": {"loss": 1}}',
        '{"v": 1, "at": "x", "kind": "stage_ended", "stage": 1, "outcome": 2, "seconds": "long"}',
    ]
    text = "".join(f"{line}\n" for line in bad)
    (session.folder / EVENTS).write_text(text, encoding="utf-8", errors="surrogateescape")
    told(session, measured(3, loss=0.5))
    history = RunHistory(session.folder)
    history.read_on()
    assert history.curves["sft"]["loss"].points == [(3, 0.5)]


def test_another_file_in_its_place_begins_anew_and_none_keeps_what_was_there(runs: Path) -> None:
    session = new_run(runs)
    told(session, measured(1, loss=1.0), measured(2, loss=2.0))
    history, file = RunHistory(session.folder), session.folder / EVENTS
    history.read_on()
    file.rename(file.with_suffix(".old"))
    history.read_on()
    assert len(history.curves["sft"]["loss"].points) == 2
    told(session, measured(7, loss=3.0))
    history.read_on()
    assert history.curves["sft"]["loss"].points == [(7, 3.0)]


def test_many_events_are_kept_in_little_and_read_once(runs: Path) -> None:
    session, histories = new_run(runs), Histories()
    write_many(session, 20_000)
    times = []
    for _ in range(2):
        started = time.process_time()
        with histories.reading(session.folder) as history:
            assert history.curves["sft"]["loss"].points[-1][0] == 20_000
            assert sum(len(curve.points) for curve in history.curves["sft"].values()) <= 7 * 1024
        times.append(time.process_time() - started)
    assert times[1] < times[0] / 20


def test_few_histories_are_kept(runs: Path) -> None:
    histories, first = Histories(), new_run(runs)
    told(first, measured(1, loss=1.0))
    with histories.reading(first.folder) as before:
        pass
    for number in range(16):
        with histories.reading(runs / str(number)):
            pass
    with histories.reading(first.folder) as after:
        assert after is not before
        assert after == before
