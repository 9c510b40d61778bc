"""aegis serve: answers over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
    options = dict(locals())  # named as the settings are
    from importlib.util import find_spec

    from aegis.errors import MissingPackageError

    for package in ("cryptography", "fastapi", "prometheus_client", "uvicorn"):
        if find_spec(package) is None:
            raise MissingPackageError(
                f"aegis serve needs {package}; run: pip install 'aegis-so8t[serve]'"
            )
    from aegis.cli.show import print_note
    from aegis.serve.server import serve as run
    from aegis.serve.settings import ServeSettings

    run(ServeSettings(**options), print_note)
