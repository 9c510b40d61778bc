"""aegis judge: decide about prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def judge(
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts to decide about.")] = None,
    model: Annotated[
        Path, typer.Option(help="A model folder that `aegis fold` or `aegis run` wrote.")
    ] = Path("runs/latest/model"),
    input_: Annotated[
        Path | None,
        typer.Option("--input", help='JSON Lines with {"prompt"} a line; other fields are kept.'),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Where to write the verdicts; stdout by default.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Pass over bad lines of --input and say how many.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Decide ALLOW, ESCALATION, DENY or REFUSE, with four probabilities; nothing is generated.

    Give prompts as arguments, or a file with --input; with --output, one verdict a line is written.
    """
    from aegis.cli.show import print_json, print_note, print_table
    from aegis.data.records import read_jsonl, require_text
    from aegis.errors import BadInputError
    from aegis.runs.record import locate

    if bool(prompts) == bool(input_):
        raise BadInputError("give either prompts as arguments or a file with --input, and not both")
    for prompt in prompts or []:
        require_text(prompt, "prompt", "argument")
    rows = [
        (f"prompt {number}", {"prompt": prompt}) for number, prompt in enumerate(prompts or [], 1)
    ]
    if output and output.is_dir():
        raise BadInputError(f"--output {output}: is a folder; give a file")
    if input_:
        rows, bad = read_jsonl(input_, _prompt_row, skip_bad=skip_bad)
        if bad:
            print_note(
                f"{len(bad)} bad lines passed over, the first: {bad[0].where}: {bad[0].reason}"
            )

    from aegis.engine.judge import Judge
    from aegis.runs.reporter import bar

    names = [where for where, _ in rows]
    loaded = Judge.load(locate(model))
    with bar("judging", len(rows)) as advance:
        verdicts = loaded.judge([row["prompt"] for _, row in rows], names=names, on_batch=advance)
    result = [
        {**row, **verdict.to_json()} for (_, row), verdict in zip(rows, verdicts, strict=True)
    ]
    if output:
        _write(output, result)
        print_note(f"{len(result)} verdicts in {output}")
    elif json or input_:
        print_json(result[0] if prompts and len(prompts) == 1 else result)
    else:
        table = [
            (
                row["prompt"],
                row["decision"],
                "  ".join(f"{name} {p:.2f}" for name, p in row["probabilities"].items()),
            )
            for row in result
        ]
        print_table(("prompt", "decision", "probabilities"), table)


def _prompt_row(raw: dict[str, Any], *, where: str) -> tuple[str, dict[str, Any]]:
    from aegis.data.records import require_text

    require_text(raw.get("prompt"), "prompt", where)
    return where, raw


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    import json

    from aegis.storage.files import make_folder, write_text

    make_folder(path.parent)
    write_text(
        path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    )
