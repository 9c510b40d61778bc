"""`aegis tune` on a tiny random model: real trainings, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_run import aegis, own_records

STUDY = """
about: Quick trainings.
settings: {train.algorithm: sft, train.epochs: 1.0, train.probe_records: 32, train.refit_records: 0,
  train.checks: 2, data.generate.samples: 0, model.lexical: false}
space:
  train.lr: {float: [1.0e-5, 1.0e-2], log: true}
  model.lora.rank: {choices: [2, 4, 8]}
objective: {normalised_loss: 8, stability: 2, convergence: 2, failed: 0.1}
"""

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path: Path, base_folder: Path) -> Path:
    own_records(tmp_path / "own.jsonl")
    (tmp_path / "quick.yaml").write_text(STUDY)
    (tmp_path / "config.yaml").write_text(
        f"base: {base_folder.as_posix()}\nthreads: 1\n"
        "data: {seed_records: false, records: [own.jsonl]}\n"
    )
    return tmp_path


def trials(place: Path) -> list[tuple[int, str]]:
    with sqlite3.connect(place / "runs" / "studies" / "quick" / "study.db") as database:
        return database.execute("SELECT number, state FROM trials ORDER BY number").fetchall()


def events(place: Path, kind: str) -> list[dict[str, Any]]:
    files = sorted((place / "runs" / "studies" / "quick" / "runs").glob("aegis_*/events.jsonl"))
    rows = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def test_a_study_of_real_trainings_and_a_run_with_its_best(place: Path) -> None:
    words = ("--trials", "3", "--seeds", "0", "--json")
    done = aegis("tune", "quick.yaml", "config.yaml", *words, cwd=place)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert sum(result["trials"].values()) == 3
    assert 0 < result["value"] <= 12
    written = [event["name"] for event in events(place, "artifact_written")]
    assert written.count("records") == 1  # and the others took it over
    folder = place / "runs" / "studies" / "quick"
    assert {path.name for path in (folder / "trials").iterdir()} == {
        "default",
        "0000",
        "0001",
        "0002",
    }
    assert "model.lora.rank" in (folder / "summary.md").read_text()
    trained = aegis(
        *("run", "config.yaml", "--set-from", folder / "optimal_hyperparameters.json"),
        *("--set", "train.algorithm=sft", "--set", "evaluate.benchmark_items=0", "--json"),
        cwd=place,
    )
    assert trained.returncode == 0, trained.stderr
    card = json.loads((place / "runs" / "latest" / "adapter" / "so8.json").read_text())
    assert card["training"]["settings"]["lr"] == result["settings"]["train.lr"]


def test_a_killed_worker_loses_no_trial(place: Path) -> None:
    command = [sys.executable, "-m", "aegis", "tune", "quick.yaml", "config.yaml", "--trials", "3"]
    environment = {**os.environ, "AEGIS_HOME": str(place / "home"), "HF_HUB_OFFLINE": "1"}
    with (place / "killed.log").open("wb") as log:
        worker = subprocess.Popen(command, cwd=place, env=environment, stdout=log, stderr=log)
    begun = time.monotonic()
    session = place / "runs" / "studies" / "quick" / "trials" / "0001" / "session.txt"
    while not session.exists():
        assert worker.poll() is None, (place / "killed.log").read_text()
        assert time.monotonic() - begun < 240
        time.sleep(0.05)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert dict(trials(place))[1] == "RUNNING"
    words = ("--trials", "3", "--seeds", "0")
    again = aegis("tune", "quick.yaml", "config.yaml", *words, cwd=place)
    assert again.returncode == 0, again.stderr
    ended = [state for _, state in trials(place)]
    assert ended.count("FAIL") == 1
    assert ended.count("COMPLETE") + ended.count("PRUNED") == 3
    assert {state for _, state in trials(place)} <= {"COMPLETE", "PRUNED", "FAIL"}
