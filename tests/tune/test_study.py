from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from aegis.errors import AegisError, BadInputError, StoppedError
from aegis.tune import study as module
from aegis.tune.database import counted
from aegis.tune.report import result_of
from aegis.tune.space import read_plan
from aegis.tune.study import StudyWorkers, Tuning, prepare
from aegis.tune.trial import TrialError
from tests.tune.studies import STUDY, config_in, quick_run, write_study


@pytest.fixture
def tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tuning:
    monkeypatch.setattr(module, "run_trial", quick_run)
    monkeypatch.setattr(module, "_LOOK_S", 0.05)
    return prepare(read_plan(write_study(tmp_path)), config_in(tmp_path))


def states(workers: StudyWorkers) -> list[str]:
    return [trial.state.name for trial in workers.study.get_trials()]


def test_a_study_ends_with_as_many_trials_as_asked_and_goes_on_for_more(tuning: Tuning) -> None:
    workers = StudyWorkers(tuning)
    workers.run(3)
    assert states(workers) == ["COMPLETE"] * 3
    again = StudyWorkers(tuning)
    again.run(5, workers=2)
    again.run(5)
    assert states(again) == ["COMPLETE"] * 5
    assert again.study.user_attrs["default"]["accuracy"] == 1.0


def test_the_same_seed_tries_the_same_settings(tuning: Tuning, tmp_path: Path) -> None:
    tried = []
    for name in ("a", "b"):
        other = replace(tuning, folder=tmp_path / name)
        workers = StudyWorkers(other)
        workers.run(8)
        tried.append([trial.params for trial in workers.study.get_trials()])
    assert tried[0] == tried[1]
    assert len({str(params) for params in tried[0]}) == 8


def test_two_workers_share_the_trials_without_doing_one_twice(tuning: Tuning) -> None:
    both = [StudyWorkers(tuning), StudyWorkers(tuning)]
    threads = [threading.Thread(target=each.run, args=(12,)) for each in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trials = both[0].study.get_trials()
    assert states(both[0]) == ["COMPLETE"] * 12
    assert len({str(trial.params) for trial in trials}) == 12


def test_a_stopped_trial_is_done_by_the_next_call(tuning: Tuning) -> None:
    stop: list[bool] = []

    def check() -> None:
        if stop:
            raise StoppedError("stop")

    def stopping(folder: Path, *args: Any, **named: Any) -> Path:
        if folder.name == "0001":
            stop.append(True)
        return quick_run(folder, *args, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "run_trial", stopping)
        with pytest.raises(StoppedError):
            StudyWorkers(replace(tuning, check=check)).run(4)
    workers = StudyWorkers(tuning)
    assert states(workers) == ["COMPLETE", "FAIL", "WAITING"]
    workers.run(4)
    done = counted(workers.study.get_trials())
    assert [trial.state.name for trial in done] == ["COMPLETE"] * 4
    trials = workers.study.get_trials()
    assert trials[2].params == trials[1].params


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_a_dead_workers_trial_is_done_again(tuning: Tuning) -> None:
    workers = StudyWorkers(tuning)
    workers.run(1)
    lost = workers.study.ask()  # and nobody tells
    params = tuning.plan.suggest(lost)
    gone = {"host": __import__("platform").node(), "pid": 2**22 + 1, "started": 1.0, "boot": "x"}
    lost.set_user_attr("worker", gone)
    workers.run(3)
    ended = workers.study.get_trials()
    assert [trial.state.name for trial in ended] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert ended[2].params == params
    assert len(counted(ended)) == 3


def test_a_failed_trial_is_worth_what_the_objective_says(tuning: Tuning) -> None:
    def failing(folder: Path, *args: Any, **named: Any) -> Path:
        if folder.name == "0001":
            raise TrialError("loss nan")
        return quick_run(folder, *args, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "run_trial", failing)
        workers = StudyWorkers(tuning)
        workers.run(3)
    trial = workers.study.get_trials()[1]
    assert (trial.value, trial.user_attrs["failed"]) == (0.1, "loss nan")


@pytest.mark.parametrize("failed", ["failed: 0.1", "accuracy: 1"])
def test_when_every_trial_fails_it_says_why_and_the_study_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failed: str
) -> None:
    text = STUDY.replace("failed: 0.1", failed)
    tuning = prepare(read_plan(write_study(tmp_path, text)), config_in(tmp_path))
    monkeypatch.setattr(module, "_LOOK_S", 0.05)
    broken = [True]

    def failing(folder: Path, *args: Any, **named: Any) -> Path:
        if broken and folder.name != "default":
            raise TrialError("loss nan")
        return quick_run(folder, *args, **named)

    monkeypatch.setattr(module, "run_trial", failing)
    with pytest.raises(AegisError, match=r"none of 2 trials came to a result.*loss nan.*0001"):
        StudyWorkers(tuning).run(2)
    broken.clear()
    workers = StudyWorkers(tuning)
    workers.run(3)
    assert workers.study.get_trials()[2].state is TrialState.COMPLETE


def test_settings_of_the_config_that_fail_are_told_before_any_trial(tuning: Tuning) -> None:
    def failing(*args: Any, **named: Any) -> Path:
        raise TrialError("no room")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "run_trial", failing)
        workers = StudyWorkers(tuning)
        with pytest.raises(AegisError, match=r"own settings fail in study mine: no room.*log.txt"):
            workers.run(2)
    assert workers.study.get_trials() == []


def test_another_space_config_or_version_is_refused(
    tuning: Tuning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    StudyWorkers(tuning)
    wider = read_plan(write_study(tmp_path, STUDY.replace("[4, 8, 16]", "[4, 8, 32]")))
    with pytest.raises(BadInputError, match=r"study mine exists .* another space; .* --name"):
        StudyWorkers(replace(tuning, plan=wider))
    with pytest.raises(BadInputError, match="another config"):
        StudyWorkers(replace(tuning, config=config_in(tmp_path, seed=1)))
    with pytest.raises(BadInputError, match="another objective"):
        StudyWorkers(replace(tuning, pareto=True))
    monkeypatch.setattr(module, "__version__", "9.9")
    with pytest.raises(BadInputError, match="another version of AEGIS"):
        StudyWorkers(tuning)


def test_hopeless_trials_are_pruned_on_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "run_trial", quick_run)
    text = STUDY.replace("pruner: none", "pruner: median")
    tuning = prepare(read_plan(write_study(tmp_path, text)), config_in(tmp_path))
    workers = StudyWorkers(tuning)
    workers.run(12)
    ended = workers.study.get_trials()
    reached = {
        state: [t for t in ended if t.state is state]
        for state in (TrialState.COMPLETE, TrialState.PRUNED)
    }
    assert all(reached.values())
    worst = min(
        max(t.intermediate_values.values()) for t in reached[TrialState.COMPLETE][5:] or ended
    )
    assert max(max(t.intermediate_values.values()) for t in reached[TrialState.PRUNED]) <= max(
        max(t.intermediate_values.values()) for t in reached[TrialState.COMPLETE]
    )
    assert worst <= 0


def test_a_pareto_study_has_an_objective_a_measure(tuning: Tuning) -> None:
    other = replace(tuning, pareto=True, name="front")
    workers = StudyWorkers(other)
    workers.run(3)
    assert [direction.name for direction in workers.study.directions] == ["MAXIMIZE"] * 2
    assert workers.study.best_trials


def test_the_best_is_compared_over_other_seeds_and_only_once(
    tuning: Tuning, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, int]] = []

    def counting(folder: Path, config: Any, *args: Any, **named: Any) -> Path:
        trained.append((folder.name, config.seed))
        return quick_run(folder, config, *args, **named)

    monkeypatch.setattr(module, "run_trial", counting)
    workers = StudyWorkers(tuning)
    workers.run(4)
    trained.clear()
    workers.compare(3, workers=2)
    assert sorted(seed for _, seed in trained) == [1, 1, 2, 2, 3, 3]
    result = result_of(workers.study, tuning.config)
    assert result
    assert result.comparison
    assert result.comparison.seeds == (1, 2, 3)
    assert result.comparison.difference == pytest.approx(result.value - result.default_value)
    trained.clear()
    workers.compare(3)
    assert trained == []


def test_folds_are_other_seeds_whose_mean_counts(
    tuning: Tuning, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []

    def counting(folder: Path, config: Any, *args: Any, **named: Any) -> Path:
        seeds.append(config.seed)
        return quick_run(folder, config, *args, **named)

    monkeypatch.setattr(module, "run_trial", counting)
    workers = StudyWorkers(replace(tuning, folds=3))
    workers.run(2)
    assert seeds == [0, 1, 2] * 3
    with pytest.raises(BadInputError, match="another config"):
        StudyWorkers(tuning)
