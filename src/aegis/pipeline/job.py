"""The main job: four durable stages in order. Each writes artifact folders; a finished one is never
computed twice."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from aegis.config import Config, dump_yaml
from aegis.data.mixture import check_datasets
from aegis.data.stage import collect
from aegis.errors import ConfigError, StoppedError
from aegis.model.adapted import check_attachable
from aegis.model.base import Base, resolve_base
from aegis.model.device import release_memory, set_threads
from aegis.pipeline import stages
from aegis.pipeline.context import Reached, Run, Say, Write
from aegis.runs.events import Event, EventLog, Message, Progress, Reporter, StageBegun
from aegis.runs.heartbeat import Heartbeat
from aegis.runs.progress_log import ProgressLog
from aegis.runs.record import Session, open_session
from aegis.runs.reporter import reporting
from aegis.runs.signals import Interrupt
from aegis.runs.trackers import require_trackers
from aegis.storage.files import fingerprint, require_space
from aegis.storage.lock import only_process
from aegis.train.packages import require_trl

STAGES = ("deep_research_data", "data_cleansing", "so8t_ppo_training", "aegis_v2_integration")
_MIB = 1 << 20


def run_pipeline(
    config: Config,
    *,
    resume: bool = True,
    say: Say = lambda _: None,
    command: dict[str, Any] | None = None,
    until: str | None = None,
) -> Session:
    """Run or resume the four stages and return the completed session.

    Args:
        resume: go on with the newest session of this config; False starts anew and takes nothing
            over.
        say: gets one line for each thing worth telling.
        until: end after this step of training (sft, reward, ppo …) instead of going on; the same
            run can be taken up later.
        command: `argv` and `cwd` of this call, for the watcher that may have to repeat it.

    Raises:
        StoppedError: if a signal asked for a stop; what was finished is kept.
        AegisError: what went wrong, with its remedy. The session is then marked failed; finished
            stages stay.
    """
    set_threads(config.threads)
    with Interrupt() as interrupt:
        base = _preflight(config)
        interrupt.check()
        session = _open(config, resume=resume)
        with only_process(session.folder, wait_s=1):
            if left := session.take_over(command or {}, settings=dump_yaml(config)):
                say(left)
            with _following(session, config, say, interrupt) as reporter:
                run = Run(config, base, session, say, interrupt, reporter, until)
                shape = f"{base.model_type}, width {base.hidden_size}"
                say(f"session {session.session_id}, base {base.spec} ({shape})")
                with contextlib.suppress(Reached):
                    _stages(run, adopting=resume)
    return session


def _open(config: Config, *, resume: bool) -> Session:
    """The session to work on, found or made by one process at a time. Only what changes results
    names it."""
    identity = fingerprint(config.model_dump(mode="json", exclude={"durable", "tracking"}))
    runs = Path(config.runs)
    with only_process(runs, wait_s=30):
        return open_session(
            runs,
            config_fingerprint=identity,
            resume=resume,
            stages=STAGES,
            settings=dump_yaml(config),
        )


@contextlib.contextmanager
def _following(
    session: Session, config: Config, say: Say, interrupt: Interrupt
) -> Iterator[Reporter]:
    """Yield the run's reporter, which the record's files follow and bars report to."""

    def say_message(event: Event) -> None:
        if isinstance(event, Message):
            say(event.text)

    def stop_if_asked(event: Event) -> None:
        if isinstance(event, Progress) and event.stoppable:
            interrupt.check()

    events = EventLog(session.folder, say=say)
    log = ProgressLog(session.folder, config.durable, say=say)
    heartbeat = Heartbeat(session.folder, session.stage)
    reporter = Reporter(events, heartbeat, log, say_message, stop_if_asked)
    with contextlib.closing(events), contextlib.closing(log), reporting(reporter):
        yield reporter


def _stages(run: Run, *, adopting: bool) -> None:
    steps = (
        stages.deep_research_data,
        stages.data_cleansing,
        stages.so8t_ppo_training,
        stages.aegis_v2_integration,
    )
    for name, step in zip(STAGES, steps, strict=True):
        run.interrupt.check()
        _stage(run, name, step, adopting=adopting)
        if run.until and name == "so8t_ppo_training":
            raise Reached
    run.session.stage = "completed"
    run.session.save()


def _preflight(config: Config) -> Base:
    """Check everything that can be checked before weights are loaded; return the base."""
    runs = Path(config.runs)
    if runs.exists() and not runs.is_dir():
        raise ConfigError(f"runs: {config.runs!r} is a file; give a folder")
    require_trackers(config.tracking)
    require_trl(config.train.algorithm)
    collect(config.data)
    check_datasets(config)
    require_space(runs, 256 * _MIB)
    base = resolve_base(config.base, trust_remote_code=config.model.trust_remote_code)
    reward = config.train.reward.lora if config.train.algorithm not in ("sft", "dpo") else None
    check_attachable(base, config.model, reward=reward)
    base.load_tokenizer()
    return base


def _stage(
    run: Run, name: str, step: Callable[[Run, Write], dict[str, str]], *, adopting: bool
) -> None:
    session, record = run.session, run.session.stage_record(name)
    session.stage, record.state, record.error = name, "running", None
    run.reporter.emit(StageBegun(stage=name))
    record.attempts += 1
    session.save()
    attempt = session.begin_attempt(name)
    started, begun = datetime.now().astimezone().isoformat(timespec="seconds"), time.monotonic()
    write = Write(run, adopting=adopting)
    try:
        record.artifacts = step(run, write)
    except Reached:
        record.state = "stopped"
        session.save()
        session.end_attempt(attempt, "stopped")
        raise
    except (KeyboardInterrupt, StoppedError):
        record.state = "stopped"
        session.save()
        session.end_attempt(attempt, "stopped")
        raise
    except BaseException as error:
        record.state, session.stage = "failed", "failed"
        record.error = str(error) or type(error).__name__
        with contextlib.suppress(
            Exception
        ):  # the first error is the one to tell, a full disk above all
            session.save()
            session.end_attempt(attempt, "failed")
        raise
    release_memory()
    elapsed = time.monotonic() - begun
    record.skipped = not write.computed
    if write.computed or record.seconds is None:
        record.started, record.seconds = started, round(elapsed, 2)
    record.state = "completed"
    session.save()
    session.end_attempt(attempt, "completed" if write.computed else "skipped")
    run.say(
        f"{name}: " + (f"done in {elapsed:.0f} s" if write.computed else "finished before, skipped")
    )
