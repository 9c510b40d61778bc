"""Where a study is kept: Optuna's database, which may go away for a while, and dead workers."""

from __future__ import annotations

import contextlib
import functools
import platform
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import make_url
from sqlalchemy.exc import (
    ArgumentError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    PendingRollbackError,
    SQLAlchemyError,
)

from aegis.errors import BadInputError, MissingPackageError
from aegis.runs.process import Process, is_alive, this_process

STALE_S = 60
_POSTGRES = {  # a connection that was cut off is given up in seconds, not in a quarter of an hour
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
_PATIENCE_S, _MOST_RETRIES = 600.0, 3
_WORKER, _UNSIGNED_S = "worker", 10.0
_GONE = (OperationalError, InterfaceError, PendingRollbackError)
# What is asked of the database while trials run; beside Optuna's interface what its cache asks.
_CACHE = ("_create_new_trial", "_get_trials", "_get_stale_trial_ids", "_set_trial_param")
_CALL = re.compile(r"create_new_trial|record_heartbeat|[gs]et_(study|trial|all_trials)")
_CALLS = [name for name in vars(RDBStorage) if name in _CACHE or _CALL.match(name)]


class PatientStorage(RDBStorage):
    """Optuna's storage that waits, up to `patience_s`, while the database is not there."""

    patience_s = 0.0


def _patient(name: str) -> Callable[..., Any]:
    method = getattr(RDBStorage, name)

    @functools.wraps(method)
    def call(storage: PatientStorage, *args: Any, **named: Any) -> Any:
        begun = time.monotonic()
        while True:
            try:
                return method(storage, *args, **named)
            except StorageInternalError as error:
                waited = time.monotonic() - begun
                if not isinstance(error.__cause__, _GONE) or waited > storage.patience_s:
                    raise
                storage.remove_session()  # its connection is gone with the server
                time.sleep(1)

    return call


for _name in _CALLS:
    setattr(PatientStorage, _name, _patient(_name))


def open_storage(url: str, *, stale_s: int = STALE_S) -> PatientStorage:
    """Open or make the database.

    Args:
        stale_s: after so long without a sign of life a trial is taken for dead and run again.

    Raises:
        BadInputError: if there is none, or it cannot be written, or its driver is missing.
    """
    engine: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith("sqlite"):
        engine["connect_args"] = {"timeout": 60}
    elif url.startswith("postgresql"):
        engine["connect_args"] = _POSTGRES
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings(), explained(url):
        warnings.simplefilter("ignore", ExperimentalWarning)
        return PatientStorage(
            url,
            engine_kwargs=engine,
            heartbeat_interval=max(1, stale_s // 6),
            grace_period=stale_s,
            heartbeat_stale_trial_callback=queue_again,
        )


@contextlib.contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn what a database answers into an error with a remedy."""
    try:
        yield
    except (ImportError, NoSuchModuleError) as error:
        raise MissingPackageError(
            f"--storage: no driver for {url.partition(':')[0]} ({error}); for PostgreSQL: "
            "pip install 'psycopg[binary]', for MySQL: pip install pymysql and mysql+pymysql://…"
        ) from error
    except ArgumentError as error:
        raise BadInputError(
            "--storage must be a database URL such as sqlite:///study.db or "
            f"postgresql://user@host/name, got {url.partition(':')[0]!r}…"
        ) from error
    except (StorageInternalError, SQLAlchemyError, RuntimeError) as error:
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", None) or cause).strip().split("\n")[0]
        place = make_url(url).render_as_string(hide_password=True)
        raise BadInputError(
            f"--storage: {place}: {reason}; see that it is there and may be written, "
            "or give another"
        ) from error


def be_patient(storage: PatientStorage) -> None:
    """From now on wait for a database that is away: it was there."""
    storage.patience_s = _PATIENCE_S


def sign(trial: optuna.Trial) -> None:
    """Note in the trial which process runs it."""
    trial.set_user_attr(_WORKER, {"host": platform.node(), **asdict(this_process())})


def queue_again(
    study: optuna.Study, trial: FrozenTrial, *, most: int | None = _MOST_RETRIES
) -> None:
    """Put a trial that lost its worker back into the queue, with all that it was to try."""
    trial.user_attrs = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        RetryHeartbeatStaleTrialCallback(most)(study, trial)


def origin(trial: FrozenTrial) -> int:
    """Return the number under which the trial was begun first."""
    return int(trial.system_attrs.get("failed_trial", trial.number))


def is_unsigned(trial: FrozenTrial) -> bool:
    """Return whether the trial runs and no process has signed it, which follows at once."""
    return trial.state is TrialState.RUNNING and _WORKER not in trial.user_attrs


def fail_dead_trials(study: optuna.Study, *, unsigned_s: float = _UNSIGNED_S) -> None:
    """End the trials whose process on this machine is gone, and queue them again.

    Optuna's own heartbeat knows only of trials that have given one; a worker killed between asking
    for a trial and its first heartbeat would leave it RUNNING for ever.
    """
    for trial in study.get_trials(deepcopy=True, states=(TrialState.RUNNING,)):
        worker = dict(trial.user_attrs.get(_WORKER, {}))
        if worker:
            dead = worker.pop("host") == platform.node() and not is_alive(Process(**worker))
        else:
            begun = trial.datetime_start or datetime.now()
            dead = datetime.now() - begun > timedelta(seconds=unsigned_s)
        if dead:
            try:
                study.tell(trial.number, state=TrialState.FAIL)
            except (ValueError, UpdateFinishedTrialError):
                continue  # another worker was first
            queue_again(study, trial)


def counted(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials without those that wait, or that a later one has done again."""
    trials = list(trials)
    again = {number for trial in trials for number in trial.system_attrs.get("retry_history", ())}
    return [
        trial
        for trial in trials
        if trial.number not in again
        and trial.state is not TrialState.WAITING
        and not trial.user_attrs.get("stopped")
    ]
