"""aegis data convert: files of any format into one data folder, or one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aegis.cli.options import INPUT, MAX_SEED, OUTPUT_FOLDER, AsJson, number
from aegis.cli.show import print_json, print_note, print_table
from aegis.errors import BadInputError

_INPUTS = "Files of records, pairs or texts in any format, data folders, Hugging Face folders."
_OUTPUT = "The data folder to write, or a file: .jsonl, .json, .csv, .tsv or .parquet."
_WEIGHT = (
    "Share of an input's items to take, one for each IN in their order, e.g. 0.5; 1 by default."
)
_SEED = "Put the items in an order that depends on this number and their ids alone."
_HUB = "Write a folder that Hugging Face's load_dataset reads: Parquet files and a card."


def convert(
    inputs: Annotated[list[Path], typer.Argument(metavar="IN…", help=_INPUTS, callback=INPUT)],
    output: Annotated[Path, typer.Option("-o", "--output", help=_OUTPUT, callback=OUTPUT_FOLDER)],
    weight: Annotated[list[float] | None, number(help=_WEIGHT, least=0.0001, most=1)] = None,
    seed: Annotated[int | None, number(help=_SEED, least=0, most=MAX_SEED)] = None,
    hugging_face: Annotated[bool, typer.Option("--hugging-face", help=_HUB)] = False,
    json: AsJson = False,
) -> None:
    """Read everything, merge it, write it; what cannot be used is kept with its reason.

    Which items a weight takes depends on their ids and the seed; the others are kept among the
    rejects, as everything that is left out.
    """
    from aegis.data.merge import Merge, convert_files

    if weight and len(weight) != len(inputs):
        raise BadInputError(
            f"--weight must be given once for each of the {len(inputs)} inputs, got {len(weight)}"
        )
    merge = Merge(tuple(inputs), tuple(weight or [1.0] * len(inputs)), seed)
    counts = convert_files(merge, output, hugging_face=hugging_face, say=print_note)
    if json:
        print_json({"output": str(output), "counts": counts})
        return
    rows = [(kind, f"{count:,}") for kind, count in sorted(counts.items())]
    print_table(("", "items"), rows, title=str(output))
