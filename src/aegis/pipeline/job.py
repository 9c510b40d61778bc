"""`aegis run`: check everything, open the session, and run the four stages."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aegis.config import Config, dump_yaml
from aegis.data.mixture import check_datasets
from aegis.data.stage import collect
from aegis.errors import ConfigError, DataError, StoppedError, is_disk_full
from aegis.model.base import Base, resolve_base
from aegis.model.device import release_memory, set_threads
from aegis.model.embedded import MODELS
from aegis.model.preflight import check_attachable, check_prompts, check_weights
from aegis.pipeline.context import StepContext
from aegis.pipeline.runner import ArtifactWriter, Runner
from aegis.pipeline.steps import stages
from aegis.runs.events import Event, EventLog, Progress, Reporter, SessionBegun, SessionEnded
from aegis.runs.heartbeat import Heartbeat
from aegis.runs.process import this_process
from aegis.runs.progress_log import ProgressLog
from aegis.runs.record import Session, open_session
from aegis.runs.reporter import reporting
from aegis.runs.signals import Interrupt
from aegis.runs.trackers import require_trackers
from aegis.storage.files import fingerprint, require_space
from aegis.storage.lock import only_process

_MIB = 1 << 20


def run_pipeline(
    config: Config,
    *,
    resume: bool = True,
    reporter: Reporter | None = None,
    command: dict[str, Any] | None = None,
    until: str | None = None,
) -> Session:
    """Run or resume the four stages and return the session.

    Args:
        resume: go on with the newest session of this config, and take over what earlier ones have
            that is not stale; False starts anew and takes nothing over.
        reporter: gets every event.
        command: `argv` and `cwd` of this call, for the watcher that may have to repeat it.
        until: end after this step of training (sft, reward, ppo …) instead of going on; the same
            run can be taken up later.

    Raises:
        StoppedError: if a signal asked for a stop; what was finished is kept.
        AegisError: what went wrong, with its remedy. The session is then marked failed; finished
            stages stay.
    """
    set_threads(config.threads)
    with Interrupt() as interrupt:
        base = _check(config)
        interrupt.check()
        session = _open(config, resume=resume)
        with only_process(session.folder, wait_s=1):
            session.licence = MODELS[base.spec].accepted() if base.spec in MODELS else {}
            taken_over = session.take_over(command or {}, settings=dump_yaml(config))
            followers = reporter.subscribers if reporter else ()
            with _reporter(config, session, interrupt, Reporter(*followers)) as events:
                for note in session.notes:
                    events.warning(note)
                if taken_over:
                    events.message(taken_over)
                events.message(
                    f"session {session.session_id}, base {base.spec} "
                    f"({base.model_type}, width {base.hidden_size})"
                )
                context = StepContext(config, base, session, events, interrupt)
                writer = ArtifactWriter(session.folder.parent, reuse=resume)
                runner = Runner(context, writer, until=until, after_step=release_memory)
                runner.run(stages(config))
    return session


def _check(config: Config) -> Base:
    """Check all that can be checked before weights are loaded; return the base."""
    runs = Path(config.runs)
    if runs.exists() and not runs.is_dir():
        raise ConfigError(f"runs: {config.runs!r} is a file; give a folder")
    _require_writable(runs)
    require_trackers(config.tracking)
    records, _, topics, _ = collect(config.data)
    decisions = {record.decision for record in records} | {topic.decision for topic in topics}
    if len(decisions) < 2 and not config.train.datasets:
        raise DataError(
            "data.records must hold at least two of the four decisions, for a judge chooses among "
            f"them; all {len(records)} are {', '.join(each.name for each in decisions)}; "
            "add records of another decision, or set data.seed_records: true"
        )
    check_datasets(config)
    require_space(runs, 256 * _MIB)
    base = resolve_base(config.base, trust_remote_code=config.model.trust_remote_code)
    reward = config.train.reward.lora if config.train.algorithm not in ("sft", "dpo") else None
    check_attachable(base, config.model, reward=reward)
    check_weights(base)
    check_prompts(base, config.model)
    return base


def _require_writable(runs: Path) -> None:
    folder = runs.absolute()
    try:
        while not folder.exists():
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):  # in /proc and the like there is no room either
            pass
    except OSError as error:
        if is_disk_full(error):
            return  # which is told with what is needed
        raise ConfigError(
            f"runs: {str(runs)!r} cannot be written ({error.strerror}); "
            "give a folder that you may write to"
        ) from error


def _open(config: Config, *, resume: bool) -> Session:
    """Find or make the session to work on, one process at a time.

    Only what changes results tells sessions apart, not where they lie.
    """
    runs, kept = Path(config.runs), config.model_dump(mode="json", exclude={"durable", "tracking"})
    identity = fingerprint({**kept, "runs": type(config)().runs})
    with only_process(runs, wait_s=30):
        return open_session(
            runs,
            config_fingerprint=identity,
            resume=resume,
            stages=[stage.name for stage in stages(config)],
            settings=dump_yaml(config),
        )


@contextlib.contextmanager
def _reporter(
    config: Config, session: Session, interrupt: Interrupt, reporter: Reporter
) -> Iterator[Reporter]:
    """Yield the reporter with all that follows a run: record, signs of life, and stop signals.

    A stop comes last, so that the others know of the progress that it interrupts.
    """

    def stop(event: Event) -> None:
        if isinstance(event, Progress) and event.stoppable:
            interrupt.check()

    log = EventLog(session.folder, say=reporter.warning)
    progress = ProgressLog(session.folder, config.durable, say=reporter.warning)
    reporter.subscribers += [log, Heartbeat(session.folder, session.stage), progress, stop]
    begun, outcome, error = time.monotonic(), "failed", None
    reporter.emit(SessionBegun(session_id=session.session_id, pid=this_process().pid))
    with contextlib.closing(log), contextlib.closing(progress), reporting(reporter):
        try:
            yield reporter
            outcome = "completed" if session.finished else "stopped"
        except (KeyboardInterrupt, StoppedError) as stopped:
            outcome, error = "stopped", str(stopped)
            raise
        except BaseException as failure:
            error = str(failure) or type(failure).__name__
            raise
        finally:
            seconds = round(time.monotonic() - begun, 2)
            reporter.emit(SessionEnded(outcome=outcome, seconds=seconds, error=error))
