"""What `aegis status` says of a session."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from aegis.cli import status as verb
from aegis.errors import BadInputError
from aegis.runs.process import Process
from aegis.runs.record import Session, open_session

KEYS = {
    *("session_id", "folder", "config_fingerprint", "stage", "created", "updated", "process"),
    *("command", "stages", "alive", "interrupted", "progress", "last_snapshot"),
}
STAGE_KEYS = {
    *("name", "state", "started", "seconds", "skipped", "attempts", "artifacts", "steps", "error"),
}


@pytest.fixture
def cut_off(tmp_path: Path) -> Session:
    """A session whose process died while a step ran."""
    session = open_session(tmp_path, config_fingerprint="a", resume=True, stages=("train", "fold"))
    session.stage, session.process = "train", Process(2**22 + 5, 1.0, "an earlier boot")
    session.stages[0].state = "running"
    session.stages[0].steps["sft"] = {"state": "running", "metrics": {"accuracy": 0.5}}
    session.command = {"argv": ["run", "x.yaml"], "cwd": "."}
    session.save()
    session.add_snapshot("train", session.folder / "one", step=3, seconds=0.1, size=10)
    return session


def test_the_keys_stay(cut_off: Session, capsys: pytest.CaptureFixture[str]) -> None:
    verb.status(cut_off.folder, json=True)
    found = json.loads(capsys.readouterr().out)
    assert found.keys() >= KEYS
    assert found["stages"][0].keys() == STAGE_KEYS
    assert (found["alive"], found["interrupted"]) == (False, True)
    assert found["last_snapshot"]["step"] == 3


def test_a_run_that_was_cut_off_says_how_to_go_on(
    cut_off: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    verb.status(cut_off.folder)
    text = capsys.readouterr().out
    assert text.count("cut off") == 2
    assert "accuracy 0.5" in text
    assert "not alive; go on with: aegis run x.yaml" in text


def test_what_is_no_session_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such session; start one with: aegis run"):
        verb.status(tmp_path / "none")
    with pytest.raises(BadInputError, match="no readable session record"):
        verb.status(tmp_path)


def test_nothing_heavy_is_imported(cut_off: Session) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from aegis.cli.status import status\n"
        "status(Path(sys.argv[1]))\n"
        "sys.exit(', '.join({'torch', 'transformers', 'numpy'} & sys.modules.keys()) or 0)\n"
    )
    command = [sys.executable, "-c", code, str(cut_off.folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_what_matters_is_shown_and_no_path_is_cut_off(
    cut_off: Session, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    names = [f"other_{number}" for number in range(9)]
    known = {"kl_last": 0.01234567, "accuracy": 0.5, "validation_loss": None}
    stage = cut_off.stages[0]
    stage.steps = {"ppo": {"state": "completed", "metrics": dict.fromkeys(names, 1.0) | known}}
    stage.steps["new"] = {"state": "completed", "metrics": dict.fromkeys(names, 1)}
    stage.artifacts = {"adapter": "a" * 90, "sft": "sft"}
    stage.error = "broken " * 20
    cut_off.save()
    verb.status(cut_off.folder)
    lines = capsys.readouterr().out.splitlines()
    assert "ppo       accuracy 0.5, kl_last 0.01235" in lines
    assert "new       other_0 1, other_1 1, other_2 1, other_3 1, other_4 1" in lines
    assert f"adapter   {cut_off.folder / ('a' * 90)}" in lines
    assert f"sft       {cut_off.folder / 'sft'}" in lines
    assert any(line.startswith("error     train: broken") for line in lines)
