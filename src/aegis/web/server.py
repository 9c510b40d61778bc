"""The pages as a server of their own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from aegis.audit import AuditKeys
from aegis.audit.keystore import default_keys_folder
from aegis.audit.reader import segments
from aegis.errors import BadInputError
from aegis.runs.health import is_session
from aegis.runs.record import LATEST, locate
from aegis.serve.escalations import QUEUE_FILE, CaseQueue
from aegis.serve.middleware.access import is_loopback
from aegis.serve.reviews import ReviewDesk
from aegis.serve.server import Server, bind
from aegis.web.app import build_ui
from aegis.web.audit_pages import AuditPages
from aegis.web.review_pages import audit_recorder


@dataclass
class _NoService:
    """Nothing that a stop must wait for."""

    draining: threading.Event = field(default_factory=threading.Event)
    stopping: threading.Event = field(default_factory=threading.Event)


def require_runs(runs: Path) -> None:
    """Raise BadInputError unless this is a folder of runs, or of runs to come."""
    if not runs.is_dir():
        raise BadInputError(
            f"{runs}: no such folder; start a run with: aegis run examples/quickstart.yaml"
        )
    if is_session(runs):
        raise BadInputError(
            f"{runs}: is one run; give the folder of all runs, {runs.resolve().parent}"
        )


def serve_ui(
    runs: Path, host: str, port: int, report: Callable[[str], None], *, cases: Path | None = None
) -> None:
    """Show the runs of a folder, and a queue, until a stop signal.

    Args:
        cases: the queue; None: the newest run's, if it has one.

    Raises:
        BadInputError: if there is no such folder, or others than this machine could come in.
    """
    require_runs(runs)
    require_loopback(host)
    queue = locate(cases or runs / LATEST / QUEUE_FILE)
    if cases and not queue.is_file():
        raise BadInputError(
            f"--cases {cases}: no such queue; `aegis serve` makes it beside its model"
        )
    with contextlib.ExitStack() as stack:
        bound = stack.enter_context(contextlib.closing(bind(host, port)))
        desk, audit, folder = None, None, queue.resolve().parent / "audit"
        if queue.is_file():
            opened = stack.enter_context(contextlib.closing(CaseQueue(queue)))
            desk = ReviewDesk(opened, audit_recorder(folder))
        if segments(folder):
            audit = AuditPages(folder, AuditKeys.load(default_keys_folder(folder)))
        server = Server(build_ui(runs, desk, audit=audit), _NoService(), grace_s=0)
        bound.listen(128)
        shown = f"[{host}]" if ":" in host else host
        report(f"http://{shown}:{port}/ui")
        server.run(sockets=[bound])


def require_loopback(host: str) -> None:
    """Check that only this machine reaches the host.

    Raises:
        BadInputError: if others do: the pages ask nobody who they are.
    """
    if not is_loopback(host):
        raise BadInputError(
            f"--host must be a loopback address, got {host}: whoever reaches the page sees the "
            "runs; from elsewhere use ssh -L, or leave --host out"
        )
