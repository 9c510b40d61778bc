"""aegis think: one question, one public answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aegis.cli import options
from aegis.cli.show import echo, print_document, print_json

_MODEL = "An adapter or a model folder that `aegis run` wrote."
_FOLDER = Path("runs/latest/adapter")
_PATHS = "Ways of thinking to weigh against each other."
_THRESHOLD = "With several paths: below this score the decision becomes ESCALATION."
_TEMPERATURE = (
    "0 takes the most probable token.  [default: 0; with several paths, which are to differ, 0.7]"
)
_SEED = "The same seed gives the same answer."
_PRIVATE = "Show the private sections too, to you, the owner of this machine."


def think(
    prompt: Annotated[str, typer.Argument(help="What to ask.")],
    model: Annotated[Path, typer.Option(help=_MODEL, callback=options.INPUT)] = _FOLDER,
    base: options.AdapterBase = None,
    paths: Annotated[int, options.number(help=_PATHS, least=1, most=64)] = 1,
    threshold: Annotated[float, options.number(help=_THRESHOLD, least=0, most=1)] = 0.5,
    temperature: Annotated[float | None, options.number(help=_TEMPERATURE, least=0, most=2)] = None,
    section_tokens: options.SectionTokens = 48,
    final_tokens: options.FinalTokens = 160,
    seed: Annotated[int, options.number(help=_SEED, least=0, most=options.MAX_SEED)] = 0,
    country: options.HelpLines = None,
    debug_private: Annotated[bool, typer.Option("--debug-private", help=_PRIVATE)] = False,
    json: options.AsJson = False,
) -> None:
    """Let a model think in private about one question and print its public answer, nothing else.

    With --paths n it thinks n times; where the ways do not agree, the decision becomes ESCALATION.
    """
    from aegis.data.records import require_text

    text = require_text(prompt, "prompt", "argument")
    folder = options.locate_model(model)

    from aegis.engine.answer import answer
    from aegis.engine.local_thinker import LocalThinker
    from aegis.engine.response_grammar import Limits, Sampling

    limits = Limits(section=section_tokens, final=final_tokens)
    if temperature is None:
        temperature = Sampling.temperature if paths > 1 else 0.0
    sampling = Sampling(limits, temperature, seed)
    engine = LocalThinker.load(folder, base_spec=base)
    given = answer(engine, text, sampling, paths=paths, threshold=threshold, country=country)
    if debug_private:
        for number, path in enumerate(given.paths, 1):
            for name, body in path.bodies().items():
                echo(f"[private {number}] {name}: {body.reveal()}", err=True)
            echo(f"[private {number}] answer: {path.public}", err=True)
    if json:
        print_json(given.to_json())
    else:
        print_document(f"{given.final}\n")
