from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from aegis.runs.events import Event, Progress, StageBegun
from aegis.runs.heartbeat import HEARTBEAT, Beat, Heartbeat, read_beat


class Pulse:
    """A heartbeat whose clock the test turns by hand."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock_s = folder, 100.0
        self.heartbeat = Heartbeat(folder, "init", clock=lambda: self.clock_s)

    def after(self, seconds: float, event: Event) -> Beat:
        self.clock_s += seconds
        self.heartbeat(event)
        beat = read_beat(self.folder)
        assert beat is not None
        return beat


def at(done: int, label: str = "training", total: int = 40) -> Progress:
    return Progress(label=label, done=done, total=total, note=f"loss {done}")


def test_a_beat_says_what_is_done_and_how_long_it_may_take(tmp_path: Path) -> None:
    pulse = Pulse(tmp_path)
    first = read_beat(tmp_path)
    assert first is not None
    assert (first.count, first.stage, first.doing, first.done) == (1, "init", "starting", 0)
    assert pulse.after(0, StageBegun(stage="data")).stage == "init"
    assert pulse.after(5, at(12)).left_s is None  # nothing says when the first began
    beat = pulse.after(6, at(15))
    assert (beat.stage, beat.doing, beat.done, beat.total) == ("data", "training", 15, 40)
    assert (beat.left_s, beat.note, beat.count) == (50.0, "loss 15", 3)
    assert pulse.after(2, at(1)).left_s is None  # started over


def test_at_most_one_a_second_but_each_new_label_and_each_end(tmp_path: Path) -> None:
    pulse = Pulse(tmp_path)
    counts = [
        pulse.after(seconds, event).count
        for seconds, event in (
            (0.0, at(1)),
            (0.5, at(2)),
            (0.6, at(3)),
            (0.1, at(1, "judging")),
            (0.1, at(2, "judging")),
            (0.1, at(40, "judging")),
        )
    ]
    assert counts == [2, 2, 3, 4, 4, 5]


def test_a_beat_that_cannot_be_written_or_read_fails_nothing(tmp_path: Path) -> None:
    (tmp_path / HEARTBEAT).mkdir()
    Heartbeat(tmp_path, "init")(at(1))
    assert read_beat(tmp_path) is None
    (tmp_path / HEARTBEAT).rmdir()
    Heartbeat(tmp_path, "init")
    whole = json.loads((tmp_path / HEARTBEAT).read_text())
    for damaged in ({"count": 1}, [], whole | {"time": "x"}, whole | {"done": [1]}):
        (tmp_path / HEARTBEAT).write_text(json.dumps(damaged))
        assert read_beat(tmp_path) is None, damaged


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes with names")
def test_a_pipe_in_its_place_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / HEARTBEAT)
    assert read_beat(tmp_path) is None
