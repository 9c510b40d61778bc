"""aegis judge: decide about prompts."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer

from aegis.cli.notify import Notify
from aegis.cli.options import INPUT, OUTPUT_FILE, AsJson, locate_model
from aegis.cli.show import print_json, print_note, print_table
from aegis.errors import BadInputError

_MODEL = "A model folder that `aegis fold` or `aegis run` wrote."
_INPUT = 'JSON Lines with {"prompt"} a line; other fields are kept.'
_OUTPUT = "Where to write the verdicts; stdout by default."
_SKIP_BAD = "Pass over bad lines of --input and say how many."


def judge(
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts to decide about.")] = None,
    model: Annotated[Path, typer.Option(help=_MODEL, callback=INPUT)] = Path("runs/latest/model"),
    input_: Annotated[Path | None, typer.Option("--input", help=_INPUT, callback=INPUT)] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help=_OUTPUT, callback=OUTPUT_FILE)
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help=_SKIP_BAD)] = False,
    notify: Notify = None,
    json: AsJson = False,
) -> None:
    """Decide ALLOW, ESCALATION, DENY or REFUSE, with four probabilities; nothing is generated.

    Give prompts as arguments, or a file with --input; with --output, one verdict a line is written.
    """
    from aegis.cli.output import require_output_file, write_output
    from aegis.data.records import require_text

    if bool(prompts) == bool(input_):
        raise BadInputError("give either prompts as arguments or a file with --input, and not both")
    if output and input_:
        require_output_file(output, inputs=[input_, model])
    for prompt in prompts or []:
        require_text(prompt, "prompt", "argument")
    rows = [(f"prompt {number}", {"prompt": text}) for number, text in enumerate(prompts or [], 1)]
    if input_:
        rows = _read_rows(input_, skip_bad=skip_bad)

    model = locate_model(model)
    from aegis.engine.judge import Judge
    from aegis.runs.reporter import bar

    names, texts = [where for where, _ in rows], [row["prompt"] for _, row in rows]
    loaded = Judge.load(model)
    with bar("judging", len(rows)) as advance:
        verdicts = loaded.judge(texts, names=names, on_batch=advance)
    judged = [row | v.to_json() for (_, row), v in zip(rows, verdicts, strict=True)]
    if output:
        lines = [dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in judged]
        write_output(output, "".join(lines))
        print_note(f"{len(judged)} verdicts in {output}")
    elif json or input_:
        print_json(judged[0] if prompts and len(prompts) == 1 else judged)
    else:
        print_table(("prompt", "decision", "probabilities"), map(_cells, judged))


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    chances = "  ".join(f"{name} {p:.2f}" for name, p in row["probabilities"].items())
    return row["prompt"], row["decision"], chances


def _read_rows(path: Path, *, skip_bad: bool) -> list[tuple[str, dict[str, Any]]]:
    from aegis.data.records import read_jsonl, require_text

    def parse(raw: dict[str, Any], *, where: str) -> tuple[str, dict[str, Any]]:
        require_text(raw.get("prompt"), "prompt", where)
        return where, raw

    rows, bad = read_jsonl(path, parse, skip_bad=skip_bad)
    if bad:
        print_note(f"{len(bad)} bad lines passed over, the first: {bad[0].where}: {bad[0].reason}")
    return rows
