from __future__ import annotations

import platform
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from aegis.errors import BadInputError
from aegis.runs.process import this_process
from aegis.tune import database as module
from aegis.tune.database import (
    PatientStorage,
    be_patient,
    counted,
    explained,
    fail_dead_trials,
    open_storage,
    queue_again,
)

pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage", "ignore:.*fail_stale_trials")
DEAD = {"host": platform.node(), "pid": 2**22 + 1, "started": 1.0, "boot": "another"}


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    storage = open_storage(f"sqlite:///{tmp_path / 'study.db'}")
    return optuna.create_study(storage=storage, study_name="s")


def begin(study: optuna.Study, worker: dict[str, object] | None) -> optuna.Trial:
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    if worker:
        trial.set_user_attr("worker", worker)
    return trial


def test_only_trials_of_dead_processes_are_ended_and_queued_again(study: optuna.Study) -> None:
    alive = begin(study, {"host": platform.node(), **asdict(this_process())})
    elsewhere = begin(study, {**DEAD, "host": "another machine"})
    young = begin(study, None)
    dead = begin(study, DEAD)
    fail_dead_trials(study)
    trials = study.get_trials()
    assert [trials[each.number].state.name for each in (alive, elsewhere, young, dead)] == [
        "RUNNING",
        "RUNNING",
        "RUNNING",
        "FAIL",
    ]
    assert (trials[4].state, trials[4].params) == (TrialState.WAITING, dead.params)
    assert len(counted(trials)) == 3
    fail_dead_trials(study, unsigned_s=-1)  # by now the one that nobody signed is old
    assert study.get_trials()[young.number].state is TrialState.FAIL


def test_a_trial_is_queued_again_three_times_at_most(study: optuna.Study) -> None:
    for _ in range(6):
        begin(study, DEAD)
        fail_dead_trials(study)
    trials = study.get_trials()
    chains = [trial.system_attrs.get("retry_history", []) for trial in trials]
    assert max(map(len, chains)) == 3
    assert counted(trials)


def test_a_retry_keeps_the_settings_and_forgets_the_worker(study: optuna.Study) -> None:
    trial = begin(study, DEAD)
    study.tell(trial, state=TrialState.FAIL)
    queue_again(study, study.get_trials()[0])
    retried = study.ask()
    assert retried.suggest_float("x", 0, 1) == trial.params["x"]
    assert retried.user_attrs == {}


def test_a_database_that_is_away_for_a_moment_is_waited_for(
    study: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(f"sqlite:///{tmp_path / 'study.db'}")
    calls: list[int] = []

    def away(*_: object) -> list[object]:
        calls.append(1)
        if len(calls) < 4:
            gone = OperationalError("select", {}, Exception("connection refused"))
            raise StorageInternalError from gone
        return []

    monkeypatch.setattr(module.RDBStorage, "get_all_trials", away)
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    patient = module._patient("get_all_trials")
    with pytest.raises(StorageInternalError):
        patient(storage, 1)
    be_patient(storage)
    assert patient(storage, 1) == []
    assert len(calls) == 4


def test_every_call_that_is_to_wait_is_one_of_optunas() -> None:
    assert {*module._CACHE, "record_heartbeat", "get_all_trials"} <= {*module._CALLS}
    assert all(name in vars(PatientStorage) for name in module._CALLS)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "must be a database URL"),
        ("oracle9://x/y", "no driver for oracle9"),
        ("sqlite:////no/such/folder/study.db", "unable to open database file"),
        ("postgresql://user:secret@127.0.0.1:1/x", "127.0.0.1"),
    ],
)
def test_a_database_that_cannot_be_used_is_told_without_its_password(
    url: str, message: str
) -> None:
    with pytest.raises(BadInputError, match="--storage") as error:
        open_storage(url)
    assert message in str(error.value)
    assert "secret" not in str(error.value)


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("hello\n" * 500)
    with pytest.raises(BadInputError, match="file is not a database"):
        open_storage(f"sqlite:///{tmp_path / 'study.db'}")


def test_a_read_only_database_is_told(tmp_path: Path, study: optuna.Study) -> None:
    url = f"sqlite:///file:{tmp_path / 'study.db'}?mode=ro&uri=true"
    with pytest.raises(BadInputError, match="readonly database"), explained(url):
        optuna.load_study(study_name="s", storage=open_storage(url)).set_user_attr("x", 1)


def test_an_old_heartbeat_is_optunas_to_end(study: optuna.Study, tmp_path: Path) -> None:
    trial = begin(study, {**DEAD, "host": "another machine"})
    storage = open_storage(f"sqlite:///{tmp_path / 'study.db'}", stale_s=1)
    storage.record_heartbeat(trial._trial_id)
    before = datetime.now()
    other = optuna.load_study(study_name="s", storage=storage)
    while other.get_trials()[0].state is TrialState.RUNNING:
        assert datetime.now() - before < timedelta(seconds=20)
        optuna.storages.fail_stale_trials(other)
    assert other.get_trials()[1].state is TrialState.WAITING
