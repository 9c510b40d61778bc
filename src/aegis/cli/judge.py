"""aegis judge: decide about prompts."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aegis.cli.notify import Notify
from aegis.cli.options import INPUT, AsJson, OutputFile, locate_model
from aegis.cli.show import echo, print_json, print_note, print_table
from aegis.errors import BadInputError, StoppedError

if TYPE_CHECKING:
    from aegis.engine.verdict import CalibratedHead

_MODEL = "A model folder that `aegis fold` or `aegis run` wrote."
_INPUT = 'JSON Lines with {"prompt"} a line; other fields are kept, "decision" as "given_decision".'
_PART = 128  # rows that a stop or a failure can cost
_SKIP_BAD = "Pass over bad lines of --input and say how many."


def judge(
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts to decide about.")] = None,
    model: Annotated[Path, typer.Option(help=_MODEL, callback=INPUT)] = Path("runs/latest/model"),
    input_: Annotated[Path | None, typer.Option("--input", help=_INPUT, callback=INPUT)] = None,
    output: OutputFile = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help=_SKIP_BAD)] = False,
    notify: Notify = None,
    json: AsJson = False,
) -> None:
    """Decide ALLOW, ESCALATION, DENY or REFUSE, with four probabilities; nothing is generated.

    Give prompts as arguments, or a file with --input; with --output, one verdict a line is written.
    """
    from aegis.cli.output import require_output_file
    from aegis.data.records import require_text
    from aegis.storage.files import open_output, partial_of

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

    loaded = Judge.load(model)
    for where, row in rows:
        loaded.encoder.fitting_ids(row["prompt"], where=where)
    judged: list[dict[str, Any]] = []
    opened = open_output(output) if output else contextlib.nullcontext()
    try:
        with opened as stream, bar("judging", len(rows)) as advance:
            for part in (rows[start : start + _PART] for start in range(0, len(rows), _PART)):
                names, texts = [where for where, _ in part], [row["prompt"] for _, row in part]
                verdicts = loaded.judge(texts, names=names, on_batch=advance)
                new = [_join(row, v.to_json()) for (_, row), v in zip(part, verdicts, strict=True)]
                if stream:
                    lines = [dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in new]
                    stream.write("".join(lines).encode())
                    stream.flush()
                judged += new
    except KeyboardInterrupt:
        kept = f" {len(judged)} verdicts are in {partial_of(output.resolve())};" if output else ""
        raise StoppedError(f"stopped;{kept} the same command begins anew") from None
    if output:
        print_note(f"{len(judged)} verdicts in {output}")
    elif json or input_:
        print_json(judged[0] if prompts and len(prompts) == 1 else judged)
    else:
        print_table(("prompt", "decision", "rule", "probabilities"), map(_cells, judged))
        _show_bound(loaded.head)


def _join(row: dict[str, Any], verdict: dict[str, Any]) -> dict[str, Any]:
    """Put both together; a field of the row's own with a name of the verdict's is `given_NAME`."""
    return {f"given_{key}" if key in verdict else key: row[key] for key in row} | verdict


def _show_bound(head: CalibratedHead | None) -> None:
    from aegis.evaluate.report import bound_sentences

    if head:
        echo("\n".join(bound_sentences({"calibration": asdict(head.calibration)})))


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    chances = "  ".join(f"{name} {p:.2f}" for name, p in row["probabilities"].items())
    return row["prompt"], row["decision"], row["rule"], chances


def _read_rows(path: Path, *, skip_bad: bool) -> list[tuple[str, dict[str, Any]]]:
    from aegis.data.records import read_jsonl, require_text

    def parse(raw: dict[str, Any], *, where: str) -> tuple[str, dict[str, Any]]:
        require_text(raw.get("prompt"), "prompt", where)
        return where, raw

    rows, bad = read_jsonl(path, parse, skip_bad=skip_bad)
    if bad:
        print_note(f"{len(bad)} bad lines passed over, the first: {bad[0].where}: {bad[0].reason}")
    return rows
