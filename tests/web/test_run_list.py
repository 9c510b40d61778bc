from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from aegis.errors import BadInputError
from aegis.runs.process import this_process
from aegis.runs.record import CONFIG, DATABASE, RECORD
from aegis.web.run_list import METRICS, RunList
from tests.web.runs import finish, judged, new_run


def test_a_finished_run_has_its_base_and_what_it_measured(runs: Path) -> None:
    session = new_run(runs)
    finish(session)
    judged(session)
    (row,), count = RunList(runs).rows()
    assert (count, row.name, row.state, row.base) == (1, session.session_id, "finished", "tiny")
    assert row.quality is not None
    assert row.quality.miss_rate.interval[1] == 0.1056


@pytest.mark.parametrize("text", ["", "{", "[]", '{"macro_f1": 1}', "[" * 100_000])
def test_measurements_that_cannot_be_read_are_left_out(runs: Path, text: str) -> None:
    session = new_run(runs)
    judged(session)
    (session.folder / METRICS).write_text(text)
    (session.folder / CONFIG).write_text("a: [")
    (row,), _ = RunList(runs).rows()
    assert (row.quality, row.base) == (None, "")


def test_a_damaged_run_says_why_and_hides_no_other(runs: Path) -> None:
    damaged, sound = new_run(runs), new_run(runs, fingerprint="b")
    for name in (DATABASE, RECORD):
        (damaged.folder / name).write_text("{")
    rows = {row.name: row for row in RunList(runs).rows()[0]}
    assert rows[damaged.session_id].state == "unreadable"
    assert "no readable session record" in rows[damaged.session_id].evidence
    assert rows[sound.session_id].state != "unreadable"


def test_what_changes_is_read_anew(runs: Path) -> None:
    session, listed = new_run(runs), RunList(runs)
    session.process = this_process()
    session.stages[1].state = session.stage = "running"
    session.save()
    assert listed.row(session.folder).state == "running"
    finish(session)
    assert listed.row(session.folder).state == "finished"
    judged(session)
    assert listed.row(session.folder).quality is not None
    shutil.rmtree(session.folder)
    assert listed.row(session.folder).state == "unreadable"
    assert listed.rows() == ([], 0)


@pytest.mark.parametrize("name", ["..", "", "aegis_v2_x", "../runs", "latest", "aegis_v2_*"])
def test_no_other_folder_can_be_reached(runs: Path, name: str) -> None:
    new_run(runs)
    with pytest.raises(BadInputError, match="no such run"):
        RunList(runs).folder(name)


def test_the_newest_are_shown_and_all_are_counted(runs: Path) -> None:
    names = [new_run(runs, fingerprint=str(n)).session_id for n in range(5)]
    rows, count = RunList(runs).rows(most=2)
    assert [row.name for row in rows] == names[:-3:-1]
    assert count == 5
