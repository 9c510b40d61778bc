"""aegis think: one question, one public answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def think(
    prompt: Annotated[str, typer.Argument(help="What to ask.")],
    model: Annotated[
        Path, typer.Option(help="An adapter or a model folder that `aegis run` wrote.")
    ] = Path("runs/latest/adapter"),
    base: Annotated[str | None, typer.Option(help="The adapter's base, if it has moved.")] = None,
    paths: Annotated[
        int, typer.Option(min=1, max=64, help="Ways of thinking to weigh against each other.")
    ] = 1,
    threshold: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="With several paths: below this score the decision becomes ESCALATION.",
        ),
    ] = 0.5,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 takes the most probable token.")
    ] = 0.7,
    section_tokens: Annotated[
        int, typer.Option(min=1, help="At most so many tokens a private section.")
    ] = 48,
    final_tokens: Annotated[
        int, typer.Option(min=1, help="At most so many tokens of answer.")
    ] = 160,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same answer.")] = 0,
    debug_private: Annotated[
        bool,
        typer.Option(
            "--debug-private",
            help="Show the private sections too, to you, the owner of this machine.",
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Let a model think in private about one question and print its public answer, nothing else.

    With --paths n it thinks n times; where the ways do not agree, the decision becomes ESCALATION.
    """
    from aegis.cli.show import print_json
    from aegis.data.records import require_text
    from aegis.runs.record import locate

    text = require_text(prompt, "prompt", "argument")

    from aegis.engine.answer import answer
    from aegis.engine.local_thinker import LocalThinker
    from aegis.engine.response_grammar import Limits, Sampling

    limits = Limits(section=section_tokens, final=final_tokens)
    sampling = Sampling(limits, temperature, seed)
    engine = LocalThinker.load(locate(model), base_spec=base)
    given = answer(engine, text, sampling, paths=paths, threshold=threshold)
    if debug_private:
        for number, path in enumerate(given.paths, 1):
            for name, body in path.bodies().items():
                typer.echo(f"[private {number}] {name}: {body.reveal()}", err=True)
            typer.echo(f"[private {number}] answer: {path.public}", err=True)
    if json:
        print_json(given.to_json())
    else:
        typer.echo(given.final)
