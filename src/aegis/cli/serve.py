"""aegis serve: answers over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aegis.cli.options import AdapterBase, SectionTokens
from aegis.cli.show import print_note

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
_ANSWER_S = "After so many seconds the fixed refusal is the answer."
_GRACE_S = "So long may answers take once a stop was asked for."
_CANARY = "Put a random mark into the private context; no answer may hold it."


def serve(
    model: Annotated[Path, typer.Argument(help=_MODEL)] = Path("runs/latest/model"),
    engine: Annotated[str | None, typer.Option(help=_ENGINE)] = None,
    host: Annotated[str, typer.Option(help=_HOST)] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    tokens: Annotated[Path | None, typer.Option(help=_TOKENS)] = None,
    model_name: Annotated[str, typer.Option("--model-name", "--name", help=_NAME)] = "aegis",
    base: AdapterBase = None,
    audit: Annotated[Path | None, typer.Option(help=_AUDIT)] = None,
    keys: Annotated[Path | None, typer.Option(help=_KEYS)] = None,
    cases: Annotated[Path | None, typer.Option(help=_CASES)] = None,
    section_tokens: SectionTokens = 48,
    final_tokens: Annotated[int, typer.Option(min=1, max=1024, help=_FINAL_TOKENS)] = 160,
    temperature: Annotated[float, typer.Option(min=0, max=2, help=_TEMPERATURE)] = 0.7,
    seed: Annotated[int | None, typer.Option(min=0, help=_SEED)] = None,
    batch: Annotated[int, typer.Option(min=1, max=256, help="Answers sampled at once.")] = 16,
    places: Annotated[int, typer.Option(min=1, help=_PLACES)] = 64,
    rate: Annotated[int, typer.Option(min=0, help=_RATE)] = 120,
    body_bytes: Annotated[int, typer.Option(min=1024, help="The largest body.")] = 1 << 18,
    answer_s: Annotated[float, typer.Option(min=1, help=_ANSWER_S)] = 120,
    grace_s: Annotated[float, typer.Option(min=0, help=_GRACE_S)] = 20,
    canary: Annotated[bool, typer.Option(help=_CANARY)] = True,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 for one a core.")] = 0,
) -> None:
    """Serve answers: POST /think, OpenAI's POST /v1/chat/completions, an escalation queue, metrics.
    Ctrl-C ends it in order.

    Thinking stays private, every answer is recorded before it leaves, and what a person must decide
    waits in a queue for `aegis review`. docs/serve.md has the whole of it, with the threat model.
    """
    options = dict(locals())  # named as the settings are
    from aegis.serve import require_packages

    require_packages()

    from aegis.serve.server import serve as run
    from aegis.serve.settings import ServeSettings

    run(ServeSettings(**options), print_note)
