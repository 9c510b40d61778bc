"""aegis export: a folded model goes out into the world."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from aegis.cli.notify import Notify
from aegis.cli.options import INPUT, OUTPUT_FOLDER, AsJson, OutputFile, group, locate_model
from aegis.cli.show import echo, print_document, print_json, print_note, print_table
from aegis.errors import BadInputError, LimitError

app = group("Hand a folded model on: GGUF files, Ollama, a model card.")
RUNS_MODEL = Path("runs/latest/model")
_COLUMNS = ["type", "MiB", "mean KL", "largest KL", "same top token", "max |Δlogit|", "limit", ""]
_MODEL = "A model folder that `aegis run` or `aegis fold` wrote."
_FOLDER = "Folder for the files instead of MODEL/gguf; MODEL stays as it is."
_TYPES = "GGUF types: f32, bf16, f16, Q8_0, Q6_K, Q5_K_M, Q4_K_M, …"
_IMATRIX = "A text by which the quantiser learns which weights matter."
_KL_LIMIT = "Mean KL a token above which a type is marked, and the exit code is 3."
_PRE_TOKENIZER = "llama.cpp's name of the pre-tokenizer, where the converter does not know it."
_WITH_GGUF = "A model folder with GGUF files in or below it."
_HOST = "The server; OLLAMA_HOST or http://127.0.0.1:11434 by default."
_DRY_RUN = "Print the Modelfile; ask no server."
_TYPE = "Which GGUF file; by default the smallest type within its certificate's limit."
_NAME = "The model's name; aegis-BASE by default."
_LICENSE = "The hub's id of the licence; the base's by default."
_RESULTS = "The results of a run; those beside MODEL by default."
FoldedModel = Annotated[Path, typer.Argument(help=_MODEL, callback=INPUT)]


@app.command()
def gguf(
    model: FoldedModel = RUNS_MODEL,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help=_FOLDER, callback=OUTPUT_FOLDER)
    ] = None,
    types: Annotated[str, typer.Option(help=_TYPES)] = "f16,Q8_0,Q4_K_M",
    imatrix: Annotated[Path | None, typer.Option(help=_IMATRIX, callback=INPUT)] = None,
    kl_limit: Annotated[list[str] | None, typer.Option(metavar="TYPE=NATS", help=_KL_LIMIT)] = None,
    pre_tokenizer: Annotated[str | None, typer.Option(help=_PRE_TOKENIZER)] = None,
    notify: Notify = None,
    json: AsJson = False,
) -> None:
    """Write GGUF files for llama.cpp, each with llama.cpp's logits compared with the model's.

    Types that are there already, made from this very model, are kept. certificate.json tells how
    far each is from the model: mean and largest KL, share of tokens with the same most probable
    next token.
    """
    model = locate_model(model)
    from aegis.export.gguf import FOLDER, GgufSettings, export_gguf, read_limits, read_types

    if imatrix and not imatrix.is_file():
        raise BadInputError(f"--imatrix {imatrix}: no such file; give a text file")
    settings = GgufSettings(read_types(types), read_limits(kl_limit or []), pre_tokenizer, imatrix)
    entries = export_gguf(model, settings, output=output, say=print_note)
    folder = output or model / FOLDER
    if json:
        print_json({"folder": str(folder), "gguf": entries})
    else:
        print_table(_COLUMNS, [_row(kind, entry) for kind, entry in entries.items()])
        echo(f"files    {folder}")
    if over := [kind for kind, entry in entries.items() if not entry["within"]]:
        entry = entries[over[0]]
        raise LimitError(
            f"{', '.join(over)}: mean KL {entry['kl_mean']:.3g} is over the limit "
            f"{entry['limit']:g}; the file is written and marked. Use a finer type, or raise the "
            f"limit with --kl-limit {over[0]}=NATS"
        )


def _row(kind: str, entry: dict[str, Any]) -> tuple[str, ...]:
    return (
        kind,
        f"{entry['bytes'] / 2**20:.0f}",
        f"{entry['kl_mean']:.2e}",
        f"{entry['kl_max']:.2e}",
        f"{entry['top1_agreement']:.4f}",
        f"{entry['max_abs_logit_difference']:.2e}",
        f"{entry['limit']:g}",
        "within" if entry["within"] else "OVER",
    )


@app.command()
def ollama(
    model: Annotated[Path, typer.Argument(help=_WITH_GGUF, callback=INPUT)] = RUNS_MODEL,
    name: Annotated[str, typer.Option(help="What the model is to be called in Ollama.")] = "aegis",
    type_: Annotated[str | None, typer.Option("--type", help=_TYPE)] = None,
    host: Annotated[str | None, typer.Option(metavar="URL", help=_HOST)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help=_DRY_RUN)] = False,
    notify: Notify = None,
    json: AsJson = False,
) -> None:
    """Create the model in Ollama and ask it a question of physics and for something harmful.

    Ollama shows all that a model writes: the private sections are no secret there. AEGIS's own
    server keeps them private.
    """
    model = locate_model(model)
    from aegis.export.modelfile import certified_types, make_modelfile, pick_gguf
    from aegis.export.ollama import create, host_url, require_name, smoke_test

    require_name(name)
    url = host_url(host)
    gguf_file = pick_gguf(model, type_)
    if entry := certified_types(model).get(kind := gguf_file.stem.rpartition("-")[2]):
        top1, kl = f"{entry['top1_agreement']:.0%}", f"{entry['kl_mean']:.3g}"
        print_note(f"{kind}: the model's most probable token at {top1} of places, mean KL {kl}")
    modelfile = make_modelfile(model, gguf_file)
    if modelfile.licence is None:
        print_note("the base's licence is not known, so the Modelfile names none")
    if dry_run:
        print_document(modelfile.text(source=str(gguf_file.resolve())))
        return
    create(modelfile, name=name, host=url, say=print_note)
    tests = smoke_test(name, host=url)
    if json:
        print_json({"name": name, "host": url, "smoke": [vars(test) for test in tests]})
    else:
        rows = [(t.question, t.wanted, t.shown, "pass" if t.passed else "FAIL") for t in tests]
        print_table(("question", "must be", "answer", ""), rows)
    if any(test.private for test in tests):
        print_note(
            "the raw replies hold private sections: whoever talks to Ollama sees them. "
            "`aegis think` shows the answer alone"
        )
    if failed := [test for test in tests if not test.passed]:
        raise LimitError(
            f"{name} is created, and {len(failed)} of {len(tests)} smoke tests failed: "
            f"{failed[0].question!r} was not {failed[0].wanted}. Ollama runs the bare weights, "
            "without the decision head; do not put this model before users"
        )


@app.command()
def card(
    model: FoldedModel = RUNS_MODEL,
    output: OutputFile = None,
    name: Annotated[str | None, typer.Option(help=_NAME)] = None,
    license_: Annotated[str | None, typer.Option("--license", metavar="ID", help=_LICENSE)] = None,
    results: Annotated[Path | None, typer.Option(help=_RESULTS, callback=INPUT)] = None,
) -> None:
    """Write a Hugging Face model card: what was measured, limits, how to use the model."""
    model = locate_model(model)
    from aegis.export.card import require_card_path, write_card
    from aegis.runs.record import locate
    from aegis.storage.files import write_output

    if output:
        require_card_path(output)
    results = locate(results) if results else None
    text = write_card(model, name=name, licence=license_, results=results)
    if output:
        write_output(output, text)
        print_note(f"card     {output}")
    else:
        print_document(text)
