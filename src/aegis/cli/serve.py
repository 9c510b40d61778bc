"""aegis serve: answers over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aegis.cli import options
from aegis.cli.show import print_note
from aegis.errors import BadInputError

_MODEL = "A model or adapter folder that `aegis run` wrote, or a .gguf file."
_FOLDER = Path("runs/latest/model")
_ENGINE = "hf or gguf; by default gguf for a .gguf file, hf for a folder."
_HOST = "Address to listen on; any but a loopback one needs --tokens."
_TOKENS = "File of bearer tokens; see `aegis token new --help`."
_NAME = "What clients name the model by."
_AUDIT = "The audit log; by default audit/ beside the model."
_KEYS = "Its keys; by default audit.keys/, made at the first start."
_CASES = "The escalations; by default escalations.db beside the model."
_SEED = "Of requests that bring none; drawn each time by default."
_PLACES = "Requests answered or waiting at once; more get 429."
_RATE = "Requests a minute for each token; 0 for any number."
_BODY = "The largest body."
_ANSWER_S = "After so many seconds without an answer: status 504."
_GRACE_S = "So long may answers take once a stop was asked for."
_THREADS = "CPU threads; 0 for one a core."
_CANARY = "Put a random mark into the private context; no answer may hold it."


def serve(
    model: Annotated[Path, typer.Argument(help=_MODEL, callback=options.INPUT)] = _FOLDER,
    engine: Annotated[str | None, typer.Option(help=_ENGINE)] = None,
    host: Annotated[str, typer.Option(help=_HOST)] = "127.0.0.1",
    port: Annotated[int, options.number(help="TCP port.", least=1, most=65535)] = 8000,
    tokens: Annotated[Path | None, typer.Option(help=_TOKENS, callback=options.INPUT)] = None,
    model_name: Annotated[str, typer.Option("--model-name", "--name", help=_NAME)] = "aegis",
    base: options.AdapterBase = None,
    audit: Annotated[Path | None, typer.Option(help=_AUDIT, callback=options.OUTPUT_FOLDER)] = None,
    keys: Annotated[Path | None, typer.Option(help=_KEYS, callback=options.INPUT)] = None,
    cases: Annotated[Path | None, typer.Option(help=_CASES, callback=options.OUTPUT_FILE)] = None,
    section_tokens: options.SectionTokens = 48,
    final_tokens: options.FinalTokens = 160,
    temperature: options.Temperature = 0,
    seed: Annotated[int | None, options.number(help=_SEED, least=0, most=options.MAX_SEED)] = None,
    batch: Annotated[int, options.number(help="Answers sampled at once.", least=1, most=256)] = 16,
    places: Annotated[int, options.number(help=_PLACES, least=1, most=100_000)] = 64,
    rate: Annotated[int, options.number(help=_RATE, least=0, most=1_000_000)] = 120,
    body_bytes: Annotated[int, options.number(help=_BODY, least=1024, most=1 << 30)] = 262_144,
    answer_s: Annotated[float, options.number(help=_ANSWER_S, least=1, most=options.DAY_S)] = 120,
    grace_s: Annotated[float, options.number(help=_GRACE_S, least=0, most=options.DAY_S)] = 20,
    country: options.HelpLines = None,
    canary: Annotated[bool, typer.Option(help=_CANARY)] = True,
    threads: Annotated[int, options.number(help=_THREADS, least=0, most=1024)] = 0,
) -> None:
    """Serve answers: POST /think, OpenAI's POST /v1/chat/completions, an escalation queue, metrics.
    Ctrl-C ends it in order.

    Thinking stays private, every answer is recorded before it leaves, and what a person must decide
    waits in a queue for `aegis review`. docs/serve.md has the whole of it, with the threat model.
    """
    given = dict(locals())  # named as the settings are
    folder = options.locate_model(model)
    from aegis.serve import require_packages

    require_packages()
    from pydantic import ValidationError

    from aegis.serve.server import serve as run
    from aegis.serve.settings import ServeSettings

    try:
        settings = ServeSettings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).replace("_", "-")
        raise BadInputError(f"--{name}: {first['msg']}, got {first['input']!r:.80}") from None
    from functools import partial

    from aegis.web.app import with_pages

    run(settings, print_note, partial(with_pages, runs=folder.resolve().parent.parent))
