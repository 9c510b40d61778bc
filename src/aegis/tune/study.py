"""Work on a study: any number of workers, here and elsewhere, take its trials one after another."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from aegis import __version__
from aegis.config import Config
from aegis.errors import AegisError, BadInputError, ConfigError, StoppedError
from aegis.runs.events import Metrics
from aegis.runs.reporter import bar
from aegis.storage.files import fingerprint, make_folder
from aegis.storage.lock import only_process
from aegis.tune.database import (
    STALE_S,
    PatientStorage,
    be_patient,
    counted,
    explained,
    fail_dead_trials,
    is_unsigned,
    open_storage,
    origin,
    queue_again,
    sign,
)
from aegis.tune.objectives import TrainingRecord
from aegis.tune.report import SEEDS, best_trial, describe, succeeded
from aegis.tune.space import StudyPlan, check_space, with_settings
from aegis.tune.trial import LOG, TrialError, TrialLimits, run_trial

DATABASE, RUNS, TRIALS = "study.db", "runs", "trials"
_STARTUP_TRIALS = 5  # drawn at random before Optuna's sampler has something to go by
_LOOK_S = 1.0


@dataclass(frozen=True)
class Tuning:
    """A study and how to work on it.

    Args:
        config: what is tuned, with the plan's own settings.
        folder: of the study: its database, its trials, its results.
        pareto: whether each measure of the objective is an objective of its own.
        storage: the database's URL; empty for a file in the folder.
        folds: trainings of a trial, each with the next seed and so with another split of the
            records; it is worth their mean.
        stale_s: after so long without a sign of life from its worker a trial is run again.
        check: raises StoppedError when it is time to stop.
    """

    plan: StudyPlan
    config: Config
    folder: Path
    name: str
    limits: TrialLimits = field(default_factory=TrialLimits)
    pareto: bool = False
    folds: int = 1
    storage: str = ""
    stale_s: int = STALE_S
    check: Callable[[], None] = lambda: None

    @property
    def url(self) -> str:
        return self.storage or f"sqlite:///{(self.folder / DATABASE).absolute()}"


def prepare(plan: StudyPlan, config: Config, *, pareto: bool = False, name: str = "") -> Tuning:
    """Check a study against the config, and say where it lies.

    Raises:
        ConfigError: if a setting of the space cannot have a value that it may get.
    """
    name = name or plan.name + ("-pareto" if pareto else "")
    folder = (Path(config.runs) / "studies" / name).absolute()
    small = check_space(plan, config)
    small = with_settings(small, {"runs": str(folder / RUNS), "tracking": []}, where=plan.name)
    return Tuning(plan, small, folder, name, pareto=pareto)


class StudyWorkers:
    """Takes trials of one study in threads, each of which watches a process that trains."""

    def __init__(self, tuning: Tuning) -> None:
        self.tuning = tuning
        make_folder(tuning.folder / TRIALS)
        self.storage: PatientStorage = open_storage(tuning.url, stale_s=tuning.stale_s)
        with explained(tuning.url):
            self.study = self._open()
        be_patient(self.storage)

    def run(self, trials: int, *, workers: int = 1) -> None:
        """Work until the study has so many trials, those of other workers included.

        Raises:
            StoppedError: if a stop was asked for; unfinished trials are queued again.
            AegisError: if the config's own settings fail, or every trial does.
        """
        with bar("tuning", trials, done=min(trials, self.finished()), stoppable=False) as advance:
            with self._asking():
                if "default" not in self.study.user_attrs:
                    self._run_default()
            failures: list[BaseException] = []
            threads = [
                threading.Thread(target=self._work, args=(trials, failures), daemon=True)
                for _ in range(workers)
            ]
            for thread in threads:
                thread.start()
            shown = min(trials, self.finished())
            while any(thread.is_alive() for thread in threads):
                time.sleep(_LOOK_S)
                now = min(trials, self.finished())
                advance(now - shown, note=describe(self.study))
                shown = now
        for error in sorted(failures, key=lambda each: isinstance(each, StoppedError)):
            raise error
        self._require_some_success()

    def compare(self, seeds: int, *, workers: int = 1) -> None:
        """Train the best and the config's own settings with seeds that no trial had.

        What is measured is kept in the study, so that a stopped comparison goes on.

        Raises:
            AegisError: if one of the trainings fails.
        """
        best = best_trial(self.study)
        if best is None or seeds < 2:
            return
        first = self.tuning.config.seed + self.tuning.folds
        jobs = [
            (name, seed)
            for seed in range(first, first + seeds)
            for name in ("default", str(best.number))
            if f"{name} {seed}" not in self.study.user_attrs.get(SEEDS, {})
        ]
        settings = {"default": {}, str(best.number): best.params}

        def measure(job: tuple[str, int]) -> None:
            name, seed = job
            where = f"seed {seed}"
            config = with_settings(self.tuning.config, settings[name] | {"seed": seed}, where=where)
            measures = self._measure(self.tuning.folder / TRIALS / f"{name}-seed{seed}", config)
            with self._asking():
                known = self.study.user_attrs.get(SEEDS, {})
                self.study.set_user_attr(SEEDS, known | {f"{name} {seed}": measures})

        with ThreadPoolExecutor(workers) as pool, bar("other seeds", len(jobs)) as advance:
            for _ in pool.map(measure, jobs):
                advance()

    def finished(self) -> int:
        """Return how many trials have ended for good."""
        return sum(trial.state.is_finished() for trial in counted(self.study.get_trials()))

    def _open(self) -> optuna.Study:
        """Open or make the study; refuse one that is another under the same name."""
        tuning, plan = self.tuning, self.tuning.plan
        directions = plan.objective.directions(pareto=tuning.pareto)
        settings = tuning.config.model_dump(mode="json", exclude={"runs", "durable", "tracking"})
        own = {
            "aegis_version": __version__,
            "directions": directions,
            "space": plan.identity(),
            "config": fingerprint(settings, tuning.folds),
        }
        study = optuna.create_study(
            storage=self.storage,
            study_name=tuning.name,
            directions=directions,
            load_if_exists=True,
        )
        for key, value in own.items():
            if study.user_attrs.get(key, value) != value:
                raise self._another(key)
            study.set_user_attr(key, value)  # which also shows that it can be written
        study.set_user_attr("objective", plan.objective.weights)
        return study

    def _another(self, key: str) -> BadInputError:
        what = {
            "aegis_version": "by another version of AEGIS",
            "directions": "with another objective (--pareto or not)",
        }
        return BadInputError(
            f"study {self.tuning.name} exists and was begun "
            f"{what.get(key, f'with another {key}')}; "
            f"give this one another --name, or go on with what it was begun with "
            f"({self.tuning.folder})"
        )

    def _run_default(self) -> None:
        """Run the config's own settings once, with the study's budget: what trials are to beat."""
        tuning = self.tuning
        folder = tuning.folder / TRIALS / "default"
        try:
            measures = self._measure_folds(folder, tuning.config)
        except TrialError as error:
            raise AegisError(
                f"the config's own settings fail in study {tuning.name}: {error}; "
                f"{folder / LOG} has the whole of it. Mend that first"
            ) from error
        self.study.set_user_attr("default", measures)

    def _measure_folds(
        self, folder: Path, config: Config, on_metrics: Callable[[Metrics], None] = lambda _: None
    ) -> dict[str, float]:
        """Return the mean of the folds' measures; the first tells how it goes."""
        rows = [self._measure(folder, config, on_metrics)]
        for fold in range(1, self.tuning.folds):
            again = with_settings(config, {"seed": config.seed + fold}, where="fold")
            rows.append(self._measure(folder / f"fold{fold}", again))
        return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}

    def _measure(
        self, folder: Path, config: Config, on_metrics: Callable[[Metrics], None] = lambda _: None
    ) -> dict[str, float]:
        tuning, until = self.tuning, self.tuning.plan.until
        watch: dict[str, Any] = {"check": tuning.check, "on_metrics": on_metrics}
        session = run_trial(folder, config, until, tuning.limits, **watch)
        last = until == config.train.algorithm
        record = TrainingRecord.read(session / ("adapter" if last else until))
        return tuning.plan.objective.measure(record)

    def _work(self, trials: int, failures: list[BaseException]) -> None:
        try:
            while not failures and self._take(trials):
                self.tuning.check()
        except BaseException as error:  # the main thread raises it
            failures.append(error)

    def _take(self, trials: int) -> bool:
        """Run the next trial; return False if there is none left to begin."""
        with contextlib.ExitStack() as asking:
            asking.enter_context(self._asking())
            study = self._join()
            fail_dead_trials(study)
            known = counted(study.get_trials(deepcopy=False))
            if len(known) >= trials:
                asking.close()
                time.sleep(_LOOK_S)  # for who was killed while asking
                return any(map(is_unsigned, known))

            def objective(trial: optuna.Trial) -> float | Sequence[float]:
                sign(trial)
                asking.close()
                return self._try(trial)

            caught = (TrialError, StoppedError, ConfigError)
            try:
                study.optimize(objective, n_trials=1, catch=caught, callbacks=[_queue_if_stopped])
            except (ValueError, AssertionError, UpdateFinishedTrialError) as error:
                taken = isinstance(error, UpdateFinishedTrialError)
                if not taken and "Cannot tell" not in f"{error} {error.__context__}":
                    raise  # else it was taken for dead, and another worker has it now
        return True

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Hold what one worker on this machine at a time may do."""
        with contextlib.ExitStack() as stack:
            while True:
                self.tuning.check()
                try:
                    stack.enter_context(only_process(self.tuning.folder, wait_s=_LOOK_S))
                    break
                except AegisError:
                    continue  # another asks, or measures the default
            yield

    def _join(self) -> optuna.Study:
        """Return the study with a sampler of its own, seeded by how far the study has come."""
        plan, count = self.tuning.plan, len(self.study.get_trials(deepcopy=False))
        seed = int(fingerprint(self.tuning.config.seed, count)[:8], 16)
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=_STARTUP_TRIALS, constant_liar=True
        )
        pruners: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
            "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=_STARTUP_TRIALS),
            "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=10, max_resource=100),
            "none": optuna.pruners.NopPruner,
        }
        return optuna.load_study(
            study_name=self.tuning.name,
            storage=self.storage,
            sampler=sampler,
            pruner=pruners[plan.pruner](),
        )

    def _try(self, trial: optuna.Trial) -> float | Sequence[float]:
        tuning, objective = self.tuning, self.tuning.plan.objective
        frozen = self.study.get_trials(deepcopy=False)[trial.number]
        folder = tuning.folder / TRIALS / f"{origin(frozen):04d}"
        pruning = not tuning.pareto and tuning.plan.pruner != "none"

        def report(event: Metrics) -> None:
            loss = event.values.get("validation_loss")
            if pruning and loss is not None and event.step < event.steps:
                trial.report(-loss, round(100 * event.step / event.steps))
                if trial.should_prune():
                    raise optuna.TrialPruned(f"validation loss {loss:.3f}")

        begun = time.monotonic()
        try:
            config = with_settings(tuning.config, tuning.plan.suggest(trial), where="trial")
            measures = self._measure_folds(folder, config, report)
        except StoppedError:
            trial.set_user_attr("stopped", True)
            raise
        except (TrialError, ConfigError) as error:
            trial.set_user_attr("failed", str(error))
            if objective.failed is None or tuning.pareto:
                raise
            return objective.failed
        finally:
            trial.set_user_attr("seconds", round(time.monotonic() - begun, 1))
        trial.set_user_attr("measures", measures)
        return objective.values(measures, pareto=tuning.pareto)

    def _require_some_success(self) -> None:
        trials = counted(self.study.get_trials(deepcopy=False))
        if trials and not any(map(succeeded, trials)):
            log = self.tuning.folder / TRIALS / f"{origin(trials[-1]):04d}" / LOG
            reason = trials[-1].user_attrs.get("failed", "pruned")
            raise AegisError(
                f"study {self.tuning.name}: none of {len(trials)} trials came to a result; the "
                f"last: {reason} ({log}). Mend that, or narrow the space, and run the same command "
                "with more --trials"
            )


def open_to_look(folder: Path) -> optuna.Study:
    """Open the study whose database lies in this folder.

    Raises:
        BadInputError: if the file is damaged, or holds no study.
    """
    url = f"sqlite:///{(folder / DATABASE).absolute()}"
    with explained(url):
        storage = open_storage(url)
        names = optuna.get_all_study_names(storage)
        if not names:
            raise BadInputError(f"{folder}: holds no study yet; start one with aegis tune")
        return optuna.load_study(study_name=names[0], storage=storage)


def _queue_if_stopped(study: optuna.Study, trial: FrozenTrial) -> None:
    if trial.state is TrialState.FAIL and trial.user_attrs.get("stopped"):
        queue_again(study, trial, most=None)
