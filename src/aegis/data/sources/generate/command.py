"""Run another program as a backend: in an empty folder, with a bare environment, and to its end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_KEPT = {"PATH", "HOME", "USER", "LOGNAME", "LANG", "TMPDIR", "TZ", "SYSTEMROOT", "APPDATA"}
_KEPT |= {"USERPROFILE", "LOCALAPPDATA", "TEMP", "TMP", "PATHEXT", "COMSPEC"}  # Windows
_KEPT |= {"SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS"}
_KEPT |= {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"}
_PLAIN = {"TERM": "dumb", "NO_COLOR": "1"}
_LOOK_EVERY_S = 0.02


@dataclass(frozen=True)
class Finished:
    """How a program ended: its exit code, or why it was ended, and what it wrote."""

    code: int | None
    stdout: str
    stderr: str
    ended_because: str = ""


def bare_environment(names: Iterable[str] = ()) -> dict[str, str]:
    """Return what of the environment every program needs, and the variables that it is named."""
    kept = _KEPT | {name.upper() for name in names}
    return {
        name: value
        for name, value in os.environ.items()
        if name.upper() in kept or name.startswith("LC_")
    } | _PLAIN


@contextlib.contextmanager
def empty_folder() -> Iterator[Path]:
    """Yield a folder for one call's files, in which `work` is empty and read-only."""
    with tempfile.TemporaryDirectory(prefix="aegis-", ignore_cleanup_errors=True) as name:
        work = Path(name) / "work"
        work.mkdir(mode=0o500)
        try:
            yield Path(name)
        finally:
            work.chmod(0o700)


def run_command(
    arguments: Sequence[str],
    prompt: str,
    *,
    folder: Path,
    environment: dict[str, str],
    timeout_s: float,
    most_bytes: int = 8 << 20,
) -> Finished:
    """Run a program in `folder/work` with the prompt on its stdin, and end its process group.

    Input and output are files, so that neither a program that reads nothing, nor one that writes
    without end, nor a child that outlives it can make this wait.

    Raises:
        OSError: if it cannot be started.
    """
    with contextlib.ExitStack() as stack:
        stdin, stdout, stderr = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        stdin.write(prompt.encode())
        stdin.seek(0)
        process = subprocess.Popen(
            list(arguments),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=folder / "work",
            env=environment,
            start_new_session=True,
        )
        try:
            because = _watch(process, (stdout, stderr), time.monotonic() + timeout_s, most_bytes)
        finally:
            _end_all(process)
        code = None if because else process.returncode
        return Finished(code, _text(stdout, most_bytes), _text(stderr, most_bytes), because)


def _watch(
    process: subprocess.Popen[bytes],
    streams: Sequence[BinaryIO],
    deadline: float,
    most_bytes: int,
) -> str:
    """Wait for the program's end; return why it must be ended, if it must."""
    begun = time.monotonic()
    while not _has_ended(process):
        if any(os.fstat(stream.fileno()).st_size > most_bytes for stream in streams):
            return f"wrote more than {most_bytes >> 20} MiB"
        if time.monotonic() > deadline:
            return f"did not end within {deadline - begun:.0f} s"
        time.sleep(_LOOK_EVERY_S)
    return ""


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Look without collecting the exit code: until then the group's number is not used again."""
    if not hasattr(os, "waitid"):  # Windows
        return process.poll() is not None
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process.pid, flags) is not None


def _end_all(process: subprocess.Popen[bytes]) -> None:
    """Kill the program with its process group, and collect it."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    elif process.poll() is None:
        process.kill()
    process.wait()


def _text(stream: BinaryIO, most_bytes: int) -> str:
    stream.seek(0)
    return stream.read(most_bytes).decode("utf-8", "replace")
