"""aegis evaluate: how good a model's decisions are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aegis.cli.benchmarks import benchmarks
from aegis.cli.damage import damage
from aegis.cli.notify import Notify
from aegis.cli.options import INPUT, OUTPUT_FOLDER, AsJson, group, locate_model, number
from aegis.cli.show import echo, print_json, print_table

app = group("Measure a model.")
_MODEL = "A model folder; one without a decision head is asked by likelihood."
_DATA = 'JSON Lines with {"prompt", "decision"} a line.'
_OUTPUT = "Folder for metrics.json, items.jsonl and pictures (PNG, SVG)."
_SKIP_BAD = "Set bad lines aside in rejected.jsonl."
_CONFIDENCE = "Level of the intervals."

app.command()(benchmarks)
app.command()(damage)


@app.callback()
def _group() -> None:
    pass


@app.command()
def decisions(
    model: Annotated[Path, typer.Option(help=_MODEL, callback=INPUT)],
    data: Annotated[Path, typer.Option(help=_DATA, callback=INPUT)],
    output: Annotated[Path, typer.Option("-o", "--output", help=_OUTPUT, callback=OUTPUT_FOLDER)],
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help=_SKIP_BAD)] = False,
    confidence: Annotated[float, number(help=_CONFIDENCE, least=0.5, most=0.999)] = 0.95,
    notify: Notify = None,
    json: AsJson = False,
) -> None:
    """Measure decisions on labelled prompts: accuracy, F1, miss rate and over-refusal.

    Each stands with its n and an interval; the miss rate is the share of false positives.
    """
    from aegis.data.records import parse_record, read_jsonl, write_jsonl
    from aegis.storage.artifact import require_output, writing
    from aegis.storage.files import fingerprint, hash_file

    records, bad = read_jsonl(data, parse_record, skip_bad=skip_bad)
    require_output(output, kind="results", inputs=[model, data])
    folder = locate_model(model)

    from aegis.engine.judge import Judge
    from aegis.evaluate.decisions import evaluate_decisions, write_results
    from aegis.evaluate.figures import draw_decisions
    from aegis.evaluate.report import MEASURES, bound_sentences, format_measure

    judge = Judge.load(folder)
    results = evaluate_decisions(judge, records, confidence=confidence)
    content = fingerprint("decisions", hash_file(data), str(model))
    with writing(output, kind="results", fingerprint=content) as staging:
        write_results(staging, results)
        draw_decisions(staging, results, title=model.name)
        if bad:
            write_jsonl(staging / "rejected.jsonl", bad)
    if json:
        print_json({key: value for key, value in results.items() if key != "items"})
        return
    measures = [(name, results[key], "value") for key, name in MEASURES]
    measures += [(f"F1 {name}", row, "f1") for name, row in results["per_class"].items()]
    rows = [(name, *format_measure(row, key), str(row["n"])) for name, row, key in measures]
    print_table(("measure", "value", "interval", "n"), rows, title=f"{model}: {results['judge']}")
    echo("\n".join(bound_sentences(results)))
    echo(f"metrics  {output / 'metrics.json'}")
