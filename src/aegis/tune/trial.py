"""One trial: our own steps of training in a process of its own, watched from outside.

`python -m aegis.tune.trial FOLDER STEP` runs FOLDER/config.yaml as far as STEP. It resumes what an
earlier process of the same trial has left, and saves itself when the process that started it ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from aegis.config import Config, dump_yaml, load_config
from aegis.errors import AegisError, StoppedError
from aegis.runs.events import Event, Metrics, Reporter, SessionBegun, read_events
from aegis.storage.files import make_folder, write_text
from aegis.storage.lock import only_process

CONFIG, LOG, SESSION = "config.yaml", "log.txt", "session.txt"
_POLL_S, _GRACE_S, _WAIT_S = 0.2, 60.0, 120.0
_COMMAND = (sys.executable, "-m", "aegis.tune.trial")
_CORES = os.cpu_count() or 1


class TrialError(AegisError):
    """A trial came to no result; the message says why."""


@dataclass(frozen=True)
class TrialLimits:
    """What a trial may use.

    Args:
        memory_gib: resident memory; None for any.
        threads: of its computations, where the config leaves them open.
    """

    timeout_s: float = 3600.0
    memory_gib: float | None = None
    threads: int = _CORES


def run_trial(
    folder: Path,
    config: Config,
    until: str,
    limits: TrialLimits,
    *,
    check: Callable[[], None] = lambda: None,
    on_metrics: Callable[[Metrics], None] = lambda _: None,
) -> Path:
    """Run the config as far as a step of training; return the session's folder.

    Args:
        folder: of the trial; gets the config and the log.
        check: called all the time; raises StoppedError to have the trial save itself and end.
        on_metrics: gets what the training measures; raises to have the trial end at once.

    Raises:
        TrialError: if it failed, or went over a limit.
    """
    make_folder(folder)
    write_text(folder / CONFIG, dump_yaml(config))
    (folder / SESSION).unlink(missing_ok=True)
    begun, seen = time.monotonic(), 0
    with _process(folder, until, limits) as child:
        try:
            while child.poll() is None:
                time.sleep(_POLL_S)
                check()
                seen = _tell(folder, seen, on_metrics)
                _require_within(limits, child, time.monotonic() - begun)
        except StoppedError:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_GRACE_S)
            raise
        except BaseException:
            child.kill()
            child.wait()
            if session := session_of(folder):  # nobody goes on with it
                shutil.rmtree(session / "checkpoints", ignore_errors=True)
            raise
    session = session_of(folder)
    if child.returncode or session is None:
        raise TrialError(_last_line(folder / LOG) or f"ended with code {child.returncode}")
    _tell(folder, seen, on_metrics)
    return session


def session_of(folder: Path) -> Path | None:
    """Return the run's folder of a trial that has begun."""
    with contextlib.suppress(OSError):
        return Path((folder / SESSION).read_text(encoding="utf-8"))
    return None


@contextlib.contextmanager
def _process(folder: Path, until: str, limits: TrialLimits) -> Iterator[subprocess.Popen[bytes]]:
    """Start the trial's process, and end it for sure when the block is left."""
    command = [*_COMMAND, str(folder), until]
    environment = {**os.environ, "OMP_NUM_THREADS": str(limits.threads)}
    with (folder / LOG).open("ab") as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # its end tells the child that we have ended, however
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,  # Ctrl-C is for us: we say when it is to stop
        )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
        if child.stdin:
            child.stdin.close()


def _tell(folder: Path, seen: int, on_metrics: Callable[[Metrics], None]) -> int:
    """Hand on what was measured since; return how much it is by now."""
    session = session_of(folder)
    events = [*read_events(session, Metrics)] if session else []
    for event in events[seen:]:
        on_metrics(event)
    return len(events)


def _require_within(limits: TrialLimits, child: subprocess.Popen[bytes], seconds: float) -> None:
    if seconds > limits.timeout_s:
        raise TrialError(f"timed out after {limits.timeout_s:g} s")
    if limits.memory_gib is not None:
        with contextlib.suppress(psutil.Error):
            used = psutil.Process(child.pid).memory_info().rss / 2**30
            if used > limits.memory_gib:
                raise TrialError(f"used {used:.1f} GiB, more than {limits.memory_gib:g} GiB")


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip()[:500] for line in reversed(lines) if line.strip()), "")


def main(folder: Path, until: str) -> int:
    """Run a trial in this process; return its exit code."""
    threading.Thread(target=_stop_with_parent, daemon=True).start()

    def note(event: Event) -> None:
        if isinstance(event, SessionBegun):
            runs = Path(config.runs).absolute()
            write_text(folder / SESSION, str(runs / event.session_id))

    try:
        config = load_config(folder / CONFIG)
        from aegis.pipeline import run_pipeline

        with only_process(folder, wait_s=_WAIT_S):  # another process may still be saving itself
            run_pipeline(config, reporter=Reporter(note), until=until)
    except AegisError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _stop_with_parent() -> None:
    """Ask for a stop when whoever started this process is gone; then end it."""
    while os.read(0, 1):  # sys.stdin's lock would be in the way of an ordinary exit
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_S)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
