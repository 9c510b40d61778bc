"""aegis serve: answers over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aegis.cli.options import (
    DAY_S,
    INPUT,
    MAX_SEED,
    MAX_TOKENS,
    OUTPUT_FILE,
    OUTPUT_FOLDER,
    AdapterBase,
    SectionTokens,
    locate_model,
    number,
)
from aegis.cli.show import print_note
from aegis.errors import BadInputError

_MODEL = "A model or adapter folder that `aegis run` wrote, or a .gguf file."
_ENGINE = "hf or gguf; by default gguf for a .gguf file, hf for a folder."
_HOST = "Address to listen on; any but a loopback one needs --tokens."
_TOKENS = "File of bearer tokens; see `aegis token new --help`."
_NAME = "What clients name the model by."
_AUDIT = "The audit log; by default audit/ beside the model."
_KEYS = "Its keys; by default audit.keys/, made at the first start."
_CASES = "The escalations; by default escalations.db beside the model."
_FINAL_TOKENS = "Tokens of answer, if a request names none."
_TEMPERATURE = "If a request names none."
_SEED = "Of requests that bring none; drawn each time by default."
_PLACES = "Requests answered or waiting at once; more get 429."
_RATE = "Requests a minute for each token; 0 for any number."
_BODY_BYTES = "The largest body."
_ANSWER_S = "After so many seconds the fixed refusal is the answer."
_GRACE_S = "So long may answers take once a stop was asked for."
_CANARY = "Put a random mark into the private context; no answer may hold it."


def serve(
    model: Annotated[Path, typer.Argument(help=_MODEL, callback=INPUT)] = Path("runs/latest/model"),
    engine: Annotated[str | None, typer.Option(help=_ENGINE)] = None,
    host: Annotated[str, typer.Option(help=_HOST)] = "127.0.0.1",
    port: Annotated[int, number(help="TCP port.", least=1, most=65535)] = 8000,
    tokens: Annotated[Path | None, typer.Option(help=_TOKENS, callback=INPUT)] = None,
    model_name: Annotated[str, typer.Option("--model-name", "--name", help=_NAME)] = "aegis",
    base: AdapterBase = None,
    audit: Annotated[Path | None, typer.Option(help=_AUDIT, callback=OUTPUT_FOLDER)] = None,
    keys: Annotated[Path | None, typer.Option(help=_KEYS, callback=INPUT)] = None,
    cases: Annotated[Path | None, typer.Option(help=_CASES, callback=OUTPUT_FILE)] = None,
    section_tokens: SectionTokens = 48,
    final_tokens: Annotated[int, number(help=_FINAL_TOKENS, least=1, most=MAX_TOKENS)] = 160,
    temperature: Annotated[float, number(help=_TEMPERATURE, least=0, most=2)] = 0.7,
    seed: Annotated[int | None, number(help=_SEED, least=0, most=MAX_SEED)] = None,
    batch: Annotated[int, number(help="Answers sampled at once.", least=1, most=256)] = 16,
    places: Annotated[int, number(help=_PLACES, least=1, most=100_000)] = 64,
    rate: Annotated[int, number(help=_RATE, least=0, most=1_000_000)] = 120,
    body_bytes: Annotated[int, number(help=_BODY_BYTES, least=1024, most=1 << 30)] = 1 << 18,
    answer_s: Annotated[float, number(help=_ANSWER_S, least=1, most=DAY_S)] = 120,
    grace_s: Annotated[float, number(help=_GRACE_S, least=0, most=DAY_S)] = 20,
    canary: Annotated[bool, typer.Option(help=_CANARY)] = True,
    threads: Annotated[int, number(help="CPU threads; 0 for one a core.", least=0, most=1024)] = 0,
) -> None:
    """Serve answers: POST /think, OpenAI's POST /v1/chat/completions, an escalation queue, metrics.
    Ctrl-C ends it in order.

    Thinking stays private, every answer is recorded before it leaves, and what a person must decide
    waits in a queue for `aegis review`. docs/serve.md has the whole of it, with the threat model.
    """
    options = dict(locals())  # named as the settings are
    locate_model(model)
    from aegis.serve import require_packages

    require_packages()
    from pydantic import ValidationError

    from aegis.serve.server import serve as run
    from aegis.serve.settings import ServeSettings

    try:
        settings = ServeSettings(**options)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).replace("_", "-")
        raise BadInputError(f"--{name}: {first['msg']}, got {first['input']!r:.80}") from None
    run(settings, print_note)
