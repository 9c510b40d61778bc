"""aegis serve: answers over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from aegis.audit import AuditKeys
    from aegis.engine.protocol import Engine


def serve(
    model: Annotated[
        Path,
        typer.Argument(help="A model or adapter folder that `aegis run` wrote, or a .gguf file."),
    ] = Path("runs/latest/model"),
    engine: Annotated[
        str | None,
        typer.Option(help="hf or gguf; by default gguf for a .gguf file, hf for a folder."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but a loopback one needs --tokens.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    tokens: Annotated[
        Path | None, typer.Option(help="File of bearer tokens; see `aegis token new --help`.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The model's public name; by default that of its folder.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="An adapter's base, if it has moved.")] = None,
    audit: Annotated[
        Path | None, typer.Option(help="The audit log; by default audit/ beside the model.")
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(help="Its keys; by default audit.keys/, made at the first start.")
    ] = None,
    cases: Annotated[
        Path | None,
        typer.Option(help="The escalations; by default escalations.db beside the model."),
    ] = None,
    section_tokens: Annotated[
        int, typer.Option(min=1, help="At most so many tokens a private section.")
    ] = 48,
    final_tokens: Annotated[
        int, typer.Option(min=1, max=1024, help="Tokens of answer, if a request names none.")
    ] = 160,
    temperature: Annotated[
        float, typer.Option(min=0, max=2, help="If a request names none.")
    ] = 0.7,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Of requests that bring none; drawn each time by default."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=256, help="Answers sampled at once.")] = 16,
    places: Annotated[
        int, typer.Option(min=1, help="Requests answered or waiting at once; more get 429.")
    ] = 64,
    rate: Annotated[
        int, typer.Option(min=0, help="Requests a minute for each token; 0 for any number.")
    ] = 120,
    body_bytes: Annotated[int, typer.Option(min=1024, help="The largest body.")] = 1 << 18,
    answer_s: Annotated[
        float, typer.Option(min=1, help="After so many seconds the fixed refusal is the answer.")
    ] = 120,
    grace_s: Annotated[
        float, typer.Option(min=0, help="So long may answers take once a stop was asked for.")
    ] = 20,
    canary: Annotated[
        bool,
        typer.Option(help="Put a random mark into the private context; no answer may hold it."),
    ] = True,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 for one a core.")] = 0,
) -> None:
    """Serve answers: POST /think, OpenAI's POST /v1/chat/completions, an escalation queue, metrics.
    Ctrl-C ends it in order.

    Thinking stays private, every answer is recorded before it leaves, and what a person must decide
    waits in a queue for `aegis review`. docs/serve.md has the whole of it, with the threat model.
    """
    import contextlib
    import secrets

    from aegis.errors import BadInputError, MissingPackageError

    try:
        import cryptography  # noqa: F401
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            f"aegis serve needs {error.name}; run: pip install 'aegis-so8t[serve]'"
        ) from error

    from aegis.cli.show import tell
    from aegis.runs.record import locate
    from aegis.serve.server import bind, require_guarded
    from aegis.serve.tokens import TokenFile

    folder = locate(model)
    kind = engine or ("gguf" if folder.suffix.lower() == ".gguf" else "hf")
    if kind not in ("hf", "gguf"):
        raise BadInputError(f"--engine must be hf or gguf, got {kind!r}; give one of them")
    if not folder.exists():
        raise BadInputError(
            f"{model}: no such model; give a folder that `aegis run` wrote, or a .gguf file"
        )
    require_guarded(host, tokens)
    held = TokenFile(tokens) if tokens else None
    public = name or _public_name(folder)
    if not public.isprintable() or not 0 < len(public) <= 200:
        raise BadInputError("--name must be 1 to 200 printable characters; choose another")
    home = folder.resolve().parent

    from aegis.audit import AuditLog
    from aegis.model.device import set_threads
    from aegis.serve.app import ServeSettings, build_app
    from aegis.serve.escalations import FILE, CaseQueue
    from aegis.serve.metrics import Metrics
    from aegis.serve.server import log_to_stderr
    from aegis.serve.server import serve as run
    from aegis.serve.service import AnswerService, Observer

    set_threads(threads)
    log_to_stderr()
    log, metrics = audit or home / "audit", Metrics()
    settings = ServeSettings(
        final_tokens=final_tokens,
        temperature=temperature,
        seed=seed,
        places=places,
        body_bytes=body_bytes,
        rate_per_minute=rate,
    )
    with contextlib.ExitStack() as stack:
        bound = stack.enter_context(contextlib.closing(bind(host, port)))
        queue = stack.enter_context(contextlib.closing(CaseQueue(cases or home / FILE)))
        recorded = stack.enter_context(AuditLog.open(log, _keys(log, keys)))
        loaded = stack.enter_context(
            contextlib.closing(_load(kind, folder, public, base=base, batch=batch))
        )
        service = AnswerService(
            loaded,
            audit=recorded,
            cases=queue,
            section_tokens=section_tokens,
            answer_s=answer_s,
            canary_key=secrets.token_bytes(32) if canary else None,
            watched=Observer(metrics.decided, metrics.withheld),
        )
        tell(f"model {public}, engine {kind}; audit log {log}; escalations {queue.path}")
        if held is None:
            tell(
                "no tokens: everybody on this machine may ask and review; give --tokens FILE to change that"
            )
        tell(f"http://{f'[{host}]' if ':' in host else host}:{port}/docs")
        run(
            build_app(service, queue, settings=settings, metrics=metrics, tokens=held),
            service,
            bound,
            grace_s=grace_s,
        )


def _public_name(folder: Path) -> str:
    """The file's stem; the folder's name; or its session's, where every session has a folder of
    that name."""
    path = folder.resolve()
    if path.is_file():
        return path.stem
    return path.parent.name if path.name in ("model", "adapter") else path.name


def _keys(log: Path, keys: Path | None) -> AuditKeys:
    import os

    from aegis.audit import AuditKeys
    from aegis.audit.keystore import ENVIRONMENT, default_keys_folder
    from aegis.cli.show import tell

    if (
        keys is None
        and not os.environ.get(ENVIRONMENT)
        and not default_keys_folder(log).exists()
        and not log.exists()
    ):
        made = AuditKeys.create(default_keys_folder(log))
        tell(
            f"made audit keys in {made.folder}; keep a copy of them elsewhere: nothing replaces them"
        )
        return made
    return AuditKeys.load(keys or default_keys_folder(log))


def _load(kind: str, path: Path, name: str, *, base: str | None, batch: int) -> Engine:
    if kind == "gguf":
        from aegis.engine.llamacpp_engine import LlamaCppEngine

        folder = (
            path
            if path.is_dir()
            else path.parent.parent
            if path.parent.name == "gguf"
            else path.parent
        )
        loaded = LlamaCppEngine.load(folder, file=None if path.is_dir() else path, slots=batch)
        loaded.model = name
        return loaded
    from aegis.engine.local_thinker import LocalThinker
    from aegis.engine.transformers_engine import TransformersEngine
    from aegis.model.device import limit_shape_cache

    limit_shape_cache()
    return TransformersEngine(LocalThinker.load(path, base_spec=base), model=name, most_rows=batch)
