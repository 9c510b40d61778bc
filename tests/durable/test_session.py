from __future__ import annotations

from pathlib import Path

import pytest

from aegis.durable.session import LATEST, RECORD, load, locate, newest, open_session
from aegis.errors import ArtifactError


def test_a_session_is_found_again_by_its_config(tmp_path: Path) -> None:
    first = open_session(tmp_path, config_fingerprint="a", resume=True)
    other = open_session(tmp_path, config_fingerprint="b", resume=True)
    again = open_session(tmp_path, config_fingerprint="a", resume=True)
    assert again.session_id == first.session_id != other.session_id
    assert (tmp_path / LATEST).resolve() == first.folder
    anew = open_session(tmp_path, config_fingerprint="a", resume=False)
    assert anew.session_id != first.session_id
    assert newest(tmp_path, config_fingerprint="a") == anew


def test_the_name_says_when(tmp_path: Path) -> None:
    session = open_session(tmp_path, config_fingerprint="a", resume=True)
    assert session.session_id.startswith("aegis_v2_2")
    assert session.stage == "init"
    assert [stage.state for stage in session.stages] == ["pending"] * 4


def test_latest_may_be_a_file(tmp_path: Path) -> None:
    session = open_session(tmp_path, config_fingerprint="a", resume=True)
    (tmp_path / LATEST).unlink()
    (tmp_path / LATEST).write_text(session.session_id)
    assert load(locate(tmp_path / LATEST)).session_id == session.session_id


@pytest.mark.parametrize("text", ["", "{}", '{"stages": 3}'])
def test_a_damaged_record_is_told_and_passed_over(tmp_path: Path, text: str) -> None:
    session = open_session(tmp_path, config_fingerprint="a", resume=True)
    (session.folder / RECORD).write_text(text)
    with pytest.raises(ArtifactError, match="no readable session record"):
        load(session.folder)
    assert newest(tmp_path) is None
