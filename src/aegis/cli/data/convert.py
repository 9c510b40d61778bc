"""aegis data convert: files of any format into one data folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aegis.cli.options import INPUT, OUTPUT_FOLDER, AsJson
from aegis.cli.show import echo, print_json

_INPUTS = "Files of records, pairs or texts, or data folders."
_OUTPUT = "The data folder to write."


def convert(
    inputs: Annotated[list[Path], typer.Argument(metavar="IN…", help=_INPUTS, callback=INPUT)],
    output: Annotated[Path, typer.Option("-o", "--output", help=_OUTPUT, callback=OUTPUT_FOLDER)],
    json: AsJson = False,
) -> None:
    """Read everything, write one data folder; what is no record is kept in rejected.jsonl."""
    from aegis.data.folder import KIND, StepOutcome, writing_data
    from aegis.data.formats import read_items
    from aegis.storage.artifact import require_output
    from aegis.storage.files import fingerprint

    require_output(output, kind=KIND, inputs=inputs)
    with writing_data(output, fingerprint("convert", *map(str, inputs))) as writer:
        for item in read_items(inputs):
            writer.add(item)
        total, rejected = writer.counts.total(), writer.counts["rejected"]
        reasons = {"not usable": rejected} if rejected else {}
        writer.log(StepOutcome("convert", 1, total, total - rejected, reasons))
    if json:
        print_json({"folder": str(output), "counts": dict(writer.counts)})
        return
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(writer.counts.items()))
    echo(f"{output}: {counts or 'nothing'}")
