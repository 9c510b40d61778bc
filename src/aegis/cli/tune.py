"""aegis tune: better settings, from real trainings."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aegis.cli.notify import Notify
from aegis.cli.options import AcceptLicence, AsJson, ConfigFile, Overrides, load_settings, number
from aegis.cli.show import echo, print_json, print_table
from aegis.errors import BadInputError, MissingPackageError, StoppedError

if TYPE_CHECKING:
    from aegis.runs.signals import Interrupt
    from aegis.tune.report import StudyResult
    from aegis.tune.study import StudyWorkers

_STUDY = "alpha-schedule, aegis or recovery, or a YAML file of your own (docs/tuning.md)."
_TRIALS = "Trials of the study in all, those of other workers included."
_WORKERS = "Trials at a time here; the cores are shared among them."
_STORAGE = "Database URL for workers on several machines; by default a file in the study's folder."
_TIMEOUT = "Seconds after which a trial is ended."
_MEMORY = "GiB of memory over which a trial is ended."
_UNTIL = "Time of day, as 07:00, from which no trial runs on; what is unfinished waits."
_PARETO = "Each measure of the objective for itself: the front of what cannot be had together."
_FOLDS = "Trainings of a trial, each with another seed and split of the records; their mean counts."
_SEEDS = "Seeds with which the best is compared to the config's own settings at last; 0 for none."
_NAME = "Name of the study, for another one of the same kind."


def tune(
    study: Annotated[str, typer.Argument(help=_STUDY)],
    config: ConfigFile,
    trials: Annotated[int, number(help=_TRIALS, least=1, most=100_000)] = 20,
    workers: Annotated[int, number(help=_WORKERS, least=1, most=256)] = 1,
    storage: Annotated[str, typer.Option(metavar="URL", help=_STORAGE)] = "",
    timeout_per_trial: Annotated[float, number(help=_TIMEOUT, least=1, most=1e7)] = 3600.0,
    memory_per_trial: Annotated[float | None, number(help=_MEMORY, least=0.1, most=1e5)] = None,
    until: Annotated[str, typer.Option(metavar="HH:MM", help=_UNTIL)] = "",
    folds: Annotated[int, number(help=_FOLDS, least=1, most=100)] = 1,
    seeds: Annotated[int, number(help=_SEEDS, least=0, most=1000)] = 3,
    pareto: Annotated[bool, typer.Option("--pareto", help=_PARETO)] = False,
    name: Annotated[str, typer.Option(metavar="NAME", help=_NAME)] = "",
    set_: Overrides = None,
    accept_licence: AcceptLicence = None,
    notify: Notify = None,
    json: AsJson = False,
) -> None:
    """Try settings in short real trainings and keep the best.

    The same command goes on with the study, here or, with --storage, on another machine at the
    same time. Writes optimal_hyperparameters.json, summary.md and report.html into
    RUNS/studies/NAME; use them with: aegis run CONFIG --set-from FILE.
    """
    ends = _next(until) if until else None
    if name and not re.fullmatch(r"[\w-]{1,64}", name):
        raise BadInputError(f"--name must be 1 to 64 letters, digits, - or _, got {name[:80]!r}")
    settings = load_settings(config, set_ or [])
    try:
        from aegis.tune.study import StudyWorkers, prepare
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"tuning needs {error.name}: pip install 'aegis-so8t[tune]'"
        ) from error
    from aegis.runs.signals import Interrupt
    from aegis.tune.space import read_plan
    from aegis.tune.trial import TrialLimits

    tuning = prepare(read_plan(study), settings, pareto=pareto, name=name)
    threads = max(1, (os.cpu_count() or 1) // workers)
    limits = TrialLimits(timeout_per_trial, memory_per_trial, threads)
    with Interrupt() as interrupt:
        check = _Check(interrupt, ends)
        how = {"limits": limits, "storage": storage, "folds": folds, "check": check}
        work = StudyWorkers(replace(tuning, **how))
        try:
            work.run(trials, workers=workers)
            work.compare(seeds, workers=workers)
        except StoppedError:
            if not check.time_is_up:
                raise
            echo(f"it is {until}: unfinished trials wait for the next call", err=True)
        finally:
            result = _write(work)
    _print(tuning.folder, result, json=json)


def _write(work: StudyWorkers) -> StudyResult | None:
    from aegis.tune.pictures import write_report
    from aegis.tune.report import write_results

    folder = work.tuning.folder
    result = write_results(folder, work.study, work.tuning.config)
    if result:
        write_report(folder, work.study, result)
    return result


def _print(folder: Path, result: StudyResult | None, *, json: bool) -> None:
    from aegis.tune.report import SETTINGS_FILE, measure_rows, setting_rows

    if json:
        print_json(result.to_json() if result else None)
        return
    if result is None:
        echo("no trial has come to a result yet")
        return
    title = f"study {result.name}: {result.told_trials}"
    print_table(("setting", *result.columns), setting_rows(result), title=title)
    print_table(("measure", *result.columns), measure_rows(result))
    echo(result.sentence)
    echo(f"use them with: aegis run CONFIG --set-from {folder / SETTINGS_FILE}")


def show_study(folder: Path, *, json: bool) -> None:
    """Print how a study in this folder stands, without changing it."""
    try:
        from aegis.tune.report import describe, trial_rows
        from aegis.tune.study import open_to_look
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"a study needs {error.name}: pip install 'aegis-so8t[tune]'"
        ) from error
    study = open_to_look(folder)
    rows = trial_rows(study)
    if json:
        print_json({"study": study.study_name, "trials": rows})
        return
    columns = ("trial", "state", "objective", "seconds", "settings")
    cells = [[str(row[name]) for name in columns] for row in rows]
    print_table(columns, cells, title=f"study {study.study_name}")
    echo(describe(study))


class _Check:
    """Raises StoppedError after a stop signal, or from a time on."""

    def __init__(self, interrupt: Interrupt, ends: datetime | None) -> None:
        self.interrupt, self.ends = interrupt, ends

    @property
    def time_is_up(self) -> bool:
        return self.ends is not None and datetime.now() >= self.ends

    def __call__(self) -> None:
        self.interrupt.check()
        if self.time_is_up:
            raise StoppedError("the time given by --until is reached; what was finished is kept")


def _next(text: str) -> datetime:
    """Return when it is that time of day next."""
    try:
        at = datetime.strptime(text, "%H:%M")
    except ValueError as error:
        raise BadInputError(f"--until must be a time of day as 07:00, got {text!r}") from error
    now = datetime.now()
    then = now.replace(hour=at.hour, minute=at.minute, second=0, microsecond=0)
    return then if then > now else then + timedelta(days=1)
