"""A running server: everything checked before the model is loaded, and an end that leaves no stream
hanging."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import uvicorn
from starlette.types import ASGIApp

from aegis.audit import AuditKeys, AuditLog
from aegis.audit.keystore import ENVIRONMENT, default_keys_folder
from aegis.engine.protocol import Engine
from aegis.errors import BadInputError
from aegis.model.device import limit_shape_cache, set_threads
from aegis.runs.record import locate
from aegis.serve.app import build_app
from aegis.serve.escalations import QUEUE_FILE, CaseQueue
from aegis.serve.logs import log, log_to_stderr
from aegis.serve.metrics import ServerMetrics
from aegis.serve.middleware.access import is_loopback
from aegis.serve.service import AnswerService
from aegis.serve.settings import ServeSettings
from aegis.serve.tokens import TokenFile


def serve(
    settings: ServeSettings,
    report: Callable[[str], None],
    with_pages: Callable[[ASGIApp, AnswerService], ASGIApp] | None = None,
) -> None:
    """Answer until a stop signal; return when the last answer has left.

    Args:
        with_pages: adds the pages for people, where no tokens are asked for.
        report: told, a line at a time, what is served and where.

    Raises:
        BadInputError: if something cannot be used; the model has not been loaded then.
    """
    path = locate(settings.model)
    kind = _engine_kind(settings, path)
    require_guarded(settings.host, settings.tokens)
    tokens = TokenFile(settings.tokens) if settings.tokens else None
    if not settings.model_name.isprintable():
        raise BadInputError("--model-name must be printable characters; choose another")
    set_threads(settings.threads)
    log_to_stderr()
    home, metrics = _place(path).parent, ServerMetrics()
    audit_folder = settings.audit or home / "audit"
    _require_writable(home, settings)
    with contextlib.ExitStack() as stack:
        bound = stack.enter_context(contextlib.closing(bind(settings.host, settings.port)))
        cases = CaseQueue(settings.cases or home / QUEUE_FILE)
        stack.enter_context(contextlib.closing(cases))
        keys = _audit_keys(audit_folder, settings.keys, report)
        audit = stack.enter_context(AuditLog.open(audit_folder, keys))
        session = session_name(path)
        engine = _load_engine(kind, path, session, settings)
        stack.enter_context(contextlib.closing(engine))
        service = AnswerService(
            engine, audit=audit, cases=cases, settings=settings, metrics=metrics
        )
        app = build_app(service, cases, settings=settings, metrics=metrics, tokens=tokens)
        if with_pages and tokens is None:
            app = with_pages(app, service)
        report(
            f"model {settings.model_name} (session {session}), engine {kind}; "
            f"audit log {audit_folder}; escalations {cases.path}"
        )
        if tokens is None:
            report(
                "no tokens: everybody on this machine may ask and review; "
                "give --tokens FILE to change that"
            )
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        report(f"http://{host}:{settings.port}/docs")
        server = Server(app, service, grace_s=settings.grace_s)
        bound.listen(128)
        freeze_loaded_objects()
        server.run(sockets=[bound])
        if not server.started:
            raise BadInputError("the server could not start; its log says why")


def _engine_kind(settings: ServeSettings, path: Path) -> str:
    kind = settings.engine or ("gguf" if path.suffix.lower() == ".gguf" else "hf")
    if kind not in ("hf", "gguf"):
        raise BadInputError(f"--engine must be hf or gguf, got {kind!r}; give one of them")
    if not path.exists():
        raise BadInputError(
            f"{settings.model}: no such model; "
            "give a folder that `aegis run` wrote, or a .gguf file"
        )
    return kind


def _require_writable(home: Path, settings: ServeSettings) -> None:
    options = {"--audit FOLDER": settings.audit, "--cases FILE": settings.cases}
    missing = [option for option, given in options.items() if given is None]
    if missing and not os.access(home, os.W_OK):
        raise BadInputError(
            f"{home}: what the server writes would lie beside the model, and nothing can be "
            f"written there; give {' and '.join(missing)} elsewhere"
        )


def _place(path: Path) -> Path:
    """Follow links to a folder. One to a file, as in Hugging Face's cache, has the better name."""
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


def session_name(path: Path) -> str:
    """Return the file's stem, the folder's name or, where every run has a folder of that name, the
    run's."""
    path = _place(path)
    name = path.stem if path.is_file() else path.name
    name = path.parent.name if name in ("model", "adapter") else name
    return "".join(c if c.isprintable() else "?" for c in name)[:200] or "?"


def _audit_keys(log_folder: Path, keys: Path | None, report: Callable[[str], None]) -> AuditKeys:
    beside_log = default_keys_folder(log_folder)
    if keys or os.environ.get(ENVIRONMENT) or beside_log.exists() or log_folder.exists():
        return AuditKeys.load(keys or beside_log)
    made = AuditKeys.create(beside_log)
    report(
        f"made audit keys in {made.folder}; keep a copy of them elsewhere: nothing replaces them"
    )
    return made


def _load_engine(kind: str, path: Path, name: str, settings: ServeSettings) -> Engine:
    if kind == "gguf":
        from aegis.engine.llamacpp_engine import LlamaCppEngine

        file = None if path.is_dir() else path
        folder = path if path.is_dir() else path.parent
        folder = folder.parent if file and folder.name == "gguf" else folder
        engine = LlamaCppEngine.load(folder, file=file, slots=settings.batch)
        engine.name = name
        return engine
    from aegis.engine.local_thinker import LocalThinker
    from aegis.engine.transformers_engine import TransformersEngine

    limit_shape_cache()
    thinker = LocalThinker.load(path, base_spec=settings.base)
    return TransformersEngine(thinker, name=name, most_rows=settings.batch)


def require_guarded(host: str, tokens: Path | None) -> None:
    """Check that only this machine reaches the host, or tokens are asked for.

    Raises:
        BadInputError: if anybody could come in.
    """
    if tokens is None and not is_loopback(host):
        raise BadInputError(
            f"--host {host}: others could reach it, and no tokens are asked for; "
            "make some with `aegis token new NAME --tokens FILE` and give --tokens FILE"
        )


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that is bound but does not listen yet.

    Raises:
        BadInputError: if the host is none of this machine's, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.set_inheritable(True)
    except (OSError, OverflowError) as error:
        bound.close()
        reason = getattr(error, "strerror", None) or str(error)
        message = f"--host {host} --port {port}: {reason.lower()}; choose another"
        raise BadInputError(message) from error
    return bound


class Stoppable(Protocol):
    """What a server tells of a stop; see `AnswerService`."""

    draining: threading.Event
    stopping: threading.Event


class Server(uvicorn.Server):
    """uvicorn, which at a stop signal takes no new questions, gives those on their way `grace_s`
    and then lets them go."""

    def __init__(self, app: Any, service: Stoppable, *, grace_s: float = 20) -> None:
        config = uvicorn.Config(
            app,
            http="h11",  # the same wherever another parser happens to be installed
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            ws="none",
            timeout_keep_alive=15,
            timeout_graceful_shutdown=round(grace_s) + 5,
            h11_max_incomplete_event_size=1 << 16,
        )
        super().__init__(config)
        self.service, self.grace_s = service, grace_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.draining.set()
        loop = asyncio.get_running_loop()
        deadline = loop.call_later(self.grace_s, self.service.stopping.set)
        leaving = loop.create_task(self._leave())
        try:
            await super().shutdown(sockets)
            if self.force_exit:  # uvicorn leaves that out then
                await self.lifespan.shutdown()
        finally:
            deadline.cancel()
            leaving.cancel()

    async def _leave(self) -> None:
        """Once nobody waits any more, give what runs a moment to say so to its client."""
        while not self.service.stopping.is_set():
            await asyncio.sleep(0.1)
        await asyncio.sleep(1.0)
        for task in self.server_state.tasks:
            task.cancel()
        await asyncio.sleep(0)  # for their last words
        self.force_exit = True

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self.should_exit:
            self.service.stopping.set()
        else:
            name = signal.Signals(sig).name
            log.info("%s: finishing what was asked; once more to leave at once", name)
        self.service.draining.set()
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do as uvicorn does, but raise no signal again at the end: a stop that was asked for is no
        failure."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()


def freeze_loaded_objects() -> None:
    """Let collections of garbage pass by what is alive now: it lives as long as the process.

    Python looks for garbage among all that is old only once what is new comes to a quarter of it.
    Beside the six hundred thousand objects of torch and transformers that is late, and such a
    collection looks at every one of them.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # only a whole collection counts what is old anew
