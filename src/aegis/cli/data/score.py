"""aegis data score: how good a set's thinking is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from aegis.cli.options import INPUT, MAX_SEED, OUTPUT_FOLDER, AsJson, number
from aegis.cli.show import echo, print_json, print_note, print_table
from aegis.errors import BadInputError

_INPUTS = "Files of records, or data folders."
_OUTPUT = "Data folder to write: the records with their scores, what went, and why."
_GROW = "Rising sizes, e.g. 5000,10000: keep a size only if quality holds against the one before."
_LEAST = "Set records below this score aside."
_MARGIN = "With --grow: how much lower the mean of what a size adds may be."
_SEED = "With --grow: the order in which the set grows."
_WORKERS = "Processes; the scores are the same."


def score(
    inputs: Annotated[list[Path], typer.Argument(metavar="IN…", help=_INPUTS, callback=INPUT)],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help=_OUTPUT, callback=OUTPUT_FOLDER)
    ] = None,
    sizes: Annotated[str | None, typer.Option("--grow", metavar="N,N…", help=_GROW)] = None,
    least: Annotated[float, number(help=_LEAST, least=0, most=1)] = 0.0,
    margin: Annotated[float, number(help=_MARGIN, least=0, most=1)] = 0.02,
    seed: Annotated[int, number(help=_SEED, least=0, most=MAX_SEED)] = 0,
    workers: Annotated[int, number(help=_WORKERS, least=1, most=256)] = 1,
    json: AsJson = False,
) -> None:
    """Score records with thinking by rules: soundness, correctness, depth, language, format and
    diversity, each in [0, 1] with its reason.

    A record's own field "answer" (a choice's key, a number, a date or words) is what its answer
    must come to. Without -o nothing is written.
    """
    steps = _sizes(sizes)
    from aegis.data.folder import KIND
    from aegis.storage.artifact import require_output

    if output:
        require_output(output, kind=KIND, inputs=inputs)
    from aegis.data.formats import read_items
    from aegis.data.score.job import Scoring, score_items, write_scored
    from aegis.runs.reporter import bar

    scoring = Scoring(sizes=steps, least=least, margin=margin, seed=seed, workers=workers)
    scored = score_items(read_items(inputs), scoring, progress=bar)
    if output:
        write_scored(output, scored, scoring, inputs=inputs)
    if json:
        print_json({**scored.summary, "folder": output and str(output)})
        return
    _show(scored.summary)
    if output:
        print_note(f"scores of {scored.summary['scored']} records in {output / 'scores.jsonl'}")


def _show(summary: dict[str, Any]) -> None:
    rows = [("overall", f"{summary['mean']:.3f}")]
    rows += [(name, f"{value:.3f}") for name, value in summary["parts"].items()]
    for kind in ("language", "decision"):
        rows += [(f"{name} (n {n})", f"{mean:.3f}") for name, (n, mean) in summary[kind].items()]
    rows += [("distinct-2", f"{summary['distinct_2']:.3f}")]
    rows += [("self-BLEU", f"{summary['self_bleu']:.3f}")]
    print_table(("part", "mean"), rows, title=f"{summary['scored']} records")
    if summary["faults"]:
        faults = [(fault, str(count)) for fault, count in summary["faults"].items()]
        print_table(("fault", "records"), faults)
    echo("\n".join(stage["verdict"] for stage in summary["stages"]))
    for reason, count in summary["set_aside"].items():
        print_note(f"{count} set aside: {reason}")


def _sizes(text: str | None) -> list[int]:
    """Read the sizes of `--grow`.

    Raises:
        BadInputError: if they are not whole numbers that rise.
    """
    parts = (text or "").split(",") if text is not None else []
    if not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
        raise BadInputError(f"--grow must be whole numbers with commas, got {text!r}")
    sizes = [int(part) for part in parts]
    if any(after <= before for before, after in zip([0, *sizes], sizes, strict=False)):
        raise BadInputError(f"--grow must rise from 1 on, as 5000,10000, got {text!r}")
    return sizes
