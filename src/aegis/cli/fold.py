"""aegis fold: an adapter becomes an ordinary model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aegis.cli.notify import Notify
from aegis.cli.options import INPUT, OUTPUT_FOLDER, AdapterBase, AsJson, locate_model
from aegis.cli.show import echo, print_json, print_table, short
from aegis.errors import BadInputError

_ADAPTER = "An adapter folder that `aegis run` wrote."
_OUTPUT = "Folder for the folded model."
_DTYPES = ("float32", "bfloat16", "float16")


def fold(
    adapter: Annotated[Path, typer.Argument(help=_ADAPTER, callback=INPUT)],
    output: Annotated[Path, typer.Option("-o", "--output", help=_OUTPUT, callback=OUTPUT_FOLDER)],
    base: AdapterBase = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    notify: Notify = None,
    json: AsJson = False,
) -> None:
    """Fold LoRA and SO(8) gates into the base's weights; plain transformers loads the result.

    certificate.json compares live and folded model on fixed probe texts.
    """
    from aegis.config import ExportSettings
    from aegis.storage.artifact import require_output, writing
    from aegis.storage.files import fingerprint

    if dtype not in _DTYPES:
        raise BadInputError(f"--dtype must be float32, bfloat16 or float16, got {dtype!r}")
    require_output(output, kind="model", inputs=[adapter])
    folder = locate_model(adapter)

    from aegis.export.fold import prepare, write_model

    folding = prepare(folder, base_spec=base)
    settings = ExportSettings(dtype=dtype, min_top1_agreement=0.0)
    content = fingerprint("fold", folding.base.fingerprint, folding.card.training, dtype)
    with writing(output, kind="model", fingerprint=content) as staging:
        figures = write_model(folding, staging, settings).to_json()
    if json:
        print_json(figures)
        return
    del figures["probes_sha256"]
    rows = [(key.replace("_", " "), short(value)) for key, value in figures.items()]
    print_table(("certificate", ""), rows)
    echo(f"model    {output}")
