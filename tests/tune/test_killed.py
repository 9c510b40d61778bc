"""SIGKILL at random instants: every trial ends, none is lost or counted twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from optuna.trial import TrialState

from aegis.tune.database import counted
from aegis.tune.study import open_to_look

pytestmark = pytest.mark.skipif(os.name == "nt", reason="SIGKILL is of POSIX")
ROOT = Path(__file__).parents[2]


def start(folder: Path, trials: int, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.tune.worker", str(folder), str(trials), *more]
    with (folder / "workers.log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


@pytest.mark.parametrize(
    ("kills", "trials"), [(2, 20), pytest.param(50, 300, marks=pytest.mark.slow)]
)
def test_killed_workers_lose_no_trial(tmp_path: Path, kills: int, trials: int) -> None:
    drawn = random.Random(kills)
    database = tmp_path / "runs" / "studies" / "mine" / "study.db"
    running: list[subprocess.Popen[bytes]] = []
    done = 0
    while done < kills:
        running = [worker for worker in running if worker.poll() is None]
        while len(running) < 2:
            running.append(start(tmp_path, trials))
        while not database.exists():
            time.sleep(0.01)
        time.sleep(drawn.uniform(0.0, 1.0))
        victim = drawn.choice(running)
        if victim.poll() is None:
            victim.send_signal(signal.SIGKILL)
            victim.wait()
            done += 1
        elif victim.returncode == 0:
            break  # the study is done: fewer kills than asked for would be no test
    for worker in running:
        worker.wait()
    assert start(tmp_path, trials).wait() == 0, (tmp_path / "workers.log").read_text()[-2000:]
    assert done == kills
    ended = open_to_look(database.parent).get_trials()
    assert {trial.state for trial in ended} <= {TrialState.COMPLETE, TrialState.FAIL}
    assert [trial.number for trial in ended] == list(range(len(ended)))
    known = counted(ended)
    assert len(known) == trials
    complete = [trial for trial in known if trial.state is TrialState.COMPLETE]
    assert len({str(trial.params) for trial in complete}) == len(complete)
    again = [trial for trial in ended if trial not in known]
    assert {trial.state for trial in again} <= {TrialState.FAIL}
